"""Stored teacher logits in a training loop: records to batches of tensors, and losses against a student's logits.

    stored = open_logits("user/x-logits")  # builders/stored_logits.py: what loading a dataset does not tell
    dataset = load_dataset("user/x-logits", split="train").with_format("numpy")
    collate = Collate.of(stored.form, tokenizer, student.config.vocab_size, ranks=stored.ranks, device="cuda")
    for batch in DataLoader(dataset, batch_size=8, collate_fn=collate):
        logits = student(batch.input_ids, attention_mask=batch.attention_mask).logits
        cross_entropy(predicting_rows(logits, batch), batch).backward()

`cross_entropy` and `forward_kl` have the same gradient: they differ by the teacher's entropy. builders/trainer.py is this in a
trainer of TRL.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from builders.logits_schema import LogitsFormat
from builders.packing import Array, Logits, unpack
from builders.rank_table import RankTable

if TYPE_CHECKING:
    from torch import Tensor


def vocabulary_hash(tokenizer: Any) -> str:
    """Digest of a tokenizer's tokens and their ids: equal exactly where ids mean the same."""
    pairs = sorted(tokenizer.get_vocab().items(), key=lambda pair: (pair[1], pair[0]))
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()


def check_vocabulary(form: LogitsFormat, tokenizer: Any, vocab_size: int) -> None:
    """Raise ValueError unless the dataset's ids mean the same to a student, and its logits [.., vocab_size] have them all.

    Logits may be wider or narrower than the teacher's where both are padded beyond the tokenizer.
    """
    found = vocabulary_hash(tokenizer)
    if found != form.tokenizer:
        raise ValueError(
            f"the teacher's vocabulary is {form.tokenizer[:12]}, the student's {found[:12]}: their ids mean other tokens; "
            "take a student of the same tokenizer, or build the dataset with a teacher of the student's"
        )
    if len(tokenizer) > vocab_size:
        raise ValueError(f"the student has {vocab_size:,} logits for {len(tokenizer):,} tokens: resize its embeddings")


def decode(ranks: RankTable | None = None) -> Callable[[Mapping[str, Sequence[Any]]], dict[str, list[Any]]]:
    """Return a transform for `dataset.with_transform`: each record becomes its `Logits`, under the key `logits`."""

    def transform(batch: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        rows = (dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True))
        return {"logits": [unpack(row, ranks) for row in rows]}

    return transform


@dataclass(frozen=True)
class Targets:
    """A batch of B conversations. Dense: T tokens and K entries, padded. Sparse: N tokens and E entries, end to end."""

    input_ids: Tensor  # int64 [B, L]
    attention_mask: Tensor  # bool [B, L]
    conversations: Tensor  # int64 [B, T] or [N]: which conversation, for `predicting_rows`
    positions: Tensor  # int64 [B, T] or [N]: which of its tokens is predicted
    mask: Tensor  # bool [B, T] or [N]: no padding
    ids: Tensor  # int64 [B, T, K] or [E]
    weights: (
        Tensor  # float32, like ids: sum(w f(ids)) estimates the teacher's expectation of f without bias; 0 in padding
    )
    logprobs: Tensor  # float32, like ids: the teacher's; nan for a compact record's samples, which keep none
    tokens: Tensor | None  # int64 [E], sparse alone: which of the N tokens an entry belongs to
    temperature: float

    def without_padding(self) -> Targets:
        """The N tokens of a dense batch end to end: `conversations` and `positions` [N], `ids` and the like [N, K]."""
        names = ("conversations", "positions", "ids", "weights", "logprobs")
        return replace(self, **{name: getattr(self, name)[self.mask] for name in names}, mask=self.mask[self.mask])


@dataclass(frozen=True)
class Collate:
    """A `collate_fn`: rows of a logits dataset, or `Logits`, to `Targets`.

    ValueError: a temperature that the records cannot serve, an id that a student of `vocab_size` does not have, a record
    without `input_ids`.
    """

    vocab_size: int
    ranks: RankTable | None = None
    temperature: float = 1.0
    sparse: bool = False
    device: str = "cpu"
    pad_id: int = 0

    @staticmethod
    def of(
        form: LogitsFormat, tokenizer: Any, vocab_size: int, *, ranks: RankTable | None = None, **options: Any
    ) -> Collate:
        """Make one for a student of `tokenizer` with `vocab_size` logits; `options` are the other fields.

        ValueError: what `check_vocabulary` refuses, a temperature that the dataset does not serve, no or another rank table.
        """
        check_vocabulary(form, tokenizer, vocab_size)
        form.check_ranks(ranks)
        form.check_temperature(options.get("temperature", 1.0))
        return Collate(vocab_size, ranks, **options)

    def __call__(self, rows: Sequence[Mapping[str, Any] | Logits]) -> Targets:
        """Collate one batch."""
        import torch

        records = [row if isinstance(row, Logits) else row.get("logits") or unpack(row, self.ranks) for row in rows]
        arrays = self._inputs(records) | (self._sparse(records) if self.sparse else self._dense(records))
        tensors: dict[str, Any] = {
            name: None if a is None else torch.from_numpy(a).to(self.device) for name, a in arrays.items()
        }
        return Targets(**tensors, temperature=self.temperature)

    def _inputs(self, records: Sequence[Logits]) -> dict[str, Array]:
        if any(r.input_ids is None or r.positions is None for r in records):
            raise ValueError("a record has no input_ids and positions: keep these columns when you select some")
        rows = [np.asarray(r.input_ids) for r in records]
        ids = np.full((len(rows), max(len(row) for row in rows)), self.pad_id, np.int64)
        mask = np.zeros(ids.shape, bool)
        for b, row in enumerate(rows):
            ids[b, : len(row)] = row
            mask[b, : len(row)] = True
        return {"input_ids": ids, "attention_mask": mask}

    def _dense(self, records: Sequence[Logits]) -> dict[str, Array | None]:
        found = [self._entries(r) for r in records]
        num_tokens = max(len(r.counts) for r in records)
        width = max(int((r.counts + r.sampled_counts).max(initial=0)) for r in records)
        shape = (len(records), num_tokens)
        positions: Array = np.ones(shape, np.int64)  # 1: padding is predicted by a row that there is
        ids: Array = np.zeros((*shape, width), np.int64)
        weights: Array = np.zeros(ids.shape, np.float32)
        logprobs: Array = np.zeros(ids.shape, np.float32)
        for b, (r, (tokens, columns, *values)) in enumerate(zip(records, found, strict=True)):
            positions[b, : len(r.counts)] = np.asarray(r.positions)
            for array, value in zip((ids, weights, logprobs), values, strict=True):
                array[b, tokens, columns] = value
        return {
            "conversations": np.repeat(np.arange(len(records)), num_tokens).reshape(shape),
            "positions": positions,
            "mask": np.arange(num_tokens) < np.array([len(r.counts) for r in records])[:, None],
            "ids": ids,
            "weights": weights,
            "logprobs": logprobs,
            "tokens": None,
        }

    def _sparse(self, records: Sequence[Logits]) -> dict[str, Array | None]:
        found = [self._entries(r) for r in records]
        sizes = np.array([len(r.counts) for r in records])
        offsets = np.cumsum(sizes) - sizes
        tokens, _, ids, weights, logprobs = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return {
            "conversations": np.repeat(np.arange(len(records)), sizes),
            "positions": np.concatenate([np.asarray(r.positions, np.int64) for r in records]),
            "mask": np.ones(sizes.sum(), bool),
            "ids": ids,
            "weights": weights,
            "logprobs": logprobs,
            "tokens": tokens + np.repeat(offsets, [len(one[0]) for one in found]),
        }

    def _entries(self, record: Logits) -> tuple[Array, ...]:
        found = entries(record, self.temperature)
        ids = found[2]
        if len(ids) and ids.max() >= self.vocab_size:
            raise ValueError(f"id {ids.max()} of the teacher is none of the student's {self.vocab_size:,}")
        return found


def entries(logits: Logits, temperature: float = 1.0) -> tuple[Array, Array, Array, Array, Array]:
    """Return every entry and sample of a record, E of them, without padding: exact ones first.

    Which token it belongs to and its place in that token (int64 [E]), its id (int64), what it weighs and its log probability
    (float32; nan for samples of a compact record). ValueError: the record cannot serve this temperature.
    """
    exact, sampled = logits.weights(temperature)
    rows, slots = np.nonzero(logits.is_sample)
    ids = np.concatenate([logits.ids, logits.sampled_ids[rows, slots]]).astype(np.int64)
    starts = np.cumsum(logits.counts) - logits.counts
    places = np.arange(len(logits.ids)) - np.repeat(starts, logits.counts)
    places = np.concatenate([places, logits.counts[rows] + slots])
    tokens = np.concatenate([np.repeat(np.arange(len(logits.counts)), logits.counts), rows])
    if logits.sampled_logits is None:
        tail: Array = np.full(len(rows), np.nan)
    else:
        tail = logits.sampled_logits[rows, slots] / temperature - logits.logsumexp_for(temperature)[rows]
    logprobs = np.concatenate([logits.logprobs(temperature), tail]).astype(np.float32)
    return tokens, places, ids, np.concatenate([exact, sampled[rows, slots]]), logprobs


def predicting_rows(logits: Tensor, targets: Targets) -> Tensor:
    """Select the rows that predict the targets from a student's logits [B, L, V]: [B, T, V], or [N, V] for sparse ones.

    Cheaper still: select from the hidden states [B, L, d], and put only what this returns through lm_head.
    """
    return logits[targets.conversations, targets.positions - 1]


def cross_entropy(student_logits: Tensor, targets: Targets, *, num_items: int | None = None) -> Tensor:
    """Return -sum w log s, the mean over tokens, or their sum over `num_items` (for gradients that accumulate).

    `student_logits`: [B, T, V] or [N, V], raw, of any float type; s is their softmax at the targets' temperature, over the
    whole vocabulary. Multiplied by temperature squared, so that gradients keep their size (Hinton, Vinyals, Dean 2015).
    """
    log_student = _log_student(student_logits, targets)
    return _mean(-targets.weights * log_student, targets, num_items)


def forward_kl(student_logits: Tensor, targets: Targets, *, num_items: int | None = None) -> Tensor:
    """Return KL(teacher || student), estimated without bias: sum w (log p - log s); else as `cross_entropy`.

    ValueError: targets from compact records, whose samples keep no log p.
    """
    if targets.logprobs.isnan().any():
        raise ValueError(
            "compact records keep no probabilities of samples: take cross_entropy, which has the same gradient"
        )
    log_student = _log_student(student_logits, targets)
    return _mean(targets.weights * (targets.logprobs - log_student), targets, num_items)


def _log_student(student_logits: Tensor, targets: Targets) -> Tensor:
    logits = student_logits.float() / targets.temperature
    logsumexp = logits.logsumexp(-1)
    if targets.tokens is None:
        return logits.gather(-1, targets.ids) - logsumexp[..., None]
    return logits[targets.tokens, targets.ids] - logsumexp[targets.tokens]


def _mean(terms: Tensor, targets: Targets, num_items: int | None) -> Tensor:
    count = num_items if num_items is not None else targets.mask.sum().clamp(min=1)
    return terms.sum() / count * targets.temperature**2

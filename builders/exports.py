"""Teacher logits as rows that other trainers read. Both formats hold a list of (id, value) per position, and no weights.

So a value is written for each entry *and* each sample: log w, where w is its target weight (`Logits.weights`). A loss of sum
over the list of exp(value) (value - log s), s the student's softmax over the whole vocabulary, then has

* the gradient of sum w (-log s), an unbiased estimate of the gradient of the full forward KL, as E w = p;
* a value that is off by sum w log w - sum p log p, which the student does not change.

What they cannot hold: which entries are exact and which are samples, the teacher's log p of a sample, logsumexp, temperatures
other than 1 (w^(1/T) is no weight at T). Row i of a position list predicts token i + 1 in both.

Read in DistillKit a61c2e7 and axolotl 067b021.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import pyarrow as pa

from builders.distill import entries
from builders.logits_schema import LogitsFormat
from builders.packing import Array, Logits, to_array

IGNORED = -100  # label of a token that is no target
NOTHING = -1e4  # value of an entry that is none: exp of it is 0, and 0 times it is no nan, in any float type


@dataclass(frozen=True)
class Sizes:
    """What a format of fixed shape must know of all records before the first."""

    length: int = 1  # tokens of the longest conversation
    width: int = 1  # entries and samples of the token that has most


def measure(records: Iterable[dict[str, Any]], form: LogitsFormat) -> Sizes:
    """Find the sizes from the columns `columns_to_measure` alone."""
    length = width = 1
    for record in records:
        length = max(length, len(record["input_ids"]))
        if form.encoding == "default":
            widths = to_array(record["top_counts"], np.int64) + form.num_sampled
        else:
            widths = to_array(record["exact_counts"], np.int64) + to_array(record["sampled_counts"], np.int64)
        width = max(width, int(widths.max(initial=0)))
    return Sizes(length, width)


def columns_to_measure(form: LogitsFormat) -> list[str]:
    """Columns that `measure` reads: some of the smallest."""
    return ["input_ids", *(["top_counts"] if form.encoding == "default" else ["exact_counts", "sampled_counts"])]


class Export(Protocol):
    """A format: how one conversation is a row of it, and the configuration that reads the rows as they are meant."""

    def row(self, logits: Logits) -> pa.RecordBatch | None:
        """Return one row; None where no target is left within the length."""

    def config(self, path: str) -> str:
        """Return the part of the trainer's YAML that these rows need."""


@dataclass(frozen=True)
class DistillKit:
    """Rows for arcee-ai/DistillKit: its raw shape `token_ids`, `top_values`, with `dataset.prepacked: true`.

    Prepacked rows are stacked without a collator, and those of another length than the first are dropped from the end. So all
    have `length` tokens and `width` entries a token: padded, or cut. Padding has attention 0, label -100 and finite values
    (its loss multiplies by the mask, and 0 times -inf is nan).

    Its `missing_probability_handling: zero` scales the values of a token to sum to 1. Weights of threshold samples do that
    already; those of one global threshold and of several temperatures do so on average only, and are refused. Under
    `symmetric_uniform` a list that sums to 1 gives nan. Any temperature but 1 bends the weights: leave it at 1.

    It masks row i by label i, where row i predicts token i + 1: labels are those of the tokens *before* the targets. Its
    `cross_entropy` on the same labels is then one token late at each end of a turn: leave it out, as the configuration does.
    """

    form: LogitsFormat
    length: int
    width: int
    schema: ClassVar[pa.Schema] = pa.schema(
        {
            "input_ids": pa.list_(pa.int32()),
            "attention_mask": pa.list_(pa.int8()),
            "labels": pa.list_(pa.int32()),
            "token_ids": pa.list_(pa.list_(pa.int32())),
            "top_values": pa.list_(pa.list_(pa.float32())),
        }
    )

    def __post_init__(self) -> None:
        if self.form.select == "global" or self.form.temperatures != (1.0,):
            raise ValueError(
                "--to distillkit: its loss scales the weights of each token to sum to 1, which those of --select global and "
                "--temperatures do on average only; --to axolotl does not, nor does builders/trainer.py"
            )

    def row(self, logits: Logits) -> pa.RecordBatch | None:
        """See Export."""
        input_ids, before = _places(logits, self.length)
        if not len(before):
            return None
        tokens, places, ids, weights, _ = entries(logits)
        kept = (tokens < len(before)) & (weights > 0)
        at = before[tokens[kept]], places[kept]
        token_ids: Array = np.zeros((self.length, self.width), np.int32)
        values: Array = np.zeros((self.length, self.width), np.float32)
        values[before] = NOTHING
        token_ids[at], values[at] = ids[kept], np.log(weights[kept])
        padded = np.zeros(self.length, np.int32)
        padded[: len(input_ids)] = input_ids
        labels = np.full(self.length, IGNORED, np.int32)
        labels[before] = input_ids[before]
        mask = (np.arange(self.length) < len(input_ids)).astype(np.int8)
        sizes = np.full(self.length, self.width)
        rows = [_list(padded), _list(mask), _list(labels), _lists(token_ids, sizes), _lists(values, sizes)]
        return pa.RecordBatch.from_arrays(rows, schema=self.schema)

    def config(self, path: str) -> str:
        """See Export."""
        return f"""sequence_length: {self.length}
dataset:
  train_dataset: {{repo_id: {path}, split: train}}
  prepacked: true
teacher:
  kind: dataset
  logprob_compressor: {{d: {self.form.vocab_size}, k: {self.width}, exact_k: {self.width}, residual_bins: []}}
loss_functions:
  - {{function: kl, weight: 1.0, temperature: 1.0, missing_probability_handling: zero, sparse_chunk_length: 1024}}
training_args:
  remove_unused_columns: false
"""


@dataclass(frozen=True)
class Axolotl:
    """Rows for axolotl's KD plugin as it has them once prepared: `target_token_ids`, `target_logprobs`, `target_mask`.

    Not its `chat_template` type with a `logprobs_field`: that tokenises `messages` again, cuts every token's list to the
    commonest length, scales it to sum to 1, and masks row i by label i where row i predicts token i + 1. Rows that are
    tokenised already are taken as they are; its collator pads lists of any length and masks the padding, entry by entry.

    `kd_normalize_topk` must be false (true compares what is left of the student's distribution after all other ids are
    struck out), `kd_temperature` 1. Labels are the targets themselves, so `kd_ce_alpha` can be what one likes.
    """

    length: int | None = None
    schema: ClassVar[pa.Schema] = pa.schema(
        {
            "input_ids": pa.list_(pa.int32()),
            "attention_mask": pa.list_(pa.int8()),
            "labels": pa.list_(pa.int32()),
            "target_token_ids": pa.list_(pa.list_(pa.int32())),
            "target_logprobs": pa.list_(pa.list_(pa.float32())),
            "target_mask": pa.list_(pa.list_(pa.int8())),
        }
    )

    def row(self, logits: Logits) -> pa.RecordBatch | None:
        """See Export."""
        input_ids, before = _places(logits, self.length)
        before = before[before + 1 < len(input_ids)]  # a label needs its token, too
        if not len(before):
            return None
        tokens, places, ids, weights, _ = entries(logits)
        kept = (tokens < len(before)) & (weights > 0)
        order = np.lexsort((places[kept], tokens[kept]))
        sizes = np.zeros(len(input_ids), np.int64)
        sizes[before] = np.bincount(tokens[kept], minlength=len(before))
        labels = np.full(len(input_ids), IGNORED, np.int32)
        labels[before + 1] = input_ids[before + 1]
        lists = [ids[kept][order].astype(np.int32), np.log(weights[kept][order]), np.ones(kept.sum(), np.int8)]
        rows = [_list(input_ids), _list(np.ones(len(input_ids), np.int8)), _list(labels)]
        return pa.RecordBatch.from_arrays(rows + [_lists(one, sizes) for one in lists], schema=self.schema)

    def config(self, path: str) -> str:
        """See Export."""
        return f"""plugins:
  - axolotl.integrations.kd.KDPlugin
kd_trainer: true
kd_alpha: 1.0
kd_ce_alpha: 0.0
kd_temperature: 1.0
kd_beta: 0.0
kd_normalize_topk: false
datasets:
  - path: {path}
    ds_type: parquet
    split: train
    type:
remove_unused_columns: false
"""


def _places(logits: Logits, length: int | None) -> tuple[Array, Array]:
    """Return the ids within the length, and for each target that is predicted there, the position before it."""
    if logits.input_ids is None or logits.positions is None:
        raise ValueError("a record has no input_ids and positions: this dataset cannot be exported")
    input_ids = np.asarray(logits.input_ids)[:length]
    before = np.asarray(logits.positions, np.int64) - 1
    return input_ids, before[before < len(input_ids)]


def _list(values: Array) -> pa.ListArray:
    """One list of values."""
    return pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), pa.array(values))


def _lists(values: Array, sizes: Array) -> pa.ListArray:
    """One list of lists of the given sizes."""
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
    lists = pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.ravel()))
    return pa.ListArray.from_arrays(pa.array([0, len(sizes)], pa.int32()), lists)

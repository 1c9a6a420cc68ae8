"""The unit in hand of a logits build: for each conversation, the teacher's distributions of the assistant's tokens."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from hashlib import blake2b
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from builders.compact import pack_compact
from builders.logits_schema import LogitsFormat
from builders.packing import pack
from builders.rank_table import RankTable
from builders.row import Row, RowError
from builders.schema import Column
from builders.tally import TALLIES, binned
from extract.sample import Sample
from extract.token_logits import TokenLogits, nucleus_mass
from extract.work import Work

HASH_BYTES = 16
ARRAYS = [spec.name for spec in fields(TokenLogits) if spec.default is MISSING]


@dataclass
class LogitsWork(Work):
    """N rows, one sample each; results of a batch are one TokenLogits for each sample."""

    form: LogitsFormat | None = None  # of the records; only a pilot has none
    ranks: RankTable | None = None  # of compact records
    chats: dict[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)  # position: ids and positions, int32
    found: dict[int, TokenLogits] = field(default_factory=dict)  # position: distributions

    unread: Counter[str] = field(default_factory=Counter)  # rows with a field that the template never prints, by field

    nothing: ClassVar[RowError] = RowError(
        "no_assistant_token", "the conversation has no token that the assistant generated within the length"
    )

    def add_chat(self, position: int, row: Row, input_ids: np.ndarray, targets: np.ndarray) -> None:
        """Account for a row that gives a record: its tokens, and which of them are captured (int32)."""
        self.add_row(
            position, row, blake2b(input_ids.tobytes() + targets.tobytes(), digest_size=HASH_BYTES).hexdigest()
        )
        self.chats[position] = input_ids, targets

    def keep(self, samples: Sequence[Sample], results: Sequence[TokenLogits]) -> None:
        """See Work."""
        self.found.update(zip([sample.position for sample in samples], results, strict=True))

    def dump(self, results: Sequence[TokenLogits]) -> bytes:
        """See Work."""
        arrays = {f"{n}.{name}": getattr(result, name) for n, result in enumerate(results) for name in ARRAYS}
        content = io.BytesIO()
        np.savez(content, **arrays)
        return content.getvalue()

    def load(self, num_samples: int, content: memoryview) -> list[TokenLogits]:
        """See Work."""
        with np.load(io.BytesIO(content)) as arrays:
            return [
                TokenLogits(**{name: arrays[f"{number}.{name}"] for name in ARRAYS}) for number in range(num_samples)
            ]

    def counts(self) -> dict[str, Any]:
        """See Work; and the tokens that were captured, the ids that were kept for certain, their mass, and those drawn."""
        found, counts = [self.found[position] for position in self.rows], super().counts()
        sizes = np.concatenate([one.counts for one in found] or [np.zeros(0, np.uint8)])
        return counts | {
            "dimension": 0 if self.form is None else self.form.vocab_size,
            "captured": sum(len(one.counts) for one in found),
            "entries": sum(len(one.nucleus_ids) for one in found),
            "drawn": sum(int(one.sampled_counts.sum()) for one in found),
            "mass_ppm": sum(round(1e6 * nucleus_mass(one)) for one in found),  # sums of millionths
            TALLIES: counts[TALLIES] | {"exact": binned(sizes)},
            **{f"unread_{name}": number for name, number in self.unread.items()},
        }

    def records(self, columns: Sequence[Column]) -> pa.Table:
        """See Work; the schema says how to read them."""
        table = super().records(columns)
        assert self.form is not None
        return table.replace_schema_metadata({**table.schema.metadata, **self.form.to_metadata()})

    def results(self, positions: Sequence[int], types: Mapping[str, pa.DataType]) -> dict[str, object]:
        """See Work."""
        records = [self._pack(position) for position in positions]
        return {name: [record[name] for record in records] for name in types if records and name in records[0]}

    def _pack(self, position: int) -> dict[str, object]:
        assert self.form is not None
        one, (input_ids, targets) = self.found[position], self.chats[position]
        block = (one.nucleus_ids, one.nucleus_logits, one.counts, one.logsumexp, one.sampled_ids, one.sampled_logits)
        if self.form.encoding == "compact":
            assert self.ranks is not None
            return pack_compact(
                *block,
                ranks=self.ranks,
                sampled_counts=None if self.form.threshold is None else one.sampled_counts,
                sample_weight=self.form.threshold,
                input_ids=input_ids,
                positions=targets,
            )
        temperatures = self.form.temperatures if len(self.form.temperatures) > 1 else ()
        return pack(
            *block,
            vocab_size=self.form.vocab_size,
            input_ids=input_ids,
            positions=targets,
            logsumexp_at=dict(zip([t for t in temperatures if t != 1], one.logsumexp_at.T, strict=True)),
            tail_mass_at=dict(zip(temperatures, one.tail_mass_at.T, strict=True)),
        )

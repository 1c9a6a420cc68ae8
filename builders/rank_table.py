"""The rank table of compact teacher logits: an id's rank stands in the records for the id."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class RankTable:
    """Ids by falling frequency: `ids[rank]`, int32 [V]. One for a whole dataset, stored once beside it."""

    ids: Array

    @staticmethod
    def of_ids(vocab_size: int) -> RankTable:
        """The table where each id is its own rank: for what does not depend on ids."""
        return RankTable(np.arange(vocab_size, dtype=np.int32))

    @staticmethod
    def from_frequencies(frequencies: Array) -> RankTable:
        """Rank ids by how often they are exact entries, [V]; equal ones by id."""
        return RankTable(np.argsort(-np.asarray(frequencies, np.int64), kind="stable").astype(np.int32))

    @staticmethod
    def from_bytes(data: bytes) -> RankTable:
        """Read what `to_bytes` wrote. ValueError: it is no permutation of ids."""
        for dtype in ("<u2", "<u4"):
            ids = np.frombuffer(data, dtype).astype(np.int64) if len(data) % int(dtype[2]) == 0 else np.zeros(0)
            if len(ids) and ids.max() < len(ids) and (np.bincount(ids) == 1).all():
                return RankTable(ids.astype(np.int32))
        raise ValueError(f"{len(data)} bytes that are no rank table: each id of the vocabulary once, in 2 or 4 bytes")

    def to_bytes(self) -> bytes:
        """Little-endian ids in order of rank: 2 bytes each, or 4 in vocabularies over 65,536."""
        return self.ids.astype("<u2" if len(self.ids) <= 1 << 16 else "<u4").tobytes()

    @property
    def sha256(self) -> str:
        """Digest of the bytes, which the metadata of every file names."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    @cached_property
    def ranks(self) -> Array:
        """The inverse: rank of each id, int64 [V]."""
        out = np.empty(len(self.ids), np.int64)
        out[self.ids] = np.arange(len(self.ids))
        return out

    @property
    def num_bytes(self) -> int:
        """Bytes of a rank, which is how many columns it takes."""
        return rank_bytes(len(self.ids))


def rank_bytes(vocab_size: int) -> int:
    """Bytes of a rank, which is how many columns it takes."""
    return 2 if vocab_size <= 1 << 16 else 3

"""Weights of a dataset's rows in a training run: loaded, matched to the trainer's rows by id, and drawn from.

    from builders.curate.weights import load_weights, weighted_sampler

    weights = load_weights("user/dolci-embeddings")  # or "./out": the configuration `density`, cached by huggingface_hub
    sampler = weighted_sampler(weights, train_dataset["id"], num_samples=10_000, seed=0)
    loader = DataLoader(train_dataset, batch_size=8, sampler=sampler)

Where a dataset has no stored density it is computed, and where that cannot be, all rows weigh the same; either is said by a
warning of the logger, and `fallbacks` says which of them are allowed.
"""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

logger = logging.getLogger(__name__)

EXAMPLES = 5  # shown of what does not match
METADATA_KEY = b"stillroom"  # of hub/chunk.py, in the schema of each file


@dataclass(frozen=True)
class Weights:
    """Weights float64 [N] of rows, by `indices` int64 [N] and, where the dataset has them, `ids` (string [N]).

    `origin` is "stored", "computed" or "uniform"; uniform ones fit any rows (`indices` is None). `about`: how they were made.
    """

    weights: np.ndarray
    indices: np.ndarray | None
    ids: pa.ChunkedArray | None
    origin: str
    about: Mapping[str, Any] = field(default_factory=dict)

    def align(self, keys: Iterable[Any], *, is_subset: bool = False) -> np.ndarray:
        """Return the weights of a trainer's rows in their order, float64 [M] that sum to 1.

        `keys` are ids, or integers: the `index` of each row. Rows and weights must be the same, each once; with
        `is_subset`, rows may be fewer, as after a filter.

        Raises:
            ValueError: they do not match; with examples of what is missing.
        """
        keys = list(keys)
        if self.indices is None:
            return np.full(len(keys), 1 / max(1, len(keys)))
        by_index = bool(keys) and isinstance(keys[0], int | np.integer)
        if not by_index and self.ids is None:
            raise ValueError("these weights have no ids: give the `index` of each row")
        names = self.indices.tolist() if by_index or self.ids is None else self.ids.to_pylist()
        place = {name: position for position, name in enumerate(names)}
        _check_once(keys, "rows", "in the trainer's dataset")
        _check_once(names, "rows", "among the weights")
        missing = [key for key in keys if key not in place]
        if missing:
            raise ValueError(_lacking(missing, len(keys), "rows have no weight", names))
        if not is_subset and len(keys) < len(names):
            extra = sorted(set(names) - set(keys), key=place.__getitem__)
            raise ValueError(
                _lacking(extra, len(names), "weights have no row", keys)
                + "; if rows were left out, say is_subset=True"
            )
        chosen = self.weights[[place[key] for key in keys]]
        return np.asarray(chosen / chosen.sum())


def load_weights(
    name: str,
    *,
    config_name: str = "density",
    revision: str | None = None,
    fallbacks: Sequence[str] = ("compute", "uniform"),
) -> Weights:
    """Load what `stillroom density` stored in a Hub dataset (user/name) or a folder; under a second for 28,000 rows.

    Without them they are computed from the vectors (`compute`), and if that fails all rows weigh the same (`uniform`); each is
    said by a warning. `fallbacks=()` allows neither.

    Raises:
        ValueError: there are none, and no fallback is allowed or works.
    """
    unknown = sorted(set(fallbacks) - {"compute", "uniform"})
    if unknown:
        raise ValueError(f"fallbacks {', '.join(unknown)}: they are compute and uniform")
    why = ""
    try:
        return _stored(name, config_name, revision)
    except (OSError, ValueError) as error:  # none stored, no such dataset, no answer
        why = str(error).splitlines()[0]
    if "compute" in fallbacks:
        logger.warning("%s: no stored weights (%s): they are computed from its vectors", name, why)
        try:
            return _computed(name, revision)
        except (OSError, ValueError, ImportError) as error:
            why = str(error).splitlines()[0]
    if "uniform" in fallbacks:
        logger.warning("%s: no weights (%s): all rows weigh the same", name, why)
        return Weights(np.empty(0), None, None, "uniform")
    raise ValueError(f"{name}: no weights ({why}): run `stillroom density {name}`")


def weighted_sampler(
    weights: Weights,
    keys: Iterable[Any],
    *,
    num_samples: int | None = None,
    replacement: bool = True,
    is_subset: bool = False,
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> WeightedSampler:
    """Return a sampler of positions in the trainer's dataset, whose rows have these keys; see `Weights.align` for them.

    With accelerate or a transformers Trainer leave `rank` and `world_size`: they share out one sampler's batches themselves.

    Raises:
        ValueError: rows and weights do not match, or more rows are asked for without replacement than there are.
    """
    aligned = weights.align(keys, is_subset=is_subset)
    num_samples = len(aligned) if num_samples is None else num_samples
    if not replacement and num_samples > np.count_nonzero(aligned):
        raise ValueError(
            f"{num_samples} rows without replacement: there are {np.count_nonzero(aligned)} with a weight"
        )
    return WeightedSampler(aligned, num_samples, replacement, seed, rank, world_size)


class WeightedSampler:
    """As torch's WeightedRandomSampler, for one of `world_size` workers: all draw the same order, and each takes its share.

    Each pass draws anew, and is that of an epoch: the first of epoch 0, or of the one that `set_epoch` named, as after a
    restart. A share is one of the first num_samples // world_size * world_size draws.
    """

    def __init__(
        self, weights: np.ndarray, num_samples: int, replacement: bool, seed: int, rank: int, world_size: int
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank is {rank}: with a world size of {world_size} it is at most {world_size - 1}")
        self.weights, self.num_samples, self.replacement = weights, num_samples, replacement
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Name the epoch of the next pass; accelerate and transformers do not."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_samples // self.world_size

    def __iter__(self) -> Iterator[int]:
        import torch
        from torch.utils.data import WeightedRandomSampler

        generator = torch.Generator().manual_seed(self.seed + 1_000_003 * self.epoch)
        self.epoch += 1
        # positions by inverse CDF where multinomial, which takes at most 2^24 weights, cannot
        if len(self.weights) < 1 << 24:
            drawn: Sequence[int] = list(
                WeightedRandomSampler(self.weights.tolist(), self.num_samples, self.replacement, generator)
            )
        elif self.replacement:
            uniform = torch.rand(self.num_samples, generator=generator, dtype=torch.float64).numpy()
            ends = self.weights.cumsum()
            drawn = np.searchsorted(ends, uniform * ends[-1], side="right").clip(max=len(ends) - 1).tolist()
        else:
            gumbel = (
                -torch.empty(len(self.weights), dtype=torch.float64).exponential_(generator=generator).log().numpy()
            )
            with np.errstate(divide="ignore"):
                drawn = np.argsort(-(np.log(self.weights) + gumbel))[: self.num_samples].tolist()
        yield from drawn[self.rank : len(self) * self.world_size : self.world_size]


def _stored(name: str, config_name: str, revision: str | None) -> Weights:
    folder = Path(os.path.expanduser(name))
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        # not the vectors; a second start finds the files in huggingface_hub's cache, and works without the network, too
        folder = Path(
            snapshot_download(name, repo_type="dataset", revision=revision, allow_patterns=f"{config_name}/**")
        )
    files = sorted((folder / config_name).rglob("*.parquet"))
    if not files:
        raise ValueError(f"it has no configuration {config_name}")
    schema = pq.read_schema(files[0])
    table = pa.concat_tables(
        pq.read_table(f, columns=["index", *["id"] * ("id" in schema.names), "weight"]) for f in files
    )
    about = json.loads((schema.metadata or {}).get(METADATA_KEY, b"{}"))
    ids = table["id"] if "id" in schema.names else None
    return Weights(table["weight"].to_numpy(), table["index"].to_numpy(), ids, "stored", about)


def _computed(name: str, revision: str | None) -> Weights:
    from builders.curate.measure import measure
    from builders.curate.vectors import open_dataset

    dataset = open_dataset(name, revision=revision)
    table = measure(dataset, dataset.matrix())
    return Weights(table.weights, table.indices, table.ids, "computed", table.about)


def _check_once(keys: Sequence[Any], what: str, where: str) -> None:
    if len(set(keys)) < len(keys):
        twice = [key for key, count in Counter(keys).items() if count > 1]
        raise ValueError(f"ids that name several {what} {where}, as {_some(twice)}: align by `index`")


def _lacking(missing: Sequence[Any], total: int, what: str, others: Sequence[Any]) -> str:
    return f"{len(missing):,} of {total:,} {what}, as {_some(missing)}; the others have {_some(others)}"


def _some(keys: Sequence[Any]) -> str:
    return ", ".join(map(repr, keys[:EXAMPLES])) + (", …" if len(keys) > EXAMPLES else "")

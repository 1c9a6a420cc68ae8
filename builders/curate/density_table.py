"""The configuration `density` of an embeddings dataset: its columns, and its rows from what was computed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from builders.curate.vectors import VectorDataset
from builders.schema import Column, arrow_schema
from builders.units import Units

PART_ROWS = 1_000_000  # of a file: 100 MB with ten neighbours


@dataclass(frozen=True)
class DensityTable:
    """Of N rows, in the order of `indices`: what a method found. A sketch has `kernel`, k-NN the other two.

    `neighbors` are positions among the rows, int32 [N, k], -1 for none; stored they are indices.
    """

    indices: np.ndarray
    ids: pa.ChunkedArray | None
    weights: np.ndarray
    about: Mapping[str, object]
    distances: np.ndarray | None = None
    neighbors: np.ndarray | None = None
    kernel: np.ndarray | None = None

    @property
    def columns(self) -> list[Column]:
        """Its columns."""
        columns = [Column("index", "int64", "Row of the source: the `index` of the record.")]
        if self.ids is not None:
            columns.append(Column("id", "string", "`id` of the record."))
        if self.distances is not None:
            columns.append(Column("knn_distance", "float32", "Mean of 1 - cosine to the nearest neighbours."))
        if self.kernel is not None:
            columns.append(Column("kernel_density", "float32", "Density under an LSH kernel, estimated by a sketch."))
        columns.append(Column("weight", "float64", "1 / density; all weights sum to 1."))
        if self.neighbors is not None:
            about = "`index` of the nearest neighbours, nearest first; -1 where there is none."
            columns.append(Column("neighbors", "int64", about, length=self.neighbors.shape[1]))
        return columns

    def parts(self, folder: str, split: str) -> Iterator[tuple[str, pa.Table]]:
        """Yield (path in the output, table), a million rows each."""
        schema = arrow_schema(self.columns)
        for unit in Units(len(self.indices), PART_ROWS):
            rows = slice(unit.start, unit.stop)
            data = {"index": self.indices[rows], "weight": self.weights[rows]}
            if self.ids is not None:
                data["id"] = self.ids[rows].combine_chunks()
            if self.distances is not None:
                data["knn_distance"] = self.distances[rows]
            if self.kernel is not None:
                data["kernel_density"] = self.kernel[rows]
            if self.neighbors is not None:
                near = np.where(self.neighbors[rows] < 0, -1, self.indices[self.neighbors[rows]])
                kind = schema.field("neighbors").type
                data["neighbors"] = pa.FixedSizeListArray.from_arrays(pa.array(near.reshape(-1)), type=kind)
            yield unit.path(folder, split), pa.table({name: data[name] for name in schema.names}, schema=schema)


def derived_name(kind: str, dataset: VectorDataset) -> str:
    """Name of a configuration made from a dataset's vectors: `density`, or with its configuration and its field."""
    config = dataset.stored.job.config_name
    parts = [*([] if config == "default" else [config]), kind, *filter(None, [dataset.column.partition("_")[2]])]
    return "-".join(parts)

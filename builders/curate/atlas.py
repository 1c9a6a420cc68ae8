"""The records of a map, as Embedding Atlas and people read them: a row for each vector, in the order of the dataset.

Embedding Atlas 0.26 takes `--x projection_x --y projection_y --neighbors neighbors`, where `neighbors` is
{"ids": [...], "distances": [...]} and an id is the number of a row in the table, from 0 (packages/docs/tool.md, cli.py).
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa

TEXT_CHARS = 400
VALUE = {name: {"dtype": name, "_type": "Value"} for name in ("int64", "int32", "float32", "bool", "string")}
NEIGHBORS = {
    "ids": {"feature": VALUE["int64"], "_type": "List"},
    "distances": {"feature": VALUE["float32"], "_type": "List"},
}
COLUMNS: dict[str, tuple[pa.DataType, Any, str]] = {
    "index": (pa.int64(), VALUE["int64"], "Position of the row in the source split, as in the records."),
    "id": (pa.string(), VALUE["string"], "Id of the row."),
    "dataset_source": (pa.string(), VALUE["string"], "Where the row comes from."),
    "projection_x": (pa.float32(), VALUE["float32"], "Place in the flat map."),
    "projection_y": (pa.float32(), VALUE["float32"], "Place in the flat map."),
    "projection_3d_x": (pa.float32(), VALUE["float32"], "Place in the map of three dimensions, which is one of its own."),
    "projection_3d_y": (pa.float32(), VALUE["float32"], "The same."),
    "projection_3d_z": (pa.float32(), VALUE["float32"], "The same."),
    "cluster": (pa.int32(), VALUE["int32"], "Cluster, the greatest first; -1 for none."),
    "cluster_name": (pa.string(), VALUE["string"], "Words that its texts have and others lack."),
    "knn_distance": (pa.float32(), VALUE["float32"], "Cosine distance to the k-th nearest row: great where few are near."),
    "outlier": (pa.bool_(), VALUE["bool"], "Whether that distance is over Tukey's fence."),
    "neighbors": (
        pa.struct([("ids", pa.list_(pa.int64())), ("distances", pa.list_(pa.float32()))]),
        NEIGHBORS,
        "The k nearest rows: their numbers in this table, from 0, and their cosine distances.",
    ),
    "text": (pa.string(), VALUE["string"], f"The beginning of the text, at most {TEXT_CHARS} characters."),
}  # fmt: skip


def map_table(columns: dict[str, Any]) -> pa.Table:
    """Return a table of some of COLUMNS, in their order, with the features that `load_dataset` reads."""
    names = [name for name in COLUMNS if name in columns]
    features = {name: COLUMNS[name][1] for name in names}
    schema = pa.schema(
        [(name, COLUMNS[name][0]) for name in names],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    return pa.table([pa.array(columns[name], COLUMNS[name][0]) for name in names], schema=schema)


def neighbor_column(positions: np.ndarray, similarities: np.ndarray) -> pa.Array:
    """The column `neighbors` of positions int [B, k] and cosines float32 [B, k]; a position of -1 is left out."""
    there = positions >= 0
    offsets = pa.array(np.concatenate([[0], np.cumsum(there.sum(1))]).astype(np.int32))
    ids = pa.ListArray.from_arrays(offsets, pa.array(positions[there].astype(np.int64)))
    distances = pa.ListArray.from_arrays(offsets, pa.array(np.maximum(1 - similarities[there], 0).astype(np.float32)))
    return pa.StructArray.from_arrays([ids, distances], ["ids", "distances"])

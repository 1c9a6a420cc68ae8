"""Whether the vectors of a server are those that the output holds already: another model may stand behind the same URL."""

from __future__ import annotations

from io import BytesIO
from typing import Any, Protocol

import numpy as np
import pyarrow.parquet as pq

from builders.layout import Layout
from builders.schema import embedding_names
from builders.units import Unit
from extract.batching import TokenBudget
from extract.builds import open_build
from extract.claim import Plan
from extract.engines import Engine, EngineError
from extract.model_files import ModelFiles
from extract.stages import batches
from extract.vectors import VectorWork

NUM_ROWS = 8
MIN_COSINE = 0.99  # bfloat16 against float32 is above 0.999; another pooling or model is far below


class Files(Protocol):
    """What is read of an output."""

    def list_files(self) -> dict[str, int]:
        """Path and bytes of every file."""

    def read(self, path: str) -> bytes | None:
        """The content of one."""


def check_agreement(plan: Plan, files: ModelFiles, engine: Engine, output: Files) -> None:
    """Embed a few rows of one chunk again, the smallest, and compare. Nothing is compared where there is no chunk.

    Raises:
        EngineError: the vectors differ.
    """
    layout = Layout.of(plan.job)
    prefix = f"{layout.of_split(layout.data)}/"
    chunks = {path: size for path, size in output.list_files().items() if path.startswith(prefix)}
    content = output.read(min(chunks, key=chunks.__getitem__)) if chunks else None
    if content is None:
        return
    name = embedding_names(plan.job)[0]
    table = pq.read_table(BytesIO(content), columns=["index", name]).filter(_is_there(name)).slice(0, NUM_ROWS)
    stored = np.stack(table[name].to_numpy()).astype(np.float32) if table.num_rows else np.empty((0, 0), np.float32)
    fresh = _embed(plan, files, engine, table["index"].to_numpy())
    scale = np.linalg.norm(stored, axis=-1) * np.linalg.norm(fresh, axis=-1)
    lowest = float((np.einsum("nd,nd->n", stored, fresh) / np.maximum(scale, 1e-12)).min(initial=1))
    if not lowest >= MIN_COSINE:
        raise EngineError(
            f"--engine {plan.job.engine} gives other vectors than {plan.job.output} holds (cosine {lowest:.3f} over "
            f"{table.num_rows} rows): is it the same model, with the same pooling?"
        )


def _is_there(name: str) -> Any:
    import pyarrow.compute as pc

    return pc.field(name).is_valid()


def _embed(plan: Plan, files: ModelFiles, engine: Engine, indices: np.ndarray) -> np.ndarray:
    """Vectors [N, D] of rows of the source, of the first field."""
    build, budget = open_build(plan.job, plan.source, files), TokenBudget(engine.max_batch_tokens)
    work = build.work(Unit(0, 0, len(indices)))
    assert isinstance(work, VectorWork)
    rows = plan.source.read(indices, build.needed_columns)
    for batch, vectors, padded in engine.run(batches(build.samples(rows, work), budget, work), budget):
        work.put(batch.samples, vectors, padded)
    assert work.vectors is not None
    return work.vectors[0]

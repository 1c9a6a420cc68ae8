"""Whether vectors of a server are those of the same dataset: another model may stand behind its URL, now or before."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from builders.engines import SERVERS
from builders.job import Job
from builders.layout import Layout
from builders.quantize import VectorFormat
from builders.schema import embedding_names
from builders.stored_vectors import stored_array
from builders.units import Unit
from extract.batching import TokenBudget
from extract.builds import open_build
from extract.claim import Plan
from extract.engines import Engine, EngineError
from extract.model_files import ModelFiles
from extract.stages import batches
from extract.vectors import VectorWork
from hub.opened import DamageError, Opened
from hub.pending import Entry
from hub.repo import Repo

NUM_ROWS = 8
NUM_CHUNKS = 4  # whose writers are asked for
MIN_COSINE = 0.99  # bfloat16 against float32 is above 0.999; another pooling or model is far below
MIN_COSINE_BITS = 0.9  # of signs: one in twenty may differ, near 0; of another model every second does


def check_engines(plan: Plan, files: ModelFiles, engine: Engine, output: Repo) -> None:
    """Check agreement where a server makes the vectors, or made some that the output holds: the word of its URL is not enough.

    Raises:
        EngineError: the vectors differ.
    """
    if plan.job.build != "embeddings" or plan.job.engine == "fake":
        return
    chunks = _smallest(plan.job, output)
    if plan.job.engine not in SERVERS:
        chunks = [entry for entry in chunks if _writer(output, entry) in SERVERS]
    if chunks:
        check_agreement(plan, files, engine, output, chunks[0].path)


def check_agreement(plan: Plan, files: ModelFiles, engine: Engine, output: Repo, path: str | None = None) -> None:
    """Embed a few rows of one chunk again, of the smallest unless it is named, and compare; of no chunk, nothing.

    Raises:
        EngineError: the vectors differ.
    """
    path = path or next((entry.path for entry in _smallest(plan.job, output)), None)
    content = output.read(path) if path else None
    if content is None:
        return
    name = embedding_names(plan.job)[0]
    table = pq.read_table(BytesIO(content), columns=["index", name]).filter(_is_there(name)).slice(0, NUM_ROWS)
    stored, form = _stored(plan.job, table, name, engine.dimension)
    fresh = form.dequantize(form.quantize(_embed(plan, files, engine, table["index"].to_numpy())))
    scale = np.linalg.norm(stored, axis=-1) * np.linalg.norm(fresh, axis=-1)
    lowest = float((np.einsum("nd,nd->n", stored, fresh) / np.maximum(scale, 1e-12)).min(initial=1))
    if not lowest >= (MIN_COSINE_BITS if form.dtype == "binary" else MIN_COSINE):
        raise EngineError(
            f"--engine {plan.job.engine} gives other vectors than {plan.job.output} holds (cosine {lowest:.3f} over "
            f"{table.num_rows} rows): is it the same model, with the same pooling? If the server was wrong, --restart"
        )


def _smallest(job: Job, output: Repo) -> list[Entry]:
    """A few chunks, the smallest first."""
    layout = Layout.of(job)
    prefix = f"{layout.of_split(layout.data)}/"
    chunks = [entry for path, entry in output.list_entries().items() if path.startswith(prefix)]
    return sorted(chunks, key=lambda chunk: chunk.size)[:NUM_CHUNKS]


def _writer(output: Repo, chunk: Entry) -> str | None:
    """The engine that made a chunk, from its footer; None where that cannot be read: `stillroom verify` has words for it."""
    try:
        return str(Opened.open(output, chunk, deep=False).said["job"]["engine"])
    except (DamageError, KeyError, TypeError):
        return None


def _stored(job: Job, table: pa.Table, name: str, dimension: int) -> tuple[np.ndarray, VectorFormat]:
    """Vectors of a chunk, float32 [N, D], and how they are stored."""
    form = VectorFormat(job.storage_dtype, dimension)
    if job.storage_dtype in ("int8", "binary"):
        form = VectorFormat.from_metadata(table.schema.metadata)
    return form.dequantize(stored_array(table[name].combine_chunks())), form


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

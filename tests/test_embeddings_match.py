"""Our vectors are those of sentence-transformers: python -m pytest tests/test_embeddings_match.py."""

from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from builders.demo import write_demo
from builders.job import Job
from builders.row import Row
from builders.units import Unit
from extract.batching import TokenBudget
from extract.engines import load_engine
from extract.model_files import read_model_files
from extract.stages import batches, samples, texts
from extract.tokens import load_text_tokenizer
from extract.vectors import VectorWork

NUM_ROWS = 500
MIN_COSINE = 0.9999
MAX_LENGTH = 64  # a fifth of the time of the model's own 256, and there are texts on either side of it


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    pytest.importorskip("reasoning_gym", reason='pip install "stillroom[demo]"')
    path = write_demo(tmp_path_factory.mktemp("demo") / "chat.parquet", NUM_ROWS)
    return [Row(i, data) for i, data in enumerate(pq.read_table(path).to_pylist())]


def test_vectors_are_those_of_sentence_transformers(minilm, rows):
    from sentence_transformers import SentenceTransformer

    job = Job(model=str(minilm), dtype="float32", keep_text=True, max_length=MAX_LENGTH)
    files = read_model_files(job)
    job = replace(job, pooling=files.pooling)
    engine, work = load_engine(job, files, "cpu"), VectorWork(Unit(0, 0, NUM_ROWS), job)
    budget = TokenBudget(engine.max_batch_tokens)
    ready = batches(samples(texts(rows, job.view, work), load_text_tokenizer(job, files), work), budget, work)
    for batch, vectors, padded in engine.run(ready, budget):
        work.put(batch.samples, vectors, padded)
    work.finish()
    assert len(work.rows) == NUM_ROWS
    assert 0 < work.counts()["truncated"] < NUM_ROWS  # both kinds are compared

    model = SentenceTransformer(str(minilm), device="cpu")
    model.max_seq_length = MAX_LENGTH
    theirs = model.encode([work.texts[i][0].text for i in range(NUM_ROWS)])
    assert theirs.dtype == np.float32
    cosines = (work.vectors[0] * theirs).sum(1) / np.linalg.norm(theirs, axis=1)
    assert cosines.min() >= MIN_COSINE
    np.testing.assert_allclose(np.linalg.norm(work.vectors[0], axis=1), 1, atol=1e-5)

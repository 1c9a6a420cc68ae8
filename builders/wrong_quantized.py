"""What is wrong with records of quantised vectors, for `stillroom verify --deep`."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from builders.job import Job
from builders.quantize import VectorFormat
from builders.schema import embedding_names
from builders.stored_vectors import stored_array

NORMS = (0.5, 1.5)  # of restored unit vectors: far outliers are clipped; other ranges give quite other lengths


def wrong_quantized(batch: pa.RecordBatch, *, job: Job) -> Iterator[str]:
    """Say of each vector column whether its vectors cannot be restored, or not to the length that they had."""
    try:
        form = VectorFormat.from_metadata(batch.schema.metadata)
    except (ValueError, KeyError):
        yield "does not say how its vectors are quantised"
        return
    for name in embedding_names(job):
        vectors = form.dequantize(stored_array(batch[name].drop_null()))
        if not job.normalize or form.dtype == "binary" or not len(vectors):
            continue
        norms = np.linalg.norm(vectors, axis=1)
        if norms.min() < NORMS[0] or norms.max() > NORMS[1]:
            yield f"{name} has vectors that are not of length 1 with the ranges of the chunk"

"""What may run a model, and what each can be asked for.

Every engine but `fake` runs the same model on the same tokens to the same vectors (cosine of at least 0.9999 in float32,
which tests hold), so that a dataset may be begun with one and finished with another: the fingerprint tells only `fake`
from the rest. A server is held to what the output has when a run goes on with it, and so is what goes on after a
server (extract/agree.py).
"""

from __future__ import annotations

ENGINES = ("transformers", "vllm", "openai", "tei", "triton", "fake")
SERVERS = ("openai", "tei", "triton")  # the model runs in another process, that a URL names


def same_vectors(engine: str) -> str:
    """Name an engine in the fingerprint: one name for all that give the same vectors."""
    return "fake" if engine == "fake" else "transformers"


def engine_problem(engine: str, build: str, pooling: str | None, layer: int) -> str | None:
    """Say in one line what an engine cannot give; None where there is nothing."""
    if engine in ("transformers", "fake"):
        return None
    if build == "logits":
        return (
            f"--engine {engine} makes no logits: it gives the largest logprobs of a token, and neither logsumexp nor draws "
            "from the rest; use --engine transformers"
        )
    if layer != -1:
        return f"--layer is {layer}: --engine {engine} gives the last layer only; use --engine transformers"
    can_pool = pooling in (None, "mean", "last", "cls") if engine == "vllm" else pooling != "logits-mean"
    if not can_pool:
        return f"--pooling {pooling}: --engine {engine} does not pool so; use --engine transformers"
    return None

"""Text Embeddings Inference by its own routes: `/info` says its limits, `/embed` gives vectors that are not yet scaled."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from extract.engines import EngineError
from extract.engines.wire import Http, ServerFault
from extract.sample import Sample

MAX_TEXTS = 32  # TEI's default for --max-client-batch-size, where /info does not say


class TeiClient:
    """See Client. `sends_ids`: token ids instead of text."""

    max_texts = MAX_TEXTS

    def __init__(self, url: str, max_length: int, text_of: Callable[[Sample], str]) -> None:
        self.http = Http(url)
        self.name, self.max_length, self.text_of = self.http.name, max_length, text_of
        self.sends_ids = False

    def connect(self) -> str:
        """See Client."""
        info = self.http.ask("GET", "/info")
        longest = info.get("max_input_length")
        if longest is not None and longest < self.max_length:
            raise EngineError(
                f"--endpoint {self.name} takes texts of at most {longest} tokens: give --max-length {longest}"
            )
        self.max_texts = int(info.get("max_client_batch_size") or MAX_TEXTS)
        return f"model {info.get('model_id')}, at most {self.max_texts} texts per request"

    def embed(self, samples: Sequence[Sample]) -> np.ndarray:
        """See Client."""
        inputs = [s.input_ids if self.sends_ids else self.text_of(s) for s in samples]
        answer = self.http.ask("POST", "/embed", {"inputs": inputs, "normalize": False, "truncate": False})
        try:
            return np.array(answer, np.float32).reshape(len(answer), -1)
        except (TypeError, ValueError) as error:
            raise ServerFault(f"{self.name}: an answer without vectors: {error!r} in {str(answer)[:100]}") from None

    def close(self) -> None:
        """See Client."""
        self.http.close()

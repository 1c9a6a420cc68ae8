"""Any server of `POST /v1/embeddings`: vLLM, Text Embeddings Inference, Infinity, llama.cpp, Ollama, hosted ones."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from builders.options import ConfigError
from extract.engines.wire import Http, RefusedError, ServerFault, TooBigFault
from extract.sample import Sample

MAX_TEXTS = 2048  # per request, as OpenAI has it


class OpenAiClient:
    """See Client. `sends_ids`: token ids instead of text; `encoding`: base64, a fifth of JSON's bytes, where it is taken."""

    max_texts = MAX_TEXTS

    def __init__(self, url: str, served: str | None, model: str, text_of: Callable[[Sample], str]) -> None:
        root = url.rstrip("/").removesuffix("/embeddings")
        self.http = Http(root if root.endswith("/v1") else f"{root}/v1")
        self.name, self.served, self.model, self.text_of = self.http.name, served, model, text_of
        self.sends_ids = False
        self.encoding: str | None = "base64"

    def connect(self) -> str:
        """See Client: finds the name under which the model is served."""
        try:
            listed = [str(entry["id"]) for entry in self.http.ask("GET", "/models").get("data") or []]
        except RefusedError as error:
            if ": 404: " not in str(error):  # a wrong key
                raise
            listed = []
        if self.served is None:
            known = [name for name in listed if name in (self.model, self.model.rsplit("/", 1)[-1])]
            if len(listed) > 1 and not known:
                raise ConfigError(
                    f"--endpoint {self.name} serves {', '.join(listed[:8])}: name one with --endpoint-model"
                )
            self.served = (known or listed or [self.model])[0]
        elif listed and self.served not in listed:
            raise ConfigError(f"--endpoint-model {self.served}: {self.name} serves {', '.join(listed[:8])}")
        return f"model {self.served}"

    def embed(self, samples: Sequence[Sample]) -> np.ndarray:
        """See Client."""
        inputs = [s.input_ids if self.sends_ids else self.text_of(s) for s in samples]
        content: dict[str, Any] = {"model": self.served, "input": inputs}
        try:
            return self._vectors(self.http.ask("POST", "/embeddings", content | self._options))
        except (RefusedError, TooBigFault) as error:
            if self.encoding is None or "encoding" not in str(error):
                raise
            self.encoding = None
            return self._vectors(self.http.ask("POST", "/embeddings", content))

    def close(self) -> None:
        """See Client."""
        self.http.close()

    @property
    def _options(self) -> dict[str, str]:
        return {"encoding_format": self.encoding} if self.encoding else {}

    def _vectors(self, answer: Any) -> np.ndarray:
        try:
            entries = sorted(answer["data"], key=lambda entry: entry["index"])
            return np.array([_vector(entry["embedding"]) for entry in entries], np.float32)
        except (KeyError, TypeError, ValueError) as error:
            raise ServerFault(f"{self.name}: an answer without vectors: {error!r} in {str(answer)[:100]}") from None


def _vector(value: Any) -> np.ndarray:
    """Servers that do not know base64 answer with numbers, whatever was asked for."""
    if isinstance(value, str):
        return np.frombuffer(base64.b64decode(value), "<f4")
    return np.array(value, np.float32)

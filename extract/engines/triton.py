"""A model in a Triton server, over HTTP or gRPC. What it wants and gives is read from its metadata.

A model takes text (one input of BYTES) or token ids (`input_ids`, with a mask and types where it has such inputs), and gives
one vector per text in an output of floats.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from builders.options import ConfigError
from extract.engines.wire import READ_SECONDS, DownFault, RefusedError, ServerFault, fault_of
from extract.sample import Sample

DTYPES = {"INT64": np.int64, "INT32": np.int32}
FLOATS = ("FP32", "FP16", "FP64")
MAX_TEXTS = 2048  # per request of a model that names no limit
IDS, MASK, TYPES = ("ids", "tokens"), ("mask",), ("type", "segment")  # in the names of inputs
AWAY = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "502", "503", "504")


class TritonClient:
    """See Client. HTTP clients of Triton belong to one thread each; those of gRPC would not, and do."""

    max_texts = MAX_TEXTS

    def __init__(self, url: str, model: str | None, text_of: Callable[[Sample], str]) -> None:
        parts = urlsplit(url)
        protocol = "grpc" if parts.scheme == "grpc" else "http"
        try:
            self.library: Any = importlib.import_module(f"tritonclient.{protocol}")
            self.failure: Any = importlib.import_module("tritonclient.utils").InferenceServerException
        except ImportError as error:
            raise ConfigError(f"--engine triton: pip install 'stillroom[triton]' ({error})") from None
        self.name, self.address, self.is_http = url, parts.netloc + parts.path, protocol == "http"
        self.is_secure = parts.scheme == "https"
        self.model, self.text_of = model, text_of
        self.of_thread = threading.local()

    def connect(self) -> str:
        """See Client: finds the model's inputs and output."""
        self.model = self.model or self._only_model()
        metadata = self._call("get_model_metadata", self.model)
        config = self._call("get_model_config", self.model)
        limit = int(config.get("config", config).get("max_batch_size") or 0)
        self.max_texts = limit or MAX_TEXTS
        self.inputs = [(spec["name"], spec["datatype"], len(spec["shape"])) for spec in metadata["inputs"]]
        outputs = [spec["name"] for spec in metadata["outputs"] if spec["datatype"] in FLOATS]
        named = [name for name in outputs if "embed" in name.lower()] or outputs
        if len(named) != 1:
            raise ConfigError(f"--endpoint {self.name}: {self.model} has the outputs {outputs}: one vector is wanted")
        self.output = named[0]
        for name, datatype, _ in self.inputs:
            self._kind(name, datatype)
        inputs = ", ".join(f"{name} {datatype}" for name, datatype, _ in self.inputs)
        return f"model {self.model} ({inputs} -> {self.output}), at most {self.max_texts} texts per request"

    def embed(self, samples: Sequence[Sample]) -> np.ndarray:
        """See Client."""
        inputs = []
        for name, datatype, axes in self.inputs:
            value = self._value(samples, self._kind(name, datatype), DTYPES.get(datatype), axes)
            inputs.append(self.library.InferInput(name, list(value.shape), datatype))
            inputs[-1].set_data_from_numpy(value)
        outputs = [self.library.InferRequestedOutput(self.output)]
        answer = self._call("infer", self.model, inputs, outputs=outputs, raw=True)
        vectors = np.asarray(answer.as_numpy(self.output), np.float32)
        if vectors.size % len(samples) or (vectors.ndim > 2 and vectors.shape[1] != 1):
            raise RefusedError(f"{self.name}: {self.output} has the shape {list(vectors.shape)}: one vector is wanted")
        return vectors.reshape(len(samples), -1)

    def close(self) -> None:
        """See Client. Connections are their threads', and end with these."""

    def _kind(self, name: str, datatype: str) -> str:
        words = {"ids": IDS, "mask": MASK, "types": TYPES}
        if datatype == "BYTES" and len(self.inputs) == 1:
            return "text"
        found = [kind for kind in ("mask", "types", "ids") if any(word in name.lower() for word in words[kind])]
        if datatype not in DTYPES or not found:
            raise ConfigError(f"--endpoint {self.name}: {self.model} wants {name} {datatype}: only text or token ids")
        return found[0]

    def _value(self, samples: Sequence[Sample], kind: str, dtype: Any, axes: int) -> np.ndarray:
        if kind == "text":
            texts = np.array([self.text_of(sample).encode() for sample in samples], dtype=object)
            return texts if axes == 1 else texts[:, None]
        value = np.zeros((len(samples), max(sample.num_tokens for sample in samples)), dtype)
        for row, sample in zip(value, samples, strict=True):
            if kind != "types":
                row[: sample.num_tokens] = sample.input_ids if kind == "ids" else 1
        return value

    def _only_model(self) -> str:
        index = self._call("get_model_repository_index")
        names = [entry["name"] for entry in (index["models"] if isinstance(index, Mapping) else index)]
        if len(names) != 1:
            raise ConfigError(f"--endpoint {self.name} serves {', '.join(names) or 'nothing'}: give --triton-model")
        return str(names[0])

    def _call(self, what: str, *arguments: Any, raw: bool = False, **options: Any) -> Any:
        """Ask the server, in JSON unless `raw`.

        Raises:
            Fault, RefusedError: it did not answer as it should.
        """
        timeout = {} if self.is_http or not raw else {"client_timeout": READ_SECONDS}
        form = {} if self.is_http or raw else {"as_json": True}
        try:
            return getattr(self._client(), what)(*arguments, **options, **timeout, **form)
        except self.failure as error:
            status, text = str(error.status() or ""), str(error.message())
            if any(word in status for word in AWAY) or "onnection" in text:
                raise DownFault(f"{self.name}: {status}: {text}") from None
            if status.isdigit():
                raise fault_of(self.name, int(status), text, None) from None
            is_asked_wrongly = any(word in status for word in ("NOT_FOUND", "INVALID", "UNAUTHENTICATED", "DENIED"))
            raise (RefusedError if is_asked_wrongly else ServerFault)(f"{self.name}: {status}: {text}") from None
        except (OSError, ValueError) as error:  # no connection, or one that broke in an answer
            self.of_thread.__dict__.clear()
            raise DownFault(f"{self.name}: {type(error).__name__}: {error}") from None

    def _client(self) -> Any:
        if not hasattr(self.of_thread, "client"):
            options = {"network_timeout": READ_SECONDS} if self.is_http else {}
            self.of_thread.client = self.library.InferenceServerClient(self.address, ssl=self.is_secure, **options)
        return self.of_thread.client

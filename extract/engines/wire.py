"""What a server of embeddings can answer, whatever it speaks: vectors, or one of four faults."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any, Protocol
from urllib.parse import urlsplit

import numpy as np

from extract.engines import EngineError
from extract.sample import Sample

try:
    import httpx2 as httpx  # huggingface_hub brings it from 2.0 on
except ImportError:
    import httpx  # type: ignore[no-redef]

KEY, OPENAI_KEY = "STILLROOM_API_KEY", "OPENAI_API_KEY"  # the second is sent to openai.com alone
CONNECT_SECONDS, READ_SECONDS = 10.0, 300.0  # a large request may wait long in a full server
MAX_CONNECTIONS = 512
TEXTS = re.compile(r"batch|inputs|items|array", re.IGNORECASE)  # the limit is on texts, not on tokens or bytes
TOO_BIG = re.compile(r"batch|too (large|long|many)|maximum|exceed|at most", re.IGNORECASE)  # in a 400 or 422
BATCH_LIMIT = re.compile(r"maximum (?:allowed )?batch size (?:is |of )?(\d+)", re.IGNORECASE)  # as TEI says it


class Fault(Exception):
    """A request that gave no vectors, and may be sent again: embeddings have no side effects."""


class BusyFault(Fault):
    """The server wants fewer requests (429, or 503 with Retry-After), and none for some seconds."""

    def __init__(self, text: str, seconds: float | None) -> None:
        super().__init__(text)
        self.seconds = seconds


class TooBigFault(Fault):
    """The request is over a limit of the server: on texts, which the answer may name, or on tokens or bytes."""

    def __init__(self, text: str, max_texts: int | None = None) -> None:
        super().__init__(text)
        self.max_texts = max_texts
        self.is_of_texts = max_texts is not None or TEXTS.search(text) is not None


class DownFault(Fault):
    """Nothing answers. It may come back."""


class ServerFault(Fault):
    """The server answers, and failed (500): it, or these very texts."""


class RefusedError(EngineError):
    """The server refuses the request for good: a wrong key, model or path."""


class Client(Protocol):
    """One server, that many threads use at once."""

    name: str  # its URL
    max_texts: int  # per request

    def connect(self) -> str:
        """Ask the server what it is, and say it in some words.

        Raises:
            Fault, EngineError: it is not there, or not what the job needs.
        """

    def embed(self, samples: Sequence[Sample]) -> np.ndarray:
        """Vectors of texts, float32 [B, D], as the server gives them.

        Raises:
            Fault, EngineError: it gave none.
        """

    def close(self) -> None:
        """Let go of connections."""


class Http:
    """A server that speaks JSON over HTTP. Thread-safe. The key comes from the environment and shows nowhere."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.name = self.url
        key = os.environ.get(KEY)
        if key is None and (urlsplit(self.url).hostname or "").endswith(".openai.com"):
            key = os.environ.get(OPENAI_KEY)
        self.client = httpx.Client(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS, pool=None),
            limits=httpx.Limits(max_connections=MAX_CONNECTIONS, max_keepalive_connections=MAX_CONNECTIONS),
        )

    def ask(self, method: str, path: str, content: Any = None) -> Any:
        """Return the JSON of an answer.

        Raises:
            Fault, RefusedError: it is not one of success.
        """
        try:
            answer = self.client.request(method, self.url + path, json=content)
        except httpx.HTTPError as error:  # no connection, or one that broke
            raise DownFault(f"{self.name}: {type(error).__name__}: {error}") from None
        if answer.status_code >= 300:
            raise fault_of(self.name, answer.status_code, answer.text, answer.headers.get("retry-after"))
        try:
            return answer.json()
        except ValueError:
            raise ServerFault(f"{self.name}: the answer to {path} is no JSON: {answer.text[:100]!r}") from None

    def close(self) -> None:
        """Let go of connections."""
        self.client.close()


def fault_of(name: str, status: int, text: str, retry_after: str | None) -> Exception:
    """What an HTTP status means for the request that got it."""
    said = f"{name}: {status}: {' '.join(text.split())[:300]}"
    seconds = float(retry_after) if retry_after and re.fullmatch(r"\d+(\.\d+)?", retry_after) else None
    if status == 429 or (status == 503 and retry_after is not None):
        return BusyFault(said, seconds)
    if status == 413 or (status in (400, 422) and TOO_BIG.search(text)):
        limit = BATCH_LIMIT.search(text)
        return TooBigFault(said, int(limit[1]) if limit else None)
    if status in (408, 502, 503, 504):
        return DownFault(said)
    if status >= 500 or status == 424:  # 424: TEI's word for a failed model
        return ServerFault(said)
    return RefusedError(said)

"""What an error of the Hub means: wait and try again, or stop. Each case says where it was seen."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["busy", "conflict", "hourly", "rate", "server", "network", "fatal"]

PER_HOUR = re.compile(r"\((\d+) per hour\)")
QUOTA = re.compile(r"storage (limit|quota)|quota exceeded|out of storage", re.IGNORECASE)
TOKEN = re.compile(r"hf_[\w.-]{6,}")  # hf_oauth_… and hf_jwt_… hold dots, dashes and underscores
# Plain RuntimeErrors of the line: Xet's Rust side ends with one when its own tries are used up; and huggingface_hub
# closes its one client under the requests of all threads when one of them cannot connect.
LINE = re.compile(
    r"connect|network|timed? ?out|dns|request failed|error sending|broken pipe|reqwest|client has been closed",
    re.IGNORECASE,
)
# Faults of this machine, not of the line.
LOCAL_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE}
BUSY_SECONDS = 4.0  # a commit takes 1 to 10 s; the lock is then free again
SERVER_SECONDS = 10.0
HOURLY_SECONDS = 900.0  # a quarter of the rolling hour frees a quarter of the commits


@dataclass(frozen=True, slots=True)
class Fault:
    """A diagnosis. `seconds` is how long to wait before the next try, `per_hour` a commit limit that the server named."""

    kind: Kind
    text: str
    seconds: float = 0.0
    per_hour: int | None = None

    @property
    def is_fatal(self) -> bool:
        """Waiting will not help."""
        return self.kind == "fatal"


def diagnose(error: Exception) -> Fault:
    """Tell what kind of error a call of huggingface_hub ended with.

    409 is the lock of another commit; 412 a parent commit that is no longer the newest; a 429 with "(N per hour)" in its
    body is the repository's commit limit, whatever its headers say, any other 429 the account's request limit. Errors of
    the server and the line may have come after the commit landed: look before trying again.
    """
    response = _response(error)
    status = getattr(response, "status_code", None)
    text = TOKEN.sub("hf_…", " ".join(str(error).split()))[:300]
    if status is None:
        kind: Kind = "network" if any(map(_is_network, _chain(error))) else "fatal"
        return Fault(kind, text or type(error).__name__, SERVER_SECONDS / 2)
    if status == 409:
        return Fault("busy", text, BUSY_SECONDS)
    if status == 412:
        return Fault("conflict", text, 1.0)
    if status == 429:
        return _too_many(response, text)
    if status in (408, 425) or status >= 500:
        return Fault("server", text, SERVER_SECONDS)
    return Fault("fatal", _advice(status, text))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and its causes: a failed upload is a RuntimeError whose cause is the answer of the server."""
    while error is not None:
        yield error
        error = error.__cause__


def _response(error: BaseException) -> Any:
    found = (getattr(link, "response", None) for link in _chain(error))
    return next((response for response in found if response is not None), None)


def _is_network(error: BaseException) -> bool:
    """Timeouts and broken connections: OSError, or an error of the HTTP library (httpx2 in huggingface_hub 2)."""
    if isinstance(error, OSError):
        is_local = isinstance(error, FileNotFoundError | PermissionError) or error.errno in LOCAL_ERRNOS
        return not is_local and type(error).__name__ != "LocalTokenNotFoundError"
    is_xet = type(error) is RuntimeError and LINE.search(str(error)) is not None
    return is_xet or type(error).__module__.split(".")[0] in ("httpx", "httpx2", "httpcore", "httpcore2")


def _too_many(response: Any, text: str) -> Fault:
    body = str(getattr(response, "text", ""))
    named = PER_HOUR.search(body) or PER_HOUR.search(text)
    if named:
        return Fault("hourly", text, HOURLY_SECONDS, int(named[1]))
    headers = response.headers
    window = re.search(r"r=0;t=(\d+)", headers.get("RateLimit", ""))
    if window:
        return Fault("rate", text, float(window[1]) + 1)
    retry_after = headers.get("Retry-After", "")
    return Fault("rate", text, float(retry_after) if retry_after.isdigit() else SERVER_SECONDS)


def _advice(status: int, text: str) -> str:
    if QUOTA.search(text) or status in (402, 413, 507):
        return f"the storage quota of the account is full ({text}): free space, then run again with --resume"
    if status == 401:
        return f"the token is missing or no longer valid ({text}): `hf auth login`, then run again with --resume"
    if status == 403:
        return f"the token may not write here ({text}): use one with write access, then run again with --resume"
    if status == 404:
        return f"the dataset is not there, or the token cannot see it ({text})"
    return text

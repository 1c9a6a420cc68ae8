"""Finished units become chunks in pending, in a thread, while the model goes on."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from builders.layout import FORMAT, Layout
from builders.schema import Column
from extract.versions import VERSIONS
from extract.work import Work

if TYPE_CHECKING:
    from extract.prepare import Session


class ChunkWriter:
    """Writes finished units into pending in a thread, one at a time, while the model goes on."""

    def __init__(
        self,
        session: Session,
        columns: Sequence[Column],
        device: str,
        loading_seconds: float = 0.0,
        cost_per_hour: float | None = None,
    ) -> None:
        """`loading_seconds` is what the worker took before it could begin: they stand in its first unit."""
        self.session, self.columns, self.device = session, columns, device
        self.cost_per_hour, self._loading = cost_per_hour, round(1000 * loading_seconds)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._last: Future[None] | None = None
        self._since = time.monotonic()  # the end of the unit before

    def __enter__(self) -> ChunkWriter:
        return self

    def __exit__(self, *error: object) -> None:
        """Finish the chunk in hand, whatever ends the loop."""
        self._pool.shutdown(wait=True)
        if error[0] is None and self._last is not None:
            self._last.result()

    def write(self, work: Work) -> None:
        """Begin to write a unit; an error of the one before is raised here."""
        if self._last is not None:
            self._last.result()
        since, self._since = self._since, time.monotonic()
        took, loading, self._loading = round(1000 * (self._since - since)), self._loading, 0
        facts: dict[str, Any] = {
            "milliseconds": took,  # of this worker
            "loading_milliseconds": loading,
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "device": self.device,
        }
        if self.cost_per_hour is not None:  # whole numbers: sums of them are exact
            facts["microdollars"] = round((took + loading) * self.cost_per_hour / 3.6)
        self._last = self._pool.submit(self._write, work, facts)

    def _write(self, work: Work, facts: Mapping[str, Any]) -> None:
        job, unit, layout = self.session.plan.job, work.unit, Layout.of(self.session.plan.job)
        tables = {
            unit.path(layout.skipped, layout.split_folder): work.skipped_table() if work.skipped else None,
            unit.path(layout.data, layout.split_folder): work.records(self.columns) if work.rows else None,
        }
        metadata = {
            "format": FORMAT,
            "fingerprint": job.fingerprint,
            "source_revision": job.revision,
            "start": unit.start,
            "stop": unit.stop,
            "counts": {**work.counts(), **facts},
            "versions": VERSIONS,
            "job": job.to_dict(),
        }
        whole = {path: table for path, table in tables.items() if table is not None}
        self.session.pending.add(unit.start, unit.stop, whole, metadata)
        self.session.partial.remove(unit)

"""The Hub's Jobs, for tests: the addresses that huggingface_hub calls, and every job really run, as a process.

A job has a folder of its own in place of a container, the environment and secrets of its request, and dies at its timeout.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

DEFAULT_SECONDS = 1800  # the Hub's own
RUNNING = ("SCHEDULING", "RUNNING")


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass
class HubJob:
    """One job: what was asked, its process, and how it stands."""

    id: str
    namespace: str
    spec: dict
    folder: Path
    stage: str = "SCHEDULING"
    message: str | None = None
    created: str = field(default_factory=now)
    process: subprocess.Popen | None = None

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def run(self, platform: dict[str, str]) -> None:
        """Run to the end, or to the timeout."""
        given = self.spec["environment"] | self.spec.get("secrets", {})
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # an image has `accelerate`, whoever started the test
        env = {"PATH": path, "HOME": str(self.folder)} | platform | given
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                self.spec["command"] + self.spec["arguments"],
                cwd=self.folder,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            self.stage = "RUNNING"
            try:
                code = self.process.wait(self.spec.get("timeoutSeconds", DEFAULT_SECONDS))
                end, message = ("COMPLETED", None) if code == 0 else ("ERROR", f"Job failed with exit code: {code}")
            except subprocess.TimeoutExpired:
                end, message = "ERROR", "Job timeout"
        self.kill()
        if self.stage == "RUNNING":  # else it was cancelled
            self.stage, self.message = end, message

    def kill(self) -> None:
        """Take the container away."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def to_json(self) -> dict:
        """As the Hub tells it: of secrets the names alone."""
        keys = ("command", "arguments", "environment", "flavor", "labels", "dockerImage")
        owner = {"id": "1", "name": self.namespace, "type": "user"}
        shown = {key: self.spec.get(key) for key in keys} | {
            "secrets": dict.fromkeys(self.spec.get("secrets", {}), "")
        }
        status = {"stage": self.stage, "message": self.message}
        return {"id": self.id, "createdAt": self.created, "owner": owner, "status": status, **shown}


class Jobs:
    """All jobs of a test Hub. `platform` is the environment that every container has."""

    def __init__(self, root: Path, platform: dict[str, str]) -> None:
        self.root, self.platform = root, platform
        self.all: dict[str, HubJob] = {}

    def start(self, namespace: str, spec: dict) -> dict:
        """POST /api/jobs/{namespace}"""
        job_id = f"{len(self.all) + 1:024x}"
        folder = self.root / job_id
        folder.mkdir(parents=True)
        job = self.all[job_id] = HubJob(job_id, namespace, spec, folder)
        threading.Thread(target=job.run, args=(self.platform,), daemon=True).start()
        return job.to_json()

    def list(self, namespace: str, stages: list[str], labels: list[str]) -> list[dict]:
        """GET /api/jobs/{namespace}?stage=…&label=key=value: newest first."""
        wanted = dict(label.split("=", 1) for label in labels)
        return [
            job.to_json()
            for job in list(self.all.values())[::-1]
            if job.namespace == namespace
            and (not stages or job.stage in stages)
            and wanted.items() <= (job.spec.get("labels") or {}).items()
        ]

    def cancel(self, job_id: str) -> dict:
        """POST /api/jobs/{namespace}/{id}/cancel"""
        job = self.all[job_id]
        if job.stage in RUNNING:
            job.stage = "CANCELED"
            job.kill()
        return job.to_json()

    def events(self, job_id: str, tail: int | None) -> bytes:
        """GET /api/jobs/{namespace}/{id}/logs: server-sent events, one a line, then the end of the stream."""
        lines = [f"===== Job started at {now()} =====", *self.all[job_id].log.read_text().splitlines()]
        lines = lines[-tail:] if tail else lines
        events = [json.dumps({"data": line, "timestamp": now()}) for line in lines]
        return "".join(f"data: {event}\n\n" for event in events).encode()

    def stop(self) -> None:
        """Leave nothing behind."""
        end = time.monotonic() + 10
        for job in self.all.values():
            self.cancel(job.id)
        while any(job.process is None for job in self.all.values()) and time.monotonic() < end:
            time.sleep(0.05)

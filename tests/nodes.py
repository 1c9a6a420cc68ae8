"""Machines of a run as Linux network namespaces: own addresses on one bridge, own caches, and a cable to pull.

The test's own namespace stands at the bridge's address, and what listens there is a third machine: the Hub.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.runs import CHECKOUT, Bench

RDZV_PORT = 29500
NET = f"10.{64 + os.getpid() % 64}.{os.getpid() // 64 % 256}"  # of this test process alone
NAME = f"sr{os.getpid() % 1_000_000}"
HUB = f"{NET}.1"


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


class Node:
    """One machine. Its workers run in its namespace, with a cache and an HF_HOME of their own."""

    def __init__(self, number: int, root: Path) -> None:
        self.number, self.name, self.cable = number, f"{NAME}n{number}", f"{NAME}v{number}"
        self.address = f"{NET}.{10 + number}"
        root.mkdir(parents=True, exist_ok=True)
        self.bench = Bench(root)

    def make(self) -> None:
        ip("netns", "add", self.name)
        ip("link", "add", self.cable, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        ip("link", "set", self.cable, "master", NAME, "up")
        ip("-n", self.name, "addr", "add", f"{self.address}/24", "dev", "eth0")
        for device in ("eth0", "lo"):
            ip("-n", self.name, "link", "set", device, "up")

    def start(self, launcher: list[str], *arguments: str, **env: str) -> subprocess.Popen[bytes]:
        """Start `extract/run.py` here, under a launcher's module and its options; none: alone."""
        command = ["ip", "netns", "exec", self.name, sys.executable, *launcher]
        with self.bench.log.open("w") as log:
            return subprocess.Popen(
                [*command, str(CHECKOUT / "extract" / "run.py"), *arguments],
                env=self.bench.env | {"NO_PROXY": "*"} | env,
                cwd=self.bench.root,
                start_new_session=True,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def torchrun(self, *options: str, workers: int = 2, nodes: str = "2") -> list[str]:
        """torchrun's module and options; the first machine holds the rendezvous."""
        conf = f"is_host={int(self.number == 1)},last_call_timeout=5"
        return [
            *("-m", "torch.distributed.run", "--nnodes", nodes, "--nproc_per_node", str(workers)),
            *("--rdzv_backend", "c10d", "--rdzv_endpoint", f"{NET}.11:{RDZV_PORT}", "--rdzv_conf", conf),
            *("--local_addr", self.address),  # a namespace has no name that resolves
            *options,
        ]

    def pids(self) -> list[int]:
        return [int(pid) for pid in ip("netns", "pids", self.name).split()]

    def workers(self) -> list[int]:
        """Process ids of the workers, without the launcher."""
        found = []
        for pid in self.pids():
            with suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if b"-u" in words[1:2]:  # as torchrun starts them
                    found.append(pid)
        return found

    def plug(self, state: str) -> None:
        """Pull the cable (`down`: nothing comes or goes, not even a reset), or plug it in again (`up`)."""
        ip("link", "set", self.cable, state)

    def lose(self) -> None:
        """Take the machine away: first the cable, so that no other one is told."""
        self.plug("down")
        self.kill()

    def kill(self) -> None:
        for pid in self.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def cut_off_hub(self, is_cut: bool) -> None:
        """Have the Hub's answers to this machine dropped, or sent again; the other machine is not concerned."""
        ip("route", "add" if is_cut else "del", "blackhole", f"{self.address}/32")

    def log(self) -> str:
        return self.bench.log.read_text()


@contextmanager
def open_nodes(root: Path, number: int = 2) -> Iterator[list[Node]]:
    """Yield machines 1, 2, …; skip the test where namespaces cannot be made."""
    nodes = [Node(n, root / f"node-{n}") for n in range(1, number + 1)]
    if shutil.which("ip") is None:
        pytest.skip("no `ip` command: apt install iproute2")
    try:
        ip("link", "add", NAME, "type", "bridge")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here, they need root: {error.stderr.strip()}")
    try:
        ip("addr", "add", f"{HUB}/24", "dev", NAME)
        ip("link", "set", NAME, "up")
        for node in nodes:
            node.make()
        yield nodes
    finally:
        for node in nodes:
            with suppress(subprocess.CalledProcessError):
                node.kill()
                ip("link", "del", node.cable)  # at once: a namespace takes its time
                ip("netns", "del", node.name)
        ip("link", "del", NAME)

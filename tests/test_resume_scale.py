"""What a resumed run costs before its first batch, with 10,000 chunks done; and which pending chunks it takes up."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.resume import fill, write_source
from builders.job import Job
from extract.prepare import prepare
from extract.settings import Settings
from extract.stop import Stop
from extract.world import World
from tests.hubserver import HubServer
from tests.hubstore import Faults
from tests.runs import MINILM, use_hub

DONE, LEFT = 10_000, 5
OUTPUT = "tester/big"
logger = logging.getLogger(__name__)


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[HubServer]:
    with HubServer(tmp_path_factory.mktemp("hub")) as hub:
        yield hub


@pytest.fixture(autouse=True)
def client(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.faults = Faults(reset_seconds=0)
    use_hub(monkeypatch, server)


@pytest.fixture(scope="module")
def job(server: HubServer, tmp_path_factory) -> Job:
    """A job whose output holds all units but five, every other one with skipped rows; 100 units a commit."""
    source = tmp_path_factory.mktemp("source") / "chats.jsonl"
    write_source(source, DONE + LEFT)
    asked = Job(source=str(source), output=OUTPUT, model=MINILM, engine="fake", chunk_rows=1)
    with pytest.MonkeyPatch.context() as monkeypatch:
        use_hub(monkeypatch, server)
        prepare(asked, settings(tmp_path_factory.mktemp("cache")), World.join(), Stop(None))
    fill(server, OUTPUT, DONE, DONE + LEFT)
    return asked


def settings(cache: Path) -> Settings:
    return Settings(resume=True, cache_dir=str(cache))


def plan(job: Job, cache: Path, server: HubServer) -> tuple[float, dict[str, int]]:
    server.requests.clear()
    started = time.monotonic()
    session = prepare(job, settings(cache), World.join(), Stop(None))
    seconds = time.monotonic() - started
    assert session.plan.todo == list(range(DONE, DONE + LEFT)) and not session.is_complete
    return seconds, {kind: n for kind, n in server.counts().items() if kind != "unknown"}


@pytest.mark.parametrize("num_skipped", [0, DONE])
def test_planning_takes_25_requests_and_3_seconds(
    job: Job, server: HubServer, tmp_path: Path, num_skipped: int
) -> None:
    fill(server, OUTPUT, DONE, DONE + LEFT, num_skipped)
    seconds, counts = zip(*(plan(job, tmp_path, server) for _ in range(3)), strict=True)
    logger.info("%d skipped: %.2f to %.2f s, %s", num_skipped, min(seconds), max(seconds), counts[0])
    assert max(sum(each.values()) for each in counts) <= 25
    assert min(seconds) <= 3.0  # the Hub's own work counted; the least, as the cores are shared


@pytest.mark.parametrize("fault", ["429", "500", "drop"])
def test_a_page_that_fails_costs_one_request_more(job: Job, server: HubServer, tmp_path: Path, fault: str) -> None:
    fill(server, OUTPUT, DONE, DONE + LEFT)
    _, whole = plan(job, tmp_path / "one", server)
    server.faults.next("page", ["ok"] * 4 + [fault, "ok", fault])
    _, counts = plan(job, tmp_path / "two", server)
    assert sum(server.faults.fired.values()) == 2
    assert counts == whole | {"tree": whole["tree"] + 2}

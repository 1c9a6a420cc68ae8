"""What a resumed run costs before its first batch, with 10,000 chunks done; and which pending chunks it takes up."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from builders.job import Job
from builders.layout import Layout
from builders.units import Units
from extract.prepare import prepare
from extract.settings import Settings
from extract.stop import Stop
from extract.world import World
from hub.ledger import Ledger
from hub.pending import Entry, Receipt
from hub.remote import HubRepo
from tests.hubserver import HubServer
from tests.hubstore import Faults, lfs_info
from tests.runs import MINILM, use_hub

DONE, LEFT = 10_000, 5
OUTPUT, LAYOUT = "tester/big", Layout()
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
    row = json.dumps({"messages": [{"role": "assistant", "content": "yes"}]})
    source.write_text(f"{row}\n" * (DONE + LEFT))
    asked = Job(source=str(source), output=OUTPUT, model=MINILM, engine="fake", chunk_rows=1)
    with pytest.MonkeyPatch.context() as monkeypatch:
        use_hub(monkeypatch, server)
        prepare(asked, settings(tmp_path_factory.mktemp("cache")), World.join(), Stop(None))
    fill(server, 0)
    return asked


def settings(cache: Path) -> Settings:
    return Settings(resume=True, cache_dir=str(cache))


def fill(server: HubServer, num_skipped: int, units_per_receipts: int = 100) -> None:
    """Put the chunks into the Hub's store: their names are what planning reads."""
    units, repo = Units(DONE + LEFT, 1), server.store.repo(OUTPUT)
    tree = {path: file for path, file in repo.head("main").tree.items() if path == LAYOUT.job}
    data, skipped = lfs_info("1" * 64, 100_000_000), lfs_info("2" * 64, 1000)
    done = [units[number] for number in range(DONE)]
    tree |= {unit.path(LAYOUT.data, "train"): data for unit in done}
    tree |= {unit.path(LAYOUT.skipped, "train"): skipped for unit in done[:num_skipped]}
    ledger = Ledger(HubRepo(OUTPUT), LAYOUT.receipts, LAYOUT.ledger)
    receipts = [
        Receipt(u.start, u.stop, (Entry(u.path("data", "train"), 100_000_000, "1" * 64),), {"rows": 1, "records": 1})
        for u in done
    ]
    for start in range(0, DONE, units_per_receipts):
        part = ledger.part(receipts[start : start + units_per_receipts])
        tree |= {path: server.store.keep(content) for path, content in part.items()}
    repo.record("main", tree, "10,000 chunks", ())


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
    fill(server, num_skipped)
    seconds, counts = zip(*(plan(job, tmp_path, server) for _ in range(3)), strict=True)
    logger.info("%d skipped: %.2f to %.2f s, %s", num_skipped, min(seconds), max(seconds), counts[0])
    assert max(sum(each.values()) for each in counts) <= 25
    assert min(seconds) <= 3.0  # the Hub's own work counted; the least, as the cores are shared


@pytest.mark.parametrize("fault", ["429", "500", "drop"])
def test_a_page_that_fails_costs_one_request_more(job: Job, server: HubServer, tmp_path: Path, fault: str) -> None:
    fill(server, 0)
    _, whole = plan(job, tmp_path / "one", server)
    server.faults.next("page", ["ok"] * 4 + [fault, "ok", fault])
    _, counts = plan(job, tmp_path / "two", server)
    assert sum(server.faults.fired.values()) == 2
    assert counts == whole | {"tree": whole["tree"] + 2}

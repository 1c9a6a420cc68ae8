"""Machines hand their units to one committer, through the launcher's real store and against the test Hub."""

import threading
import time
from dataclasses import fields

import pytest
from huggingface_hub import CommitOperationAdd

from extract.world import World
from hub.budget import CommitBudget
from hub.commit import Uploader
from hub.committer import Committer
from hub.handover import can_rebuild, rebuild
from hub.outbox import LocalOutbox, RemoteOutbox
from hub.patience import Patience
from hub.pending import Entry, Pending
from hub.remote import HubRepo
from tests.test_commit import fill, held, path_of, short_waits  # noqa: F401  # fixtures
from tests.test_remote import REPO, chunk, hub, repo  # noqa: F401  # fixtures


@pytest.fixture
def worlds():
    """Three machines of one worker each."""
    from torch.distributed import PrefixStore, TCPStore

    main = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    others = [TCPStore("127.0.0.1", main.port, is_master=False) for _ in range(2)]
    yield [World(rank, 3, 0, PrefixStore("t", store)) for rank, store in enumerate([main, *others])]


def uploaders(worlds, tmp_path):
    """One per machine, each with a client of its own; the first commits for all."""
    for rank, world in enumerate(worlds):
        repo = HubRepo.open(REPO, private=True)  # noqa: F811
        patience = Patience(repo.name)
        committer = Committer(repo, CommitBudget(96, "main"), patience)
        outbox = LocalOutbox(committer, world, len(worlds)) if rank == 0 else RemoteOutbox(world)
        yield Uploader(repo, Pending(tmp_path / f"pending-{rank}"), outbox, patience)


def drain_together(machines) -> list[bool]:
    done = [False] * len(machines)

    def drain(number: int) -> None:
        done[number] = machines[number].drain(lambda: 20.0)

    threads = [threading.Thread(target=drain, args=(number,)) for number in range(len(machines))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return done


def test_one_machine_commits_for_all(hub, worlds, tmp_path):  # noqa: F811
    machines = list(uploaders(worlds, tmp_path))
    for rank, machine in enumerate(machines):
        fill(machine.pending, *range(rank, 12, 3))
    with machines[0], machines[1], machines[2]:
        assert drain_together(machines) == [True] * 3
    assert held(hub) == {path_of(n) for n in range(12)}
    assert [machine.stats.num_units for machine in machines] == [4, 4, 4]
    assert not any(machine.pending.num_units for machine in machines)
    assert hub.count("commit") <= 2, "the first units at once, all others with the last"
    assert {c.description for c in hub.commits(REPO)[1:]} == {"stillroom-writer: main"}


def test_bytes_that_the_hub_lost_are_sent_again_by_the_machine_that_has_them(hub, worlds, tmp_path):  # noqa: F811
    """A commit of files that were handed over and are gone is refused with a 400."""
    machines = list(uploaders(worlds, tmp_path))
    fill(machines[1].pending, 7)
    hub.commit_seconds = 0.3
    with machines[1], machines[2]:
        wait_until(lambda: hub.count("upload") == 1)
        time.sleep(0.3)
        hub.store.repo(REPO).lfs.clear()
        with machines[0]:
            assert drain_together(machines) == [True] * 3
    assert held(hub) == {path_of(7)}
    assert hub.count("commit", 400) >= 1 and hub.count("upload") == 2


def test_faults_of_the_committer_reach_nobody_else(hub, worlds, tmp_path):  # noqa: F811
    machines = list(uploaders(worlds, tmp_path))
    hub.faults.next("commit", ["409", "landed_500", "429", "drop"])
    for rank, machine in enumerate(machines):
        fill(machine.pending, rank, rank + 10)
    with machines[0], machines[1], machines[2]:
        assert drain_together(machines) == [True] * 3
    assert len(held(hub)) == 6
    assert not any(machines[1].patience.faults.values())


def test_without_the_librarys_own_fields_every_machine_commits(hub, worlds, tmp_path, monkeypatch):  # noqa: F811
    """Nothing then touches `rebuild`: each process commits what it uploaded, in its turn."""
    monkeypatch.setattr("hub.remote.can_rebuild", lambda: False)
    monkeypatch.setattr("hub.remote.rebuild", None)
    machines = []
    for rank in range(3):
        repo = HubRepo.open(REPO, private=True)  # noqa: F811
        assert not repo.takes_handover
        patience = Patience(repo.name)
        committer = Committer(repo, CommitBudget(96, f"job-{rank}"), patience)
        machines.append(Uploader(repo, Pending(tmp_path / f"p{rank}"), LocalOutbox(committer), patience))
        fill(machines[-1].pending, rank)
    hub.faults.next("commit", ["409"])
    with machines[0], machines[1], machines[2]:
        assert drain_together(machines) == [True] * 3
    assert held(hub) == {path_of(n) for n in range(3)}


def test_a_rebuilt_operation_is_the_one_that_was_sent(hub, repo, chunk):  # noqa: F811
    """Every field of the library's that a commit reads; the content and what belongs to it differ."""
    path, entry = chunk
    repo.upload({path: entry})
    (sent,) = repo._operations.values()
    built = rebuild(entry)
    assert isinstance(built, CommitOperationAdd) and can_rebuild()
    differing = {spec.name for spec in fields(sent) if getattr(sent, spec.name) != getattr(built, spec.name)}
    assert differing <= {"path_or_fileobj", "upload_info"}
    assert (built.upload_info.sha256, built.upload_info.size) == (sent.upload_info.sha256, sent.upload_info.size)


def test_a_library_with_other_fields_is_noticed(monkeypatch):
    from dataclasses import dataclass, field

    @dataclass
    class Later(CommitOperationAdd):
        _xet_hash: str | None = field(init=False, default=None)

    monkeypatch.setattr("hub.handover.CommitOperationAdd", Later)
    assert not can_rebuild()


def test_another_process_commits_what_was_uploaded(hub, repo, chunk):  # noqa: F811
    path, entry = chunk
    repo.upload({path: entry})
    path.unlink()
    another = HubRepo(REPO)
    another.commit({entry.path: entry}, [], "handed over")
    assert another.missing([entry]) == []
    missing = Entry("b.parquet", 3, "1" * 64)
    with pytest.raises(Exception, match="does not exist"):
        another.commit({missing.path: missing}, [], "never uploaded")


def wait_until(condition, seconds: float = 15.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.01)

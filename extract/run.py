"""The main job: stream a dataset through a model, and pour what comes out into a Hub dataset or a folder.

accelerate launch extract/run.py --resume --max-runtime-minutes 55

source -> units -> samples -> tokens -> batches -> engine -> records -> chunk -> pending -> commit -> card
builders/...................  extract/.........................  hub/...........................  cards/
"""

from __future__ import annotations

import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
if not __package__:  # started by path: Python put extract/ on sys.path, not the checkout
    sys.path[:] = [str(CHECKOUT)] + [p for p in sys.path if p != str(CHECKOUT / "extract")]
# Here, as help and wrong options need none of the imports below; a job loads this file by name.
if __name__ == "__main__":
    from extract.cli import run_command

    run_command()

import logging
import shutil
from collections.abc import Callable
from contextlib import ExitStack, closing

from builders.job import Job
from builders.layout import Layout
from builders.options import ConfigError
from cards.writer import CardWriter
from extract.agree import check_engines
from extract.batching import TokenBudget
from extract.builds import Build, open_build
from extract.claim import claim, read_batches
from extract.device import hardware, pin_device
from extract.disk import DiskFullError, is_full
from extract.engines import Engine, EngineLostError, load_engine
from extract.plan import number_at
from extract.prepare import Session, prepare
from extract.progress import Progress, open_progress
from extract.read_ahead import read_ahead
from extract.settings import Settings
from extract.stop import LateError, Stop
from extract.summary import describe_totals, skipped_by_reason, summarize
from extract.tracking import check_tracker
from extract.world import World
from extract.writer import ChunkWriter
from hub.budget import CommitBudget
from hub.commit import Uploader, commit_change
from hub.committer import Committer
from hub.ledger import finished_units
from hub.outbox import LocalOutbox, RemoteOutbox
from hub.patience import Patience

logger = logging.getLogger("stillroom")

BATCHES_AHEAD = 64  # read, rendered and tokenised ahead of the model: some megabytes


def run(asked: Job, settings: Settings) -> int:
    """Run a job and return the exit code.

    Raises:
        ConfigError, SourceError, EngineError, CommitError, DiskFullError, WorkerError: one line each that says what to do.
    """
    world, stop = World.join(), Stop(settings.max_runtime_minutes)
    if asked.engine == "vllm":
        pin_device(settings.device)
    stop.on_signals()
    try:
        if settings.tracker is not None:
            check_tracker(settings.tracker)
        session = prepare(asked, settings, world, stop)
        if not session.is_complete:
            build(session, settings, world, stop)
        return finish(session, settings, world, stop)
    except LateError as error:
        world.fail(error)
        logger.info("stopped (%s) before the output took the job; run again with --resume", error)
        return settings.incomplete_exit_code
    except BaseException as error:
        world.fail(error)
        raise


def build(session: Session, settings: Settings, world: World, stop: Stop) -> None:
    """Compute the units that are left and have the output confirm them, or stop with everything safe."""
    plan, full = session.plan, None
    with ExitStack() as stack:
        uploader = stack.enter_context(open_uploader(session, settings, world)) if world.is_leader else None
        stop.keeps_disk = session.status_file.exists()  # an earlier run was here, so a later one may be
        progress = open_progress(session, settings, world, stop, uploader.status if uploader else None)
        tick = watch(world, stop, progress, uploader)
        if plan.todo and not stop.now:
            kind = open_build(plan.job, plan.source, session.files, session.old, session.ranks, session.ranges)
            engine = session.engine or load_engine(plan.job, session.files, settings.device, settings)
            try:
                if world.is_main and session.repo is not None:
                    check_engines(plan, session.files, engine, session.repo)
                pour(session, kind, engine, settings, world, stop, progress, tick)
            except EngineLostError as error:
                stop.request(str(error))
            except OSError as error:
                if not is_full(error):
                    raise
                full = DiskFullError(session.cache, error)
                stop.request("a cache is full")  # at all workers; what is pending is uploaded, which makes room
        world.barrier("poured", tick)
        if uploader is not None and not uploader.drain(lambda: stop.seconds_to_drain, tick):
            logger.warning(
                "%d finished units wait in %s: run again with --resume", uploader.num_pending, session.cache
            )
        world.barrier("uploaded", tick)
        status = progress.close("stopped" if stop.reason else "complete")
    if world.is_main:
        logger.info("this run: %s", summarize(status), extra={"status": status})
    if full is not None:
        raise full


def pour(
    session: Session,
    kind: Build,
    engine: Engine,
    settings: Settings,
    world: World,
    stop: Stop,
    progress: Progress,
    tick: Callable[[], None],
) -> None:
    """The main loop: units -> batches -> engine -> records -> chunk -> pending."""
    plan, partial = session.plan, session.partial
    budget = TokenBudget(settings.max_batch_tokens or engine.max_batch_tokens)
    device = hardware(plan.job.build, plan.job.engine, settings.device)
    writer = ChunkWriter(session, kind.columns(engine), device, stop.seconds, settings.cost_per_hour)
    batches = read_batches(claim(plan, world, stop), plan, kind, budget, partial)
    ahead = read_ahead(batches, BATCHES_AHEAD, lambda batch: batch.weight)
    with writer, closing(ahead), closing(engine.run(ahead, budget)) as done:
        for batch, results, padded in done:
            work = batch.work
            work.put(batch.samples, results, padded)
            partial.append(work, batch.samples, results, padded)
            progress.add_batch(batch, padded)
            if batch.is_last:
                work.finish()
                progress.counts.stall_seconds += session.pending.wait_for_room(tick, lambda: stop.now)
                writer.write(work)
                progress.add_unit(work)
                stop.finished_unit(work.seconds)
            tick()
            if stop.now:
                break


def open_uploader(session: Session, settings: Settings, world: World) -> Uploader:
    """Return this machine's uploader. The main machine's commits for all, where the output takes that."""
    assert session.repo is not None
    repo, patience = session.repo, Patience(session.repo.name)
    is_shared = world.num_machines > 1 and world.share("handover", lambda: repo.takes_handover)
    num_machines = world.num_machines * settings.num_jobs
    if is_shared and not world.is_main:
        return Uploader(repo, session.pending, RemoteOutbox(world), patience, num_machines)
    writer = f"{session.plan.job.fingerprint[:8]}-{settings.job_index}" + (f"-{world.rank}" if world.rank else "")
    limit = settings.commits_per_hour if repo.counts_commits else None
    cards = card_writer(session, settings)
    committer = Committer(repo, CommitBudget(limit, writer), patience, cards.ledger.part)
    if world.is_main and session.previous is None:  # readers keep the dataset that an update works on, and its card
        committer.cards = cards.growing
    shared = (world, world.num_machines) if is_shared else ()
    return Uploader(repo, session.pending, LocalOutbox(committer, *shared), patience, num_machines)


def finish(session: Session, settings: Settings, world: World, stop: Stop) -> int:
    """Complete the card once all units are in the output, whichever worker or job was the last; say what is left."""
    left = world.share("left", lambda: finish_output(session, settings, stop))
    if world.is_leader and stop.reason is None:  # all units of this job are done, and need no older records
        shutil.rmtree(session.cache / "carry", ignore_errors=True)
    if not left:
        return 0
    if world.is_main:
        why = stop.reason or "units of other jobs are missing"
        logger.info("stopped (%s): %s left; run again with --resume", why, left)
    return settings.incomplete_exit_code


def finish_output(session: Session, settings: Settings, stop: Stop) -> str:
    """Return what the output lacks; with nothing, it has its final card, and its ledger, which says that it is complete."""
    repo, plan, layout = session.repo, session.plan, Layout.of(session.plan.job)
    assert repo is not None
    cards = card_writer(session, settings)
    if not session.is_complete:
        files = repo.list_files()
        data, skipped = layout.of_split(layout.data), layout.of_split(layout.skipped)
        done = finished_units(repo, files, data, skipped, lambda path: number_at(plan.units, path))
        if len(done) < len(plan.units):
            return f"{len(plan.units) - len(done)} of {len(plan.units)} units"
        try:
            commit_change(repo, cards.final, "Complete the card", stop.check_late)
        except LateError:
            return "the card"
    cards.ledger.load([layout.ledger])
    totals = cards.ledger.totals
    if totals["rows"] and not totals["records"]:
        why = skipped_by_reason(totals)
        raise ConfigError(f"--source {plan.source.name}: none of its {totals['rows']:,} rows gives a record: {why}")
    logger.info("%s", describe_totals(totals))
    num_units, name = len(plan.units), cards.load_name
    logger.info("complete: %d units, nothing left to do\n\n    load_dataset(%r)\n", num_units, name)
    return ""


def card_writer(session: Session, settings: Settings) -> CardWriter:
    """Return what makes the output's card."""
    assert session.repo is not None
    plan = session.plan
    num_rows, num_units = plan.selection.num_rows, len(plan.units)
    return CardWriter(session.repo, plan.job, plan.source.columns, num_rows, num_units, settings.num_jobs)


def watch(world: World, stop: Stop, progress: Progress, uploader: Uploader | None) -> Callable[[], None]:
    """Return what every wait and every batch calls: it shows progress and makes one worker's end everybody's."""
    is_told = False

    def tick() -> None:
        nonlocal is_told
        progress.tick()
        if uploader is not None:
            uploader.check()
            stop.uploaded(uploader.stats.upload_seconds)
        if (reason := world.stop_reason()) is not None:
            stop.request(reason)
        elif stop.now and not is_told:
            is_told = True
            world.request_stop(str(stop.reason))

    return tick

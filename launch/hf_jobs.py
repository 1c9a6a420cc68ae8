"""Hugging Face Jobs, one after another or several at once, until the dataset is complete.

    python launch/hf_jobs.py --output USER/NAME [options of extract/run.py]

Exit code 0: complete. 1: twice in a row no job brought a new chunk, or the Hub refuses; 2: wrong options. Ctrl-C ends this
loop and not its jobs: the next start takes up those that still run.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from huggingface_hub import HfApi, JobInfo, get_token
from huggingface_hub.errors import RepositoryNotFoundError

from builders.layout import Layout
from hub.faults import diagnose

# What to edit, or to set in the environment.
FLAVOR = os.environ.get("FLAVOR", "a10g-large")  # `hf jobs hardware` lists them with their prices
NUM_JOBS = int(os.environ.get("NUM_JOBS", "1"))  # at once; the same for all of a dataset
MINUTES = float(os.environ.get("MINUTES", "55"))  # of one run
SETUP_MINUTES = float(os.environ.get("SETUP_MINUTES", "20"))  # for packages and weights, before a run's clock starts
NAMESPACE = os.environ.get("NAMESPACE")  # who pays: an organisation; yourself, where none is named
IMAGE = os.environ.get("IMAGE", "python:3.11")  # has git; torch brings CUDA along
SETUP = os.environ.get(
    "SETUP", "git clone --depth 1 https://github.com/USER/stillroom && cd stillroom && pip install --quiet ."
)  # ends in the root of the checkout
POLL_SECONDS = float(os.environ.get("POLL_SECONDS", "15"))

TRIES = 8  # of a request to the Hub, with growing waits: some ten minutes
LOG_LINES = 60
T = TypeVar("T")
logger = logging.getLogger("hf_jobs")


@dataclass(frozen=True)
class State:
    """How the output stands."""

    chunks: frozenset[str]
    is_complete: bool


def main() -> int:
    """Run jobs until the output is complete and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, help="Hub dataset, USER/NAME")
    parser.add_argument("--config-name", default="default")
    parser.add_argument("--split", default="train")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    asked, _ = parser.parse_known_args()
    if not re.fullmatch(r"[\w-]+/[\w.-]+", asked.output):
        parser.error(f"--output is {asked.output!r}: give a Hub dataset with its owner, USER/NAME")
    if asked.job:
        parser.error(f"--job {asked.job} is not there inside a job: give its options as flags")
    token = get_token()
    if token is None:
        parser.error("no token of the Hub: `hf auth login`")
    fleet = Fleet(HfApi(), NAMESPACE or steadily(lambda: HfApi().whoami()["name"]), token, asked.output, sys.argv[1:])
    return fleet.run(Layout(asked.config_name, asked.split))


@dataclass(frozen=True)
class Fleet:
    """The jobs of one output. The token goes into each as a secret and nowhere else."""

    api: HfApi
    namespace: str
    token: str
    output: str
    options: list[str]

    def run(self, layout: Layout) -> int:
        """Run one round of jobs after another; see the module."""
        state, rounds_in_vain = self.look(layout), 0
        while not state.is_complete:
            jobs = [steadily(partial(self.find_or_start, index)) for index in range(NUM_JOBS)]
            ended = [steadily(partial(self.wait, job)) for job in jobs]
            before, state = state, self.look(layout)
            rounds_in_vain = 0 if state.chunks > before.chunks else rounds_in_vain + 1
            stages = ", ".join(f"{job.id} {job.status.stage}" for job in ended)
            logger.info("%s; %d chunks, %d new", stages, len(state.chunks), len(state.chunks - before.chunks))
            if rounds_in_vain == 2 and not state.is_complete:
                self.show_logs(ended)
                logger.error("hf_jobs: two rounds of jobs brought nothing new: the reason is in the lines above")
                return 1
        logger.info("complete: %d chunks in %s", len(state.chunks), self.output)
        return 0

    def label(self, index: int) -> str:
        """Name of one share, by which a job of it is found again."""
        return re.sub(r"[^\w.-]", ".", f"{self.output}-{index}-of-{NUM_JOBS}")

    def find_or_start(self, index: int) -> JobInfo:
        """Return the job of one share."""
        return self.find(index) or self.start(index)

    def find(self, index: int) -> JobInfo | None:
        """Return the job of this share that still runs, if any: from before a Ctrl-C, or an answer that was lost."""
        stages, labels = ["SCHEDULING", "RUNNING"], {"stillroom": self.label(index)}
        return next(iter(self.api.list_jobs(status=stages, labels=labels, namespace=self.namespace)), None)

    def start(self, index: int) -> JobInfo:
        """Start the job of one share."""
        share = ["--num-jobs", str(NUM_JOBS), "--job-index", str(index)]
        run = [*self.options, "--resume", "--max-runtime-minutes", str(MINUTES), *share]
        job = self.api.run_job(
            image=IMAGE,
            command=["bash", "-c", f'{SETUP} && exec accelerate launch extract/run.py "$@"', "stillroom", *run],
            secrets={"HF_TOKEN": self.token},
            flavor=FLAVOR,
            timeout=round(60 * (MINUTES + SETUP_MINUTES)),  # the Hub's own default is 30 minutes, and it kills
            labels={"stillroom": self.label(index)},
            namespace=self.namespace,
        )
        logger.info("job %d of %d: %s", index + 1, NUM_JOBS, job.url)
        return job

    def wait(self, job: JobInfo) -> JobInfo:
        """Return the job as it ended."""
        return self.api.wait_for_job(job_id=job.id, namespace=self.namespace, poll_interval=POLL_SECONDS)

    def look(self, layout: Layout) -> State:
        """Tell from the output alone how it stands: it is complete when it has its ledger, and every file named there."""

        def looked() -> State:
            try:
                files = frozenset(self.api.list_repo_files(self.output, repo_type="dataset"))
            except RepositoryNotFoundError:
                return State(frozenset(), False)
            folders = (f"{layout.data}/{layout.split}/", f"{layout.skipped}/{layout.split}/")
            chunks = frozenset(path for path in files if path.startswith(folders))
            return State(chunks, layout.ledger in files and self.named_in(layout.ledger) <= chunks)

        return steadily(looked)

    def named_in(self, ledger: str) -> set[str]:
        """Paths of all chunks that a ledger holds."""
        lines = Path(self.api.hf_hub_download(self.output, ledger, repo_type="dataset")).read_text().splitlines()
        return {file["path"] for line in lines for file in json.loads(line)["files"]}

    def read_log(self, job: JobInfo) -> list[str]:
        """Return the last lines that a job wrote."""
        return list(self.api.fetch_job_logs(job_id=job.id, namespace=self.namespace, tail=LOG_LINES))

    def show_logs(self, jobs: list[JobInfo]) -> None:
        """Show the end of each job's log."""
        for job in jobs:
            logger.info("%s: %s %s", job.url, job.status.stage, job.status.message or "")
            for line in steadily(partial(self.read_log, job)):
                logger.info("    %s", line.rstrip())


def steadily(call: Callable[[], T]) -> T:
    """Return what a call of the Hub returns, over errors that pass: a loop of many hours meets some."""
    for number in range(TRIES):
        try:
            return call()
        except Exception as error:
            fault = diagnose(error)
            if fault.is_fatal or number == TRIES - 1:
                raise SystemExit(f"hf_jobs: {fault.text}") from error
            logger.info("%s: again in %d s", fault.text, fault.seconds * 2**number)
            time.sleep(fault.seconds * 2**number)
    raise AssertionError("unreachable")


if __name__ == "__main__":
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.WARNING)
    logger.setLevel(logging.INFO)
    sys.exit(main())

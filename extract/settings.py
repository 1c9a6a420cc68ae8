"""How a run goes: when it stops, where it computes and caches. Nothing here changes a value of the dataset."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from builders.options import ConfigError, check_fields, option

STATUS_FILE = "status.json"  # in the cache of a job


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Options of one run, as against those of the job."""

    resume: bool = option(False, "go on with the job that the output holds, or begin it", group="Run")
    update: bool = option(
        False, "as --resume, with the newest revision of the source: computes new and changed rows only", group="Run"
    )
    restart: bool = option(False, "delete what the output holds of this configuration and begin", group="Run")
    max_runtime_minutes: float | None = option(
        None, "stop early enough to have everything uploaded after so many minutes [never]", group="Run", minimum=0
    )
    max_batch_tokens: int | None = option(
        None, "tokens per batch, padding counted [fits the device]", group="Run", minimum=1
    )
    device: str | None = option(None, "device, as in cuda:1 or cpu [the accelerator of this worker]", group="Run")
    device_map: str | None = option(
        None,
        "spread one teacher over several devices of this machine [all on one]",
        group="Run",
        choices=("auto", "balanced", "balanced_low_0", "sequential"),
    )
    max_memory: tuple[str, ...] = option(
        (), "limits of --device-map, as in 0=60GiB,cpu=200GiB [80 % of what is free]", group="Run"
    )
    gpu_memory_utilization: float = option(
        0.9, "share of the device's memory that --engine vllm takes", group="Engine", minimum=0.01
    )
    endpoint: tuple[str, ...] = option(
        (),
        "server that runs the model, for --engine openai, tei or triton; repeated, several share the work [none]",
        group="Engine",
    )
    endpoint_model: str | None = option(None, "name under which it serves the model [what it lists]", group="Engine")
    endpoint_patience: float = option(
        30.0, "minutes that a server may be away before the run stops", group="Engine", minimum=0
    )
    cache_dir: str | None = option(
        None, "folder of unfinished and pending work [$STILLROOM_CACHE or ~/.cache/stillroom]", group="Run"
    )
    pending_gb: float | None = option(
        None, "chunks that may wait for the output, GB [half the free disk]", group="Run", minimum=0.001
    )
    commits_per_hour: float = option(  # 96 leaves room for people and cards
        96.0, "commits per hour that all writers of the dataset share; the Hub allows 128", group="Run", minimum=1
    )
    num_jobs: int = option(1, "jobs that share the work without knowing of each other", group="Run", minimum=1)
    job_index: int = option(0, "which of them this is, from 0", group="Run", minimum=0)
    incomplete_exit_code: int = option(0, "exit code of a run that leaves units to do", group="Run", minimum=0)
    lengths: str | None = option(
        None, "plan by the tokens of this lengths dataset, of the same rows and tokenizer [by rows]", group="Run"
    )
    dry_run: bool = option(False, "print what the job would take, and load no model", group="Run")
    quiet: bool = option(False, "log warnings and errors only, and show no progress", group="Run")
    log_format: str = option(
        "text", "json: one object a line, progress with all its numbers", group="Run", choices=("text", "json")
    )
    tracker: str | None = option(
        None, "tell an experiment tracker, as trackio, wandb or tensorboard, of the progress [none]", group="Run"
    )
    cost_per_hour: float | None = option(
        None, "price of one worker for an hour, USD, for the summary and the card [not told]", group="Run", minimum=0
    )
    debug: bool = option(False, "show debug messages and tracebacks", group="Run")

    def __post_init__(self) -> None:
        """Check every option alone and together.

        Raises:
            ConfigError: with the flag, the value and what would be right.
        """
        check_fields(self)
        for name in ("resume", "update"):
            if getattr(self, name) and self.restart:
                raise ConfigError(f"--{name} and --restart exclude each other: give one of them")
        if self.max_memory and not self.device_map:
            raise ConfigError("--max-memory limits --device-map: give that, too, as in --device-map auto")
        if self.job_index >= self.num_jobs:
            raise ConfigError(
                f"--job-index is {self.job_index}: with --num-jobs {self.num_jobs} it is at most {self.num_jobs - 1}"
            )

    @property
    def goes_on(self) -> bool:
        """Whether the run may go on with what the output holds."""
        return self.resume or self.update

    def cost(self, worker_seconds: float) -> float | None:
        """Return what so many seconds of one worker cost, USD; None without a price."""
        return None if self.cost_per_hour is None else self.cost_per_hour * worker_seconds / 3600

    @property
    def cache(self) -> Path:
        """The cache folder of this machine."""
        named = self.cache_dir or os.environ.get("STILLROOM_CACHE")
        return Path(os.path.expanduser(named or "~/.cache/stillroom"))

"""Where things stand in an output: one place for every path, the same on the Hub and in a folder."""

from __future__ import annotations

from dataclasses import dataclass

from builders.job import Job

META = "_stillroom"


@dataclass(frozen=True)
class Layout:
    """Paths of one configuration of an output. Several configurations, each a job of its own, can share an output."""

    config_name: str = "default"
    split: str = "train"

    @classmethod
    def of(cls, job: Job) -> Layout:
        """Layout of a job's output."""
        return cls(job.config_name, job.split)

    @property
    def is_default(self) -> bool:
        """Whether this is the configuration that `load_dataset` takes when none is named."""
        return self.config_name == "default"

    @property
    def data(self) -> str:
        """Folder of the chunks."""
        return "data" if self.is_default else self.config_name

    @property
    def skipped(self) -> str:
        """Folder of the rows that give no record."""
        return "skipped" if self.is_default else f"{self.config_name}-skipped"

    @property
    def meta(self) -> str:
        """Folder of what stillroom needs to know; `datasets` passes over it."""
        return META if self.is_default else f"{META}/{self.config_name}"

    @property
    def job(self) -> str:
        """The settled job."""
        return f"{self.meta}/job.json"

    @property
    def ledger(self) -> str:
        """Receipts of all units, one a line; there only once the dataset is complete."""
        return f"{self.meta}/ledger.jsonl"

    @property
    def receipts(self) -> str:
        """Folder of the receipts of each commit, until the dataset is complete."""
        return f"{self.meta}/receipts"

    def glob(self, folder: str) -> str:
        """The one glob of a split, which picks up every later chunk."""
        return f"{folder}/{self.split}/**/*.parquet"

"""Where things stand in an output: one place for every path, the same on the Hub and in a folder."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from builders.job import LOCAL_SHA, Job

META = "_stillroom"
FORMAT = 2  # of the job file, receipts and chunks
GENERATION_DIGITS = 8  # of the revision


@dataclass(frozen=True)
class Layout:
    """Paths of one configuration of an output. Several configurations, each a job of its own, can share an output.

    An update writes beside what readers have, under names that end in its `generation`: the first eight digits of the
    source's new revision. The generation that a dataset began with is "".
    """

    config_name: str = "default"
    split: str = "train"
    generation: str = ""

    @classmethod
    def of(cls, job: Job) -> Layout:
        """Layout of a job's output."""
        revision = str(job.revision).removeprefix(LOCAL_SHA)
        return cls(job.config_name, job.split, revision[:GENERATION_DIGITS] if job.updated_from else "")

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
    def previous(self) -> str:
        """The job that readers still have, while an update of it is not finished."""
        return f"{self.meta}/previous.json"

    @property
    def assets(self) -> str:
        """Folder of the plots that the card shows."""
        return "assets" if self.is_default else f"assets/{self.config_name}"

    @property
    def ranks(self) -> str:
        """The rank table of compact teacher logits: one for all generations, so that records can be compared."""
        return f"{self.meta}/ranks.bin"

    @property
    def ranges(self) -> str:
        """The ranges of int8 vectors: one for all generations, so that records can be carried over."""
        return f"{self.meta}/ranges.npy"

    @property
    def split_folder(self) -> str:
        """Name of the folder of the split, in `data` and in `skipped`."""
        return f"{self.split}{self._suffix}"

    @property
    def ledger(self) -> str:
        """Receipts of all units, one a line; there only once the dataset is complete."""
        return f"{self.meta}/ledger{self._suffix}.jsonl"

    @property
    def receipts(self) -> str:
        """Folder of the receipts of each commit, until the dataset is complete."""
        return f"{self.meta}/receipts{self._suffix}"

    @property
    def _suffix(self) -> str:
        return f".{self.generation}" if self.generation else ""

    def of_split(self, folder: str) -> str:
        """The folder of the split in `data` or `skipped`."""
        return f"{folder}/{self.split_folder}"

    def glob(self, folder: str) -> str:
        """The one glob of a split, which picks up every later chunk."""
        return f"{self.of_split(folder)}/**/*.parquet"

    def generations(self, files: Iterable[str]) -> dict[str, str]:
        """Return the generation of all that has one: folders of chunks and receipts (with a / at the end), ledgers."""
        mark = rf"(?:\.([0-9a-f]{{{GENERATION_DIGITS}}}))?"
        folders = [f"{self.data}/{self.split}", f"{self.skipped}/{self.split}", f"{self.meta}/receipts"]
        ledger = f"{self.meta}/ledger"
        pattern = re.compile(rf"(?:{'|'.join(map(re.escape, folders))}){mark}/|{re.escape(ledger)}{mark}\.jsonl$")
        matches = filter(None, map(pattern.match, sorted(files)))
        return {match[0]: match[1] or match[2] or "" for match in matches}

    def outdated(self, files: Iterable[str]) -> list[str]:
        """Name what the end of an update takes out of the output: other generations, and last what says that it runs."""
        there = set(files)
        others = [path for path, generation in self.generations(there).items() if generation != self.generation]
        return [*others, self.previous] if self.previous in there else []

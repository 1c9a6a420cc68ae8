"""A dataset that stillroom made, on the Hub or in a folder, as its readers find it: the job that it holds, and its chunks."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any

from builders.job import Job
from builders.job_files import stored_job
from builders.layout import Layout


@dataclass(frozen=True)
class StoredDataset:
    """The settled job of what readers have, and where its files are: under `root` of an fsspec `filesystem`."""

    name: str
    job: Job
    filesystem: Any
    root: str

    @property
    def layout(self) -> Layout:
        """Paths relative to `root`."""
        return Layout.of(self.job)

    def chunks(self) -> tuple[str, ...]:
        """Paths of its chunks on the file system, in the order of the rows.

        Raises:
            ValueError: there is none yet.
        """
        folder = self.layout.data
        chunks = tuple(sorted(self.filesystem.glob(f"{self.root}/{self.layout.glob(folder)}")))
        if not chunks:
            raise ValueError(f"{self.name} has no chunk in {folder}/ yet")
        return chunks


def open_stored(name: str, *, config_name: str = "default", revision: str | None = None) -> StoredDataset:
    """Open a Hub dataset (user/name) or a folder, as `load_dataset` takes it; one or two small requests on the Hub.

    While an update runs, this is the dataset before it.

    Raises:
        ValueError: it is none of stillroom's.
        OSError: there is no such dataset, or no access, or no answer.
    """
    files, root = _filesystem(name, revision)
    layout = Layout(config_name)
    path = next((p for p in (layout.previous, layout.job) if files.exists(f"{root}/{p}")), None)
    if path is None:
        raise ValueError(f"{name}: no dataset of stillroom here (there is no {layout.job})")
    return StoredDataset(name, stored_job(json.loads(files.cat_file(f"{root}/{path}"))["job"]), files, root)


def _filesystem(name: str, revision: str | None) -> tuple[Any, str]:
    path = os.path.expanduser(name)
    if os.path.isdir(path):
        from fsspec.implementations.local import LocalFileSystem

        return LocalFileSystem(), os.path.abspath(path)
    from huggingface_hub import HfFileSystem

    files = HfFileSystem()
    files.invalidate_cache()  # it may have grown since this process looked
    return files, f"datasets/{name}" + (f"@{revision}" if revision else "")

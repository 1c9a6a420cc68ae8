"""A dataset that stillroom made, on the Hub or in a folder, as its readers find it: the job that it holds, and its chunks."""

from __future__ import annotations

import json
import os
from contextlib import suppress
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
        ValueError: it is none of stillroom's, or there is none, or no access to it.
        OSError: no answer.
    """
    files, root = _filesystem(name, revision)
    layout = Layout(config_name)
    for path in (layout.previous, layout.job):
        with suppress(FileNotFoundError):
            return StoredDataset(name, stored_job(json.loads(_read(files, f"{root}/{path}"))["job"]), files, root)
    raise ValueError(f"{name}: no dataset of stillroom here (there is no {layout.job})")


def _read(files: Any, path: str) -> bytes:
    """Read a small file. `exists` of the Hub's file system would say no where there is no answer."""
    try:
        content: bytes = files.cat_file(path)
    except OSError:  # FileNotFoundError, too, which stands for no access as well
        raise
    except Exception as error:  # no connection: the error of whichever HTTP library the Hub's client uses
        raise OSError(f"the Hub cannot be reached: {error}") from error
    return content


def _filesystem(name: str, revision: str | None) -> tuple[Any, str]:
    path = os.path.expanduser(name)
    if os.path.isdir(path):
        from fsspec.implementations.local import LocalFileSystem

        return LocalFileSystem(), os.path.abspath(path)
    from huggingface_hub import HfFileSystem

    files = HfFileSystem()
    files.invalidate_cache()  # it may have grown since this process looked
    return files, f"datasets/{name}" + (f"@{revision}" if revision else "")

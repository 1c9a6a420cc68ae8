"""The source: one split of a dataset at a pinned revision, whose rows are read by position."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from builders.files import ArrowFile, JsonlFile, ParquetFile, RowFile, SourceError, file_sha256
from builders.job import LOCAL_SHA, Job
from builders.options import ConfigError
from builders.row import Row

UNKNOWN_CONFIG = re.compile(r"BuilderConfig ('.*?') not found. Available: \[(.*?)\]")
UNNAMED_CONFIG = re.compile(r"Config name is missing. Please pick one among the available configs: \[(.*?)\]")
FOOTER_THREADS = 16  # a footer is one or two round trips; 1,000 files in about 10 s


@dataclass
class Source:
    """A split as an ordered list of files. `revision` is a commit sha, or `sha256:` and a hash of local content."""

    name: str
    revision: str
    files: Sequence[RowFile]

    @cached_property
    def offsets(self) -> list[int]:
        """First row of each file, and the number of rows as the last entry."""
        return list(accumulate((file.num_rows for file in self.files), initial=0))

    @property
    def num_rows(self) -> int:
        """Rows of the whole split."""
        return self.offsets[-1]

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns, from the first file that has any: an empty JSONL file says nothing."""
        return next((columns for file in self.files if (columns := file.columns)), ())

    def read(self, indices: np.ndarray, columns: Sequence[str]) -> Iterator[Row]:
        """Yield the rows at sorted `indices` (int64 [N]) in order, with `columns` only.

        Raises:
            SourceError: a file cannot be read. A row that cannot be read is yielded with its error.
        """
        present = [name for name in columns if name in self.columns]
        for file, start, stop in zip(self.files, self.offsets, self.offsets[1:], strict=False):
            low, high = np.searchsorted(indices, [start, stop])
            if low < high:
                yield from file.read(indices[low:high] - start, present, start)


def is_local(name: str) -> bool:
    """Tell a path or glob from a Hub id (`user/name`, `name`)."""
    is_path = name.startswith((".", "/", "~")) or name.endswith((".parquet", ".jsonl")) or name.count("/") > 1
    return is_path or os.path.exists(name) or glob.has_magic(name)


def open_source(job: Job, cache: Path) -> Source:
    """Open the job's source at its revision, or at the newest one. Reads footers and listings, no rows.

    Raises:
        ConfigError: no such dataset, config, split or file, or no access.
        SourceError: it is there and cannot be read.
    """
    if job.source is None:
        raise ConfigError("--source is missing: give a Hub dataset (user/name) or a .parquet/.jsonl path or glob")
    if job.source == "demo:chat":
        return _open_local(job.source, [str(_demo_chat(cache / "demo" / "chat.parquet"))])
    if is_local(job.source):
        return _open_local(job.source, _expand(job.source))
    return _open_hub(job, cache)


def _demo_chat(path: Path) -> Path:
    from builders.demo import write_demo

    try:
        return path if path.exists() else write_demo(path)
    except ImportError as error:
        raise ConfigError(f"--source demo:chat: {error}") from None


def _expand(pattern: str) -> list[str]:
    path = os.path.expanduser(pattern)
    if os.path.exists(path):  # a name, whatever brackets are in it
        path = glob.escape(path)
    if os.path.isdir(os.path.expanduser(pattern)):
        path = os.path.join(path, "**/*.*")
    paths = sorted(p for p in glob.glob(path, recursive=True) if p.endswith((".parquet", ".jsonl")))
    if not paths and os.path.isfile(os.path.expanduser(pattern)):
        raise ConfigError(f"--source {pattern}: local files are read as .parquet or .jsonl, not {Path(path).suffix!r}")
    if not paths:
        raise ConfigError(f"--source {pattern}: no such .parquet or .jsonl file")
    return paths


def _open_local(name: str, paths: list[str]) -> Source:
    """Open local files. The revision hashes names and content, so that a changed file cannot pass for the same."""
    files: list[RowFile] = []
    digest = hashlib.sha256()
    for path in paths:
        if path.endswith(".jsonl"):
            jsonl = JsonlFile.scan(path)
            files.append(jsonl)
            sha256 = jsonl.sha256
        else:
            files.append(ParquetFile(path, _footer_rows(path)))
            sha256 = file_sha256(Path(path))
        digest.update(f"{Path(path).name} {sha256}\n".encode())
    return Source(name, LOCAL_SHA + digest.hexdigest(), files)


def _footer_rows(url: str) -> int:
    """Return a Parquet file's number of rows, from its footer alone."""
    reader: pq.ParquetFile = ParquetFile(url, 0).reader
    try:
        return int(reader.metadata.num_rows)
    finally:
        reader.close(force=True)


def _open_hub(job: Job, cache: Path) -> Source:
    from datasets import load_dataset, load_dataset_builder
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    assert job.source is not None
    try:
        sha = HfApi().dataset_info(job.source, revision=job.revision).sha
        builder = load_dataset_builder(job.source, job.source_config, revision=sha)
    except GatedRepoError:
        raise ConfigError(_refusal(job, "is a gated dataset")) from None
    except RevisionNotFoundError:
        raise ConfigError(f"--revision {job.revision!r}: {job.source} has no such revision") from None
    except RepositoryNotFoundError:
        raise ConfigError(
            f"--source {job.source}: no such dataset on the Hub, or it is private and needs `hf auth login`"
        ) from None
    except HfHubHTTPError as error:
        said = " ".join(str(error).split())[:300]
        raise SourceError(f"--source {job.source}: the Hub answered {said}: run again with --resume") from error
    except (ValueError, FileNotFoundError) as error:  # an unknown config, no data files, a loading script
        raise ConfigError(_refusal(job, " ".join(str(error).split()))) from error
    except Exception as error:  # no connection: the error of whichever HTTP library the Hub's client uses
        raise SourceError(
            f"--source {job.source}: the Hub cannot be reached: {' '.join(str(error).split())[:300]}"
        ) from error
    assert sha is not None
    splits = builder.config.data_files or {}
    if splits and job.split not in splits:
        raise ConfigError(
            f"--split is {job.split!r}: {job.source} has {', '.join(repr(str(name)) for name in splits)}"
        )
    is_parquet = any(cls.__name__ == "Parquet" for cls in type(builder).__mro__)  # it makes a subclass per dataset
    if is_parquet and splits:
        return Source(job.source, sha, _hub_parquet(list(splits[job.split]), cache / "sources" / f"{sha}.json"))
    dataset = load_dataset(job.source, job.source_config, split=job.split, revision=sha)
    return Source(job.source, sha, [ArrowFile(dataset)])


def _refusal(job: Job, said: str) -> str:
    """What `datasets` says of a source that it cannot open, in words of our options."""
    if "is a gated dataset" in said:
        return f"--source {job.source} is gated: ask for access on its page, then `hf auth login`"
    if found := UNKNOWN_CONFIG.search(said):
        return f"--source-config is {found[1]}: {job.source} has {found[2]}"
    if found := UNNAMED_CONFIG.search(said):
        return f"--source-config is missing: {job.source} has {found[1]}"
    return f"--source {job.source}: {said}"


def _hub_parquet(urls: list[str], counts_file: Path) -> list[RowFile]:
    """Row counts come from the footers, read in parallel once and kept: the revision is pinned, they never change."""
    counts: dict[str, int] = json.loads(counts_file.read_text()) if counts_file.exists() else {}
    missing = [url for url in urls if url not in counts]
    if missing:
        with ThreadPoolExecutor(FOOTER_THREADS) as pool:
            counts.update(zip(missing, pool.map(_footer_rows, missing), strict=True))
        counts_file.parent.mkdir(parents=True, exist_ok=True)
        partial = counts_file.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(counts))
        partial.rename(counts_file)
    return [ParquetFile(url, counts[url]) for url in urls]

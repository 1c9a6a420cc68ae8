"""What a reader must know of a logits dataset beyond its records: their format, and the rank table of compact ones.

stored = open_logits("user/x-logits")  # or a folder: "./out"
dataset = load_dataset("user/x-logits", split="train").with_format("numpy")
logits = stored.unpack(dataset[0])
loader = DataLoader(dataset, batch_size=8, collate_fn=Collate(vocab_size=49_152, ranks=stored.ranks))
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq

from builders.layout import Layout
from builders.logits_schema import LogitsFormat
from builders.packing import Logits, unpack
from builders.rank_table import RankTable


@dataclass(frozen=True)
class StoredLogits:
    """The format of all records of a dataset; `ranks` is None where the encoding needs no table."""

    form: LogitsFormat
    ranks: RankTable | None

    def unpack(self, record: Mapping[str, Any]) -> Logits:
        """Return the distributions of one record; see `builders.packing.unpack`."""
        return unpack(record, self.ranks)


def open_logits(name: str, *, config_name: str = "default", revision: str | None = None) -> StoredLogits:
    """Read a dataset's format from the footer of its first chunk, and its rank table: five small requests on the Hub.

    `name` is a Hub dataset (user/name) or a folder, as `load_dataset` takes it.

    Raises:
        ValueError: no chunk there, no teacher logits, or no rank table that fits them.
        OSError: there is no such dataset, or no access, or no answer.
    """
    layout = Layout(config_name)
    files, root = open_files(name, revision)
    chunk = first_chunk(files, f"{root}/{layout.data}")
    if chunk is None:
        raise ValueError(f"{name} has no chunk in {layout.data}/ yet")
    with files.open(chunk) as file:
        form = LogitsFormat.from_metadata(pq.read_schema(file).metadata)
    ranks = None
    if form.encoding == "compact":
        try:
            ranks = RankTable.from_bytes(files.cat_file(f"{root}/{layout.ranks}"))
        except FileNotFoundError:
            raise ValueError(
                f"{name} has no {layout.ranks}, without which nothing can be read: see `stillroom verify`"
            ) from None
        form.check_ranks(ranks)
    return StoredLogits(form, ranks)


def open_files(name: str, revision: str | None) -> tuple[Any, str]:
    """Return the file system that holds a dataset, a folder or one on the Hub, and its path there."""
    path = os.path.expanduser(name)
    if os.path.isdir(path):
        from fsspec.implementations.local import LocalFileSystem

        return LocalFileSystem(), path.rstrip("/")
    from huggingface_hub import HfFileSystem

    files = HfFileSystem()
    files.invalidate_cache()  # it may have grown since this process looked
    return files, f"datasets/{name}" + (f"@{revision}" if revision else "")


def first_chunk(files: Any, folder: str) -> str | None:
    """The first Parquet file under a folder; only folders on the way to it are listed."""
    try:
        entries = sorted(files.ls(folder, detail=True), key=lambda entry: str(entry["name"]))
    except FileNotFoundError:
        return None
    for entry in entries:
        is_folder = entry["type"] == "directory"
        found = first_chunk(files, entry["name"]) if is_folder else str(entry["name"])
        if found is not None and found.endswith(".parquet"):
            return found
    return None

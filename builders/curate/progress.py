"""How complete a dataset is that may still be built, from its file list and its card."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass

from builders.stored import StoredDataset
from builders.units import CHUNK_NAME

# of cards/templates/embeddings.md
CARD_ROWS = re.compile(r"^Embeddings(?: \([^)]*\))? of ([\d,]+) rows of ", re.MULTILINE)


@dataclass(frozen=True)
class Progress:
    """Rows of the source that the chunks cover, and how many there are in all; None where the card does not say."""

    num_rows: int
    total_rows: int | None
    is_complete: bool

    def __str__(self) -> str:
        if self.is_complete:
            return f"complete: {self.num_rows:,} rows"
        if self.total_rows is None:
            return f"still being built: {self.num_rows:,} rows so far"
        share = self.num_rows / max(1, self.total_rows)
        return f"still being built: {self.num_rows:,} of {self.total_rows:,} rows ({share:.1%})"


def read_progress(stored: StoredDataset, chunks: tuple[str, ...]) -> Progress:
    """Tell how complete a dataset is; rows that were skipped count as covered where their chunk has other records."""
    covered = sum(int(match[2]) - int(match[1]) for match in map(CHUNK_NAME.search, chunks) if match)
    files, root = stored.filesystem, stored.root
    with suppress(FileNotFoundError):  # `exists` of the Hub's file system would say no where there is no answer
        files.info(f"{root}/{stored.layout.ledger}")
        return Progress(covered, covered, True)
    total = None
    with suppress(FileNotFoundError):
        match = CARD_ROWS.search(files.cat_file(f"{root}/README.md").decode())
        total = int(match[1].replace(",", "")) if match else None
    return Progress(covered, total, False)

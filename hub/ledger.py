"""The ledger: which units the output holds, and their counts. The output itself is the truth; nothing local is needed."""

from __future__ import annotations

import hashlib
import io
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, ValuesView
from concurrent.futures import ThreadPoolExecutor

from hub.chunk import chunk_metadata
from hub.pending import Receipt
from hub.repo import Change, Repo

READ_THREADS = 16
ROLLED = "0-rolled-"  # sorts before the parts of commits, which are newer and win


def finished_units(
    repo: Repo, files: Iterable[str], data: str, skipped: str, unit_at: Callable[[str], int | None]
) -> set[int]:
    """Return the numbers of the units that the output holds, from its file list.

    A unit with a data chunk is there: its skipped rows are written before it, or in the same commit. A unit with skipped
    rows only is asked whether it has records at all; these are few.
    """
    done = {number for path in files if path.startswith(f"{data}/") and (number := unit_at(path)) is not None}
    unsure = {
        path: number
        for path in files
        if path.startswith(f"{skipped}/") and (number := unit_at(path)) is not None and number not in done
    }
    with ThreadPoolExecutor(READ_THREADS) as pool:
        contents = pool.map(repo.read, unsure)
    for number, content in zip(unsure.values(), contents, strict=True):
        if content is not None and chunk_metadata(io.BytesIO(content)).get("counts", {}).get("records") == 0:
            done.add(number)
    return done


class Receipts(Mapping[int, Receipt]):
    """Receipts by first row, in row order, each kept as compressed JSON: 1 KB where the objects of one may take 27."""

    def __init__(self) -> None:
        self._packed: dict[int, bytes] = {}

    def add(self, receipt: Receipt) -> int:
        """Note a receipt, in the place of an older one of these rows; return the first of them."""
        self._packed[receipt.start] = zlib.compress(receipt.to_json().encode(), zlib.Z_BEST_SPEED)
        return receipt.start

    def __getitem__(self, start: int) -> Receipt:
        return Receipt.from_json(zlib.decompress(self._packed[start]))

    def __contains__(self, start: object) -> bool:
        return start in self._packed

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(self._packed))

    def __len__(self) -> int:
        return len(self._packed)


class Ledger:
    """Receipts of the units in an output, read from the output when they are asked for, and each file once."""

    def __init__(self, repo: Repo, receipts: str, ledger: str) -> None:
        self.repo = repo
        self.folder, self.path = receipts, ledger
        self.by_start = Receipts()
        self.parts: list[str] = []  # files of receipts beside the ledger, when it was last loaded
        self._starts: dict[str, list[int]] = {}  # first rows of the units in each file that was read

    def load(self, files: Iterable[str]) -> None:
        """Read the receipts that the output has and that are not known yet; newer ones win."""
        there = set(files)
        self.parts = sorted(path for path in there if path.startswith(f"{self.folder}/"))
        wanted = [path for path in [self.path, *self.parts] if path in there and path not in self._starts]
        with ThreadPoolExecutor(READ_THREADS) as pool:
            for path, content in zip(wanted, pool.map(self.repo.read, wanted), strict=True):
                lines = (content or b"").splitlines()
                self._starts[path] = self.add(Receipt.from_json(line) for line in lines if line.strip())

    def add(self, receipts: Iterable[Receipt]) -> list[int]:
        """Note units that the output holds, or is about to; return their first rows."""
        return [self.by_start.add(receipt) for receipt in receipts]

    @property
    def receipts(self) -> ValuesView[Receipt]:
        """All receipts in row order, one in memory at a time."""
        return self.by_start.values()

    @property
    def totals(self) -> Counter[str]:
        """Sums of the counts, and `bytes` and `units`."""
        totals: Counter[str] = Counter(units=len(self.by_start), bytes=0)
        for receipt in self.receipts:
            totals["bytes"] += receipt.size
            totals.update({name: value for name, value in receipt.counts.items() if isinstance(value, int)})
        return totals

    def part(self, receipts: Sequence[Receipt]) -> Mapping[str, bytes]:
        """Return the file of a commit's receipts. Its name is a hash, so that a commit tried twice writes it once."""
        content = to_lines(receipts)
        name = hashlib.sha256(content).hexdigest()[:8]
        return {f"{self.folder}/{receipts[0].start:012d}-{name}.jsonl": content}

    @property
    def loose(self) -> list[str]:
        """Parts of one commit each, of those that were there when the ledger was last loaded."""
        return [part for part in self.parts if not part.startswith(f"{self.folder}/{ROLLED}")]

    def rolled(self) -> Change:
        """Return the change that puts one file in the place of the loose parts."""
        loose = self.loose
        starts = {start for part in loose for start in self._starts[part]}
        content = to_lines(self.by_start[start] for start in sorted(starts))
        number = len(self.parts) - len(loose)
        path = f"{self.folder}/{ROLLED}{number:06d}-{hashlib.sha256(content).hexdigest()[:8]}.jsonl"
        return Change({path: content}, loose)

    def whole(self) -> Mapping[str, bytes]:
        """Return the file of all receipts, which ends a dataset."""
        return {self.path: to_lines(self.receipts)}


def to_lines(receipts: Iterable[Receipt]) -> bytes:
    """JSON lines of receipts."""
    return b"".join(f"{receipt.to_json()}\n".encode() for receipt in receipts)

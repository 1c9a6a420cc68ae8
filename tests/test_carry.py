"""The stage that carries records over: python -m pytest tests/test_carry.py."""

import numpy as np
import pyarrow as pa
import pytest

from builders.job import Job
from builders.row import Row
from builders.text import Text
from builders.units import Unit
from extract import carry as module
from extract.carry import carry
from extract.vectors import VectorWork


class Old:
    """Knows the content of every even row."""

    def __init__(self):
        self.windows = []

    def find(self, hashes):
        self.windows.append(len(hashes))
        for which in [i for i, name in enumerate(hashes) if name in EVEN]:
            yield np.array([which]), pa.table({"content_hash": [hashes[which]]})


def rows(num_rows):
    work = VectorWork(Unit(0, 0, num_rows), Job())
    rendered = [(p, (Text("", f"row {p}"),)) for p in range(num_rows)]
    for position, texts in rendered:
        work.add_texts(position, Row(position), texts)
    return work, rendered


EVEN = {rows(100)[0].hashes[p] for p in range(0, 100, 2)}


@pytest.mark.parametrize(
    ("limit", "windows"), [({}, [100]), ({"WINDOW_ROWS": 30}, [30, 30, 30, 10]), ({"WINDOW_CHARS": 250}, None)]
)
def test_rows_are_carried_or_go_on(monkeypatch, limit, windows):
    for name, value in limit.items():
        monkeypatch.setattr(module, name, value)
    (work, rendered), old = rows(100), Old()
    assert list(carry(iter(rendered), old, work)) == rendered[1::2]
    carried = {int(p): table["content_hash"][0].as_py() for positions, table in work.carried for p in positions}
    assert carried == {p: work.hashes[p] for p in range(0, 100, 2)}
    assert sum(old.windows) == 100 and (old.windows == windows if windows else 2 < len(old.windows) < 5)


def test_without_an_older_generation_every_row_goes_on():
    work, rendered = rows(10)
    assert list(carry(iter(rendered), None, work)) == rendered and not work.carried

"""`stillroom verify` finds each kind of damage, and `--repair` computes the damaged units again, and no other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from builders.demo import write_demo
from extract.cli import main
from tests.runs import MINILM

ROWS, CHUNK_ROWS = 400, 100


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A complete dataset in a folder, with one skipped row in its last unit."""
    folder = tmp_path_factory.mktemp("built")
    rows = pq.read_table(write_demo(folder / "chat.parquet", num_rows=ROWS)).to_pylist()
    rows[350]["messages"] = []
    pq.write_table(pa.Table.from_pylist(rows), folder / "chat.parquet")
    assert run(folder, "run", "--source", str(folder / "chat.parquet"), *job(folder)).exit_code == 0
    return folder


@pytest.fixture
def dataset(built: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(built / "out", tmp_path / "out"))


def job(folder: Path) -> list[str]:
    model = ["--model", MINILM, "--engine", "fake", "--chunk-rows", str(CHUNK_ROWS)]
    return [*model, "--output", str(folder / "out"), "--resume", "--cache-dir", str(folder / "cache")]


def run(folder: Path, *arguments: str):
    return CliRunner().invoke(main, list(arguments), catch_exceptions=False)


def verify(dataset: Path, *flags: str) -> list[dict]:
    result = run(dataset, "verify", str(dataset), "--json", "--cache-dir", str(dataset.parent / "cache"), *flags)
    report = json.loads(result.stdout[result.stdout.index("{") :])
    assert result.exit_code == (1 if report["problems"] else 0)
    return report["problems"]


def chunk(dataset: Path, number: int) -> Path:
    start = number * CHUNK_ROWS
    return dataset / f"data/train/0000/{start:012d}-{start + CHUNK_ROWS:012d}.parquet"


def rewrite(path: Path, change) -> None:
    """Write a chunk again with a changed table and its old metadata."""
    table = pq.read_table(path)
    changed = change(table)
    pq.write_table(changed.replace_schema_metadata(table.schema.metadata), path)


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def put_nan(table: pa.Table) -> pa.Table:
    vectors = table["embedding"].combine_chunks().flatten().to_numpy().copy()
    vectors[5] = np.nan
    kind = table.schema.field("embedding").type
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors), type=kind)
    return table.set_column(table.schema.get_field_index("embedding"), table.schema.field("embedding"), column)


def swap(one: Path, other: Path) -> None:
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


def other_job(path: Path) -> None:
    table = pq.read_table(path)
    said = json.loads(table.schema.metadata[b"stillroom"]) | {"fingerprint": "0" * 64}
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, b"stillroom": json.dumps(said)}), path)


DAMAGE = {
    "foreign file": (lambda d: (d / "data/train/notes.txt").write_text("mine"), {None}),
    "missing": (lambda d: chunk(d, 1).unlink(), {1}),
    "truncated": (lambda d: chunk(d, 1).write_bytes(chunk(d, 1).read_bytes()[:-500]), {1}),
    "bit flip": (lambda d: flip_bit(chunk(d, 2)), {2}),
    "swapped": (lambda d: swap(chunk(d, 0), chunk(d, 1)), {0, 1}),
    "another job": (lambda d: other_job(chunk(d, 0)), {0}),
    "doubled row": (lambda d: rewrite(chunk(d, 0), lambda t: pa.concat_tables([t.slice(0, 99), t.slice(0, 1)])), {0}),
    "not finite": (lambda d: rewrite(chunk(d, 0), put_nan), {0}),
    "lost skipped rows": (lambda d: shutil.rmtree(d / "skipped"), {3}),
    "doubled range": (
        lambda d: shutil.copy(chunk(d, 0), chunk(d, 0).with_name("000000000050-000000000150.parquet")),
        {None},
    ),
}


def test_a_proof_makes_nothing(tmp_path: Path) -> None:
    result = run(tmp_path, "verify", str(tmp_path / "nothing"))
    assert result.exit_code == 2 and "there is no such folder" in result.output
    assert not (tmp_path / "nothing").exists()


def test_an_undamaged_dataset_is_proved(dataset: Path) -> None:
    assert verify(dataset) == verify(dataset, "--deep") == []


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_found_and_repaired_alone(name: str, dataset: Path) -> None:
    damage, units = DAMAGE[name]
    damage(dataset)
    problems = verify(dataset, "--deep")
    assert {problem["unit"] for problem in problems} == units, problems

    untouched = {path: path.stat().st_mtime_ns for n in {0, 1, 2, 3} - units if (path := chunk(dataset, n)).exists()}
    cache = str(dataset.parent / "cache")
    result = run(dataset, "verify", str(dataset), "--deep", "--repair", "--cache-dir", cache)
    assert result.exit_code == 0, result.output
    assert verify(dataset, "--deep") == []
    assert {path: path.stat().st_mtime_ns for path in untouched} == untouched

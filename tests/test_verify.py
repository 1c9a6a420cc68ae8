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


def write_source(path: Path) -> Path:
    """Chats of which one, in the last unit, gives no record."""
    rows = pq.read_table(write_demo(path, num_rows=ROWS)).to_pylist()
    rows[350]["messages"] = []
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A complete dataset in a folder, with one skipped row in its last unit."""
    folder = tmp_path_factory.mktemp("built")
    write_source(folder / "chat.parquet")
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


def vectors(change):
    """A damage of the vectors, float32 [N, D], in place."""

    def damage(table: pa.Table) -> pa.Table:
        field = table.schema.field("embedding")
        values = table["embedding"].combine_chunks().flatten().to_numpy().copy()
        change(values.reshape(len(table), -1))
        column = pa.FixedSizeListArray.from_arrays(pa.array(values), type=field.type)
        return table.set_column(table.schema.get_field_index("embedding"), field, column)

    return damage


def put_nan(values: np.ndarray) -> None:
    values[0, 5] = np.nan


def scale(values: np.ndarray) -> None:
    values[7] *= 1.5


def swap(one: Path, other: Path) -> None:
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


def other_job(path: Path) -> None:
    table = pq.read_table(path)
    said = json.loads(table.schema.metadata[b"stillroom"]) | {"fingerprint": "0" * 64}
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, b"stillroom": json.dumps(said)}), path)


def other_columns(table: pa.Table) -> pa.Table:
    return table.drop_columns(["truncated"])


def ledger(dataset: Path, change) -> None:
    """Write the ledger again with its lines, as Python objects, changed in place."""
    path = dataset / "_stillroom/ledger.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    change(lines)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def spoil(line: dict, **other: object) -> None:
    line["files"][-1] |= other


# What is done to a dataset of units 0 to 3, which units are to be mended, how, and what a deep proof says of it.
DAMAGE = {
    "foreign file": (
        lambda d: (d / "data/train/notes.txt").write_text("mine"),
        {(None, "delete")},
        "no unit of the plan",
    ),
    "missing": (lambda d: chunk(d, 1).unlink(), {(1, "compute")}, "missing"),
    "truncated": (
        lambda d: chunk(d, 1).write_bytes(chunk(d, 1).read_bytes()[:-500]),
        {(1, "compute")},
        "cannot be read",
    ),
    "bit flip": (lambda d: flip_bit(chunk(d, 2)), {(2, "compute")}, "SHA-256 differs"),
    "swapped": (lambda d: swap(chunk(d, 0), chunk(d, 1)), {(0, "compute"), (1, "compute")}, "the wrong place"),
    "another job": (lambda d: other_job(chunk(d, 0)), {(0, "compute")}, "another job"),
    "doubled row": (
        lambda d: rewrite(chunk(d, 0), lambda t: pa.concat_tables([t.slice(0, 99), t.slice(0, 1)])),
        {(0, "compute")},
        "each once",
    ),
    "not finite": (lambda d: rewrite(chunk(d, 0), vectors(put_nan)), {(0, "compute")}, "not finite"),
    "not of length 1": (lambda d: rewrite(chunk(d, 3), vectors(scale)), {(3, "compute")}, "not of length 1"),
    "other columns": (lambda d: rewrite(chunk(d, 2), other_columns), {(2, "compute")}, "other columns"),
    "other columns in the first chunk": (
        lambda d: rewrite(chunk(d, 0), other_columns),
        {(0, "compute")},
        "other columns",
    ),
    "lost skipped rows": (lambda d: shutil.rmtree(d / "skipped"), {(3, "compute")}, "missing"),
    "lost skipped rows and their receipt": (
        lambda d: (shutil.rmtree(d / "skipped"), ledger(d, lambda lines: lines.pop(3))),
        {(3, "compute")},
        "missing",
    ),
    "doubled range": (
        lambda d: shutil.copy(chunk(d, 0), chunk(d, 0).with_name("000000000050-000000000150.parquet")),
        {(None, "delete")},
        "no unit of the plan",
    ),
    "doubled range in another's place": (
        lambda d: shutil.copy(chunk(d, 0), chunk(d, 1)),
        {(1, "compute")},
        "holds rows 0-100",
    ),
    "lost receipt": (lambda d: ledger(d, lambda lines: lines.pop(3)), {(3, "receipt")}, "no receipt"),
    "lost ledger": (
        lambda d: (d / "_stillroom/ledger.jsonl").unlink(),
        {(n, "receipt") for n in range(4)},
        "no receipt",
    ),
    "receipt of another size": (
        lambda d: ledger(d, lambda lines: spoil(lines[1], size=9)),
        {(1, "compute")},
        "its size differs",
    ),
    "receipt of another hash": (
        lambda d: ledger(d, lambda lines: spoil(lines[1], sha256="0" * 64)),
        {(1, "compute")},
        "its SHA-256 differs",
    ),
    "receipt of other counts": (
        lambda d: ledger(d, lambda lines: lines[1]["counts"].clear()),
        {(1, "receipt")},
        "other counts",
    ),
    "receipt of no unit": (
        lambda d: ledger(d, lambda lines: lines.append(lines[0] | {"start": 50, "stop": 150})),
        {(None, "receipt")},
        "names rows 50-150",
    ),
}


def test_a_proof_makes_nothing(tmp_path: Path) -> None:
    result = run(tmp_path, "verify", str(tmp_path / "nothing"))
    assert result.exit_code == 2 and "there is no such folder" in result.output
    assert not (tmp_path / "nothing").exists()


def test_the_help_has_a_line_for_each_exit_code(tmp_path: Path) -> None:
    lines = [line.split(maxsplit=3) for line in run(tmp_path, "verify", "--help").output.splitlines()]
    start = next(n for n, words in enumerate(lines) if words[:3] == ["Exit", "code", "0"])
    assert [words[0] for words in lines[start + 1 : start + 3]] == ["1", "2"]


def test_an_undamaged_dataset_is_proved(dataset: Path) -> None:
    assert verify(dataset) == verify(dataset, "--deep") == []


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_found_and_repaired_alone(name: str, dataset: Path) -> None:
    damage, expected, words = DAMAGE[name]
    damage(dataset)
    problems = verify(dataset, "--deep")
    assert {(problem["unit"], problem["repair"]) for problem in problems} == expected, problems
    assert any(words in problem["what"] for problem in problems), problems

    computed = {number for number, repair in expected if repair == "compute"}
    untouched = {
        path: path.stat().st_mtime_ns for n in {0, 1, 2, 3} - computed if (path := chunk(dataset, n)).exists()
    }
    cache = str(dataset.parent / "cache")
    result = run(dataset, "verify", str(dataset), "--deep", "--repair", "--cache-dir", cache)
    assert result.exit_code == 0, result.output
    assert verify(dataset, "--deep") == []
    assert {path: path.stat().st_mtime_ns for path in untouched} == untouched


def test_receipts_that_are_written_from_the_files_are_those_that_were_lost(dataset: Path) -> None:
    path = dataset / "_stillroom/ledger.jsonl"
    before = path.read_bytes()
    path.unlink()
    assert run(dataset, "verify", str(dataset), "--repair").exit_code == 0
    assert path.read_bytes() == before


def test_json_with_repair_is_one_object(dataset: Path) -> None:
    chunk(dataset, 1).unlink()
    cache = str(dataset.parent / "cache")
    result = run(dataset, "verify", str(dataset), "--repair", "--json", "--cache-dir", cache)
    report = json.loads(result.stdout)
    assert (report["problems"], report["missing"], report["is_complete"]) == ([], [], True)
    path = str(chunk(dataset, 1).relative_to(dataset))
    assert report["repaired"] == [{"path": path, "what": "missing", "unit": 1, "repair": "compute"}]


def test_exit_code_2_where_it_cannot_be_told(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for arguments, words in (
        ([str(tmp_path / "empty")], "has no _stillroom/job.json"),
        ([str(dataset), "--split", "validation"], "--split is 'validation'"),
        ([str(dataset), "--depth"], "--depth"),
        (["a/b/c"], "neither a Hub dataset"),
        ([], "OUTPUT"),
    ):
        result = run(tmp_path, "verify", *arguments)
        assert (result.exit_code, len(result.stderr.splitlines()), result.stdout) == (2, 1, ""), result.output
        assert words in result.stderr

"""--encoding, --select and --temperatures through whole runs: python -m pytest tests/test_encodings_run.py."""

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from datasets import load_dataset
from transformers import AutoModelForCausalLM

from builders.demo import write_demo
from builders.distill import Collate, cross_entropy, decode, predicting_rows
from builders.rank_table import RankTable
from builders.stored_logits import open_logits
from extract import ranks as ranks_module
from extract.cli import main
from tests.runs import Bench, download, hub_process, kill_group
from tests.test_logits_run import model  # noqa: F401  # fixture
from tests.test_remote import hub  # noqa: F401  # fixture

ROWS, CHUNK_ROWS = 12, 4
WAYS = {
    "compact": ["--encoding", "compact"],
    "global": ["--encoding", "compact", "--select", "global", "--global-threshold", 1 / 512],
    "temperatures": ["--temperatures", "1,2"],
}
V = 704


def job(folder: Path, model: Path, output: str, *more: object) -> list[str]:  # noqa: F811
    if not (folder / "chat.parquet").exists():
        write_demo(folder / "chat.parquet", num_rows=ROWS)
    parts = ["--build", "logits", "--source", folder / "chat.parquet", "--model", model, "--chunk-rows", CHUNK_ROWS]
    parts += ["--max-length", 2000, "--dtype", "float32", "--resume", "--output", output, *more]
    return [str(part) for part in parts]


def run(folder: Path, *arguments: object, code: int = 0) -> str:
    done = CliRunner().invoke(
        main, [*map(str, arguments), "--cache-dir", str(folder / "cache")], catch_exceptions=False
    )
    assert done.exit_code == code, done.output
    return done.output


@pytest.fixture(scope="module", params=WAYS)
def built(request, tmp_path_factory, model) -> tuple[str, Path]:  # noqa: F811
    """One dataset of each way, by the small random model."""
    folder = tmp_path_factory.mktemp(request.param)
    run(folder, "run", *job(folder, model, str(folder / "out"), *WAYS[request.param]))
    return request.param, folder / "out"


@pytest.fixture
def compact(tmp_path, model) -> Path:  # noqa: F811
    """A compact dataset to damage, by the engine without a model."""
    run(tmp_path, "run", *job(tmp_path, model, str(tmp_path / "out"), *WAYS["compact"], "--engine", "fake"))
    return tmp_path / "out"


def chunks(output: Path) -> list[Path]:
    return sorted(output.glob("data/**/*.parquet"))


def truth(model, record) -> torch.Tensor:  # noqa: F811
    """The model's own logits [T, V] of a record's tokens, float64."""
    with torch.inference_mode():
        logits = AutoModelForCausalLM.from_pretrained(model)(input_ids=torch.tensor(record.input_ids)[None]).logits
    return logits[0, record.positions - 1].double()


def test_what_is_read_back_is_what_the_teacher_says(built, model, tmp_path):  # noqa: F811
    way, output = built
    stored = open_logits(str(output))
    dataset = load_dataset(str(output), split="train", cache_dir=str(tmp_path)).with_format("numpy")
    assert (stored.ranks is None) == (way == "temperatures") and len(dataset) == ROWS
    for row in dataset.select(range(3)):
        found = stored.unpack(row)
        logits = truth(model, found)
        rows = np.repeat(np.arange(len(found.counts)), found.counts)
        for t in (1.0, 2.0) if way == "temperatures" else (1.0,):
            p = torch.softmax(logits / t, -1).numpy()
            entries, samples = found.weights(t)
            mass = np.bincount(rows, entries)
            np.testing.assert_allclose(
                found.logsumexp_for(t),
                torch.logsumexp(logits / t, -1),
                atol=1e-5 if way == "temperatures" else 1 / 120,
            )
            step = 2e-3 if way == "temperatures" else 0.17  # half a step of 1/4 nat, and what scaling adds
            assert (abs(np.log(entries / p[rows, found.ids])) < step).all()
            np.testing.assert_allclose(mass, np.bincount(rows, p[rows, found.ids]), atol=0.009)
            # few samples of much mass: right on average, and for tokens together
            assert samples.sum(1).mean() == pytest.approx((1 - mass).mean(), abs=0.02)
            held = found.sampled_ids[found.is_sample]
            assert held.max() < V and (samples[~found.is_sample] == 0).all()
    if way == "global":
        kept = (p >= 1 / 512) | (p == p.max(1, keepdims=True))
        assert found.counts.tolist() == kept.sum(1).tolist()
        assert abs(found.sampled_counts - (p * ~kept).sum(1) * 512).max() <= 1 + 1e-6


def test_a_student_trains_on_any_of_them(built, tmp_path):
    """The loss at T = 1 is that of the teacher, to what sampling leaves open; T = 2 is served, or refused."""
    way, output = built
    stored = open_logits(str(output))
    dataset = load_dataset(str(output), split="train", cache_dir=str(tmp_path))
    rows = list(dataset.with_transform(decode(stored.ranks)).select(range(4)))
    batch = Collate(V, ranks=stored.ranks)(rows)
    student = torch.randn(*batch.input_ids.shape, V, generator=torch.Generator().manual_seed(0))
    assert cross_entropy(predicting_rows(student, batch), batch).item() == pytest.approx(np.log(V), abs=0.7)
    warm = Collate(V, ranks=stored.ranks, temperature=2.0)
    if way == "temperatures":
        torch.testing.assert_close(warm(rows).weights.sum(-1), batch.mask.float(), atol=0.9, rtol=0)
    else:
        with pytest.raises(ValueError, match="temperature 2: this record serves 1 alone"):
            warm(rows)


def test_card_and_proof_know_the_way(built, tmp_path):
    way, output = built
    card = (output / "README.md").read_text()
    assert ("stored.unpack(dataset[0])" in card) == (way != "temperatures")
    words = {"compact": "compact", "global": "0.00195312", "temperatures": "1, 2"}
    assert words[way] in card
    assert "nothing is missing, doubled or damaged" in run(tmp_path, "verify", output, "--deep")


def damage(path: Path, name: str, change) -> None:
    """Change a column of a chunk's records, and keep its metadata."""
    table = pq.read_table(path)
    where = table.schema.get_field_index(name)
    values = pa.array([change(value) for value in table[name].to_pylist()], table.schema.field(where).type)
    pq.write_table(table.set_column(where, table.schema.field(where), values), path)


@pytest.mark.parametrize(
    ("way", "name", "change", "what"),
    [
        ("compact", "exact_ranks_1", lambda b: b[:-1], "bytes, and"),
        ("compact", "exact_ranks_1", lambda b: b"\xff" * len(b), "in a vocabulary of 704"),
        ("compact", "exact_values_1", lambda b: b"\x02" * len(b), "a probability over 1"),
        ("compact", "sampled_ranks_0", lambda b: bytes(len(b)), "sampled_ranks: an id that stands twice"),
        ("global", "rest", lambda b: b"\x40" * len(b), "samples of weight"),
        ("global", "sample_weight", lambda w: 0.25, "samples that weigh 0.25"),
        ("temperatures", "tail_mass_t2", lambda v: [0.9 for _ in v], "at temperature 2 do not have a mass of 1"),
        ("temperatures", "logsumexp_t2", lambda v: v[1:], "cannot be unpacked"),
    ],
)
def test_damage_is_found(way, name, change, what, built, tmp_path):
    if built[0] != way:
        pytest.skip("another dataset's damage")
    output = Path(shutil.copytree(built[1], tmp_path / "out"))
    damage(chunks(output)[1], name, change)
    report = json.loads(run(tmp_path, "verify", output, "--deep", "--json", code=1))
    assert any(what in problem["what"] and "row 4" in problem["what"] for problem in report["problems"]), report


def test_a_nucleus_without_its_mass_is_found(compact, tmp_path):
    damage(chunks(compact)[1], "rest", lambda b: b"\xc8" * len(b))
    assert "ids with a mass of 0.3849 only" in run(tmp_path, "verify", compact, "--deep", code=1)


def test_a_rank_table_that_is_lost_is_made_again(compact, tmp_path, model):  # noqa: F811
    table = compact / "_stillroom/ranks.bin"
    content, before = table.read_bytes(), [path.stat().st_mtime_ns for path in chunks(compact)]
    for damaged in (None, bytes(reversed(content)), content[:-2]):
        table.unlink()
        if damaged is not None:
            table.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"rank table|ranks\.bin"):
            open_logits(str(compact))
        report = json.loads(run(tmp_path, "verify", compact, "--json", code=1))
        assert [(p["path"], p["repair"]) for p in report["problems"]] == [("_stillroom/ranks.bin", "table")]
        run(tmp_path, "verify", compact, "--repair")
        assert table.read_bytes() == content
    assert [path.stat().st_mtime_ns for path in chunks(compact)] == before
    chunks(compact)[0].unlink()
    table.unlink()
    said = run(tmp_path, "run", *job(tmp_path, model, str(compact), *WAYS["compact"], "--engine", "fake"), code=2)
    assert "ranks.bin is missing" in said and "--repair` mends it" in said


def test_records_whose_table_cannot_be_made_again_are_computed_again(compact, tmp_path, model, monkeypatch):  # noqa: F811
    """Another version of the tokenizer would count otherwise: then no table but a new one for all records helps."""
    table = compact / "_stillroom/ranks.bin"
    old = table.read_bytes()
    table.unlink()
    monkeypatch.setattr(ranks_module, "count_ranks", lambda *_: RankTable.of_ids(V))
    run(tmp_path, "verify", compact, "--repair")
    assert table.read_bytes() == RankTable.of_ids(V).to_bytes() != old
    assert open_logits(str(compact)).form.ranks_sha256 == RankTable.of_ids(V).sha256
    assert "nothing is missing" in run(tmp_path, "verify", compact, "--deep")


def test_a_chunk_of_another_table_is_found_and_computed_again(compact, tmp_path):
    path = chunks(compact)[1]
    content = pq.read_table(path)
    key = b"stillroom_logits"
    form = json.loads(content.schema.metadata[key]) | {"ranks_sha256": "0" * 64}
    pq.write_table(content.replace_schema_metadata({**content.schema.metadata, key: json.dumps(form)}), path)
    report = json.loads(run(tmp_path, "verify", compact, "--json", code=1))
    assert any("tells of other records" in problem["what"] for problem in report["problems"])
    run(tmp_path, "verify", compact, "--repair")
    assert pq.read_schema(path).metadata[key] == content.schema.metadata[key]


def test_a_run_into_another_way_is_refused(compact, tmp_path, model):  # noqa: F811
    said = run(
        tmp_path, "run", *job(tmp_path, model, str(compact), "--engine", "fake", "--temperatures", "1,2"), code=2
    )
    assert "encoding: 'compact' -> 'default'" in said and "temperatures: [1.0] -> [1.0, 2.0]" in said


def test_jobs_that_share_nothing_use_one_table(tmp_path, model, hub):  # noqa: F811
    """The second begins with an empty cache and finds the table; readers have it from the Hub."""
    for index in (0, 1):
        more = ["--num-jobs", 2, "--job-index", index, *WAYS["global"], "--engine", "fake"]
        run(tmp_path / str(index), "run", *job(tmp_path, model, "tester/compact", *more))
    commits = [commit for commit in hub.commits("tester/compact") if "_stillroom/ranks.bin" in commit.paths]
    assert len(commits) == 1
    stored = open_logits("tester/compact")
    assert stored.form.ranks_sha256 == stored.ranks.sha256 and stored.form.threshold == 1 / 512


def as_written(folder: Path) -> list[dict]:
    return [row for path in chunks(folder) for row in pq.read_table(path).to_pylist()]


@pytest.mark.slow
@pytest.mark.parametrize("way", ["global", "temperatures"])
def test_kills_and_worlds_change_nothing(way, tmp_path, model):  # noqa: F811
    """One run; and one killed with a batch in hand, then gone on with by two workers and other batches: the same bytes."""
    bench = Bench(tmp_path)
    bench.run(*job(tmp_path, model, "./whole", *WAYS[way]))
    with hub_process(tmp_path / "hub") as bench.hub:
        arguments = job(tmp_path, model, "user/parts", *WAYS[way], "--max-batch-tokens", 300)
        process = bench.start(*arguments)
        while process.poll() is None and not list(bench.cache.glob("jobs/parts-*/partial/*.part")):
            time.sleep(0.01)
        assert process.poll() is None
        kill_group(process)
        bench.run(*arguments, workers=2)
        parts = as_written(download(bench.hub, "user/parts", tmp_path / "parts"))
    whole = as_written(tmp_path / "whole")
    assert len(whole) == len(parts) == ROWS
    exact = [name for name in whole[0] if name.startswith(("exact_ranks", "sampled_", "top_indices", "top_counts"))]
    for one, other in zip(whole, parts, strict=True):
        assert {name: one[name] for name in exact} == {name: other[name] for name in exact}

"""Embeddings as files of other programs: python -m pytest tests/test_vectors_export.py."""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from datasets import load_dataset
from safetensors import safe_open
from safetensors.numpy import load_file

from builders.curate.matrix_files import CorruptError, NpyFile, SafetensorsFile
from builders.curate.safe_names import SafeNames
from builders.curate.vectors import open_dataset
from builders.curate.vectors_export import export_vectors
from builders.quantize import VectorFormat
from extract.cli import main
from tests.embeddings_folder import write_embeddings
from tests.runs import CHECKOUT

ROWS, DIMS = 700, 12
SOURCES = ["allenai/math", "../../etc", "allenai__math", None]
VECTORS = np.random.default_rng(3).standard_normal((ROWS, DIMS)).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    sources = [SOURCES[i % 4] for i in range(ROWS)]
    texts = [f"text {i}" for i in range(ROWS)]
    return write_embeddings(
        tmp_path_factory.mktemp("x") / "out", VECTORS, sources=sources, texts=texts, chunk_rows=150
    )


def export(folder, kind, dest, *options):
    done = CliRunner().invoke(main, ["export", str(folder), str(dest), "--to", kind, *options])
    assert done.exit_code == 0, done.output
    assert f"{ROWS} rows of {DIMS} dimensions" in done.output and "complete" in done.output
    for line in (dest / "SHA256SUMS").read_text().splitlines() if (dest / "SHA256SUMS").exists() else []:
        sha256, _, path = line.partition("  ")
        assert hashlib.sha256((dest / path).read_bytes()).hexdigest() == sha256
    return dest


def test_safetensors_hold_all_rows_and_each_source_bit_by_bit(folder, tmp_path):
    dest = export(folder, "safetensors", tmp_path / "x")
    whole = load_file(dest / "all" / "embeddings.safetensors")
    assert whole["embeddings"].tobytes() == VECTORS.tobytes() and whole["index"].tolist() == list(range(ROWS))
    with safe_open(dest / "all" / "embeddings.safetensors", "np") as file:
        assert file.metadata()["dataset"] == str(folder)
    names = json.loads((dest / "export.json").read_text())["sources"]
    assert sorted(names.values(), key=str) == sorted(SOURCES, key=str)
    assert {p.name for p in (dest / "by_source").iterdir()} == set(names) and len(names) == 4
    for place, source in names.items():
        expected = [i for i in range(ROWS) if SOURCES[i % 4] == source]
        part = load_file(dest / "by_source" / place / "embeddings.safetensors")
        assert part["embeddings"].tobytes() == VECTORS[expected].tobytes()
        rows = pq.read_table(dest / "by_source" / place / "metadata.parquet").to_pydict()
        assert rows["index"] == part["index"].tolist() == expected
        assert rows["text"] == [f"text {i}" for i in expected] and set(rows["dataset_source"]) == {source}


def test_torch_numpy_and_parquet_are_the_same_vectors(folder, tmp_path):
    loaded = torch.load(export(folder, "pt", tmp_path / "pt") / "embeddings.pt", weights_only=True)
    assert loaded["emb"].numpy().tobytes() == VECTORS.tobytes() and loaded["ids"] == [f"row-{i}" for i in range(ROWS)]
    dest = export(folder, "npy", tmp_path / "npy")
    assert np.load(dest / "embeddings.npy", mmap_mode="r").tobytes() == VECTORS.tobytes()
    assert pq.read_table(dest / "metadata.parquet")["id"].to_pylist() == loaded["ids"]
    path = export(folder, "parquet", tmp_path / "parquet") / "embeddings.parquet"
    rows = load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(tmp_path)).with_format("numpy")
    assert rows[:]["embedding"].tobytes() == VECTORS.tobytes() and rows[-1]["text"] == f"text {ROWS - 1}"


def test_a_faiss_file_answers_as_the_vectors_do(folder, tmp_path):
    faiss = pytest.importorskip("faiss")
    index = faiss.read_index(str(export(folder, "faiss", tmp_path / "x") / "index.faiss"))
    unit = VECTORS / np.linalg.norm(VECTORS, axis=1, keepdims=True)
    scores, found = index.search(unit[:50], 3)
    products = unit[:50] @ unit.T
    np.testing.assert_array_equal(found, np.argsort(-products, axis=1)[:, :3])
    np.testing.assert_allclose(scores[:, 0], 1, atol=1e-5)


def test_a_chroma_database_is_queried_back(folder, tmp_path):
    chromadb = pytest.importorskip("chromadb", reason="pip install chromadb")
    dest = export(folder, "chroma", tmp_path / "x")
    collection = chromadb.PersistentClient(str(dest)).get_collection("embeddings", embedding_function=None)
    found = collection.query(query_embeddings=[VECTORS[41]], n_results=1, where={"dataset_source": "../../etc"})
    assert found["ids"] == [["41"]] and found["documents"] == [["text 41"]]
    assert found["metadatas"][0][0]["id"] == "row-41"


def test_a_lancedb_database_is_queried_back(folder, tmp_path):
    lancedb = pytest.importorskip("lancedb", reason="pip install lancedb")
    table = lancedb.connect(export(folder, "lancedb", tmp_path / "x")).open_table("embeddings")
    (found,) = table.search(VECTORS[41]).where("dataset_source = '../../etc'").limit(1).to_list()
    assert found["index"] == 41 and found["text"] == "text 41"
    np.testing.assert_array_equal(found["vector"], VECTORS[41])


def test_quantised_vectors_come_out_as_what_they_stand_for(tmp_path):
    form = VectorFormat("int8", DIMS, np.stack([VECTORS.min(0), VECTORS.max(0)]))
    source = write_embeddings(tmp_path / "out", VECTORS, form=form, chunk_rows=300)
    export_vectors(open_dataset(str(source)), "safetensors", tmp_path / "x")
    found = load_file(tmp_path / "x" / "all" / "embeddings.safetensors")["embeddings"]
    assert found.dtype == np.float32 and 0 < np.abs(found - VECTORS).max() < 0.03


def test_float16_stays_float16(tmp_path):
    half = VECTORS.astype(np.float16)[:, :5]  # 10 bytes a row: the index after it is at no multiple of 8
    file = SafetensorsFile(tmp_path / "x.safetensors", {})
    for start in range(0, ROWS, 99):
        file.write(half[start : start + 99], np.arange(start, min(start + 99, ROWS)))
    file.close()
    found = load_file(tmp_path / "x.safetensors")
    assert found["embeddings"].tobytes() == half.tobytes() and found["index"].tolist() == list(range(ROWS))


def test_bytes_that_are_lost_on_the_disk_are_noticed(tmp_path):
    file = NpyFile(tmp_path / "x.npy")
    file.write(VECTORS, np.arange(ROWS))
    with file.body.partial.open("r+b") as disk:
        disk.seek(1000)
        disk.write(b"\xff")
    with pytest.raises(CorruptError, match="read back are not those written"):
        file.close()
    assert not (tmp_path / "x.npy").exists()


def test_names_of_sources_are_safe_and_never_shared():
    names = SafeNames()
    given = [
        "allenai/math",
        "allenai__math",
        "Math",
        "math",
        "",
        " ",
        "..",
        "../../etc",
        "CON",
        "a" * 300,
        "数学",
        "物理",
        None,
        "none",
    ]
    places = [names[name] for name in given]
    assert places[0] == "allenai__math" and places[2] == "Math" and names["allenai/math"] == places[0]
    assert len({place.lower() for place in places}) == len(given)
    for place in places:
        assert (
            place.isascii() and not set(place) & set("/\\:") and place.strip(". ") == place and 0 < len(place) <= 110
        )
    assert names["CON"] != "CON"


def test_a_folder_that_is_not_empty_and_a_wrong_kind_are_refused(folder, tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "mine").touch()
    for arguments, problem in [
        ([str(tmp_path / "x"), "--to", "npy"], "not empty: give a new folder"),
        ([str(tmp_path / "y"), "--to", "axolotl"], "--to axolotl: "),
        ([str(tmp_path / "y"), "--to", "pt", "--column", "embedding_think"], "has no vectors 'embedding_think'"),
        ([str(tmp_path / "y"), "--to", "pt", "--sequence-length", "9"], "--sequence-length is for teacher logits"),
    ]:
        done = CliRunner().invoke(main, ["export", str(folder), *arguments])
        assert done.exit_code == 2 and problem in done.output and done.output.count("\n") == 1, done.output
    assert "holds embeddings; for these: safetensors, pt" in CliRunner().invoke(
        main, ["export", str(folder), str(tmp_path / "y"), "--to", "axolotl"]
    ).output  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is read from /proc")
@pytest.mark.parametrize("kind", ["safetensors", "parquet"])
def test_memory_does_not_grow_with_the_rows(kind, tmp_path):
    """120 MB of vectors more, in chunks of 20 MB, cost 20 to 60 MB: indices, and what the allocator keeps."""
    code = "import sys; from extract.export import _export_vectors; from pathlib import Path; "
    code += "_export_vectors(sys.argv[1], sys.argv[2], Path(sys.argv[3]), 'default', None); "
    code += "print(Path('/proc/self/status').read_text())"
    peaks = []
    for rows in (30_000, 90_000):
        vectors = np.random.default_rng(0).standard_normal((rows, 512)).astype(np.float32)
        source = write_embeddings(tmp_path / f"out-{rows}", vectors, chunk_rows=10_000)
        words = [sys.executable, "-c", code, str(source), kind, str(tmp_path / f"x-{rows}")]
        done = subprocess.run(words, cwd=CHECKOUT, capture_output=True, text=True, check=True)
        peaks.append(int(re.search(r"VmHWM:\s+(\d+) kB", done.stdout)[1]) / 1024)
    assert peaks[1] - peaks[0] < 90, peaks

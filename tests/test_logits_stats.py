"""Batches, figures and comparisons of stored logits against whole distributions."""

from dataclasses import fields

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from builders import read_logits as reading
from builders.compact import pack_compact
from builders.histogram import Histogram
from builders.logits_compare import compare
from builders.logits_schema import LogitsFormat, logits_columns
from builders.logits_stats import numpy_entries, token_values, torch_entries
from builders.packing import Logits, pack, unpack
from builders.rank_table import RankTable
from builders.read_logits import read_batch, read_logits
from builders.schema import arrow_schema
from tests.draws import select_block

VOCAB, TOKENS = 400, 60


def teacher(seed, *, vocab=VOCAB, tokens=TOKENS, scale=3.0):
    return (scale * np.random.default_rng(seed).standard_normal((tokens, vocab))).astype(np.float32)


def log_softmax(logits):
    wide = logits.astype(np.float64)
    return wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))


def place(seed, *, vocab=VOCAB, tokens=TOKENS):
    rng = np.random.default_rng(seed)
    return {
        "input_ids": rng.integers(0, vocab, tokens + 3).astype(np.int32),
        "positions": np.sort(rng.choice(np.arange(1, tokens + 3), tokens, replace=False)).astype(np.int32),
    }


def packed(logits, seed, encoding="default", **options):
    block = vars(select_block(logits, np.random.default_rng(seed), **options))
    where = place(seed, vocab=logits.shape[1], tokens=len(logits))
    if encoding == "compact":
        return pack_compact(**block, ranks=RankTable(np.arange(logits.shape[1], dtype=np.int32)[::-1]), **where)
    return pack(**block, vocab_size=logits.shape[1], **where)


@pytest.mark.parametrize(("encoding", "vocab"), [("default", 400), ("default", 70_000), ("compact", 70_000)])
def test_a_batch_is_its_records(tmp_path, encoding, vocab, monkeypatch):
    """Also where the high bits of a record's ids end within a byte, and where batches end within a row group."""
    ranks = RankTable(np.arange(vocab, dtype=np.int32)[::-1])
    form = LogitsFormat(encoding, vocab, "", 16, ranks_sha256=ranks.sha256)
    rows = [packed(teacher(s, vocab=vocab, tokens=5 + s), s, encoding, top_k=99) for s in range(5)]
    table = pa.Table.from_pylist(
        [{"index": 2 * n, **row} for n, row in enumerate(rows)], schema=arrow_schema(logits_columns(form))
    )
    pq.write_table(table, tmp_path / "chunk.parquet", row_group_size=4)
    sizes = [len(unpack(row, ranks).ids) for row in rows]
    assert encoding == "compact" or any(size % 4 for size in sizes[:-1])
    monkeypatch.setattr(reading, "BATCH_BYTES", table.nbytes // 2)
    batches = list(read_logits(pq.ParquetFile(tmp_path / "chunk.parquet"), ranks))
    assert len(batches) > 2 and np.concatenate([batch.index for batch in batches]).tolist() == [0, 2, 4, 6, 8]
    whole = read_batch(table.combine_chunks().to_batches()[0], ranks)
    parts = [batch.record(n) for batch in batches for n in range(len(batch))]
    for n, row in enumerate(rows):
        two = unpack(row, ranks)
        width = two.sampled_ids.shape[1]  # a compact batch is as wide as its widest record
        for one in (parts[n], whole.record(n)):
            for spec in fields(Logits):
                a, b = getattr(one, spec.name), getattr(two, spec.name)
                if isinstance(a, np.ndarray):
                    np.testing.assert_array_equal(a[:, :width] if spec.name == "sampled_ids" else a, b, spec.name)
    targets = [row["input_ids"][row["positions"]] for row in rows]
    np.testing.assert_array_equal(whole.targets, np.concatenate(targets))
    np.testing.assert_array_equal(whole.head(2).targets, np.concatenate(targets[:2]))
    assert len(whole.head(2)) == 2 and len(whole.head(9)) == 5


def test_figures_of_tokens_are_those_of_the_whole_distributions():
    logits = teacher(0, tokens=400)
    found, truth = unpack(packed(logits, 0)), log_softmax(logits)
    targets = place(0, tokens=400)["input_ids"][found.positions]
    values = token_values(found, targets)
    true_p = truth[np.arange(len(targets)), targets]
    known = ~np.isnan(values.logprob)
    assert 0.2 < known.mean() < 0.8
    np.testing.assert_allclose(values.logprob[known], true_p[known], atol=1e-3)
    assert (values.bound[~known] >= true_p[~known] - 1e-3).all()
    assert (values.bound[~known] <= np.log(found.rest()[~known] + 1e-12)).all()
    error = values.entropy + (np.exp(truth) * truth).sum(axis=1)
    assert abs(error.mean()) < 4 * error.std() / len(error) ** 0.5  # 1 in 16,000 by chance
    nucleus_alone = numpy_entries(found, None)[1]
    assert np.abs(nucleus_alone - values.entropy).mean() > 10 * abs(error.mean())
    np.testing.assert_allclose(values.mass, 1 - found.rest(), atol=1e-6)


def test_the_entropy_of_compact_records_is_a_lower_bound():
    logits = teacher(0, tokens=200, scale=2.0)
    truth = log_softmax(logits)
    ranks = RankTable(np.arange(VOCAB, dtype=np.int32)[::-1])
    found = token_values(unpack(packed(logits, 0, "compact", top_k=20), ranks), None).entropy
    entropy = -(np.exp(truth) * truth).sum(axis=1)
    assert (found < entropy + 0.01).all() and (found > 0.7 * entropy).all()


def test_torch_and_numpy_agree():
    record = packed(teacher(0), 0)
    found = unpack(record)
    targets = record["input_ids"][record["positions"]]
    for one, two in zip(numpy_entries(found, targets), torch_entries(found, targets, "cpu"), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5)


def test_the_kl_of_whole_nuclei_is_exact():
    """Where every id is an exact entry, nothing is coarse."""
    a, b = teacher(0, vocab=60), teacher(1, vocab=60)
    records = [unpack(packed(x, 0, top_p=1.0, top_k=60)) for x in (a, b)]
    p, q = log_softmax(a), log_softmax(b)
    np.testing.assert_allclose(compare(*records).kl, (np.exp(p) * (p - q)).sum(axis=1), rtol=1e-3, atol=1e-4)
    assert (compare(*records).same_top == (a.argmax(axis=1) == b.argmax(axis=1))).all()


def test_the_kl_of_nuclei_is_at_most_the_true_one():
    a, b = teacher(0), teacher(0) + teacher(1, scale=0.5)
    pair = compare(*(unpack(packed(x, 0)) for x in (a, b)))
    p, q = log_softmax(a), log_softmax(b)
    true = (np.exp(p) * (p - q)).sum(axis=1)
    assert (pair.kl <= true + 1e-3).all() and pair.kl.mean() > 0.7 * true.mean()
    assert pair.num_unmatched == 0


def test_histogram():
    histogram = Histogram("x", "", 0, 10, 1_000)
    values = np.random.default_rng(0).uniform(2, 4, 10_000)
    for part in np.split(values, 10):
        histogram.add(part)
    assert histogram.mean == pytest.approx(values.mean())
    for q in (0.05, 0.5, 0.95):
        assert histogram.quantile(q) == pytest.approx(np.quantile(values, q), abs=0.01)
    bars = histogram.bars(10)
    assert len(bars) == 10 and sum(bar.number for bar in bars) >= 0.99 * len(values)
    assert bars[0].start == pytest.approx(2, abs=0.05) and bars[-1].stop == pytest.approx(4, abs=0.05)
    histogram.add(np.array([-5.0, 99.0]))  # kept, at the ends
    assert histogram.num_values == 10_002
    assert Histogram("none", "", 0, 1, 5).bars(3) == []

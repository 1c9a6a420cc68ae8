"""The compact encoding says the same in fewer bytes. python -m pytest tests/test_compact.py"""

from __future__ import annotations

import io
import math
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders.compact import pack_compact
from builders.logits_schema import LogitsFormat, logits_columns
from builders.packing import pack, unpack
from builders.rank_table import RankTable
from builders.schema import arrow_schema
from tests.test_packing import VOCAB, block_of, empty_block


def some_ranks(vocab_size=VOCAB, seed=5):
    return RankTable.from_frequencies(np.random.default_rng(seed).zipf(1.5, vocab_size).clip(max=10**6))


def by_id(ids, values):
    return dict(zip(ids.tolist(), values.tolist(), strict=True))


def targets(decoded):
    """Target weight of each id, one dict per token."""
    exact, sampled = decoded.weights()
    ends = np.cumsum(decoded.counts)
    for t, (start, stop) in enumerate(zip(ends - decoded.counts, ends, strict=True)):
        out = by_id(decoded.ids[start:stop], exact[start:stop])
        for i, w in zip(decoded.sampled_ids[t].tolist(), sampled[t].tolist(), strict=True):
            if w:
                out[i] = out.get(i, 0) + w
        yield out


@given(
    st.integers(0, 7),
    st.sampled_from([VOCAB, 49_152, 65_537, 262_144]),
    st.floats(0.1, 6),
    st.integers(1, 20),
    st.integers(0, 99),
)
def test_compact_means_what_the_default_means(num_tokens, vocab_size, scale, num_sampled, seed):
    block = block_of(num_tokens, vocab_size, seed, scale, num_sampled) if num_tokens else empty_block(num_sampled)
    ranks = some_ranks(vocab_size)
    small = unpack(pack_compact(**vars(block), ranks=ranks), ranks)
    plain = unpack(pack(**vars(block), vocab_size=vocab_size))
    np.testing.assert_allclose(small.logsumexp, plain.logsumexp, atol=1 / 128)
    for t, (ours, theirs) in enumerate(zip(targets(small), targets(plain), strict=True)):
        drawn = set(small.sampled_ids[t, : small.sampled_counts[t]].tolist())
        for i, w in theirs.items():
            if i in drawn:  # they share r, of which (b / 255) ** 2 is stored: half a step of its root
                assert 255 * math.sqrt(len(drawn) * ours[i]) == pytest.approx(
                    255 * math.sqrt(len(drawn) * w), abs=0.51
                )
            elif w > 1e-6:  # half a step, and what scaling to 1 - r adds
                assert math.log(ours[i] / w) == pytest.approx(0, abs=0.17)
        assert sum(ours.values()) == pytest.approx(1, abs=1e-5)
        assert {i for i, w in ours.items() if w > 1e-5} <= set(theirs)


def decode_plainly(record, ranks):
    """A second decoder, from the words of the format alone: yield (ids, probabilities, sampled ids, r) per token."""

    def number(name, i):
        return sum(record[f"{name}_{k}"][i] << 8 * k for k in range(3) if f"{name}_{k}" in record)

    exact = drawn = 0
    for t, (n, m) in enumerate(zip(record["exact_counts"], record["sampled_counts"], strict=True)):
        r = (record["rest"][t] / 255) ** 2
        ids, p, rank = [], [], 0
        for i in range(exact, exact + n):
            rank += number("exact_ranks", i)
            k = number("exact_values", i) - 83
            ids.append(int(ranks.ids[rank]))
            p.append((k * k - 0.25) / 308**2 if k >= 8 else math.exp(math.log((8 / 308) ** 2) - (8 - k) / 4))
        samples, rank = [], 0
        for i in range(drawn, drawn + m):
            rank += number("sampled_ranks", i)
            samples.append(int(ranks.ids[rank]))
        exact, drawn = exact + n, drawn + m
        yield ids, [x * (1 - r) / sum(p) for x in p], samples, r


@pytest.mark.parametrize("vocab_size", [VOCAB, 65_537])
def test_a_decoder_written_from_the_format_alone_agrees(vocab_size):
    block, ranks = block_of(9, vocab_size), some_ranks(vocab_size)
    record = pack_compact(**vars(block), ranks=ranks)
    decoded = unpack(record, ranks)
    exact, sampled = decoded.weights()
    ends = np.cumsum(decoded.counts)
    for t, (ids, p, samples, r) in enumerate(decode_plainly(record, ranks)):
        part = slice(ends[t] - decoded.counts[t], ends[t])
        assert decoded.ids[part].tolist() == ids
        np.testing.assert_allclose(exact[part], p, rtol=2e-5)
        assert decoded.sampled_ids[t][decoded.is_sample[t]].tolist() == samples
        np.testing.assert_allclose(sampled[t][decoded.is_sample[t]], r / max(1, len(samples)), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("encoding", ["default", "compact"])
def test_datasets_may_strip_zeros_off_the_end_of_bytes(encoding):
    """Its numpy format makes fixed-width strings of bytes, whose last zeros are lost: here all but the first id are small."""
    from datasets import Dataset

    block = vars(block_of(6))
    first = np.r_[100_000, block["nucleus_ids"][1:]]
    place = {"input_ids": np.arange(7), "positions": np.arange(1, 7)}
    if encoding == "default":
        record, ranks = pack(**block | {"nucleus_ids": first}, vocab_size=151_936, **place), None
    else:
        ranks = RankTable(np.arange(70_000, dtype=np.int32))  # three bytes a rank, and nothing in the third
        record = pack_compact(**block, ranks=ranks, **place)
    row = {name: list(value) if isinstance(value, np.ndarray) else value for name, value in record.items()}
    dataset = Dataset(pa.Table.from_pylist([row, row])).with_format("numpy")
    for found in (dataset[0], *dataset.__getitems__([0, 1])):
        assert any(len(found[name]) < len(record[name]) for name in record if isinstance(record[name], bytes))
        for name in ("ids", "sampled_ids", "counts", "sampled_counts"):
            np.testing.assert_array_equal(getattr(unpack(found, ranks), name), getattr(unpack(record, ranks), name))


def test_one_threshold_for_the_whole_dataset():
    """Ids with p >= tau are exact, others are drawn with weight tau: as many as there are, a token may have none of either."""
    tau = 1 / 64
    ids = np.array([4, 9, 2], np.int32)
    logprobs = np.log([0.5, 0.3, 0.9])
    record = pack_compact(
        ids, logprobs + 7, np.array([2, 0, 1]), np.array([7.0, 7.0, 7.0]),
        np.array([[1, 3, 3], [5, 6, 7], [0, 0, 0]], np.int32), np.zeros((3, 3), np.float32),
        ranks=some_ranks(), sampled_counts=np.array([3, 2, 0]), sample_weight=tau,
    )  # fmt: skip
    first, second, third = targets(unpack(record, some_ranks()))
    assert first == {4: pytest.approx(0.5, abs=0.003), 9: pytest.approx(0.3, abs=0.003), 1: tau, 3: 2 * tau}
    assert second == {5: tau, 6: tau}
    assert third == {2: pytest.approx(0.9, abs=0.003)}


def test_a_rank_table_is_stored_as_bytes_and_known_by_its_hash():
    ranks = RankTable.from_frequencies(np.array([3, 9, 9, 0]))
    assert ranks.ids.tolist() == [1, 2, 0, 3]
    assert ranks.to_bytes() == bytes([1, 0, 2, 0, 0, 0, 3, 0])
    for table in (ranks, some_ranks(70_000)):
        assert RankTable.from_bytes(table.to_bytes()).sha256 == table.sha256
    with pytest.raises(ValueError, match="no rank table"):
        RankTable.from_bytes(bytes([1, 0, 1, 0]))
    form = LogitsFormat("compact", 4, "t", 16, ranks_sha256=ranks.sha256)
    form.check_ranks(ranks)
    with pytest.raises(ValueError, match="needs a rank table"):
        replace(form, ranks_sha256="").to_metadata()
    with pytest.raises(ValueError, match="one of 300 ids"):
        form.check_ranks(some_ranks())
    with pytest.raises(ValueError, match="RankTable"):
        unpack(pack_compact(**vars(block_of(1)), ranks=some_ranks()))


@pytest.mark.parametrize("encoding", ["default", "compact"])
def test_records_fit_their_schema_and_files_describe_themselves(encoding):
    ranks, block = some_ranks(), block_of(6)
    form = LogitsFormat(encoding, VOCAB, "t", 16, ranks_sha256=ranks.sha256)
    extra = {"input_ids": [1, 2, 3], "positions": [1]}
    if encoding == "default":
        record = pack(**vars(block), vocab_size=VOCAB, **extra)
    else:
        record = pack_compact(**vars(block), ranks=ranks, **extra)
    schema = arrow_schema(logits_columns(form))
    assert schema.names == ["index", *record]
    file = io.BytesIO()
    table = pa.Table.from_pylist([{"index": 0, **record}], schema=schema)
    pq.write_table(table.replace_schema_metadata(schema.metadata | form.to_metadata()), file, compression="zstd")
    read = pq.read_table(io.BytesIO(file.getvalue()))
    assert LogitsFormat.from_metadata(read.schema.metadata) == form
    row = {name: read[name][0] for name in read.column_names}
    np.testing.assert_array_equal(unpack(row, ranks).ids, unpack(record, ranks).ids)
    np.testing.assert_array_equal(unpack(row, ranks).logits, unpack(record, ranks).logits)
    assert (
        row["sampled_indices_low"].type if encoding == "default" else pa.list_(pa.uint16())
    ).value_type == pa.uint16()


def test_the_schema_of_the_default_is_that_of_the_design():
    schema = arrow_schema(logits_columns(LogitsFormat("default", 151_936, "t", 16, temperatures=(1.0, 2.0))))
    lists = {
        name: str(schema.field(name).type.value_type)
        for name in schema.names
        if pa.types.is_list(schema.field(name).type)
    }
    assert lists == {
        "top_indices_low": "uint16", "top_logits_quantized": "uint16", "top_counts": "uint8", "top_min": "float",
        "top_max": "float", "sampled_indices_low": "uint16", "sampled_logits_quantized": "uint16", "sampled_min": "float",
        "sampled_max": "float", "logsumexp": "double", "input_ids": "int32", "positions": "int32", "logsumexp_t2": "double",
        "tail_mass_t1": "float", "tail_mass_t2": "float",
    }  # fmt: skip
    assert {str(schema.field(name).type) for name in ("top_indices_high", "sampled_indices_high")} == {"binary"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperatures": (1.0, 2.0)}, "temperature 1 alone"),
        ({"encoding": "default", "select": "global"}, "only --encoding compact"),
        ({"encoding": "default", "temperatures": (2.0,)}, "1 among them"),
    ],
)
def test_a_format_that_cannot_be_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        LogitsFormat(
            **{"encoding": "compact", "vocab_size": 9, "tokenizer": "t", "num_sampled": 16, "ranks_sha256": "x"}
            | change
        )

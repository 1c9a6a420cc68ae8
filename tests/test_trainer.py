"""A TRL trainer that replays a stored teacher. python -m pytest tests/test_trainer.py"""

from __future__ import annotations

import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch
from datasets import load_dataset

from builders.stored_logits import open_logits
from tests.logits_folder import VOCAB, tiny_chats, tiny_model, tiny_tokenizer, write_folder
from tests.runs import CHECKOUT

pytest.importorskip("trl")
WHOLE = {"top_p": 2.0, "top_k": 200, "num_sampled": 100}  # all 300 ids: nothing left to chance
SHAPES = ((12, (4, 5, 6, 10, 11)), (9, (3, 4, 5, 6, 7, 8)), (17, (8, 9, 10, 16)), (6, (5,)))


@pytest.fixture(scope="module")
def chats():
    return tiny_chats(tiny_model(1), SHAPES)


@pytest.fixture(scope="module")
def folder(chats, tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("logits") / "out", chats.records(**WHOLE), num_sampled=100)


def trainer_of(
    folder, tmp_path, student, *, tokenizer=None, streaming=False, temperature=1.0, hard_weight=0.0, **options
):
    from trl import SFTConfig

    from builders.trainer import ReplayTrainer

    settings = {
        "max_steps": 1,
        "learning_rate": 0.5,
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "lr_scheduler_type": "constant",
    }
    settings |= {"report_to": [], "logging_steps": 1, "save_strategy": "no", "use_cpu": True, "bf16": False, "seed": 0}
    settings |= {"disable_tqdm": True, "shuffle_dataset": False}
    args = SFTConfig(str(tmp_path / "student"), **settings | options)
    dataset = load_dataset(str(folder), split="train", streaming=streaming)
    return ReplayTrainer(student, args, teacher=open_logits(str(folder)), train_dataset=dataset, eval_dataset=dataset,
                         processing_class=tokenizer or tiny_tokenizer(), temperature=temperature,
                         hard_weight=hard_weight)  # fmt: skip


def whole_loss(chats, student, hard_weight=0.0):
    """The mean over all targets, with the whole teacher at hand."""
    terms, hard = [], []
    for ids, positions, logits in zip(chats.input_ids, chats.positions, chats.logits, strict=True):
        ids, positions = torch.from_numpy(ids).long(), torch.from_numpy(positions).long()
        log_student = torch.log_softmax(student(ids[None]).logits[0, positions - 1], -1)
        terms.append(-(torch.softmax(torch.from_numpy(logits), -1) * log_student).sum(-1))
        hard.append(-log_student[torch.arange(len(positions)), ids[positions]])
    return (1 - hard_weight) * torch.cat(terms).mean() + hard_weight * torch.cat(hard).mean()


def whole_kl(chats, student):
    log_p = torch.log_softmax(torch.cat([torch.from_numpy(logits) for logits in chats.logits]), -1)
    return whole_loss(chats, student) + (log_p.exp() * log_p).sum(-1).mean()


def step_of_sgd(chats, student, hard_weight):
    """The weights after one step of plain gradient descent at rate 0.5."""
    loss = whole_loss(chats, student, hard_weight)
    loss.backward()
    return loss.item(), {name: (p - 0.5 * p.grad).detach() for name, p in student.named_parameters()}


@pytest.mark.parametrize(
    ("batch", "steps", "streaming", "hard_weight"), [(4, 1, False, 0.0), (1, 4, False, 0.0), (3, 2, True, 0.3)]
)
def test_a_step_is_that_of_the_whole_teacher_however_it_is_accumulated(
    folder, chats, tmp_path, batch, steps, streaming, hard_weight
):
    """Batches of unequal numbers of targets: a mean of their means would be another loss, and another step."""
    loss, expected = step_of_sgd(chats, tiny_model(2), hard_weight)
    options = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": steps}
    trainer = trainer_of(folder, tmp_path, tiny_model(2), streaming=streaming, hard_weight=hard_weight, **options)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(loss, abs=1e-3)
    for name, parameter in trainer.model.named_parameters():
        torch.testing.assert_close(parameter, expected[name], atol=1e-5, rtol=1e-3)


def test_evaluation_reports_the_kl(folder, chats, tmp_path):
    student = tiny_model(2)
    found = trainer_of(folder, tmp_path, student, per_device_eval_batch_size=4).evaluate()
    assert found["eval_loss"] == pytest.approx(whole_loss(chats, student).item(), abs=1e-3)
    assert found["eval_kl"] == pytest.approx(whole_kl(chats, student).item(), abs=1e-3)
    teacher = trainer_of(folder, tmp_path, tiny_model(1), per_device_eval_batch_size=4).evaluate()
    assert abs(teacher["eval_kl"]) < 1e-3 < found["eval_kl"]


def test_only_rows_that_predict_a_target_go_through_the_head(folder, chats, tmp_path):
    student, seen = tiny_model(2), []
    student.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape)))
    trainer_of(folder, tmp_path, student, per_device_eval_batch_size=4).evaluate()
    assert seen == [(1, sum(len(positions) for positions in chats.positions), VOCAB)]


def test_a_head_that_passes_all_rows_gives_the_same_loss(folder, chats, tmp_path, monkeypatch):
    """As in a compiled model, which does not see the hook."""
    trainer = trainer_of(folder, tmp_path, tiny_model(2), per_device_eval_batch_size=4)
    monkeypatch.setattr("builders.trainer.only_rows", lambda *_: nullcontext())
    assert trainer.evaluate()["eval_loss"] == pytest.approx(whole_loss(chats, tiny_model(2)).item(), abs=1e-3)


def test_a_student_in_bfloat16_learns(folder, chats, tmp_path):
    student = tiny_model(2).to(torch.bfloat16)
    trainer = trainer_of(
        folder, tmp_path, student, per_device_train_batch_size=4, max_steps=20, learning_rate=5e-3, optim="adamw_torch"
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[0] == pytest.approx(whole_loss(chats, tiny_model(2)).item(), abs=0.03)
    assert losses[-1] < losses[0] - 0.3


def test_compact_records_train_too_without_a_kl(chats, tmp_path):
    folder = write_folder(
        tmp_path / "out", chats.records("compact", top_p=2.0, top_k=200, num_sampled=50), "compact", num_sampled=50
    )
    trainer = trainer_of(folder, tmp_path, tiny_model(2), per_device_eval_batch_size=4)
    found = trainer.evaluate()
    assert found["eval_loss"] == pytest.approx(whole_loss(chats, tiny_model(2)).item(), abs=0.02)
    assert "eval_kl" not in found


def test_what_cannot_be_right_is_refused_before_the_first_step(folder, tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["more"])
    with pytest.raises(ValueError, match="their ids mean other tokens"):
        trainer_of(folder, tmp_path, tiny_model(2), tokenizer=tokenizer)
    with pytest.raises(ValueError, match="temperature 2: the dataset serves 1 alone"):
        trainer_of(folder, tmp_path, tiny_model(2), temperature=2.0)
    with pytest.raises(ValueError, match="what is trained on is stored"):
        trainer_of(folder, tmp_path, tiny_model(2), packing=True)


def test_without_trl_one_line_names_the_extra():
    code = "import sys; sys.modules['trl'] = None; import builders.trainer"
    done = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True)
    assert done.stderr.strip().splitlines()[-1].endswith('pip install "stillroom[distill]"')

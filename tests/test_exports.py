"""Exports train as the whole teacher would, under the trainers' own losses. python -m pytest tests/test_exports.py

DistillKit and axolotl are not required: their losses are written here again, from their code, and the tests that run the real
ones are skipped where `import distillkit` or `import axolotl` (with peft and liger-kernel) fails.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml
from click.testing import CliRunner
from datasets import Dataset, load_dataset

from builders.exports import Axolotl, DistillKit
from builders.logits_schema import LogitsFormat
from builders.packing import unpack
from builders.stored_logits import open_logits
from extract.cli import main
from extract.export import export
from tests.logits_folder import RANKS, VOCAB, tiny_chats, tiny_model, write_folder

DRAWS = {"top_p": 0.7, "top_k": 40, "num_sampled": 6}
WHOLE = {"top_p": 2.0, "top_k": 200, "num_sampled": 100}  # all 300 ids: nothing left to chance
NUM_SEEDS = 60


@pytest.fixture(scope="module")
def chats():
    return tiny_chats(tiny_model(1))


@pytest.fixture(scope="module")
def student():
    """Near the teacher, so that wrong weights show: what it says of an id depends on what the teacher says."""
    model = tiny_model(1)
    with torch.no_grad():
        model.lm_head.weight *= 0.6
        model.lm_head.weight += 0.02 * torch.randn(model.lm_head.weight.shape)
    return model


def exported(tmp_path, chats, kind, **options):
    """Rows as the trainer's `load_dataset` gives them, and the configuration beside them."""
    number = len(list(tmp_path.iterdir()))
    source = write_folder(tmp_path / f"logits{number}", chats.records(**options), num_sampled=options["num_sampled"])
    target = tmp_path / f"rows{number}"
    export(open_logits(str(source)), kind, target)
    config = yaml.safe_load((target / "README.md").read_text().split("```yaml")[1].split("```")[0])
    return load_dataset(str(target), split="train"), config


def full_loss(chats, student):
    """Cross-entropy with the whole teacher, mean over targets, and its gradient for the student's head."""
    terms = []
    for ids, positions, logits in zip(chats.input_ids, chats.positions, chats.logits, strict=True):
        rows = student(torch.from_numpy(ids).long()[None]).logits[0, torch.from_numpy(positions).long() - 1]
        terms.append(-(torch.softmax(torch.from_numpy(logits), -1) * torch.log_softmax(rows, -1)).sum(-1))
    return with_gradient(torch.cat(terms).mean(), student)


def with_gradient(loss, student):
    (gradient,) = torch.autograd.grad(loss, student.lm_head.weight)
    return loss.item(), gradient


def batch_of(rows, names):
    return {name: torch.tensor([row[name] for row in rows]) for name in names}


def distillkit_loss(rows, config, student):
    """Its `KLDLoss` at temperature 1 under `zero`, from its code; and sum w log w, which is no matter of the student."""
    batch = batch_of(rows, rows.column_names)
    logits = student(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    target = torch.log_softmax(batch["top_values"], -1)
    log_student = torch.log_softmax(logits, -1).gather(-1, batch["token_ids"])
    mask = batch["labels"] >= 0
    own = (target.exp() * target).sum(-1)[mask].mean().item()
    return (target.exp() * (target - log_student)).sum(-1)[mask].sum() / mask.sum(), own


def axolotl_loss(rows, config, student):
    """Its kernel with kd_normalize_topk false, from its code; and sum w log w."""
    total = count = own = 0
    for row in rows:
        log_student = torch.log_softmax(student(torch.tensor([row["input_ids"]])).logits[0], -1)
        for i, (ids, logprobs) in enumerate(zip(row["target_token_ids"], row["target_logprobs"], strict=True)):
            target = torch.tensor(logprobs)
            total = total + (target.exp() * (target - log_student[i][ids])).sum()
            own += (target.exp() * target).sum().item()
        count += sum(label >= 0 for label in row["labels"][1:])
    return total / count, own / count


def real_distillkit_loss(rows, config, student):
    """Loading, decoding and loss by DistillKit itself."""
    pytest.importorskip("distillkit")
    from distillkit.compression import LogprobCompressor
    from distillkit.configuration import DistillationRunConfig
    from distillkit.main import collate_packed_batch
    from distillkit.signals import OfflineSignalSource
    from distillkit.trainer import create_loss_func
    from transformers.modeling_outputs import CausalLMOutput

    run = DistillationRunConfig.model_validate(config | {"model": "student", "output_path": "out"})
    batch = collate_packed_batch([*rows])
    source = OfflineSignalSource(LogprobCompressor(run.teacher.logprob_compressor), VOCAB)
    logits = student(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    (function,) = map(create_loss_func, run.loss_functions)
    mask = (batch["labels"] >= 0).unsqueeze(-1)
    return function(CausalLMOutput(logits=logits), source.get_signal(batch), mask=mask), None


def real_axolotl_loss(rows, config, student):
    """Collating and loss by axolotl itself, as its trainer calls them."""
    try:
        from axolotl.integrations.kd.collator import DataCollatorForKD
        from axolotl.integrations.kd.kernels.liger import LigerFusedLinearKLTopKLogprobLoss
    except ImportError as error:
        pytest.skip(str(error))
    from tests.logits_folder import tiny_tokenizer

    batch = DataCollatorForKD(tiny_tokenizer())([*rows])
    names = ("kd_ce_alpha", "kd_alpha", "kd_temperature", "kd_beta")
    loss = LigerFusedLinearKLTopKLogprobLoss(*(config[n] for n in names), compiled=False,
                                             compute_ce_loss=False, normalize_topk=config["kd_normalize_topk"])  # fmt: skip
    states = student(
        batch["input_ids"], attention_mask=batch["attention_mask"], output_hidden_states=True
    ).hidden_states
    targets = (batch[f"target_{name}"] for name in ("token_ids", "logprobs", "mask"))
    total = loss(student.lm_head.weight, states[-1], *targets, true_labels=batch["labels"])
    return total / (batch["labels"][:, 1:] != -100).sum(), None


LOSSES = {"distillkit": distillkit_loss, "axolotl": axolotl_loss}
REAL = {"distillkit": real_distillkit_loss, "axolotl": real_axolotl_loss}


@pytest.mark.parametrize("kind", LOSSES)
def test_with_nothing_left_to_chance_loss_and_gradient_are_those_of_the_whole_teacher(kind, tmp_path, chats, student):
    rows, config = exported(tmp_path, chats, kind, **WHOLE)
    loss, own = LOSSES[kind](rows, config, student)
    value, gradient = with_gradient(loss, student)
    expected, expected_gradient = full_loss(chats, student)
    assert value - own == pytest.approx(expected, abs=1e-3)
    torch.testing.assert_close(gradient, expected_gradient, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize(
    ("kind", "encoding"), [("distillkit", "default"), ("axolotl", "default"), ("axolotl", "compact")]
)
def test_with_samples_they_are_right_on_average(kind, encoding, chats, student):
    """Within 4 standard errors over 60 draws: the loss and the gradient along 3 directions, 1 false alarm in 4,000."""
    if kind == "distillkit":
        target = DistillKit(LogitsFormat("default", VOCAB, "", 6), max(map(len, chats.input_ids)), 46)
    else:
        target = Axolotl()
    expected, expected_gradient = full_loss(chats, student)
    directions = torch.randn(3, *expected_gradient.shape, generator=torch.Generator().manual_seed(0))
    found = []
    for seed in range(NUM_SEEDS):
        records = chats.records(encoding, seed=seed, **DRAWS)
        rows = Dataset(pa.Table.from_batches([target.row(unpack(record, RANKS)) for record in records]))
        loss, own = LOSSES[kind](rows, None, student)
        value, gradient = with_gradient(loss, student)
        found.append([value - own, *(directions * gradient).sum((1, 2)).tolist()])
    error = np.std(found, axis=0) / NUM_SEEDS**0.5
    wanted = np.array([expected, *(directions * expected_gradient).sum((1, 2)).tolist()])
    codec = 2e-3 if encoding == "compact" else 0  # its values are rounded
    assert (np.abs(np.mean(found, axis=0) - wanted) < 4 * error + codec * np.abs(wanted)).all()
    assert 4 * error[0] < 0.02 * expected


@pytest.mark.parametrize("kind", REAL)
def test_their_own_code_reads_the_rows_as_these_tests_do(kind, tmp_path, chats, student):
    rows, config = exported(tmp_path, chats, kind, **DRAWS)
    real, _ = REAL[kind](rows, config, student)
    ours, _ = LOSSES[kind](rows, config, student)
    (value, gradient), (expected, expected_gradient) = with_gradient(real, student), with_gradient(ours, student)
    assert value == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(gradient, expected_gradient, atol=1e-6, rtol=1e-4)


def test_rows_stand_where_the_trainers_look_for_them(tmp_path, chats):
    """Row i predicts token i + 1; DistillKit's labels mark those rows, axolotl's the targets themselves."""
    rows, config = exported(tmp_path, chats, "distillkit", **DRAWS)
    longest = max(map(len, chats.input_ids))
    assert config["sequence_length"] == longest
    assert {len(row[name]) for row in rows for name in rows.column_names} == {longest}
    assert {len(entries) for row in rows for entries in row["top_values"]} == {
        config["teacher"]["logprob_compressor"]["k"]
    }
    others, _ = exported(tmp_path, chats, "axolotl", **DRAWS)
    for row, other, ids, positions in zip(rows, others, chats.input_ids, chats.positions, strict=True):
        assert [i for i, label in enumerate(row["labels"]) if label >= 0] == (positions - 1).tolist()
        assert [i for i, label in enumerate(other["labels"]) if label >= 0] == positions.tolist()
        assert [i for i, entries in enumerate(other["target_token_ids"]) if entries] == (positions - 1).tolist()
        assert row["input_ids"][: len(ids)] == other["input_ids"] == ids.tolist()
        assert sum(row["attention_mask"]) == len(ids)


def test_the_command_cuts_says_what_it_left_out_and_refuses(tmp_path, chats):
    source = write_folder(tmp_path / "logits", chats.records(**DRAWS), num_sampled=6)

    def run(*words):
        return CliRunner().invoke(main, ["export", str(source), *map(str, words)])

    done = run("--to", "distillkit", tmp_path / "rows", "--sequence-length", 7)
    assert done.exit_code == 0 and "2 rows; 1 records have no target within the length" in done.output, done.output
    rows = load_dataset(str(tmp_path / "rows"), split="train")
    assert [sum(label >= 0 for label in row["labels"]) for row in rows] == [3, 5]
    again = run("--to", "axolotl", tmp_path / "rows")
    assert again.exit_code == 2 and "not empty: give a new folder" in again.output
    nothing = CliRunner().invoke(main, ["export", str(tmp_path / "rows"), "--to", "axolotl", str(tmp_path / "x")])
    assert nothing.exit_code == 2 and "no dataset of stillroom here" in nothing.output


def test_weights_that_do_not_sum_to_one_are_not_for_distillkit():
    with pytest.raises(ValueError, match="--to axolotl does not"):
        DistillKit(LogitsFormat("compact", VOCAB, "", 16, select="global", ranks_sha256="x"), 9, 9)

"""Distil a student from stored teacher logits with TRL: `SFTTrainer`, whose loss is against what the dataset holds.

    trainer = ReplayTrainer(
        "user/student",
        args=SFTConfig("out", per_device_train_batch_size=8, learning_rate=1e-4, bf16=True),
        teacher=open_logits("user/x-logits"),
        train_dataset=load_dataset("user/x-logits", split="train"),
    )
    trainer.train()

No teacher is loaded, nothing is tokenised, and only the rows that predict a target go through the student's head. The loss is
`cross_entropy` of builders/distill.py, per target over the whole accumulated batch: its gradient is the unbiased estimate of
the full forward KL's. `kl`, which is 0 for a student that equals the teacher, is logged beside it where the records keep what
it needs. Needs `pip install "stillroom[distill]"`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from builders.distill import Collate, Targets, check_vocabulary, cross_entropy
from builders.stored_logits import StoredLogits

try:
    import torch
    from trl import SFTConfig, SFTTrainer
except ImportError as error:
    raise ImportError(f'builders.trainer needs TRL ({error}): pip install "stillroom[distill]"') from error

IGNORED = -100
PREFIX = "target_"  # of the tensors of `Targets` in a batch, beside the model's own
INPUTS = ("input_ids", "attention_mask")
TENSORS = ("positions", "mask", "ids", "weights", "logprobs")


@dataclass(frozen=True)
class BatchCollate:
    """`Collate`, as a dict of tensors with one row per conversation, which is what trainers move, split and count."""

    collate: Collate

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Collate one batch; `labels` are the targets' own ids, by which a Trainer counts the targets."""
        targets = self.collate(rows)
        labels = torch.full_like(targets.input_ids, IGNORED)
        places = targets.conversations[targets.mask], targets.positions[targets.mask]
        labels[places] = targets.input_ids[places]
        batch = {name: getattr(targets, name) for name in INPUTS} | {"labels": labels}
        return batch | {PREFIX + name: getattr(targets, name) for name in TENSORS}


class ReplayTrainer(SFTTrainer):
    """An SFTTrainer whose teacher is a logits dataset.

    Args:
        model, args, train_dataset, eval_dataset, processing_class, peft_config, ...: as SFTTrainer's; datasets are as
            `load_dataset` gives them, map-style or streaming.
        teacher: the dataset's `open_logits`, for its vocabulary and rank table.
        temperature: of teacher and student alike; one that the dataset serves.
        hard_weight: share of the plain cross-entropy with the conversation's own tokens in the loss, 0 to 1.

    Raises:
        ValueError: student and teacher have other vocabularies, the dataset does not serve the temperature, or options
            of SFTConfig that cut or pack conversations are on.
    """

    def __init__(
        self,
        model: Any,
        args: SFTConfig | None = None,
        *,
        teacher: StoredLogits,
        train_dataset: Any,
        eval_dataset: Any = None,
        temperature: float = 1.0,
        hard_weight: float = 0.0,
        **options: Any,
    ) -> None:
        args = SFTConfig("student") if args is None else args
        if args.packing or args.padding_free or args.assistant_only_loss:
            raise ValueError(
                "packing, padding_free and assistant_only_loss are for text: what is trained on is stored"
            )
        if not 0 <= hard_weight <= 1:
            raise ValueError(f"hard_weight is {hard_weight}: a share from 0 to 1")
        teacher.form.check_temperature(temperature)
        kwargs: dict[str, Any] = dict(args.dataset_kwargs or {})  # type: ignore[arg-type]
        args.dataset_kwargs = kwargs | {"skip_prepare_dataset": True}
        args.remove_unused_columns = False
        collate = Collate(teacher.form.vocab_size, teacher.ranks, temperature)
        super().__init__(
            model,
            args,
            data_collator=BatchCollate(collate),
            train_dataset=_as_numpy(train_dataset),
            eval_dataset=_as_numpy(eval_dataset),
            **options,
        )
        self.temperature, self.hard_weight = temperature, hard_weight
        self.model_accepts_loss_kwargs = True  # so that targets are counted over all batches of an accumulated step
        vocab_size = self._student.get_output_embeddings().weight.shape[0]
        check_vocabulary(teacher.form, self.processing_class, vocab_size)
        self.data_collator = BatchCollate(replace(collate, vocab_size=vocab_size))

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the loss of a batch: a sum over targets, divided by all of the step where Trainer counts them."""
        targets = self._targets(inputs)
        with only_rows(self._student.get_output_embeddings(), targets):
            outputs = model(**{name: inputs[name] for name in INPUTS}, use_cache=False)
        outputs.logits = rows = _rows(outputs.logits, targets)
        count = len(rows) if num_items_in_batch is None else num_items_in_batch
        total = cross_entropy(rows, targets, num_items=1)
        loss = total / count
        if self.hard_weight:
            labels = targets.input_ids[targets.conversations, targets.positions]
            hard = torch.nn.functional.cross_entropy(rows.float(), labels, reduction="sum") / count
            loss = (1 - self.hard_weight) * loss + self.hard_weight * hard
        if not targets.logprobs.isnan().any():
            kl = total.detach() + (targets.weights * targets.logprobs).sum() * self.temperature**2
            mode = "train" if self._student.training else "eval"
            self._metrics[mode]["kl"].append(kl.item() / max(1, len(rows)))
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * (self.accelerator.num_processes // self.get_tp_size())  # gradients are averaged over these
        return (loss, outputs) if return_outputs else loss

    @property
    def _student(self) -> Any:
        return self.model

    def _targets(self, inputs: Mapping[str, torch.Tensor]) -> Targets:
        positions = inputs[f"{PREFIX}positions"]
        conversations = torch.arange(len(positions), device=positions.device)[:, None].expand_as(positions)
        tensors = {name: inputs[PREFIX + name] for name in TENSORS} | {name: inputs[name] for name in INPUTS}
        whole = Targets(**tensors, conversations=conversations, tokens=None, temperature=self.temperature)
        return whole.without_padding()


def _as_numpy(dataset: Any) -> Any:
    if isinstance(dataset, dict):
        return {name: _as_numpy(one) for name, one in dataset.items()}
    return None if dataset is None else dataset.with_format("numpy")


@contextmanager
def only_rows(head: torch.nn.Module, targets: Targets) -> Iterator[None]:
    """Let only the N rows [1, N, d] of hidden states [B, L, d] that predict a target through a model's head.

    All that a model does to logits after its head (a soft cap, a scale) it does to these. A compiled model that does not see
    the hook gives all logits, and is none the worse.
    """
    places = targets.conversations, targets.positions - 1
    hook = head.register_forward_pre_hook(lambda _, inputs: (inputs[0][places][None], *inputs[1:]))
    try:
        yield
    finally:
        hook.remove()


def _rows(logits: torch.Tensor, targets: Targets) -> torch.Tensor:
    """Logits [N, V] of the targets. [1, N] is never the shape of a batch [B, L]: each conversation has a token without one."""
    if logits.shape[:2] == (1, len(targets.positions)):
        return logits[0]
    return logits[targets.conversations, targets.positions - 1]

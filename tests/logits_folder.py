"""A small logits dataset without a run: a random teacher over random conversations, written as a build writes it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from builders.compact import pack_compact
from builders.distill import vocabulary_hash
from builders.job import Job
from builders.layout import Layout
from builders.logits_schema import LogitsFormat, logits_columns
from builders.packing import pack
from builders.rank_table import RankTable
from builders.schema import arrow_schema
from hub.chunk import write_chunk
from tests.draws import select_block

VOCAB = 300
RANKS = RankTable(np.arange(VOCAB, dtype=np.int32)[::-1].copy())
CHATS = ((12, (4, 5, 6, 10, 11)), (9, (3, 4, 5, 6, 7, 8)), (17, (8, 9, 10, 16)))  # length, and the assistant's tokens


@dataclass
class Chats:
    """Conversations and what a teacher says of the assistant's tokens of each: float32 logits [T, V]."""

    input_ids: list[np.ndarray]
    positions: list[np.ndarray]
    logits: list[np.ndarray]

    def records(self, encoding="default", seed=0, **options):
        """Draw and pack; `options` of `select_block`."""
        for ids, positions, logits in zip(self.input_ids, self.positions, self.logits, strict=True):
            block = select_block(logits, np.random.default_rng(seed), **options)
            place = {"input_ids": ids, "positions": positions}
            if encoding == "default":
                yield pack(**vars(block), vocab_size=VOCAB, **place)
            else:
                yield pack_compact(**vars(block), ranks=RANKS, **place)


def tiny_model(seed, width=32):
    """A random causal model of two layers."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB, **sizes, num_key_value_heads=2))
    with torch.no_grad():
        model.lm_head.weight *= 8  # distributions with a head and a tail
    return model.eval()


def tiny_tokenizer():
    """A tokenizer of VOCAB words."""
    words = {f"w{i}": i for i in range(VOCAB - 1)} | {"<|end|>": VOCAB - 1}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>")


@torch.inference_mode()
def tiny_chats(teacher, shapes=CHATS, seed=5):
    """Random conversations, and the teacher's logits of each target."""
    rng = np.random.default_rng(seed)
    ids = [rng.integers(0, VOCAB, length).astype(np.int32) for length, _ in shapes]
    positions = [np.array(where, np.int32) for _, where in shapes]
    logits = [
        teacher(torch.from_numpy(one).long()[None]).logits[0, torch.from_numpy(where).long() - 1].numpy()
        for one, where in zip(ids, positions, strict=True)
    ]
    return Chats(ids, positions, logits)


def write_folder(folder: Path, records, encoding="default", tokenizer=None, num_sampled=16, **form):
    """Write what a build of these records would leave, in one chunk for every two of them."""
    ranks = {"ranks_sha256": RANKS.sha256} if encoding == "compact" else {}
    vocabulary = vocabulary_hash(tokenizer or tiny_tokenizer())
    about = LogitsFormat(encoding, VOCAB, vocabulary, num_sampled, **ranks, **form)
    schema = arrow_schema(logits_columns(about))
    schema = schema.with_metadata({**schema.metadata, **about.to_metadata()})
    layout, records = Layout(), list(records)
    job = Job(source="user/chats", revision="0" * 40, model="user/teacher", output=str(folder), build="logits")
    (folder / layout.meta).mkdir(parents=True)
    (folder / layout.job).write_text(json.dumps({"format": 2, "job": job.to_dict()}))
    if encoding == "compact":
        (folder / layout.meta / "ranks.bin").write_bytes(RANKS.to_bytes())
    for start in range(0, len(records), 2):
        rows = [{"index": start + i} | record for i, record in enumerate(records[start : start + 2])]
        rows = [{k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in row.items()} for row in rows]
        path = folder / f"data/train/0000/{start:012d}-{start + 2:012d}.parquet"
        write_chunk(path, pa.Table.from_pylist(rows, schema=schema), {})
    return folder

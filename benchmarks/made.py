"""Models and texts that no one has to download: shapes of real models with random weights, chats of made words."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

QWEN3 = {
    "hidden_size": 1024,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
}
SHAPES = {  # Qwen3-0.6B (and its embedding model), and Qwen2.5-7B under the same architecture
    "0.6B": QWEN3 | {"intermediate_size": 3072, "vocab_size": 151_669, "tie_word_embeddings": True},
    "7B": QWEN3 | {"hidden_size": 3584, "num_attention_heads": 28, "num_key_value_heads": 4, "intermediate_size": 18_944,
                   "vocab_size": 152_064, "tie_word_embeddings": False},
}  # fmt: skip
TINY = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32,
        "intermediate_size": 96, "vocab_size": 4000}  # fmt: skip


def config_of(shape: dict) -> transformers.Qwen3Config:
    return transformers.Qwen3Config(**shape, max_position_embeddings=32_768, pad_token_id=0, eos_token_id=1)


def write_source(path: Path, length: int, tokens: int) -> None:
    """Chats of one message of made words: a third longer than `length` tokens, the others of any length below."""
    draw = random.Random(0)
    words = ["".join(draw.choices("etaoinshrdlu", k=draw.randint(2, 9))) for _ in range(3000)]
    texts = []
    while sum(map(len, texts)) < tokens:
        texts.append(draw.choices(words, k=length if draw.random() < 0.34 else draw.randint(1, length)))
    messages = [[{"role": "user", "content": " ".join(text)}] for text in texts]
    pq.write_table(pa.table({"messages": messages}), path, row_group_size=1000)


def write_model(folder: Path, shape: dict, source: Path) -> Path:
    """Random weights, and a byte-level tokenizer of the source's words: about a token a word."""
    transformers.Qwen3Model(config_of(shape)).save_pretrained(folder)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    texts = (row[0]["content"] for row in pq.read_table(source)["messages"].to_pylist())
    trainer = trainers.BpeTrainer(vocab_size=3900, special_tokens=["<pad>", "<end>"], show_progress=False)
    tokenizer.train_from_iterator((text for text, _ in zip(texts, range(1000), strict=False)), trainer)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>"
    ).save_pretrained(folder)
    return folder


def flops(lengths: Sequence[int], shape: dict) -> float:
    """Of the layers, for texts of these lengths: two for each weight and token, and causal attention."""
    heads, kv, d, width = (shape[k] for k in ("num_attention_heads", "num_key_value_heads", "head_dim", "hidden_size"))
    weights = width * d * (2 * heads + 2 * kv) + 3 * width * shape["intermediate_size"]
    layers = shape["num_hidden_layers"]
    return float(sum(2 * layers * (weights * n + heads * d * n * n) for n in lengths))

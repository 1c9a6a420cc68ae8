"""all-MiniLM in a real Triton server, once by token ids and once by text: python tests/tritonserver.py FOLDER HTTP GRPC.

It runs in an environment of its own (`make test-triton`) and imports nothing of ours.
"""

import sys

import numpy as np
import torch
from pytriton.decorators import batch
from pytriton.model_config import ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig
from transformers import AutoModel, AutoTokenizer

MAX_TEXTS = 64


def main(folder, http_port, grpc_port):
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)

    @torch.inference_mode()
    def embed(ids, mask):
        hidden = model(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask))[0]
        weights = torch.tensor(mask)[..., None].float()
        return ((hidden * weights).sum(1) / weights.sum(1)).numpy()

    @batch
    def by_ids(input_ids, attention_mask):
        return [embed(input_ids, attention_mask)]

    @batch
    def by_text(text):
        texts = [row[0].decode() for row in text]
        encoded = tokenizer(texts, padding=True, truncation=False, return_tensors="np")
        return [embed(encoded["input_ids"], encoded["attention_mask"])]

    with Triton(config=TritonConfig(http_port=http_port, grpc_port=grpc_port, allow_metrics=False)) as triton:
        ids = [Tensor(name=name, dtype=np.int64, shape=(-1,)) for name in ("input_ids", "attention_mask")]
        text = [Tensor(name="text", dtype=bytes, shape=(1,))]
        output = [Tensor(name="embedding", dtype=np.float32, shape=(-1,))]
        config = ModelConfig(max_batch_size=MAX_TEXTS)
        triton.bind(model_name="by_ids", infer_func=by_ids, inputs=ids, outputs=output, config=config)
        triton.bind(model_name="by_text", infer_func=by_text, inputs=text, outputs=output, config=config)
        triton.serve()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))

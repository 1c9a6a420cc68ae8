"""SmolLM2-135M-Instruct over rows of the chat sample: a real teacher and two students."""

import pyarrow.parquet as pq
import torch
import transformers

from tests.estimators import Teacher
from tests.smollm2 import SAMPLE


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

"""The text of token ids: pieces that join to the conversation, and names of single ids."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from builders.distill import vocabulary_hash
from builders.job import Job
from builders.logits_schema import LogitsFormat
from builders.options import ConfigError
from extract.model_files import read_model_files
from extract.tokens import load_tokenizer

WINDOW = 6  # ids that a piece is decoded with: what some decoders do at the start of a text, they do not do here
UNDECODED = "�"  # bytes that are no character yet


class TokenText:
    """Decodes with a transformers tokenizer; without one, ids stand for themselves, as ⟨17⟩."""

    def __init__(self, tokenizer: Any | None, hint: str = "") -> None:
        self.tokenizer = tokenizer
        self.hint = hint  # why there is none
        self._names: dict[int, str] = {}

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Return the text of each id; joined, they are the text of all. A character of several ids is that of the last."""
        if self.tokenizer is None:
            return [f"⟨{i}⟩" for i in ids]
        pieces, start, done = [], 0, 0  # ids [start, done) are context, whose text is out already
        for stop in range(1, len(ids) + 1):
            before, text = self._decode(ids[start:done]), self._decode(ids[start:stop])
            is_open = text.endswith(UNDECODED) and stop < len(ids) and stop - done < WINDOW
            pieces.append("" if is_open else text[len(before) :])
            if not is_open:
                start, done = max(start, stop - WINDOW) if done == 0 else max(done - 1, stop - WINDOW), stop
        return pieces

    def name(self, token_id: int) -> str:
        """Return the text of one id, as it stands within a text; ⟨id⟩ where it is no character of its own."""
        if token_id not in self._names:
            text = "" if self.tokenizer is None else self._decode([*self._anchor, token_id])[len(self._anchor_text) :]
            self._names[token_id] = f"⟨{token_id}⟩" if not text or UNDECODED in text else text
        return self._names[token_id]

    @cached_property
    def _anchor(self) -> list[int]:
        return list(self.tokenizer("a", add_special_tokens=False)["input_ids"]) if self.tokenizer else []

    @cached_property
    def _anchor_text(self) -> str:
        return self._decode(self._anchor)

    def _decode(self, ids: Sequence[int]) -> str:
        assert self.tokenizer is not None
        if not len(ids):
            return ""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def load_token_text(job: Job, form: LogitsFormat) -> TokenText:
    """Load the tokenizer of the dataset's model; where it cannot be had, say why and go on without."""
    try:
        tokenizer = load_tokenizer(job, read_model_files(job))
    except (ConfigError, OSError, RuntimeError) as error:
        return TokenText(None, f"ids stand for text, as there is no tokenizer: {error}")
    if vocabulary_hash(tokenizer) != form.tokenizer:
        return TokenText(None, f"ids stand for text: the tokenizer of {job.model} is not the one of these records")
    return TokenText(tokenizer)


def visible(text: str) -> str:
    """Show what white space is there: ␣ at the ends, ⏎ and ⇥."""
    body = text.strip(" ")
    lead = len(text) - len(text.lstrip(" "))
    shown = "␣" * lead + body + "␣" * (len(text) - lead - len(body))
    return shown.replace("\n", "⏎").replace("\t", "⇥")

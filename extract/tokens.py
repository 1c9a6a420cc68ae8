"""Texts to token ids: tokenised once, cut on ids, the model's special tokens around them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from builders.job import Job
from builders.options import ConfigError
from builders.text import Span, Text
from extract.model_files import ModelFiles, load_problem
from extract.truncate import Range, keep_balanced, keep_end_cut, keep_middle_cut, keep_start_cut

CHARS_PER_TOKEN = 32  # an end cut reads this many characters per token of room before it reads a whole long text
MARGIN = 8  # tokens at the end of such a part that may differ from those of the whole text
SPECIAL_PROBE = "a"


def load_tokenizer(job: Job, files: ModelFiles) -> Any:
    """Return the transformers tokenizer of the settled job's model.

    Raises:
        ConfigError: the model has none.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        if files.modules.is_static:  # a tokenizer.json, and no file that says whose it is
            return PreTrainedTokenizerFast(tokenizer_file=str(files.folder / "tokenizer.json"))
        tokenizer = AutoTokenizer.from_pretrained(files.folder, trust_remote_code=job.trust_remote_code)
    except (OSError, ValueError, ImportError) as error:  # no tokenizer files, or a package that they need
        raise ConfigError(f"--model {job.model}: no tokenizer: {load_problem(error)}") from error
    # what transformers makes of a folder that has no files of one
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        raise ConfigError(f"--model {job.model}: no tokenizer: its files are not there, so that every word is unknown")
    return tokenizer


class TextTokenizer:
    """Turns texts into ids of at most `max_length` tokens. The instruction in front of a text is never cut.

    `tokenizer` is a transformers tokenizer with a `tokenizers` backend, as all in transformers 5 have but a few.
    """

    def __init__(
        self,
        tokenizer: Any,
        max_length: int,
        truncate: str = "end",
        instruction: str = "",
        *,
        special_tokens: bool = True,
        lower_case: bool = False,
    ) -> None:
        self.backend: Any = getattr(tokenizer, "backend_tokenizer", None)
        if self.backend is None:
            raise ConfigError(f"the tokenizer {type(tokenizer).__name__} has no fast version, which stillroom needs")
        # the tokenizer.json of a sentence-transformers model pads and cuts by itself, to its own length
        self.backend.no_truncation()
        self.backend.no_padding()
        if lower_case:
            put_lower_case(self.backend)
        self.prefix_ids, self.suffix_ids = self._special_ids() if special_tokens else ([], [])
        self.instruction = instruction
        self.instruction_ids = self.backend.encode(instruction, add_special_tokens=False).ids if instruction else []
        self.num_kept = len(self.instruction_ids)
        self.room = max_length - len(self.prefix_ids) - len(self.suffix_ids)
        self.truncate = truncate
        if self.room <= self.num_kept:
            raise ConfigError(
                f"--max-length {max_length} leaves no room for text beside {self.num_kept} tokens of the instruction "
                f"and {max_length - self.room} special tokens"
            )

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens that a model which does not pool its prompt leaves out: the instruction's, and the special ones around it.

        As sentence-transformers counts them: it tokenizes the prompt alone, and takes one special token off its end.
        """
        return len(self.prefix_ids) + self.num_kept + max(0, len(self.suffix_ids) - 1)

    def _special_ids(self) -> tuple[list[int], list[int]]:
        bare = self.backend.encode(SPECIAL_PROBE, add_special_tokens=False).ids
        full = self.backend.encode(SPECIAL_PROBE, add_special_tokens=True).ids
        start = next(i for i in range(len(full)) if full[i : i + len(bare)] == bare)
        return full[:start], full[start + len(bare) :]

    def encode(self, texts: Sequence[Text]) -> list[tuple[list[int], bool]]:
        """Return (ids, truncated) of each text; ids have at most `max_length` entries, special tokens included.

        A text of which the tokenizer drops every character (zero-width spaces) has no ids at all: there is nothing to embed.
        """
        encodings = self.backend.encode_batch_fast(
            [self.instruction + self._head(text.text) for text in texts], add_special_tokens=False
        )
        return [self._fit(text, encoding.ids) for text, encoding in zip(texts, encodings, strict=True)]

    def counts(self, texts: Sequence[Text]) -> list[int]:
        """Tokens of each text before any cut, special tokens included; 0 where `encode` gives no ids."""
        num_special = len(self.prefix_ids) + len(self.suffix_ids)
        encodings = self.backend.encode_batch_fast(
            [self.instruction + text.text for text in texts], add_special_tokens=False
        )
        nothing = (
            encoding.ids == self.instruction_ids if len(encoding) == self.num_kept else False for encoding in encodings
        )
        return [0 if is_nothing else len(e) + num_special for e, is_nothing in zip(encodings, nothing, strict=True)]

    def _head(self, text: str) -> str:
        """An end cut needs the beginning only: a megabyte of text costs half a second to tokenise for 256 tokens."""
        limit = CHARS_PER_TOKEN * (self.room + MARGIN)
        if self.truncate != "end" or len(text) <= limit:
            return text
        cut = max(text.rfind(" ", 0, limit), text.rfind("\n", 0, limit))
        return text[:cut] if cut > 0 else text

    def _fit(self, text: Text, ids: list[int]) -> tuple[list[int], bool]:
        is_part = self.truncate == "end" and self._head(text.text) is not text.text
        if is_part and len(ids) < self.room + MARGIN:
            ids = self.backend.encode(self.instruction + text.text, add_special_tokens=False).ids
        if ids == self.instruction_ids:
            return [], False
        if len(ids) <= self.room:
            return [*self.prefix_ids, *ids, *self.suffix_ids], False
        kept = [id_ for start, stop in self._ranges(text, len(ids)) for id_ in ids[start:stop]]
        return [*self.prefix_ids, *kept, *self.suffix_ids], True

    def _ranges(self, text: Text, num_tokens: int) -> list[Range]:
        """Token ranges to keep: the instruction, and what the truncation rule leaves of the rest."""
        first = self.num_kept
        rest, room = num_tokens - first, self.room - first
        if self.truncate == "balanced":
            parts = self._parts(text)
            ranges = keep_balanced(rest, room, [(start - first, stop - first) for start, stop in parts])
        else:
            cut = {"end": keep_end_cut, "start": keep_start_cut, "middle": keep_middle_cut}[self.truncate]
            ranges = cut(rest, room)
        return [(0, first), *((start + first, stop + first) for start, stop in ranges)]

    def _parts(self, text: Text) -> list[Range]:
        """Token ranges of the text's spans, from character offsets. Only texts that are cut pay for this second pass."""
        offsets = self.backend.encode(self.instruction + text.text, add_special_tokens=False).offsets
        shift = len(self.instruction)
        return [found for span in text.spans if (found := _token_range(offsets, span, shift, self.num_kept))]


def _token_range(offsets: list[tuple[int, int]], span: Span, shift: int, first: int) -> Range | None:
    """Tokens that begin inside a span of characters."""
    inside = [i for i, (start, _) in enumerate(offsets) if span.start <= start - shift < span.stop and i >= first]
    return (inside[0], inside[-1] + 1) if inside else None


def put_lower_case(backend: Any) -> None:
    """Have a tokenizer make all text lower case before anything else, unless it does; as sentence-transformers does it."""
    from tokenizers.normalizers import Lowercase, Sequence

    there: Any = backend.normalizer
    listed = [] if there is None else [there]
    if isinstance(there, Sequence):
        listed = list(backend.normalizer)
    if not any(isinstance(normalizer, Lowercase) for normalizer in listed):
        backend.normalizer = Sequence([Lowercase(), *listed])


def load_text_tokenizer(job: Job, files: ModelFiles) -> TextTokenizer:
    """Return what makes token ids of the settled job's texts."""
    assert job.max_length is not None
    return TextTokenizer(
        load_tokenizer(job, files),
        job.max_length,
        job.truncate,
        job.instruction or "",
        special_tokens=not files.modules.is_static,
        lower_case=files.modules.lower_case,
    )

"""A conversation as token ids and the assistant's mask over them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date as Date
from typing import Any

from builders.masks import Found, Masker
from builders.overlap import mask_tokens
from builders.prompts import Prompts
from builders.template import CURE, ChatTemplate, Rendering, Span, TemplateError
from builders.unread import unread_fields
from builders.vary import Message, prepare_messages

_PARTS = re.compile(r"""["']type["']\s*:\s*["'](input_|output_)?text["']""")


@dataclass(frozen=True, slots=True)
class EncodedChat:
    """One conversation of n tokens.

    `input_ids` and `assistant_mask` (1: the assistant generated it) have n entries. `text` is what
    `apply_chat_template` prints, whole even where the ids are truncated; `spans` are the masked characters of it.
    `crossing` counts tokens that hold both prompt and answer; they are left out of the mask, as their prediction was
    made inside the prompt. `unread` names what these messages hold and the template does not print: `tool_calls` or
    `reasoning` of answers, `content` of other messages.
    """

    input_ids: list[int]
    assistant_mask: list[int]
    text: str
    spans: tuple[Span, ...] = ()
    crossing: int = 0
    is_truncated: bool = False
    unread: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RenderedChat:
    """One conversation as its template prints it: `text`, `spans` and `unread` as of EncodedChat.

    `rendering` tells which message printed what. Where the turns are not certain there is none, and `refusal` says why.
    """

    text: str
    spans: tuple[Span, ...] = ()
    unread: tuple[str, ...] = ()
    rendering: Rendering | None = None
    refusal: TemplateError | None = None


class ChatEncoder:
    """Encodes conversations with one tokenizer and one chat template, which is parsed once.

    Args:
        tokenizer: of transformers, with a `tokenizers` backend (offsets are needed).
        chat_template: source, or the name of one of the tokenizer's templates; None: the tokenizer's own.
        date: what `strftime_now` tells the template, so that a job over midnight has one prompt; None: today.
        end_of_turn: whether the token that ends a turn is masked.
        max_length: tokens kept, from the start; None: all.
        stops: tokens that end a turn beside those of the tokenizer (`eos_token_id` of a generation config).
        template_kwargs: further variables of the template, such as `enable_thinking`.
    """

    def __init__(
        self,
        tokenizer: Any,
        chat_template: str | None = None,
        *,
        date: Date | None = None,
        end_of_turn: bool = True,
        max_length: int | None = None,
        stops: Sequence[str] = (),
        **template_kwargs: Any,
    ) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise TemplateError(
                "slow_tokenizer", f"{type(tokenizer).__name__} has no fast version, which tells offsets"
            )
        self.tokenizer = tokenizer
        self.chat_template = chat_template
        self.date = date or Date.today()
        self.end_of_turn = end_of_turn
        self.max_length = max_length
        self.context = {**tokenizer.special_tokens_map, "documents": None, **template_kwargs}
        self.template_kwargs = template_kwargs
        self.name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
        self.stops = frozenset(filter(None, [tokenizer.eos_token, *stops]))
        self._maskers: dict[str, Masker] = {}
        self._unread: dict[str, frozenset[str]] = {}

    def encode(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None = None) -> EncodedChat:
        """Render, find the assistant's turns, tokenise once, and mark the tokens that lie in them.

        Raises:
            TemplateError: the template refuses the conversation, or the mask cannot be right.
        """
        chat = self.render(messages, tools)
        if chat.refusal is not None:
            raise chat.refusal
        encoding = self.tokenizer(
            chat.text, add_special_tokens=False, return_offsets_mapping=True, truncation=False, verbose=False
        )
        ids = list(encoding["input_ids"])
        mask, crossing = mask_tokens(chat.text, encoding["offset_mapping"], chat.spans)
        limit = len(ids) if self.max_length is None else self.max_length
        is_masked = mask[:limit].astype(int).tolist()
        return EncodedChat(ids[:limit], is_masked, chat.text, chat.spans, crossing, len(ids) > limit, chat.unread)

    def render(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None = None) -> RenderedChat:
        """Render, and find the assistant's turns, which may be refused where the text is not.

        Raises:
            TemplateError: the template refuses the conversation.
        """
        try:
            schemas = _tool_schemas(tools)
            masker = self._masker(schemas)
            text = self._official(messages, schemas)
        except TemplateError as error:
            raise self._named(error) from error.__cause__
        try:
            prepared = prepare_messages(messages)
            context = {**self.context, "tools": schemas, "add_generation_prompt": False}
            _check_parts(text, prepared)
            found = masker.find(text, prepared, context)
        except TemplateError as error:
            return RenderedChat(text, refusal=self._named(error))
        spans = tuple(
            Span(turn.start, stop)
            for turn in found.turns
            if turn.start < (stop := turn.stop if self.end_of_turn else turn.end)
        )
        return RenderedChat(text, spans, self._unread_of(masker, prepared, found), found.rendering)

    def _named(self, error: TemplateError) -> TemplateError:
        named = TemplateError(error.reason, f"{self.name}: {error.detail}{CURE}")
        named.__cause__ = error.__cause__
        return named

    def _masker(self, tools: list[dict[str, Any]] | None) -> Masker:
        try:
            source = self.tokenizer.get_chat_template(self.chat_template, tools)
        except (ValueError, AttributeError, NotImplementedError) as error:
            why = "" if "is not set" in str(error) else f": {re.split(r'[.!] ', str(error))[0]}"
            raise TemplateError("no_template", f"there is no chat template{why}") from None
        if source not in self._maskers:
            template = ChatTemplate(source, self.date)
            control = _control_tokens(self.tokenizer, source)
            self._maskers[source] = Masker(template, Prompts(template, self.context, control), self.stops)
        return self._maskers[source]

    def _official(self, messages: Sequence[Mapping[str, Any]], tools: list[dict[str, Any]] | None) -> str:
        masker = self._masker(tools)
        try:
            with masker.template.frozen():
                return self.tokenizer.apply_chat_template(
                    list(messages),
                    tools=tools,
                    chat_template=masker.template.source,
                    tokenize=False,
                    **self.template_kwargs,
                )
        except Exception as error:  # a template is foreign code, and refuses in its own ways
            line = " ".join(str(error).split())[:200]
            raise TemplateError("template_refuses", f"the chat template refuses the conversation: {line}") from error

    def _unread_of(self, masker: Masker, messages: list[Message], found: Found) -> tuple[str, ...]:
        source = masker.template.source
        if source not in self._unread:
            self._unread[source] = frozenset(unread_fields(masker.template, self.context))
        present = {
            "tool_calls": any(message.get("tool_calls") for message in messages),
            "reasoning": any(message.get("reasoning_content") or message.get("thinking") for message in messages),
        }
        fields = [name for name in sorted(self._unread[source]) if present[name]]
        return (*fields, *(() if found.is_whole else ("content",)))


def encode_chat(
    tokenizer: Any,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Any] | None = None,
    *,
    chat_template: str | None = None,
    date: Date | None = None,
    end_of_turn: bool = True,
    max_length: int | None = None,
    stops: Sequence[str] = (),
    **template_kwargs: Any,
) -> EncodedChat:
    """Encode a conversation and mask what the assistant generated; options as of `ChatEncoder`.

    Raises:
        TemplateError: the template refuses the conversation, or the mask cannot be right.
    """
    options = json.dumps(template_kwargs, sort_keys=True, default=str)
    source = json.dumps(tokenizer.chat_template, default=str) + json.dumps(tokenizer.special_tokens_map, default=str)
    key = (id(tokenizer), source, chat_template, date or Date.today(), end_of_turn, max_length, tuple(stops), options)
    encoder = _ENCODERS.get(key)
    if encoder is None or encoder.tokenizer is not tokenizer:
        while len(_ENCODERS) >= 16:
            _ENCODERS.pop(next(iter(_ENCODERS)))
        encoder = _ENCODERS[key] = ChatEncoder(
            tokenizer,
            chat_template,
            date=date,
            end_of_turn=end_of_turn,
            max_length=max_length,
            stops=stops,
            **template_kwargs,
        )
    return encoder.encode(messages, tools)


_ENCODERS: dict[tuple[Any, ...], ChatEncoder] = {}


def _check_parts(text: str, messages: list[Message]) -> None:
    """Refuse an answer whose list of parts is printed as Python or JSON."""
    if not _PARTS.search(text):
        return
    for i, message in enumerate(messages):
        if message.get("role") == "assistant" and isinstance(message.get("content"), list):
            raise TemplateError("parts_as_code", f"the template prints the list of parts of message {i} as code")


def _tool_schemas(tools: Sequence[Any] | None) -> list[dict[str, Any]] | None:
    if tools is None:
        return None
    from transformers.utils import get_json_schema

    return [dict(tool) if isinstance(tool, Mapping) else get_json_schema(tool) for tool in tools]


def _control_tokens(tokenizer: Any, source: str) -> set[str]:
    """Name the special tokens, and others that were added to the vocabulary and that a template prints."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    names = {token.content for token in added if token.special or token.content in source}
    return {name for name in (*names, *tokenizer.all_special_tokens) if name.strip()}

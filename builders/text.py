"""The text view: which words of a row a model gets to see, in which order, and where each of them ended up."""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from string import Formatter
from typing import Any, Literal

from builders.chat import Turn, clean_text, parse_messages
from builders.row import RowError
from builders.think import JOINER

DEFAULT_TEMPLATE = "{user_prompt}\n\n{response_text}\n\n{think_text}"
PLAN_VIEWS: dict[str, str] = {  # priced side by side by a dry run: all of Dolci-Think-SFT-7B is 52x its prompts
    "prompt": "{user_prompt}",
    "response": "{response_text}",
    "think": "{think_text}",
    "all": DEFAULT_TEMPLATE,
}
ALIASES = {"prompt": "user_prompt", "response": "response_text", "think": "think_text"}
PARTS = ("system", "user_prompt", "response_text", "think_text", "history")
CHAT_NAMES = frozenset({*PARTS, *ALIASES})
SYSTEM_ROLES = ("system", "developer")
TURNS = ("last", "all")


@dataclass(frozen=True, slots=True)
class Span:
    """The characters `[start, stop)` of a text that one placeholder filled. Truncation gives each its share."""

    name: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Text:
    """One text to embed. `field` is "" for the text of a template, else the name of the vector's field.

    `images` are encoded, as in the source; a vision-language model gets them before the text.
    """

    field: str
    text: str
    spans: tuple[Span, ...] = ()
    images: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class TextView:
    """How a row becomes text. `template` makes one text of it, `fields` one text each; with neither, a default.

    A placeholder names a part of the conversation (`CHAT_NAMES`) or a column. Where the source has the messages
    column, the parts of the conversation come first; where it has none, every name is a column, `prompt` too.
    `empty_text` stands in for a row that has no text at all, which is otherwise skipped as `empty_text`.
    """

    template: str | None = None
    fields: tuple[str, ...] = ()
    turns: Literal["last", "all"] = "last"
    system: bool = False
    messages_column: str | None = "messages"
    empty_text: str | None = None

    def __post_init__(self) -> None:
        if self.turns not in TURNS:
            raise ValueError(f"turns is {self.turns!r}; possible: {', '.join(TURNS)}")
        if not isinstance(self.fields, tuple) or not all(isinstance(name, str) and name for name in self.fields):
            raise ValueError(f"fields is {self.fields!r}; possible: a tuple of names such as ('think', 'response')")
        if len(set(self.fields)) < len(self.fields):
            raise ValueError(f"fields is {self.fields!r}; each name makes one vector, so name it once")
        if self.fields and (self.template is not None or self.system):
            other = "system=True" if self.template is None else f"template {self.template!r}"
            raise ValueError(f"fields is {self.fields!r} and {other}: fields are texts of their own, take one of both")
        if self.empty_text is not None and not self.empty_text.strip():
            raise ValueError(f"empty_text is {self.empty_text!r}; possible: a text such as '[empty]', or None")
        if self.template is not None:
            parse_template(self.template)

    def columns(self, available: Sequence[str]) -> tuple[str, ...]:
        """Name the columns that the view needs, so that no other is read. ValueError where the source lacks one."""
        has_chat = self._has_chat(available)
        have = f"the source has {', '.join(available) or 'no columns'}"
        if not (has_chat or self.fields or self.template or "text" in available):
            sought = (
                f"neither the messages column {self.messages_column!r}" if self.messages_column else "neither messages"
            )
            raise ValueError(f"{sought} nor a column 'text' to embed: {have}. Pass --text-template '{{column}}'.")
        needed: dict[str, None] = {}
        for name in self._names(has_chat):
            column = self.messages_column if has_chat and name in CHAT_NAMES else name
            if column not in available:
                raise ValueError(
                    f"no column {name!r} for the text: {have}. Pass --text-template or --fields of these."
                )
            needed[str(column)] = None
        return tuple(needed)

    def render(self, data: Mapping[str, Any]) -> tuple[Text, ...]:
        """Make the texts of one row. RowError where its messages are broken or there is nothing to embed.

        With several fields, an empty one gives the text "" (a null vector) as long as another has words.
        """
        # a row of a JSON Lines file may lack the key: then it lacks its conversation, and is no row of another kind
        has_chat = self._has_chat(data) or (
            self.messages_column is not None and not any(name in data for name in self._names(has_chat=False))
        )
        value = self._reader(data, has_chat)
        if self.fields:
            texts = tuple(_plain(name, value(name)) for name in self.fields)
        else:
            texts = (_fill(self._template(has_chat), value),)
        if any(text.text for text in texts):
            return texts
        if self.empty_text is None:
            raise RowError("empty_text", f"nothing to embed in {', '.join(self._names(has_chat))}")
        return tuple(Text(text.field, self.empty_text) for text in texts)

    def _has_chat(self, names: Container[str]) -> bool:
        return self.messages_column is not None and self.messages_column in names

    def _template(self, has_chat: bool) -> Template:
        template = self.template or (DEFAULT_TEMPLATE if has_chat else "{text}")
        parsed = parse_template(template)
        return parse_template("{system}\n\n" + template) if self.system and "system" not in parsed.names else parsed

    def _names(self, has_chat: bool) -> tuple[str, ...]:
        return self.fields or self._template(has_chat).names

    def _reader(self, data: Mapping[str, Any], has_chat: bool) -> Callable[[str], str]:
        """Give the function from a name to its value; the conversation is read at most once, and only if named."""
        parts: dict[str, str] = {}

        def value(name: str) -> str:
            if not (has_chat and name in CHAT_NAMES):
                return column_text(data.get(name))
            if not parts:
                parts.update(chat_parts(parse_messages(data.get(str(self.messages_column))), self.turns))
            return parts[ALIASES.get(name, name)]

        return value


@dataclass(frozen=True, slots=True)
class Template:
    """A parsed template: each placeholder with the literal before it, and the literal after the last one."""

    pieces: tuple[tuple[str, str], ...]
    tail: str

    @property
    def names(self) -> tuple[str, ...]:
        """The placeholders in their order."""
        return tuple(name for _, name in self.pieces)


@lru_cache(maxsize=64)
def parse_template(template: str) -> Template:
    """Parse `{name}` placeholders; doubled braces are literal. Formats, conversions and attributes are refused."""
    pieces: list[tuple[str, str]] = []
    literal = ""
    try:
        for before, name, spec, conversion in Formatter().parse(template):
            literal += before
            if name is None:
                continue
            if not name.strip() or spec or conversion or set(name) & set(".[]"):
                raise ValueError(f"the placeholder after {literal!r} is not a plain name")
            pieces.append((literal, name))
            literal = ""
    except ValueError as error:
        raise ValueError(f"template {template!r}: {error}; possible: {{name}}, and {{{{ }}}} for braces") from None
    if not pieces:
        raise ValueError(f"template {template!r} names no {{placeholder}}: every row would have the same text")
    return Template(tuple(pieces), literal)


def _fill(template: Template, value: Callable[[str], str]) -> Text:
    """Put the values in. A literal goes with the placeholder after it, so that no label stands before nothing."""
    chunks: list[str] = []
    spans: list[Span] = []
    length = 0
    for literal, name in template.pieces:
        content = value(name)
        if content.strip():
            start = length + len(literal)
            length = start + len(content)
            chunks += (literal, content)
            spans.append(Span(name, start, length))
    if not spans:
        return Text("", "")
    whole = "".join((*chunks, template.tail))
    text = whole.strip()
    cut = len(whole) - len(whole.lstrip())
    moved = (Span(s.name, max(s.start - cut, 0), min(s.stop - cut, len(text))) for s in spans)
    return Text("", text, tuple(moved))


def _plain(name: str, value: str) -> Text:
    text = value.strip()
    return Text(name, text, (Span(name, 0, len(text)),) if text else ())


def chat_parts(turns: Sequence[Turn], which: Literal["last", "all"]) -> dict[str, str]:
    """Take a conversation apart into the named parts; `last` is the last answer and the question right before it."""
    system = _join(turn.content for turn in turns if turn.role in SYSTEM_ROLES)
    if which == "all":
        users = _join(turn.content for turn in turns if turn.role == "user")
        answers = [turn for turn in turns if turn.role == "assistant"]
        response, think = _join(turn.content for turn in answers), _join(turn.think for turn in answers)
        return dict(zip(PARTS, (system, users, response, think, ""), strict=True))
    last = _last(turns, "assistant", len(turns))
    end = len(turns) if last is None else last
    asked = _last(turns, "user", end)
    earlier = (turn for turn in turns[: end if asked is None else asked] if turn.role not in SYSTEM_ROLES)
    history = _join(f"{turn.role}: {turn.content}" for turn in earlier if turn.content.strip())
    answer = Turn("assistant", "", "") if last is None else turns[last]
    question = "" if asked is None else turns[asked].content
    return dict(zip(PARTS, (system, question, answer.content, answer.think, history), strict=True))


def _last(turns: Sequence[Turn], role: str, stop: int) -> int | None:
    return next((i for i in reversed(range(stop)) if turns[i].role == role), None)


def _join(texts: Iterable[str]) -> str:
    return JOINER.join(text for text in texts if text.strip())


def column_text(value: Any) -> str:
    """Write the value of any column as text: lists and dicts as JSON, nothing as ""."""
    if value is None:
        return ""
    if isinstance(value, Mapping | list | tuple):
        value = json.dumps(value, ensure_ascii=False, default=str)
    return clean_text(str(value))

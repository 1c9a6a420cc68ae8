"""A model's chat template: parsed once, rendered as transformers does, with invisible marks where messages begin.

transformers compiles a template in a sandbox of its own; the marked twin is compiled in that very environment, so
that both know the same filters, tags and functions. Marks are texts printed by statements that are added to the
template's syntax tree; taken out again, they must leave what the unmarked template prints.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date as Date
from datetime import datetime, time
from typing import Any

MARK = "_stillroom_mark"  # name of the function that prints a mark, as the marked template knows it
PAIRS = ("\ue000\ue001", "\uf8f0\uf8f1", "\U000f0000\U000f0001", "\U0010fff0\U0010fff1")  # private use: first and last
CURE = "; give a template that can be masked with --chat-template FILE"
_FREEZE = threading.Lock()  # transformers shares one environment per template between threads


class TemplateError(ValueError):
    """A conversation whose assistant tokens cannot be told with certainty. Nothing is masked by guess.

    `reason` is a short stable word for tables (`no_template`, `text_differs`, …), `detail` one line for a person, with
    the template's name and what to do. Both are arguments of the exception, so it pickles.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.detail} ({self.reason})" if self.detail else self.reason


@dataclass(frozen=True, slots=True)
class Span:
    """Characters `start` to `stop` of a text."""

    start: int
    stop: int


@dataclass(slots=True)
class Rendering:
    """A rendered conversation without its marks.

    `regions` has, for the position of a message, the spans printed by passes of a loop over it; `inner` the spans that
    passes over other messages printed within; `generated` holds the spans of `{% generation %}`.
    """

    text: str
    regions: dict[int, list[Span]] = field(default_factory=dict)
    inner: dict[int, list[Span]] = field(default_factory=dict)
    generated: list[Span] = field(default_factory=list)


class ChatTemplate:
    """A template's source with its plain and its marked renderings. `date` is what `strftime_now` tells, at 00:00."""

    def __init__(self, source: str, date: Date) -> None:
        from jinja2.exceptions import TemplateSyntaxError

        self.source = source
        self.date = date
        self.plans: dict[str, Any] = {}
        try:
            self.env = _environment(source)
            self.plain = self.env.from_string(source, globals={"strftime_now": self.now})
        except TemplateSyntaxError as error:
            raise TemplateError("template_syntax", f"the chat template cannot be parsed: {error}") from None
        self.has_generation = re.search(r"\{%-?\s*generation\s*-?%\}", source) is not None

    def now(self, format: str) -> str:  # the name of the parameter that templates may use
        """Tell the frozen date."""
        return datetime.combine(self.date, time()).strftime(format)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Freeze the date that `apply_chat_template` prints."""
        if "strftime_now" not in self.source:
            yield
            return
        with _FREEZE:
            known = _environment(self.source).globals
            real = known["strftime_now"]
            known["strftime_now"] = self.now
            try:
                yield
            finally:
                known["strftime_now"] = real

    def render(self, messages: Sequence[Mapping[str, Any]], **context: Any) -> str:
        """Render without marks. Raises what the template raises."""
        return self.plain.render(messages=messages, **context)

    def render_marked(self, plan: str, messages: Sequence[Mapping[str, Any]], pair: str, **context: Any) -> Rendering:
        """Render with marks after `plan`, one of builders.marks; take them out."""
        if plan not in self.plans:
            from builders.marks import marked_tree

            tree = marked_tree(self.env.parse(self.source), plan)
            self.plans[plan] = self.env.from_string(tree, globals={"strftime_now": self.now})
        context[MARK] = mark_printer(messages, pair)
        return read_marks(self.plans[plan].render(messages=messages, **context), pair)


def mark_printer(messages: Sequence[Mapping[str, Any]], pair: str) -> Callable[..., str]:
    """Make the function that a marked template calls: it knows a message by identity, whatever list it comes from."""
    positions = {id(message): i for i, message in enumerate(messages)}

    def mark(kind: str, value: Any = None) -> str:
        position = positions.get(id(value), "") if kind == "=" else ""
        return f"{pair[0]}{kind}{position}{pair[1]}"

    return mark


def read_marks(text: str, pair: str) -> Rendering:
    """Take the marks out of a text, and tell what stood between them."""
    pieces = re.split(f"{pair[0]}([^{pair[1]}]*){pair[1]}", text)
    result = Rendering("".join(pieces[::2]))
    here, opened = len(pieces[0]), -1
    stack: list[tuple[int | None, int]] = []  # for each loop that runs: the message of its pass, and where it began
    for mark, piece in zip(pieces[1::2], pieces[2::2], strict=True):
        if mark == "<":
            opened = here
        elif mark == ">":
            result.generated.append(Span(opened, here))
        elif mark == "(":
            stack.append((None, here))
        else:
            _close(result, stack, here)
            if mark != ")":
                stack.append((int(mark[1:]) if mark[1:] else None, here))
        here += len(piece)
    if stack:
        raise TemplateError("marks_lost", "the template cuts the text that it collects")
    return result


def _close(result: Rendering, stack: list[tuple[int | None, int]], here: int) -> None:
    if not stack:
        raise TemplateError("marks_lost", "the template cuts the text that it collects")
    position, start = stack.pop()
    if position is None or here == start:
        return
    span = Span(start, here)
    result.regions.setdefault(position, []).append(span)
    for outer in {outer for outer, _ in stack if outer is not None and outer != position}:
        result.inner.setdefault(outer, []).append(span)


def choose_pair(texts: str) -> str:
    """Choose two characters for marks that a text does not hold."""
    for pair in PAIRS:
        if pair[0] not in texts and pair[1] not in texts:
            return pair
    raise TemplateError("private_characters", "the conversation holds all characters that could be marks")


def _environment(source: str) -> Any:
    from transformers.utils import chat_template_utils

    return chat_template_utils._compile_jinja_template(source).environment

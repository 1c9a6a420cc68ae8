"""What a chat template prints to ask for an answer: its generation prompts, in every form that it knows."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from builders.marks import PLANS
from builders.template import PAIRS, ChatTemplate, Span
from builders.vary import LETTER

USER: dict[str, Any] = {"role": "user", "content": LETTER}
ANSWER: dict[str, Any] = {"role": "assistant", "content": LETTER + LETTER}
_THINKS = re.compile("think|thought|reason", re.IGNORECASE)  # in the name of a token or a variable
_TOKEN = r"<[|｜/]?[^<>\s]{1,64}>|\[/?[A-Z_]{2,}\]|\[\|[^|\[\]\s]{1,64}\|\]"


class Prompts:
    """The generation prompts of one template; those that depend on no conversation are rendered once."""

    def __init__(self, template: ChatTemplate, context: Mapping[str, Any], control: Iterable[str]) -> None:
        self.template = template
        self.context = context
        # a model may have thousands of reserved tokens; those of the common shape need no name
        names = sorted((name for name in control if not re.fullmatch(_TOKEN, name)), key=len, reverse=True)
        self.control = re.compile("|".join([*map(re.escape, names), _TOKEN]))
        self.switches = self._telling(self._switches())
        self._known: dict[str, list[str]] = {}
        self._asked: dict[str, list[str]] = {}
        self._headers: list[str] | None = None

    def after_user(self, tools: list[dict[str, Any]] | None) -> list[str]:
        """Prompts after one plain user message, with and without tools, thinking unset, on and off."""
        key = json.dumps(tools, default=str)
        if key not in self._known:
            if len(self._known) > 256:  # a data set with its own tools in each row
                self._known.clear()
                self._asked.clear()
            found = [form for given in {bool(tools), False} for form in self.after([USER], tools if given else None)]
            self._asked[key] = [asked for _, asked, _ in found]
            self._known[key] = sorted({p for _, _, p in found if p.strip()}, key=len, reverse=True)
        return self._known[key]

    def asks(self, header: str, tools: list[dict[str, Any]] | None) -> bool:
        """Whether a header is what asks for an answer: the beginning of a prompt, or the end of a text that asks."""
        begins = any(prompt.lstrip().startswith(header.lstrip()) for prompt in self.after_user(tools))
        return begins or any(asked.endswith(header) for asked in self._asked[json.dumps(tools, default=str)])

    def after(
        self, messages: Sequence[Mapping[str, Any]], tools: list[dict[str, Any]] | None
    ) -> Iterator[tuple[str, str, str]]:
        """Yield these messages as text, as text that asks for an answer, and the prompt at its end; thinking as above.

        Where the template refuses the messages, nothing is yielded.
        """
        for switch in self.switches:
            yield from self._forms(messages, {"tools": tools, **switch})

    def _forms(self, messages: Sequence[Mapping[str, Any]], more: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
        context = {**self.context, **more}
        try:
            asked = self.template.render(messages, **{**context, "add_generation_prompt": True})
            bare = self.template.render(messages, **{**context, "add_generation_prompt": False})
        except Exception:  # a template is foreign code, and refuses in its own ways
            return
        prompt = asked[self._cut(bare, asked) :]
        if LETTER in prompt:  # a template that prints something else in front when it asks
            rest, prompt = bare.rpartition(LETTER)[2], prompt.rpartition(LETTER)[2]
            prompt = prompt[self._cut(rest, prompt) :]
        yield bare, asked, prompt

    def headers(self) -> list[str]:
        """What the template prints before a plain answer to a plain question, last or not, longest first."""
        if self._headers is None:
            found = {self.header([USER, ANSWER, *rest], 1, None) for rest in ([], [USER, ANSWER])}
            self._headers = sorted((header for header in found if header is not None), key=len, reverse=True)
        return self._headers

    def header(self, messages: Sequence[Mapping[str, Any]], i: int, tools: list[dict[str, Any]] | None) -> str | None:
        """What the template prints before a plain answer that stands in place of message i; None if it refuses that."""
        own = [dict(ANSWER if k == i else message) for k, message in enumerate(messages)]
        context = {**self.context, "tools": tools, "add_generation_prompt": False}
        for plan in PLANS:
            try:
                rendering = self.template.render_marked(plan, own, PAIRS[0], **context)
            except Exception:  # a template is foreign code, and refuses in its own ways
                return None
            for span in rendering.regions.get(i, []):
                head, found, _ = rendering.text[span.start : span.stop].partition(ANSWER["content"])
                if found:
                    return head
        return None

    def abridged_end(self, text: str, start: int, prompt: str) -> int | None:
        """Where a prompt ends that stands at `start` in a text but for tokens that open or close a thought.

        Templates ask with `<think>` or `<think></think>` and print an answer that has no thought behind neither, or
        behind `</think>` alone. None if the text lacks anything else of the prompt, or has none of it.
        """
        here, is_cut = start, False
        for piece in re.split(f"({self.control.pattern})", prompt):
            if text.startswith(piece, here) and not (is_cut and piece.isspace()):
                here += len(piece)
            elif self.control.fullmatch(piece) and _THINKS.search(piece):
                is_cut = True
            elif piece.strip() or not is_cut:
                return None
        return here if text[start:here].strip() else None

    def straddled(self, text: str, low: int, at: int) -> Span | None:
        """Find the template's own control token of a text that reaches over the position `at`, at `low` or behind."""
        found = self.control.finditer(text, max(low, at - 80))
        token = next((token for token in found if token.end() > at), None)
        if token is None or token.start() >= at or token[0] not in self.template.source:
            return None
        return Span(*token.span())

    def _cut(self, bare: str, asked: str) -> int:
        """Where the prompt begins: a closing `<|end|>` of the bare text must not lend its `<|` to `<|assistant|>`."""
        cut = common_head([bare, asked])
        if cut == len(bare):
            return cut
        window = max(0, cut - 80)
        return next((m.start() for m in self.control.finditer(asked, window) if m.start() < cut < m.end()), cut)

    def _telling(self, switches: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """Leave out switches that print behind a plain user's words what others before them print."""
        found: dict[tuple[str, ...], dict[str, Any]] = {}
        for switch in switches:
            for form in self._forms([USER], {"tools": None, **switch}):
                found.setdefault(tuple(text.rpartition(LETTER)[2] for text in form), switch)
        return list({json.dumps(switch): switch for switch in ({}, *found.values())}.values())

    def _switches(self) -> Iterator[dict[str, Any]]:
        """Yield each value of each variable that turns thinking on or off: a flag, or a word it is compared with."""
        from jinja2 import meta, nodes

        tree = self.template.env.parse(self.template.source)
        yield {}
        for name in sorted(filter(_THINKS.search, meta.find_undeclared_variables(tree))):
            compared = [node for node in tree.find_all(nodes.Compare) if _holds(node, nodes.Name, name)]
            found = (const.value for node in compared for const in node.find_all(nodes.Const))
            words = {word for value in found for word in (value if isinstance(value, list) else [value])}
            yield from ({name: value} for value in [True, False, *sorted(filter(_is_word, words))])


def _holds(node: Any, kind: type, name: str) -> bool:
    return any(found.name == name for found in node.find_all(kind))


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def blind_end(text: str, prompt: str) -> int | None:
    """Where a prompt ends that a text begins with, if white space does not count; None if it does not."""
    wanted = "".join(prompt.split())
    here = 0
    for letter in wanted:
        here += len(text) - here - len(text[here:].lstrip())
        if not text.startswith(letter, here):
            return None
        here += 1
    return len(text) - len(text[here:].lstrip())


def common_head(texts: Sequence[str]) -> int:
    """Length of the longest beginning that all texts share."""
    low, high = min(texts), max(texts)
    return next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))


def common_tail(texts: Sequence[str]) -> int:
    """Length of the longest end that all texts share."""
    return common_head([text[::-1] for text in texts])

"""Where an answer begins and ends within what its message printed."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from builders.prompts import Prompts, blind_end
from builders.template import Rendering, Span, TemplateError
from builders.vary import TEXT_KEYS, Message


@dataclass(frozen=True, slots=True)
class Turn:
    """Characters that the assistant generated: `start` to `stop`; its end-of-turn token begins at `end`."""

    start: int
    stop: int
    end: int


class Borders:
    """Finds the borders of answers in one conversation; `render` renders a copy of its messages with marks."""

    def __init__(
        self,
        prompts: Prompts,
        stops: frozenset[str],
        text: str,
        messages: list[Message],
        tools: list[dict[str, Any]] | None,
        render: Callable[[list[Message]], Rendering],
    ) -> None:
        self.prompts = prompts
        self.stops = stops
        self.text = text
        self.messages = messages
        self.tools = tools
        self.render = render
        self.heads: dict[int, int] = {}  # characters of each answer's header

    def start(self, i: int, piece: Span, head: int) -> int:
        """Offset in the piece at which the generation prompt ends; `head` characters of it are the template's own."""
        known = self.prompts.after_user(self.tools)
        found = self.match(known, piece, head)
        if found == head:
            return found
        forms = list(self.prompts.after(self.messages[:i], self.tools))
        ends = [] if found is None else [found]
        ends += [end for form in forms if (end := self.end_of(form, i, piece, head)) is not None]
        if ends:
            return max(ends)
        literal = self.text[piece.start : piece.start + head]
        if not literal.strip():
            return 0
        if (end := self.start_by_header(i, literal)) is not None:
            return end
        closed = {0, *(self.closed(form[0], piece, head) for form in forms)}
        asking = {*known, *(prompt for _, _, prompt in forms)}
        cut = [self.prompts.abridged_end(literal, at, prompt) for at in closed for prompt in asking]
        if any(cut):
            return max(filter(None, cut))
        what = "not with a generation prompt" if known else "and there is no generation prompt"
        raise TemplateError("no_prompt", f"message {i} begins with {literal[:40]!r}, {what}")

    def end_of(self, form: tuple[str, str, str], i: int, piece: Span, head: int) -> int | None:
        """Where one form of the conversation up to here, with its prompt, ends in the piece; None: not in its head."""
        bare, asked, prompt = form
        end = len(asked) - piece.start
        # a template that asks with nothing may print its header always, so that the text up to here has it
        has_header = prompt.strip() or self.text[piece.start : piece.start + end].strip()
        if self.text.startswith(asked) and 0 <= end <= head and (has_header or self.is_bare(i, end)):
            return end
        if prompt.strip() and (matched := self.match([prompt], piece, head)) is not None:
            return matched
        end = self.closed(bare, piece, head)
        return end if end and self.is_bare(i, end) else None  # the answer continues a turn

    def closed(self, bare: str, piece: Span, head: int) -> int:
        """Where the template ends to close what stands before, if it does so in this text as in that up to here."""
        end = len(bare) - piece.start
        return end if self.text.startswith(bare) and 0 < end <= head else 0

    def is_bare(self, i: int, end: int) -> bool:
        """Whether the template prints nothing more before a plain answer in this place, though it asks with nothing."""
        header = self.prompts.header(self.messages, i, self.tools)
        return header is not None and not header[end:].strip()

    def start_by_header(self, i: int, literal: str) -> int | None:
        """Offset at which the template's header ends, where no generation prompt stands in the text whole."""
        prompts = self.prompts
        known = prompts.after_user(self.tools)
        if prompts.asks(literal, self.tools):
            return len(literal)
        own = prompts.header(self.messages, i, self.tools)
        headers = prompts.headers()
        if not (own or "").strip() and (own is not None or not (known or any(header.strip() for header in headers))):
            return 0
        for header in filter(None, [own, *headers]):
            if literal.startswith(header) and header.strip() and prompts.asks(header, self.tools):
                return len(header)
        for prompt in known:
            if (end := blind_end(literal, prompt)) is not None:
                return end
        return None

    def match(self, prompts: Sequence[str], piece: Span, head: int) -> int | None:
        """Where the longest prompt ends that is found whole at the piece's literal head or before it."""
        for prompt in prompts:
            window = self.text[max(0, piece.start - len(prompt)) : piece.start + head]
            at = window.rfind(prompt)
            if at >= 0:
                return at + len(prompt) - min(piece.start, len(prompt))
        return None

    def close(self, start: int, stop: int, tail: int, i: int | None = None) -> Turn:
        """Find the end-of-turn token; `tail` is where the template's own last words begin."""
        text, control = self.text, self.prompts.control
        tail = max(tail, start)
        end = max(tail, start + len(text[start:stop].rstrip()))
        opens = i is not None and _opens(self.messages[i])
        tokens = [found for found in control.finditer(text, tail, end) if not self.is_closer(found, start, opens)]
        for token in tokens:  # what comes behind it is not the assistant's: the next header, say
            if token[0] in self.stops:
                return Turn(start, token.end(), token.start())
        if tokens and tokens[-1].end() == end:
            return Turn(start, end, tokens[-1].start())
        if text[tail:end].strip() and i is not None and not self.messages[i].get("tool_calls"):
            raise TemplateError(
                "no_end", f"message {i} ends with {text[tail:end][-40:]!r}, which is no end-of-turn token"
            )
        follows = control.match(text, stop)
        if follows and end == stop and self.ends_turn(follows[0], i):
            return Turn(start, follows.end(), stop)
        return Turn(start, end, end)

    def is_closer(self, token: re.Match[str], start: int, opens: bool) -> bool:
        """Whether a token closes one within the turn, as `</tool_call>` does; such a token ends no turn."""
        return opens and token[0] not in self.stops and _closes(token[0], self.text[start : token.start()])

    def ends_turn(self, token: str, i: int | None) -> bool:
        """Whether a token that the next message prints is this turn's end, and not the next one's header."""
        if token in self.stops:
            return True
        if i is None:
            return False
        try:
            rendering = self.render([dict(message) for message in self.messages[: i + 1]])
            region = rendering.regions[i][0]
        except (TemplateError, LookupError):  # a conversation cut here may be refused
            return False
        rest = rendering.text[region.stop :]
        own = rendering.text[region.start + self.heads[i] : region.stop]
        if rest.startswith(token) or own.rstrip().endswith(token):
            return True
        if self.prompts.control.match(rest):  # its own end, which a template prints behind the last turn only
            return False
        following = self.messages[i + 1]["role"] if i + 1 < len(self.messages) else ""
        prompts = self.prompts.after_user(self.tools)
        return following in ("user", "tool") and bool(prompts) and not any(token in prompt for prompt in prompts)


def _opens(message: Message) -> bool:
    return bool(message.get("tool_calls")) or any(message.get(key) for key in TEXT_KEYS if key != "content")


def _closes(token: str, before: str) -> bool:
    """Whether the partner of a closing token (`</x>`, `x_end`, `end_x`, `x|>`) stands before it."""
    name = re.sub(r"^(<[|｜]?/?|\[/?)|([|｜]?>|\])$", "", token)
    names = {name, *(re.sub("end", word, name) for word in ("begin", "start")), re.sub("END", "START", name)}
    shapes = ("<{}>", "<|{}|>", "<|{}>", "<｜{}｜>", "[{}]")
    return any(shape.format(n) in before for n in names for shape in shapes if shape.format(n) != token)

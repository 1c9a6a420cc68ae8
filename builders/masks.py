"""Which characters of a rendered conversation the assistant wrote, derived from the chat template itself.

The template's own loop over messages tells which text each message printed (builders.template). Changed copies of the
conversation then prove it: other messages must not move that text, and assistants must move nothing else. What is
generated begins after the generation prompt and ends with the end-of-turn token. What cannot be proved is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from builders.borders import Borders, Turn
from builders.marks import PLANS
from builders.prompts import Prompts, common_head, common_tail
from builders.template import ChatTemplate, Rendering, Span, TemplateError, choose_pair
from builders.vary import LETTER, Message, after, before, instead, vary, within

REST = "rest"  # marks as `loops`, and a last answer that no loop prints is what stands behind all that loops print
Pieces = dict[int, list[Span]]  # of each assistant message: what it printed, less what other messages printed within


@dataclass(frozen=True, slots=True)
class Found:
    """The turns of a conversation, how it is rendered, and whether all words of the other messages are printed."""

    turns: list[Turn]
    rendering: Rendering
    is_whole: bool


class Masker:
    """Finds the assistant's turns in conversations rendered by one template. `stops` are tokens known to end a turn."""

    def __init__(self, template: ChatTemplate, prompts: Prompts, stops: frozenset[str]) -> None:
        self.template = template
        self.prompts = prompts
        self.stops = stops

    def find(self, text: str, messages: list[Message], context: Mapping[str, Any]) -> Found:
        """Find the turns in `text`, which is how `messages` are rendered.

        Raises:
            TemplateError: the turns cannot be told with certainty.
        """
        refusal: TemplateError | None = None
        for plan in (*PLANS, REST):
            case = _Case(self, plan, text, messages, context)
            for turns_of in (case.marked, case.derived):
                try:
                    turns = turns_of()
                    if turns is not None:
                        return Found(turns, case.first, case.is_whole())
                except TemplateError as error:
                    refusal = refusal or error
        assert refusal is not None
        raise refusal


class _Case:
    """One conversation under one plan of marks."""

    def __init__(
        self, masker: Masker, plan: str, text: str, messages: list[Message], context: Mapping[str, Any]
    ) -> None:
        self.masker = masker
        self.plan = plan
        self.marks = PLANS[0] if plan == REST else plan
        self.text = text
        self.messages = messages
        self.context = dict(context)
        self.pair = choose_pair(text + masker.template.source)
        self.answers = [i for i, message in enumerate(messages) if message.get("role") == "assistant"]
        self.others = [i for i in range(len(messages)) if i not in set(self.answers)]
        tools = self.context.get("tools")
        self.borders = Borders(masker.prompts, masker.stops, text, messages, tools, self.render)
        self.asked = vary(messages, self.others, within)  # the same answers to other questions

    def render(self, messages: list[Message]) -> Rendering:
        try:
            return self.masker.template.render_marked(self.marks, messages, self.pair, **self.context)
        except TemplateError:
            raise
        except Exception as error:  # a template is foreign code, and refuses in its own ways
            raise TemplateError("variant_raises", f"the template refuses a changed copy of it: {error}") from None

    @cached_property
    def moved(self) -> Rendering:
        return self.render(self.asked)

    def is_whole(self) -> bool:
        """Whether each letter that was put into the other messages is printed."""
        put = _letters(self.asked) - _letters(self.messages)
        return self.moved.text.count(LETTER) - self.text.count(LETTER) >= put

    @cached_property
    def first(self) -> Rendering:
        rendering = self.render(self.messages)
        if rendering.text != self.text:
            raise TemplateError("text_differs", "marks change the text that the template prints")
        return rendering

    def marked(self) -> list[Turn] | None:
        """Turns by the template's own `{% generation %}` marks; None where it marks nothing."""
        if not self.masker.template.has_generation:
            return None
        rendering = self.first
        spans = _filled(rendering.generated)
        if not spans:
            return None
        own = _texts(self.text, spans)
        if _texts(self.moved.text, _filled(self.moved.generated)) != own:
            raise TemplateError("turn_not_own", "another message changes what {% generation %} marks")
        changed = self.render(vary(self.messages, self.answers, after))
        others = _texts(changed.text, _filled(changed.generated))
        if len(others) != len(own):
            raise TemplateError("turn_unclear", "an answer's words change how often {% generation %} marks")
        tails = [common_tail(pair) for pair in zip(own, others, strict=True)]
        turns = [self.borders.close(s.start, s.stop, s.stop - tail) for s, tail in zip(spans, tails, strict=True)]
        return [replace(turn, stop=max(turn.stop, span.stop)) for turn, span in zip(turns, spans, strict=True)]

    def derived(self) -> list[Turn]:
        """Turns by the passes of the template's loop over messages."""
        pieces = self.pieces(self.first)
        if not self.answers:
            return []
        self.check_others(pieces)
        variants = self.variants(pieces)
        texts = [self.text, *(rendering.text for rendering, _ in variants)]
        all_pieces = [pieces, *(found for _, found in variants)]
        turns: list[Turn] = []
        for i in filter(pieces.get, self.answers):
            own = [[text[s.start : s.stop] for s in found[i]] for text, found in zip(texts, all_pieces, strict=True)]
            if len({len(parts) for parts in own}) > 1:
                raise TemplateError("turn_unclear", f"message {i} is printed in pieces that change with its words")
            self.check_printed(i, own)
            turns += self.turns_of(i, pieces[i], own)
        return turns

    def pieces(self, rendering: Rendering) -> Pieces:
        """Cut what each assistant printed out of the text, less what others printed in the middle of it."""
        found: Pieces = {}
        for i in self.answers:
            regions = rendering.regions.get(i) or self.rest(i, rendering)
            if not regions and not _has_text(self.messages[i].get("content")):
                found[i] = []  # a call or a thought that the template does not read, and no end of turn
                continue
            if len(regions) != 1:
                what = "no pass of its loop prints" if not regions else f"{len(regions)} places hold"
                raise TemplateError("no_region", f"{what} message {i}")
            found[i] = list(_without(regions[0], rendering.inner.get(i, [])))
        return found

    def rest(self, i: int, rendering: Rendering) -> list[Span]:
        if self.plan != REST or i + 1 < len(self.messages) or not rendering.regions:
            return []
        printed = max(span.stop for spans in rendering.regions.values() for span in spans)
        return [Span(printed, len(rendering.text))]

    def outside(self, text: str, pieces: Pieces) -> list[str]:
        spans = sorted((span for own in pieces.values() for span in own), key=lambda span: span.start)
        edges = [0, *(edge for span in spans for edge in (span.start, span.stop)), len(text)]
        return [text[a:b] for a, b in zip(edges[::2], edges[1::2], strict=True)]

    def check_others(self, pieces: Pieces) -> None:
        found = self.pieces(self.moved)
        for i in self.answers:
            if _texts(self.moved.text, found[i]) != _texts(self.text, pieces[i]):
                raise TemplateError("turn_not_own", f"other messages print into the turn of message {i}")

    def variants(self, own: Pieces) -> list[tuple[Rendering, Pieces]]:
        """Render with all answers changed, in three ways; nothing outside of them may move."""
        expected = self.outside(self.text, own)
        for fill in (True, False):
            try:
                changed = [vary(self.messages, self.answers, how, fill=fill) for how in (before, instead, after)]
                renderings = [self.render(messages) for messages in changed]
                found = [(rendering, self.pieces(rendering)) for rendering in renderings]
                if any(self.outside(rendering.text, pieces) != expected for rendering, pieces in found):
                    raise TemplateError("answer_elsewhere", "an assistant's words are printed outside of its own turn")
                return found
            except TemplateError:
                if not fill:
                    raise
        raise AssertionError

    def check_printed(self, i: int, own: list[list[str]]) -> None:
        message = self.messages[i]
        is_same = all(parts == own[0] for parts in own)
        if is_same and _has_text(message.get("content")) and not message.get("tool_calls"):
            raise TemplateError("not_printed", f"the template prints no word of message {i}")

    def check_one(self, i: int, words: str) -> None:
        """Refuse a message printed as two turns; `words` is what the template prints of another, less header and end."""
        for stop in self.masker.stops:
            if words.rpartition(stop)[2].strip() and stop in words:
                raise TemplateError("two_turns", f"the template ends a turn with {stop} within message {i}")

    def turns_of(self, i: int, pieces: list[Span], own: list[list[str]]) -> list[Turn]:
        head = common_head([parts[0] for parts in own])
        if cut := self.masker.prompts.straddled(self.text, pieces[0].start, pieces[0].start + head):
            head = cut.start - pieces[0].start
        self.borders.heads[i] = self.borders.start(i, pieces[0], head)
        start = pieces[0].start + self.borders.heads[i]
        tail = min(common_tail([parts[-1] for parts in own]), pieces[-1].stop - max(start, pieces[-1].start))
        if cut := self.masker.prompts.straddled(self.text, start, pieces[-1].stop - tail):
            tail = pieces[-1].stop - cut.stop
        self.check_one(i, "".join(own[2])[max(0, self.borders.heads[i]) : -tail or None])
        turns = []
        for piece in pieces:
            begin = max(start, piece.start)
            if begin < piece.stop or len(pieces) == 1:
                turns.append(
                    self.borders.close(begin, piece.stop, piece.stop - (tail if piece is pieces[-1] else 0), i)
                )
        if self.plan == REST and turns[-1].end == turns[-1].stop:
            raise TemplateError("no_end", f"no pass of the template's loop prints message {i}, and no token ends it")
        return turns


def _without(region: Span, inner: Sequence[Span]) -> list[Span]:
    spans, here = [], region.start
    for span in sorted(inner, key=lambda span: span.start):
        if span.start >= here:
            spans.append(Span(here, span.start))
            here = span.stop
    return [*spans, Span(here, region.stop)]


def _texts(text: str, spans: Sequence[Span]) -> list[str]:
    return [text[span.start : span.stop] for span in spans]


def _filled(spans: Sequence[Span]) -> list[Span]:
    return [span for span in spans if span.start < span.stop]


def _letters(messages: Sequence[Message]) -> int:
    return sum(str(message.get("content")).count(LETTER) for message in messages)


def _has_text(content: Any) -> bool:
    if isinstance(content, str):
        return bool(content.strip())
    return isinstance(content, list) and any(_has_text(p.get("text") if isinstance(p, dict) else p) for p in content)

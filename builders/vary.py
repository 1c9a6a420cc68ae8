"""A conversation with its words changed: what a template prints of a message moves with it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

LETTER = "ꙮ"  # rare, a letter, and without upper or lower case, so that no filter changes it
TEXT_KEYS = ("content", "reasoning_content", "thinking", "reasoning")
_TAG = re.compile(r"(<[^<>\s]{1,64}>|\[/?[A-Z_]{2,}\]|/\w+)")  # `/no_think` too: templates look for it

Message = dict[str, Any]
Vary = Callable[[str], str]


def prepare_messages(messages: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Copy messages as `apply_chat_template` hands them to a template: plain values, no key that is None.

    Newer transformers also copies reasoning between the names that templates read. The copies are ours, so that a
    message can be told by identity.
    """
    from transformers.utils import chat_template_utils as utils

    plain = getattr(utils, "_plain_template_data", _copy)
    alias = getattr(utils, "_alias_reasoning_fields", list)
    return alias([plain({key: value for key, value in m.items() if value is not None}) for m in messages])


def vary(
    messages: Sequence[Message], positions: Collection[int], change: Vary, *, fill: bool = False
) -> list[Message]:
    """Copy messages with the words at `positions` changed: content, reasoning, and strings in arguments of tool calls.

    `fill` also gives a content to assistants that have none, unless they call a tool.
    """
    return [
        _vary_message(message, change, fill=fill) if i in positions else dict(message)
        for i, message in enumerate(messages)
    ]


def before(text: str) -> str:
    """A letter in front."""
    return LETTER + text


def instead(text: str) -> str:
    """A letter and nothing else."""
    return LETTER


def after(text: str) -> str:
    """A letter behind."""
    return text + LETTER


def within(text: str) -> str:
    """A letter in the middle of each piece between tags, so that no tag breaks and white space stays outermost."""
    return "".join(piece if i % 2 else _within(piece) for i, piece in enumerate(_TAG.split(text)))


def _within(piece: str) -> str:
    word = len(piece.rstrip())
    first = len(piece) - len(piece.lstrip()) + 1
    if word < first:
        return piece  # blank
    middle = (first + word) // 2
    return piece[:middle] + LETTER + piece[middle:]


def _vary_message(message: Message, change: Vary, *, fill: bool) -> Message:
    new = dict(message)
    for key in TEXT_KEYS:
        if key in new:
            new[key] = _vary_text(new[key], change)
    if fill and not new.get("tool_calls") and not new.get("content"):
        new["content"] = LETTER
    if isinstance(new.get("tool_calls"), list):
        new["tool_calls"] = [_vary_call(call, change) for call in new["tool_calls"]]
    return new


def _vary_text(value: Any, change: Vary) -> Any:
    if isinstance(value, str):
        return change(value) if value.strip() else value
    if isinstance(value, list):
        return [_vary_part(part, change) for part in value]
    return value


def _vary_part(part: Any, change: Vary) -> Any:
    if isinstance(part, dict) and isinstance(part.get("text"), str):
        return {**part, "text": _vary_text(part["text"], change)}
    return _vary_text(part, change) if isinstance(part, str) else part


def _vary_call(call: Any, change: Vary) -> Any:
    if not isinstance(call, dict):
        return call
    if isinstance(call.get("function"), dict):
        return {**call, "function": _vary_call(call["function"], change)}
    if "arguments" not in call:
        return call
    arguments = call["arguments"]
    if isinstance(arguments, str):
        try:
            arguments = json.dumps(_vary_json(json.loads(arguments), change), ensure_ascii=False)
        except (ValueError, RecursionError):
            arguments = call["arguments"]
    else:
        arguments = _vary_json(arguments, change)
    return {**call, "arguments": arguments}


def _vary_json(value: Any, change: Vary) -> Any:
    if isinstance(value, dict):
        return {key: _vary_json(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [_vary_json(item, change) for item in value]
    return _vary_text(value, change) if isinstance(value, str) else value


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list | tuple) else value

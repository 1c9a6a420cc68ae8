"""Conversations as they come, and the one shape in which the rest of the code sees them."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from builders.row import RowError
from builders.think import JOINER, split_think

if TYPE_CHECKING:
    from builders.encoded import ChatEncoder, EncodedChat, encode_chat
    from builders.template import TemplateError

__all__ = [
    "ChatEncoder",
    "EncodedChat",
    "TemplateError",
    "Turn",
    "clean_text",
    "encode_chat",
    "parse_messages",
    "shorten",
    "stored_messages",
    "template_messages",
]

THINK_KEYS = ("reasoning_content", "thinking", "reasoning")  # DeepSeek and vLLM; gpt-oss; OpenRouter
TEXT_PARTS = (None, "text", "input_text", "output_text")  # `type` of a part that is text; None: the part has no type
SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}
MAX_DETAIL = 80  # characters of a bad value that a line of the `skipped` table shows


@dataclass(frozen=True, slots=True)
class Turn:
    """One message. `think` is the reasoning of an assistant turn, which `content` no longer holds."""

    role: str
    content: str
    think: str


def parse_messages(value: Any) -> list[Turn]:
    """Read a conversation: a list of `{role, content}` or of ShareGPT's `{from, value}`, or a JSON string of one.

    Raises RowError with `messages_missing`, `messages_not_a_list`, `messages_empty` or `message_malformed`.
    """
    if isinstance(value, str):
        value = _from_json(value)
    if value is None:
        raise RowError("messages_missing", "the row has no conversation")
    if not isinstance(value, list | tuple):
        raise RowError("messages_not_a_list", f"a conversation is a list of messages, not {shorten(value)}")
    if not value:
        raise RowError("messages_empty", "the conversation has no message")
    return [_turn(message, position) for position, message in enumerate(value)]


def template_messages(value: Any) -> list[dict[str, Any]]:
    """Read a conversation as a chat template takes it: every field as it is, ShareGPT's names and JSON apart.

    Raises RowError as `parse_messages` does.
    """
    value = _from_json(value) if isinstance(value, str) else value
    turns = parse_messages(value)
    return [_as_template_takes(message, turn.role) for message, turn in zip(value, turns, strict=True)]


def stored_messages(value: Any) -> list[dict[str, str]] | None:
    """Read a conversation as `{role, content}` of text alone, as viewers of chats show it; None where there is none.

    A trace under a key of its own comes first in its content, between <think> and </think>; calls of tools are left out.
    """
    try:
        value = _from_json(value) if isinstance(value, str) else value
        turns = parse_messages(value)
    except RowError:
        return None
    return [{"role": turn.role, "content": _whole(m, turn)} for m, turn in zip(value, turns, strict=True)]


def _whole(message: Mapping[str, Any], turn: Turn) -> str:
    content = _content_text(message.get("value") if message.get("content") is None else message["content"])
    if not turn.think or split_think(content)[1]:
        return content
    return f"<think>\n{turn.think}\n</think>\n\n{content}"


def clean_text(text: str) -> str:
    """Replace lone surrogates by U+FFFD, which neither Parquet nor a tokenizer takes; pairs become their character.

    NUL bytes stay: Parquet and byte-level tokenizers carry them through unharmed.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def shorten(value: Any) -> str:
    """Show a value in one short line; reprlib looks at no more of it than it shows, whatever its size."""
    text = reprlib.repr(value)
    return text if len(text) <= MAX_DETAIL else text[: MAX_DETAIL - 1] + "…"


def _from_json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise RowError("messages_not_a_list", f"{shorten(text)} is not the JSON of a list of messages") from None


def _turn(message: Any, position: int) -> Turn:
    if not isinstance(message, Mapping):
        raise RowError("message_malformed", f"message {position} is {shorten(message)}, not a mapping")
    role = message.get("role")
    if role is None:
        sender = message.get("from")
        role = SHAREGPT_ROLES.get(str(sender), sender)
    # a call of a tool, or a generation cut while it reasoned, may come with no content key at all
    if role is None or not any(key in message for key in ("content", "value", "tool_calls", *THINK_KEYS)):
        raise RowError("message_malformed", f"message {position} lacks a role or a content: {shorten(message)}")
    content = _content_text(message.get("value") if message.get("content") is None else message["content"])
    if role != "assistant":
        return Turn(clean_text(str(role)), content, "")
    response, think = split_think(content)
    traces = (
        JOINER.join(filter(None, split_think(_content_text(message[key])))) for key in THINK_KEYS if message.get(key)
    )
    # servers send the same trace under two keys, or under a key and again in the content
    distinct = dict.fromkeys(trace for trace in (*traces, think) if trace)
    return Turn("assistant", response, JOINER.join(distinct))


def _as_template_takes(message: Mapping[str, Any], role: str) -> dict[str, Any]:
    rest = {key: item for key, item in message.items() if key not in ("role", "from", "content", "value")}
    content = message.get("value") if message.get("content") is None else message["content"]
    if isinstance(content, str):
        content = clean_text(content)
    return {"role": role, "content": content, **rest}


def _content_text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, Mapping):
        value = [value]
    if isinstance(value, list | tuple):
        texts = (_part_text(part) for part in value)
        return clean_text("\n".join(text for text in texts if text is not None))
    return clean_text(str(value))


def _part_text(part: Any) -> str | None:
    if isinstance(part, Mapping):
        part = part.get("text") if part.get("type") in TEXT_PARTS else None
    return part if isinstance(part, str) else None


def __getattr__(name: str) -> Any:
    """Import what encodes conversations at first use: it brings numpy and Jinja, which the command line does without."""
    if name == "TemplateError":
        from builders.template import TemplateError

        return TemplateError
    if name in ("ChatEncoder", "EncodedChat", "encode_chat"):
        from builders import encoded

        return getattr(encoded, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

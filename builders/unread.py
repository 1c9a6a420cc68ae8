"""Fields of messages that a chat template never prints."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from builders.template import ChatTemplate
from builders.vary import LETTER


def unread_fields(template: ChatTemplate, context: Mapping[str, Any]) -> list[str]:
    """Name the fields of an assistant message, `reasoning` or `tool_calls`, that the template never prints."""
    call = {"type": "function", "id": "abcdefghi", "function": {"name": LETTER, "arguments": {LETTER: LETTER}}}
    as_text = {**call, "function": {"name": LETTER, "arguments": json.dumps({LETTER: LETTER})}}
    reasoning = dict.fromkeys(("reasoning_content", "thinking", "reasoning"), LETTER)
    tries: dict[str, list[dict[str, Any]]] = {
        "reasoning": [reasoning],
        "tool_calls": [{"tool_calls": [call]}, {"tool_calls": [as_text]}],
    }
    return [name for name, fields in tries.items() if not any(_is_read(template, context, field) for field in fields)]


def _is_read(template: ChatTemplate, context: Mapping[str, Any], fields: dict[str, Any]) -> bool:
    user = {"role": "user", "content": "a"}
    for content in ({"content": "a"}, {"content": ""}, {}):
        try:
            text = template.render(
                [user, {"role": "assistant", **content, **fields}],
                **{**context, "tools": None, "add_generation_prompt": False},
            )
        except Exception:  # a template is foreign code, and refuses in its own ways
            continue
        if LETTER in text:
            return True
    return False

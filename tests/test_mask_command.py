"""`stillroom mask`: python -m pytest tests/test_mask_command.py."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from extract.cli import main

TEMPLATE = Path(__file__).parent / "templates" / "trl" / "qwen3.jinja"
CHAT = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
SHAREGPT = [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "chats.jsonl"
    rows = [CHAT, SHAREGPT, json.dumps(CHAT), [{"role": "user", "content": "Only asked."}], None]
    path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    return path


def mask(minilm, source, *more):
    result = CliRunner().invoke(main, ["mask", str(minilm), "--source", str(source), *more])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def test_what_the_assistant_generated_is_shown(minilm, source):
    code, out, _ = mask(minilm, source, "--chat-template", str(TEMPLATE))
    assert code == 0
    assert out.count("<|im_start|>assistant\n<think>\n\n</think>\n\n⟦So.<|im_end|>⟧\n") == 3
    assert "row 0: 9 of 41 tokens\n" in out  # so . < | im _ end | >, to a tokenizer of words


def test_the_end_of_a_turn_on_request(minilm, source):
    assert "⟦So.⟧<|im_end|>" in mask(minilm, source, "--chat-template", str(TEMPLATE), "--no-end-of-turn")[1]


def test_a_row_without_a_mask_says_why(minilm, source):
    code, out, _ = mask(minilm, source, "--chat-template", str(TEMPLATE), "--rows", "9")
    assert code == 1
    assert "row 3: 0 of " in out
    assert "row 4: no mask: the row has no conversation (messages_missing)" in out


def test_a_model_without_a_template(minilm, source):
    code, _, err = mask(minilm, source, "--rows", "1")
    assert code == 2
    assert "has no chat template: --chat-template FILE gives one" in err


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (("--messages-column", "chat"), "--messages-column 'chat': "),
        (("--chat-template", "none.jinja"), "--chat-template none.jinja: "),
    ],
)
def test_a_wrong_option_is_one_line(minilm, source, more, line):
    code, _, err = mask(minilm, source, *more)
    assert code == 2
    assert err.startswith(f"stillroom: {line}")
    assert err.count("\n") == 1

"""Licence and languages of a source, from its card on the test Hub: python -m pytest tests/test_origin.py."""

import pytest
from huggingface_hub import constants

from cards.origin import carried_over
from tests.test_remote import hub  # noqa: F401  # fixture


@pytest.mark.parametrize(
    "said, found",
    [
        ("license: odc-by\nlanguage: en", {"license": "odc-by", "language": "en"}),
        ("license: [mit, cc-by-4.0]\nlanguage: [en, de]", {"license": ["mit", "cc-by-4.0"], "language": ["en", "de"]}),
        (
            "license: other\nlicense_name: own\nlicense_link: https://example.com/l",
            {"license": "other", "license_name": "own", "license_link": "https://example.com/l"},
        ),
        ("license: {a: 1}\nlanguage: [1, null, no]", {}),
        ("license: 'a\n\n  b'", {}),
        ("tags: [x]", {}),
        ("license: [", {}),
    ],
)
def test_what_is_carried_over(hub, said, found):  # noqa: F811
    hub.create_repo("user/chats")
    sha = hub.write("user/chats", {"README.md": f"---\n{said}\n---\n# Chats\n".encode()})
    hub.write("user/chats", {"README.md": b"---\nlicense: gpl\n---\n"})
    assert carried_over("user/chats", sha) == found, "of the revision that was read, not the newest"


def test_where_nothing_is_to_be_had(hub, monkeypatch):  # noqa: F811
    hub.create_repo("user/bare")
    assert carried_over("user/bare", None) == {}
    assert carried_over("user/nowhere", None) == {}
    before = len(hub.requests)
    assert carried_over("./rows.parquet", None) == carried_over("demo:chat", None) == {}
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert carried_over("user/bare", None) == {} and len(hub.requests) == before

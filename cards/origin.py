"""What the card of a Hub source says that holds for what is made of it: its licence and its languages."""

from __future__ import annotations

import logging
import re
from typing import Any

from huggingface_hub import constants

from builders.source import is_local
from cards.readme import split_front_matter
from hub.reader import HubReader

logger = logging.getLogger(__name__)

CARRIED = ("license", "license_name", "license_link", "language")
# What the Hub may take; anything else would hold up a commit
WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._:/#?=%+-]{0,199}")


def carried_over(source: str, revision: str | None) -> dict[str, Any]:
    """Return licence and languages from the source's card at its revision; {} of local files, or where none is to be had.

    A dataset is worth more than its card: an error here is a line in the log.
    """
    if is_local(source) or ":" in source or constants.HF_HUB_OFFLINE:
        return {}
    try:
        reader = HubReader(source)
        reader.revision = revision or "main"
        content = reader.read("README.md")
    except (OSError, RuntimeError, ValueError) as error:
        logger.info("the card of %s cannot be read (%s): licence and languages are not carried over", source, error)
        return {}
    data, _ = split_front_matter((content or b"").decode(errors="replace"))
    found = {name: _plain(data.get(name)) for name in CARRIED}
    return {name: value for name, value in found.items() if value}


def _plain(value: Any) -> str | list[str] | None:
    """A word or a list of words; a single licence of a list as a word. Anything else is no licence and no language."""
    if isinstance(value, list):
        words = [word for word in value if isinstance(word, str) and WORD.fullmatch(word)]
        return words or None
    return value if isinstance(value, str) and WORD.fullmatch(value) else None

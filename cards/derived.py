"""A section of the card for a configuration that was made of the dataset's own records: its YAML, and words of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import yaml

from cards.card import split_front_matter


@dataclass(frozen=True)
class Section:
    """What the card says of one configuration. `body` is Markdown, `glob` the paths of its chunks."""

    config_name: str
    split: str
    glob: str
    body: str
    tags: Sequence[str] = ()

    def into(self, readme: str) -> str:
        """Return README.md with this section; an older one of the same configuration goes, all else stays."""
        data, body = split_front_matter(readme)
        mine = {"config_name": self.config_name, "data_files": [{"split": self.split, "path": self.glob}]}
        configs = [c for c in data.get("configs") or [] if c.get("config_name", "default") != self.config_name]
        data["configs"] = [*configs, mine]
        if self.tags:
            data["tags"] = list(dict.fromkeys([*(data.get("tags") or []), *self.tags]))
        begin, end = (f"<!-- stillroom: {word} of {self.config_name} -->" for word in ("begin", "end"))
        part = f"{begin}\n\n{self.body.strip()}\n\n{end}"
        before, found, rest = body.partition(begin)
        _, found_end, after = rest.partition(end)
        is_there = bool(found and found_end)
        body = f"{before}{part}{after}" if is_there else f"{body.strip()}\n\n{part}\n".lstrip()
        return f"---\n{yaml.safe_dump(data, sort_keys=False, allow_unicode=True)}---\n\n{body.lstrip()}"

"""The dataset card: what a reader of the output sees, made from the job and the receipts of its units."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from builders.columns import record_columns
from builders.job import Job
from builders.layout import Layout
from builders.options import option_fields
from builders.schema import Column
from builders.source import is_local
from builders.text import DEFAULT_TEMPLATE
from cards.figures import Figures
from cards.limits import limits
from cards.readme import BEGIN, END, merge_data, replace_generated, split_front_matter
from hub.pending import Receipt
from hub.repo import is_folder

__all__ = ["BEGIN", "END", "Card", "code", "size_category", "split_front_matter"]

TEMPLATES = Path(__file__).parent / "templates"
BLANK_LINES = re.compile(r"\n{3,}")
HUB = "https://huggingface.co"
BAR = 20  # characters of the progress bar
TASKS = {"embeddings": ["feature-extraction"], "logits": ["text-generation"]}
SIZES = (
    (10**3, "n<1K"),
    (10**4, "1K<n<10K"),
    (10**5, "10K<n<100K"),
    (10**6, "100K<n<1M"),
    (10**7, "1M<n<10M"),
    (10**8, "10M<n<100M"),
    (10**9, "100M<n<1B"),
    (10**10, "1B<n<10B"),
)


@dataclass(frozen=True)
class Card:
    """Facts of a card. What a person wrote outside the generated part, or into other YAML keys, stays."""

    job: Job
    source_columns: Sequence[str]
    num_rows: int
    num_units: int
    receipts: Collection[Receipt]
    origin: Mapping[str, Any] = field(default_factory=dict)  # licence and languages of the source
    versions: Mapping[str, str] = field(default_factory=dict)  # of what decides values

    def render(self, existing: str, *, name: str, is_complete: bool) -> str:
        """Return README.md; `name` is what `load_dataset` takes."""
        environment = Environment(
            loader=FileSystemLoader(TEMPLATES),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            autoescape=False,  # Markdown
        )
        environment.filters |= {"code": code, "number": "{:,}".format, "linked": linked, "duration": duration}
        text = environment.get_template(f"{self.job.build}.md").render(self._facts(name, is_complete))
        old_data, old_body = split_front_matter(existing)
        body = replace_generated(old_body, BLANK_LINES.sub("\n\n", text.strip()))
        layout = self.layout
        data = merge_data(old_data, self.data(is_complete=is_complete), {layout.config_name, layout.skipped})
        return f"---\n{yaml.safe_dump(data, sort_keys=False, allow_unicode=True)}---\n\n{body}"

    def _facts(self, name: str, is_complete: bool) -> dict[str, Any]:
        """What the templates see."""
        job, layout, done = self.job, self.layout, len(self.receipts)
        root = name if is_folder(name) else f"hf://datasets/{name}"
        return {
            "card": self,
            "job": job,
            "layout": layout,
            "figures": self.figures,
            "totals": self.totals,
            "name": name,
            "title": name.rstrip("/").rsplit("/", 1)[-1],
            "folder": f"{root.rstrip('/')}/{layout.of_split(layout.data)}",
            "text": job.text_template or ", ".join(job.fields) or DEFAULT_TEMPLATE,
            "percent": 100 * done // max(1, self.num_units),
            "bar": "█" * (BAR * done // max(1, self.num_units)),
            "bar_length": BAR,
            "eta": self.figures.eta(self.num_units - done),
            "is_complete": is_complete,
            "temperatures": ", ".join(f"{t:g}" for t in job.temperatures),
            "is_quantised": job.storage_dtype in ("int8", "binary"),
            "limits": list(limits(job, self.totals)),
            "plots": list(self.plots().items()) if is_complete else [],
            "vector": next((c for c in self.columns if c.name.startswith("embedding")), None),
        }

    @property
    def layout(self) -> Layout:
        """Where things stand in the output."""
        return Layout.of(self.job)

    @cached_property
    def figures(self) -> Figures:
        """What the receipts add up to."""
        return Figures(self.receipts, is_normalized=self.job.normalize is not False)

    @cached_property
    def columns(self) -> list[Column]:
        """Columns of the records."""
        return record_columns(self.job, self.source_columns, self.figures.dimension)

    @property
    def totals(self) -> Counter[str]:
        """Counts of all units together."""
        return self.figures.totals

    @property
    def bytes_per_token(self) -> float:
        """Bytes of the chunks of records, per token that was captured."""
        return self._size / max(1, self.totals["captured"])

    @cached_property
    def _size(self) -> int:
        folder = f"{self.layout.data}/"
        return sum(entry.size for r in self.receipts for entry in r.files if entry.path.startswith(folder))

    def plots(self) -> dict[str, str]:
        """Title of each plot by its path in the output."""
        return {path: title for path, (title, _) in self._plots.items()}

    def assets(self) -> dict[str, bytes]:
        """The files that a complete card shows."""
        return {path: svg.encode() for path, (_, svg) in self._plots.items()}

    @cached_property
    def _plots(self) -> dict[str, tuple[str, str]]:
        plots = self.figures.plots()
        return {f"{self.layout.assets}/{name}": plot for name, plot in plots.items()}

    @property
    def licence(self) -> str:
        """Licence of the source, for people; "" of none that is known."""
        found = self.origin.get("license", "")
        words = found if isinstance(found, str) else ", ".join(found)
        return f"{words} ({self.origin['license_name']})" if "license_name" in self.origin else words

    @property
    def options(self) -> dict[str, Any]:
        """Options that differ from their defaults, as flags."""
        default, given = Job().to_dict(), option_fields(Job)
        return {f"--{k.replace('_', '-')}": v for k, v in self.job.to_dict().items() if k in given and v != default[k]}

    def data(self, *, is_complete: bool) -> dict[str, Any]:
        """YAML of the card. `dataset_info` has sizes only once they are final: a stale one keeps a dataset from loading."""
        layout = self.layout
        configs = [_config(layout, layout.config_name, layout.data)]
        if layout.is_default:
            configs[0]["default"] = True
        if self.totals["skipped"]:  # a glob without files keeps every configuration from loading
            configs = configs * bool(self.totals["records"]) + [_config(layout, layout.skipped, layout.skipped)]
        data: dict[str, Any] = {
            "pretty_name": str(self.job.output).rstrip("/").rsplit("/", 1)[-1],
            **self.origin,
            "tags": ["stillroom", self.job.build],
            "size_categories": [size_category(self.totals["records"] if is_complete else self.num_rows)],
            "configs": configs,
        }
        if self.job.build in TASKS:
            data["task_categories"] = TASKS[self.job.build]
        if is_on_hub(str(self.job.source)):
            data["source_datasets"] = [str(self.job.source)]
        if is_complete and self.totals["records"]:
            data["dataset_info"] = [self._info(layout)]
        return data

    def _info(self, layout: Layout) -> dict[str, Any]:
        size = self._size
        split = {"name": layout.split, "num_bytes": size, "num_examples": self.totals["records"]}
        return {"config_name": layout.config_name, "splits": [split], "download_size": size, "dataset_size": size}


def _config(layout: Layout, name: str, folder: str) -> dict[str, Any]:
    return {"config_name": name, "data_files": [{"split": layout.split, "path": layout.glob(folder)}]}


def size_category(num_records: int) -> str:
    """The Hub's word for a number of records."""
    return next((word for limit, word in SIZES if num_records < limit), "n>1T")


def is_on_hub(name: str) -> bool:
    """Tell a Hub id from a path, and from what a package or a generator gives."""
    return not is_local(name) and ":" not in name


def linked(revision: object, name: object, kind: str = "datasets/") -> str:
    """A revision as code, and of what is on the Hub with a link to its files there."""
    text = code(str(revision))
    return f"[{text}]({HUB}/{kind}{name}/tree/{revision})" if is_on_hub(str(name)) else text


def duration(hours: float) -> str:
    """Hours for people."""
    return f"{hours:,.1f} h" if hours >= 1 else f"{60 * hours:.1f} min" if hours >= 1 / 60 else f"{3600 * hours:.1f} s"


def code(value: object) -> str:
    """Text as code in a cell of a Markdown table: on one line, with fences longer than its own backticks."""
    text = str(value).replace("\n", "\\n").replace("|", "\\|")
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence} {text} {fence}" if "`" in text else f"`{text}`"

"""The dataset card: what a reader of the output sees, made from the job and the receipts of its units."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import DatasetCard, DatasetCardData

from builders.columns import record_columns
from builders.job import Job
from builders.layout import Layout
from builders.options import option_fields
from builders.schema import Column
from builders.source import is_local
from builders.text import DEFAULT_TEMPLATE
from hub.pending import Receipt

TEMPLATES = Path(__file__).parent / "templates"
BEGIN, END = "<!-- stillroom: begin of the generated part -->", "<!-- stillroom: end of the generated part -->"
FRONT_MATTER = re.compile(r"\A\ufeff?---\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
BLANK_LINES = re.compile(r"\n{3,}")
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
SKIPPED = "skipped_"  # prefix of the counts of skipped rows by reason


@dataclass(frozen=True)
class Card:
    """Facts of a card. What a person wrote outside the generated part, or into other YAML keys, stays."""

    job: Job
    source_columns: Sequence[str]
    num_rows: int
    num_units: int
    receipts: Sequence[Receipt]

    def render(self, existing: str, *, name: str, is_complete: bool) -> str:
        """Return README.md; `name` is what `load_dataset` takes."""
        card = DatasetCard.from_template(
            DatasetCardData(),
            template_path=str(TEMPLATES / f"{self.job.build}.md"),
            job=self.job,
            name=name,
            title=name.rstrip("/").rsplit("/", 1)[-1],
            text=self.job.text_template or ", ".join(self.job.fields) or DEFAULT_TEMPLATE,
            code=code,
            columns=self.columns,
            totals=self.totals,
            reasons=self.reasons,
            num_rows=self.num_rows,
            num_units=self.num_units,
            percent=100 * len(self.receipts) // max(1, self.num_units),
            is_complete=is_complete,
            options=self.options,
            temperatures=", ".join(f"{t:g}" for t in self.job.temperatures),
            ranks=Layout.of(self.job).ranks,
            ranges=Layout.of(self.job).ranges,
            is_quantised=self.job.storage_dtype in ("int8", "binary"),
        )
        old_data, old_body = split_front_matter(existing)
        body = replace_generated(old_body, BLANK_LINES.sub("\n\n", card.text.strip()))
        layout = Layout.of(self.job)
        data = merge_data(old_data, self.data(is_complete=is_complete), {layout.config_name, layout.skipped})
        return f"---\n{yaml.safe_dump(data, sort_keys=False, allow_unicode=True)}---\n\n{body}"

    @property
    def columns(self) -> list[Column]:
        """Columns of the records."""
        return record_columns(self.job, self.source_columns, self.dimension)

    @property
    def dimension(self) -> int:
        """Dimensions of the vectors; 0 before the first chunk."""
        return next((r.counts["dimension"] for r in self.receipts if "dimension" in r.counts), 0)

    @property
    def totals(self) -> Counter[str]:
        """Counts of all units together."""
        totals: Counter[str] = Counter()
        for receipt in self.receipts:
            totals.update({k: v for k, v in receipt.counts.items() if isinstance(v, int) and k != "dimension"})
        return totals

    @property
    def reasons(self) -> dict[str, int]:
        """Rows that gave no record, by reason."""
        return {k.removeprefix(SKIPPED): v for k, v in sorted(self.totals.items()) if k.startswith(SKIPPED)}

    @property
    def options(self) -> dict[str, Any]:
        """Options that differ from their defaults, as flags."""
        default, given = Job().to_dict(), option_fields(Job)
        return {f"--{k.replace('_', '-')}": v for k, v in self.job.to_dict().items() if k in given and v != default[k]}

    def data(self, *, is_complete: bool) -> dict[str, Any]:
        """YAML of the card. `dataset_info` has sizes only once they are final: a stale one keeps a dataset from loading."""
        layout = Layout.of(self.job)
        configs = [_config(layout, layout.config_name, layout.data)]
        if layout.is_default:
            configs[0]["default"] = True
        if self.totals["skipped"]:  # a glob without files keeps every configuration from loading
            configs = configs * bool(self.totals["records"]) + [_config(layout, layout.skipped, layout.skipped)]
        data: dict[str, Any] = {
            "pretty_name": str(self.job.output).rstrip("/").rsplit("/", 1)[-1],
            "tags": ["stillroom", self.job.build],
            "size_categories": [size_category(self.totals["records"] if is_complete else self.num_rows)],
            "configs": configs,
        }
        source = str(self.job.source)
        if not is_local(source) and ":" not in source:
            data["source_datasets"] = [source]
        if is_complete and self.totals["records"]:
            data["dataset_info"] = [self._info(layout)]
        return data

    def _info(self, layout: Layout) -> dict[str, Any]:
        size = sum(entry.size for r in self.receipts for entry in r.files if entry.path.startswith(f"{layout.data}/"))
        split = {"name": layout.split, "num_bytes": size, "num_examples": self.totals["records"]}
        return {"config_name": layout.config_name, "splits": [split], "download_size": size, "dataset_size": size}


def _config(layout: Layout, name: str, folder: str) -> dict[str, Any]:
    return {"config_name": name, "data_files": [{"split": layout.split, "path": layout.glob(folder)}]}


def size_category(num_records: int) -> str:
    """The Hub's word for a number of records."""
    return next((word for limit, word in SIZES if num_records < limit), "n>1T")


def split_front_matter(text: str) -> tuple[dict[str, Any], str]:
    """Return (YAML, body) of a README."""
    match = FRONT_MATTER.match(text)
    if match is None:
        return {}, text
    try:
        data = yaml.safe_load(match[1])
    except yaml.YAMLError:  # not worth a run: it stays in the body, for its author to see
        return {}, text
    return (data if isinstance(data, dict) else {}), text[match.end() :]


def replace_generated(body: str, generated: str) -> str:
    """Put the generated part where the old one was, or in front of what is there."""
    part, body = f"{BEGIN}\n\n{generated}\n\n{END}", body.lstrip("\r\n")
    before, found, rest = body.partition(BEGIN)
    _, found_end, after = rest.partition(END)
    if found and found_end:
        return f"{before}{part}{after}"
    return f"{part}\n\n{body.strip()}\n" if body.strip() else f"{part}\n"


def merge_data(old: Mapping[str, Any], new: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
    """Keep what a person set; configurations and tags of other jobs stay beside ours, which are those in `names`."""
    merged = {**new, **{key: value for key, value in old.items() if key not in ("configs", "dataset_info", "tags")}}
    merged["size_categories"] = new["size_categories"]
    for key in ("configs", "dataset_info"):
        mine = list(new.get(key, []))
        kept = _listed(old.get(key))
        parts = mine + [p for p in kept if isinstance(p, dict) and p.get("config_name", "default") not in names]
        if parts:
            merged[key] = parts
        else:
            merged.pop(key, None)
    merged["tags"] = list(dict.fromkeys([*new["tags"], *_listed(old.get("tags"))]))
    return merged


def _listed(value: Any) -> list[Any]:
    """One thing or several, as YAML has it."""
    return [] if not value else list(value) if isinstance(value, list) else [value]


def code(value: object) -> str:
    """Text as code in a cell of a Markdown table: on one line, with fences longer than its own backticks."""
    text = str(value).replace("\n", "\\n").replace("|", "\\|")
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence} {text} {fence}" if "`" in text else f"`{text}`"

"""The job: one frozen, checked description of what is made. It is stored beside the data and inside every chunk.

A job is *asked for* with flags, a TOML file or a preset, where many options are None ("find out"). It is *settled* once,
when a dataset is begun: revisions become commit shas, `dtype`, `pooling`, `max_length` and `chunk_rows` become values. Every
later run adopts the settled job, on any machine, so that a dataset never changes its meaning half way.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import Field, asdict, dataclass, fields, replace
from typing import Any

from builders.engines import ENGINES, engine_problem, same_vectors
from builders.image_options import ImageOptions
from builders.logits_options import LogitsOptions
from builders.options import ConfigError, check_fields, option
from builders.text import TextView

# at most one of each
EXCLUSIVE = (("limit", "sample_per_source"), ("fields", "text_template"), ("instruction", "prompt_name"))
PINNED = {"revision": "source", "model_revision": "model"}  # a revision says something of one name only
NAME = re.compile(r"\w[\w.-]*")  # of a folder of the output and in the card: no slash, no glob
STORAGE_DTYPES = ("float32", "float16", "int8", "binary")
BUILDS = ("embeddings", "logits", "lengths")
POOLINGS = ("mean", "last", "cls", "max", "mean-sqrt-len", "weighted-mean")  # logits-mean stands alone
LOCAL_SHA = "sha256:"  # prefix of the revision of a local file or folder: a hash of its content


@dataclass(frozen=True, kw_only=True)
class Job(ImageOptions, LogitsOptions):
    """What is made, from what, with which model. Options with `values=False` decide how or where, never what."""

    build: str = option("embeddings", "what to make", group="Output", choices=BUILDS)
    output: str | None = option(
        None,
        "Hub dataset (user/name) or folder (./out) that receives the chunks [required]",
        group="Output",
        values=False,
    )
    private: bool = option(True, "keep a new Hub dataset private", group="Output", values=False)
    config_name: str = option("default", "name of the configuration within the dataset", group="Output")

    source: str | None = option(
        None,
        "Hub dataset, or local .parquet/.jsonl path or glob, or demo:chat [required]",
        group="Source",
        values=False,
    )
    source_config: str | None = option(None, "configuration of the source dataset [its default]", group="Source")
    split: str = option("train", "split of the source", group="Source")
    revision: str | None = option(
        None, "revision of the source; pinned to its commit sha [the newest]", group="Source"
    )
    limit: int | None = option(None, "only the first N rows [all]", group="Source", minimum=1)
    sample_per_source: int | None = option(
        None, "N rows drawn uniformly from each value of --source-column [all]", group="Source", minimum=1
    )
    seed: int = option(0, "seed of every draw", group="Source")
    messages_column: str = option("messages", "column that holds the chat", group="Source")
    id_column: str = option("id", "column carried as id, where there is one", group="Source")
    source_column: str = option("dataset_source", "column that says where a row comes from", group="Source")

    text_template: str | None = option(
        None,
        "text to embed, of fields and columns [{user_prompt}, {response_text} and {think_text}, by blank lines]",
        group="Text",
    )
    fields: tuple[str, ...] = option(
        (), "one vector for each of these fields, as in think,response [one of all]", group="Text"
    )
    count: str | None = option(
        None,
        "what a lengths build counts: chats as the chat template prints them, or texts as an embeddings build has them "
        "[chat, where there is a --messages-column]",
        group="Text",
        choices=("chat", "text"),
    )
    turns: str = option("last", "which turns of the chat the fields hold", group="Text", choices=("last", "all"))
    system: bool = option(False, "put the system prompt in front", group="Text")
    instruction: str | None = option(None, "text in front of every text [the model's own prompt]", group="Text")
    prompt_name: str | None = option(
        None,
        "the model's own prompt of this name as --instruction, as in query [its default]",
        group="Text",
        values=False,
    )
    max_length: int | None = option(None, "tokens per text [the model's limit]", group="Text", minimum=2)
    truncate: str = option(
        "end",
        "what is cut from a text that is too long",
        group="Text",
        choices=("end", "start", "middle", "balanced"),
    )
    empty_text: str | None = option(None, "embed this where the text is empty [skip the row]", group="Text")
    keep_text: bool = option(False, "store the text beside its vector", group="Text")
    keep_messages: bool = option(
        False, "store the chat in a column `messages`, which the Hub's viewer shows as one", group="Text", late=True
    )

    model: str | None = option(
        None,
        "Hub model, local folder or .gguf file, or package:NAME/PATH in a Python package [required]",
        group="Model",
        values=False,
    )
    model_revision: str | None = option(None, "revision of the model; pinned to its sha [the newest]", group="Model")
    engine: str = option("transformers", "what runs the model", group="Model", choices=ENGINES)
    dtype: str | None = option(
        None,
        "dtype of the weights [bfloat16 where the device is fast at it]",
        group="Model",
        choices=("float32", "bfloat16", "float16"),
    )
    pooling: str | None = option(
        None,
        f"how token vectors become one: {', '.join(POOLINGS)}, several as in cls+mean, or logits-mean "
        "[the model's files, else last]",
        group="Model",
    )
    layer: int = option(-1, "hidden state that is pooled: -1 the last, 0 the embeddings", group="Model")
    normalize: bool | None = option(
        None, "scale every vector to length 1 [as a sentence-transformers model's files say, else yes]", group="Model"
    )
    dimensions: int | None = option(
        None, "keep the first N dimensions (Matryoshka) [the model's files, else all]", group="Model", minimum=1
    )
    modules: tuple[str, ...] = option(
        (), "what a sentence-transformers model has beside transformer and pooling", group="Model", settled=True
    )
    trust_remote_code: bool = option(False, "run Python code that comes with the model", group="Model")
    storage_dtype: str = option(
        "float32", "how vectors are stored; binary: one bit a value", group="Output", choices=STORAGE_DTYPES
    )

    chunk_rows: int | None = option(
        None, "rows per unit and chunk file [from a measured pilot]", group="Output", minimum=1
    )
    upload_size_mb: float = option(
        100.0,
        "size that a chunk should have, MB, where --chunk-rows is not given",
        group="Output",
        minimum=0.01,
        values=False,
    )
    updated_from: str | None = option(
        None, "revision whose records were carried over", group="Output", values=False, settled=True
    )

    def __post_init__(self) -> None:
        """Check every option alone and together.

        Raises:
            ConfigError: with the flag, the value and what would be right.
        """
        check_fields(self)
        if self.sample_per_source is not None and self.limit is not None:
            raise ConfigError("--limit and --sample-per-source exclude each other: give one of them")
        for flag, name in (("--config-name", self.config_name), ("--split", self.split)):
            if not NAME.fullmatch(name):
                raise ConfigError(f"{flag} is {name!r}: it names a folder, of letters, digits, '_', '-' and '.'")
        if self.config_name in ("data", "skipped", "_stillroom"):
            raise ConfigError(f"--config-name {self.config_name!r} is a folder of the output: choose another name")
        self._check_vectors()
        if self.fields and self.text_template is not None:
            raise ConfigError("--fields and --text-template exclude each other: a field is a text of its own")
        if self.build == "logits":
            self.check_logits()
        if problem := engine_problem(self.engine, self.build, self.pooling, self.layer):
            raise ConfigError(problem)
        self.check_images(self.build, self.engine, self.pooling, bool(self.fields))
        try:
            self.view  # noqa: B018  # its own checks
        except ValueError as error:
            raise ConfigError(str(error)) from error

    def _check_vectors(self) -> None:
        if self.pooling is not None and self.pooling != "logits-mean":
            unknown = [word for word in self.pooling.split("+") if word not in POOLINGS]
            if unknown:
                known = f"{', '.join(POOLINGS)}, several as in cls+mean, or logits-mean"
                raise ConfigError(f"--pooling is {self.pooling!r}: choose one of {known}")
        if self.instruction is not None and self.prompt_name is not None:
            raise ConfigError("--instruction and --prompt-name exclude each other: give one of them")
        if self.storage_dtype == "float16" and self.normalize is False:
            raise ConfigError("--storage-dtype float16 holds no value over 65,504: normalise, or store float32")

    @property
    def view(self) -> TextView:
        """The text view: which text of a row is embedded."""
        return TextView(
            template=self.text_template,
            fields=self.fields,
            turns=self.turns,  # type: ignore[arg-type]
            system=self.system,
            messages_column=self.messages_column,
            empty_text=self.empty_text,
        )

    @property
    def fingerprint(self) -> str:
        """64 hex digits over every option that decides what is written. Machine, batch size and paths are not in it."""
        return hashlib.sha256(json.dumps(self.values, sort_keys=True).encode()).hexdigest()

    @property
    def values(self) -> dict[str, Any]:
        """The options in the fingerprint, as JSON types."""
        chosen = (spec for spec in fields(self) if spec.metadata["values"])
        found = {spec.name: _plain(getattr(self, spec.name)) for spec in chosen if not self._is_late(spec)}
        return {**found, "engine": same_vectors(self.engine)}

    def _is_late(self, spec: Field[Any]) -> bool:
        """Whether an option is left out of the fingerprint, as older jobs had none of it."""
        return bool(spec.metadata["late"]) and getattr(self, spec.name) == spec.default

    def to_dict(self) -> dict[str, Any]:
        """All options as JSON types, for `_stillroom/job.json`, chunk metadata and the card."""
        return {name: _plain(value) for name, value in asdict(self).items()}

    def differences(self, other: Job) -> list[str]:
        """One line for each option of the fingerprint that differs: `name: mine -> other's`."""
        mine, theirs = self.values, other.values
        changed = [name for name in {**mine, **theirs} if mine.get(name) != theirs.get(name)]
        return [f"{name}: {_plain(getattr(self, name))!r} -> {_plain(getattr(other, name))!r}" for name in changed]

    def adopt(self, settled: Job) -> Job:
        """Fill what this job leaves open (None) from the settled job of the same output.

        The hash of local files is never adopted: it is taken again, so that changed files show as a difference. Nor is
        what this job excludes, or the revision of another source or model: these are differences, too.
        """
        found = {}
        for spec in fields(self):
            value = getattr(settled, spec.name)
            if getattr(self, spec.name) is None and not self._is_own(spec.name, value, settled):
                found[spec.name] = value
        return replace(self, **found)

    def _is_own(self, name: str, value: Any, settled: Job) -> bool:
        """Whether an open option must be found anew, not taken from the settled job."""
        of = PINNED.get(name)
        is_other = of is not None and getattr(self, of) not in (None, getattr(settled, of))
        is_local = isinstance(value, str) and value.startswith(LOCAL_SHA)
        return is_local or is_other or any(name in pair and any(getattr(self, n) for n in pair) for pair in EXCLUSIVE)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value

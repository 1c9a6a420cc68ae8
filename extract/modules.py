"""The modules that a sentence-transformers model is made of, from its modules.json. Loads no weights and no library.

What would give other vectors than the library is refused in one line that names the module. Files of sentence-transformers
6.2 and of all versions before it: https://sbert.net/docs/package_reference/sentence_transformer/modules.html
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builders.options import ConfigError

LIBRARY = "sentence_transformers."  # a module of another package is code that comes with the model
INPUTS = ("Transformer", "StaticEmbedding")
STEPS = ("Dense", "LayerNorm", "Normalize")
NOTHING = ("Dropout",)  # modules that only train
WEIGHTS = "model.safetensors"
VECTOR = "sentence_embedding"  # what steps work on; "token_embeddings" is that of multi-vector models
# the library's names, in the order in which files of flags concatenate them
POOLING_NAMES = {
    "cls": "cls",
    "max": "max",
    "mean": "mean",
    "mean_sqrt_len_tokens": "mean-sqrt-len",
    "weightedmean": "weighted-mean",
    "lasttoken": "last",
}
FLAGS = {  # of files before version 6
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
STATIC_NAMES = ("embedding.weight", "embeddings")  # of sentence-transformers, of model2vec
# classes of torch.nn that take no argument; any other name would be code of the model's choice
ACTIVATIONS = (
    *("Identity", "Tanh", "Sigmoid", "ReLU", "ReLU6", "LeakyReLU", "GELU", "SiLU", "ELU", "SELU", "CELU", "Mish"),
    *("Softplus", "Softsign", "Hardtanh", "Hardswish", "LogSigmoid", "Tanhshrink"),
)


@dataclass(frozen=True)
class Step:
    """One module behind the pooling. A Dense layer maps `size_in` dimensions to `size_out`; the others keep them."""

    kind: str  # one of STEPS
    path: str  # its folder, relative to the model's
    size_in: int = 0
    size_out: int = 0
    bias: bool = True
    activation: str = "Identity"  # one of ACTIVATIONS
    residual: bool = False

    def __str__(self) -> str:
        """As in the card: `Dense(384 -> 128, Tanh)`."""
        if self.kind != "Dense":
            return self.kind
        return f"Dense({self.size_in} -> {self.size_out}, {self.activation}{', residual' * self.residual})"


@dataclass(frozen=True)
class Modules:
    """What a model's files say of its parts. A model without modules.json has its transformer alone."""

    is_listed: bool = False  # there is a modules.json
    is_static: bool = False  # one vector per token, no transformer
    path: str = ""  # folder of the first module
    pooling: str | None = None  # in our words, as `mean` or `cls+mean`
    include_prompt: bool = True  # whether tokens of the prompt are pooled
    lower_case: bool = False  # of all text, whatever the tokenizer does
    max_length: int | None = None
    steps: tuple[Step, ...] = ()

    @property
    def weights(self) -> tuple[Path, ...]:
        """Files of weights that are not a transformer's, relative to the model's folder; of a static model the first."""
        paths = [self.path] if self.is_static else []
        paths += [step.path for step in self.steps if step.kind != "Normalize"]
        return tuple(Path(path) / WEIGHTS for path in paths)

    @property
    def is_normalized(self) -> bool:
        """Whether vectors have length 1 as the model gives them; a model that says nothing of it is asked to."""
        return not self.is_listed or (bool(self.steps) and self.steps[-1].kind == "Normalize")

    @property
    def words(self) -> tuple[str, ...]:
        """What the job keeps of it: all that is not said by the pooling and by the length of vectors."""
        facts = {"StaticEmbedding": self.is_static, "lower case": self.lower_case}
        facts["prompt not pooled"] = not self.include_prompt
        steps = self.steps[:-1] if self.is_normalized else self.steps
        return (*(fact for fact, is_so in facts.items() if is_so), *map(str, steps))

    def size(self, width: int, pooling: str) -> int:
        """Dimensions of the vectors, from those of a token and how these are pooled.

        Raises:
            ConfigError: a Dense layer takes another number of dimensions than the pooling gives.
        """
        size = width * (1 + pooling.count("+"))
        for step in self.steps:
            if step.kind == "Dense" and size and step.size_in != size:
                raise ConfigError(f"--pooling {pooling} gives {size} dimensions, and the model's {step} takes others")
            size = step.size_out or size
        return size


def read_modules(folder: Path) -> Modules:
    """Read what a model is made of.

    Raises:
        ConfigError: it has a module that stillroom does not run.
    """
    listed = read_json(folder / "modules.json")
    if not listed:
        return Modules(lower_case=bool(_transformer(folder).get("do_lower_case")), **_limit(_transformer(folder)))
    names = [_name(folder, module) for module in listed]
    if names[0] not in INPUTS:
        raise _refused(folder, names[0], "in front")
    is_static = names[0] == "StaticEmbedding"
    paths = [str(module.get("path") or "") for module in listed]
    begin = 1 if is_static else 2
    if not is_static and names[1:2] != ["Pooling"]:
        raise _refused(folder, names[1] if names[1:] else "Transformer", "where a Pooling is expected")
    config = {} if is_static else _transformer(folder / paths[0])
    _check_input(folder, config)
    pooled = {} if is_static else read_json(folder / paths[1] / "config.json")
    return Modules(
        is_listed=True,
        is_static=is_static,
        path=paths[0],
        pooling="mean" if is_static else _pooling(pooled),
        include_prompt=bool(pooled.get("include_prompt", True)),
        lower_case=bool(config.get("do_lower_case")),
        steps=tuple(_steps(folder, names[begin:], paths[begin:])),
        **_limit(config),
    )


def _name(folder: Path, module: Mapping[str, Any]) -> str:
    """The class of a module; one of another package keeps its package, so that no list has it."""
    kind = str(module.get("type"))
    return kind.rsplit(".", 1)[-1] if kind.startswith(LIBRARY) else kind


def _refused(folder: Path, name: str, where: str = "") -> ConfigError:
    place = f" {where}" if where and name in (*INPUTS, *STEPS, "Pooling") else ""
    return ConfigError(f"--model: {folder.name} has a {name} module{place}, which stillroom does not run")


def _transformer(folder: Path) -> dict[str, Any]:
    """The file of the Transformer module; its name once had the architecture in it."""
    return next((read_json(path) for path in sorted(folder.glob("sentence_*_config.json"))), {})


def _limit(config: Mapping[str, Any]) -> dict[str, Any]:
    return {"max_length": config.get("max_seq_length")}


def _check_input(folder: Path, config: Mapping[str, Any]) -> None:
    """Text must go through the model as it is, and its last hidden state be taken."""
    text = (config.get("modality_config") or {}).get("text", {})
    name = text.get("method_output_name") or "last_hidden_state"
    task = config.get("transformer_task") or "feature-extraction"
    output = config.get("module_output_name") or "token_embeddings"
    is_plain = text.get("method", "forward") == "forward" and output == "token_embeddings"
    if task != "feature-extraction" or name != "last_hidden_state" or not is_plain:
        raise ConfigError(
            f"--model: the Transformer module of {folder.name} gives {output!r}, from {name!r} of {task!r}, "
            "which stillroom does not run"
        )


def _pooling(config: Mapping[str, Any]) -> str:
    """The modes are a word or a list in files of sentence-transformers 6, and flags in older ones; none on is `mean`."""
    named = config.get("pooling_mode")
    modes = [named] if isinstance(named, str) else list(named or [])
    modes = modes or [mode for flag, mode in FLAGS.items() if config.get(flag)] or ["mean"]
    unknown = [mode for mode in modes if mode not in POOLING_NAMES]
    if unknown:
        raise ConfigError(f"--model has a Pooling module of mode {unknown[0]!r}, which stillroom does not run")
    return "+".join(POOLING_NAMES[mode] for mode in modes)


def _steps(folder: Path, names: list[str], paths: list[str]) -> Iterator[Step]:
    for name, path in zip(names, paths, strict=True):
        if name in NOTHING:
            continue
        if name not in STEPS:
            raise _refused(folder, name, "behind its first ones")
        config = read_json(folder / path / "config.json") if path else {}
        names_used = {config.get("module_input_name") or VECTOR, config.get("module_output_name") or VECTOR}
        if names_used != {VECTOR}:
            raise ConfigError(
                f"--model: the {name} module of {folder.name} works on "
                f"{', '.join(sorted(names_used - {VECTOR}))}, which stillroom does not run"
            )
        yield _dense(folder, path, config) if name == "Dense" else Step(name, path)


def _dense(folder: Path, path: str, config: Mapping[str, Any]) -> Step:
    activation = str(config.get("activation_function") or "torch.nn.modules.activation.Tanh")
    word = activation.rsplit(".", 1)[-1]
    if not activation.startswith("torch.nn.") or word not in ACTIVATIONS:
        raise ConfigError(
            f"--model: the Dense module of {folder.name} has the activation {activation!r}, which stillroom does not run"
        )
    sizes = int(config.get("in_features") or 0), int(config.get("out_features") or 0)
    if not all(sizes):
        raise ConfigError(f"--model: the Dense module of {folder.name} does not say its in_features and out_features")
    return Step("Dense", path, *sizes, bool(config.get("bias", True)), word, bool(config.get("use_residual")))


def read_json(path: Path) -> Any:
    """Return the content of a JSON file; {} where there is none.

    Raises:
        ConfigError: it is no JSON.
    """
    try:
        return json.loads(path.read_text()) if path.exists() else {}
    except ValueError as error:
        raise ConfigError(f"--model: {path} is not valid JSON: {error}") from None


def static_width(path: Path) -> int:
    """Dimensions of the token vectors in a static model's file: its header says so."""
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        name = next((name for name in STATIC_NAMES if name in file.keys()), None)  # noqa: SIM118  # no mapping
        if name is None:
            raise ConfigError(f"--model: {path} has no {STATIC_NAMES[0]}, so it is no StaticEmbedding")
        return int(file.get_slice(name).get_shape()[1])

"""GGUF models: their weights become a folder that transformers loads, once."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

from builders.files import file_sha256
from builders.options import ConfigError
from extract.settings import Settings

logger = logging.getLogger(__name__)

SUFFIX = ".gguf"


def converted(path: Path) -> Path:
    """Return the folder of a GGUF file's model, with float32 safetensors; the first call takes some seconds per 100 MB.

    It stands in the cache of the machine, named by the file's SHA-256, and made by a rename: it is whole or not there.

    Raises:
        ConfigError: the package `gguf` is missing, or transformers does not know the architecture.
    """
    folder = Settings().cache / "models" / file_sha256(path)[:16]
    if (folder / "config.json").exists():
        return folder
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    transformers.utils.logging.disable_progress_bar()
    logger.info("converting %s, which is done once", path.name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".gguf.") as made:
        part = Path(made) / "model"
        try:
            AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(part)
            model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
        except ImportError as error:
            raise ConfigError(f"--model {path.name}: GGUF files need `pip install gguf`: {error}") from error
        except (OSError, ValueError) as error:
            raise ConfigError(f"--model {path.name}: {' '.join(str(error).split())[:300]}") from error
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config  # the weights are plain, and could not be saved with it
        plain = AutoModelForCausalLM.from_config(model.config)
        plain.load_state_dict(model.state_dict())
        plain.save_pretrained(part)
        try:
            part.rename(folder)
        except OSError:  # another process was faster
            if not (folder / "config.json").exists():
                raise
    return folder

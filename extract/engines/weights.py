"""A model of the transformers library with its weights, whole or not at all."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers.utils import is_flash_attn_2_available

from extract.engines import EngineError
from extract.model_files import load_problem


def load_weights(
    auto_class: Any, location: tuple[str, str | None], dtype: str, device: str, *, shown: str, **arguments: Any
) -> Any:
    """Return the model that an auto class of transformers finds at (folder or Hub id, revision), ready to run.

    It is on `device`, unless `arguments` has a `device_map`. `shown` is its name in errors.

    Raises:
        EngineError: it cannot be loaded, or lacks weights, which transformers would draw at random.
    """
    name, revision = location
    arguments |= {"revision": revision, "dtype": getattr(torch, dtype), "use_safetensors": True}
    if device.startswith("cuda") and dtype != "float32" and is_flash_attn_2_available():
        arguments["attn_implementation"] = "flash_attention_2"  # else what the model takes by itself: SDPA
    log = transformers.utils.logging
    verbosity = log.get_verbosity()
    log.disable_progress_bar()
    log.set_verbosity_error()  # its table of weights that are missing: one line of ours says that
    try:
        model, found = auto_class.from_pretrained(name, output_loading_info=True, **arguments)
        _check_whole(shown, found["missing_keys"])
        return model.eval() if "device_map" in arguments else model.eval().to(device)
    except EngineError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        raise EngineError(f"--model {shown} cannot be loaded: {load_problem(error)}") from error
    finally:
        log.set_verbosity(verbosity)


def _check_whole(shown: str, missing: Any) -> None:
    """The pooler of an encoder is often not there, and nothing of stillroom runs it."""
    lacking = sorted(key for key in missing if "pooler" not in key.split("."))
    if lacking:
        raise EngineError(
            f"--model {shown} lacks {len(lacking)} of the weights that it needs here, as {lacking[0]}: "
            "is it a model of another kind?"
        )

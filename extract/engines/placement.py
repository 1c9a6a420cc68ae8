"""Where the layers of a model go that does not fit one device."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from builders.options import ConfigError

SHARE = 0.8  # of a device's free memory that weights may take; hidden states, logits and their sort need the rest


def spread(device_map: str, max_memory: Sequence[str]) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` that put layers on this worker's devices, the rest on the CPU.

    The workers of a machine share its devices in equal blocks: of 8 devices, the second of two workers has 4 to 7.
    `max_memory` limits the weights on devices of that numbering, as in `0=60GiB`, or on the `cpu`.

    Raises:
        ConfigError: a limit cannot be read, or there are more workers than devices.
    """
    limits = parse_memory(max_memory)
    free = own_memory()
    unknown = limits.keys() - free.keys()
    if unknown:
        names = ", ".join(str(name) for name in free)
        raise ConfigError(f"--max-memory {sorted(map(str, unknown))[0]}=…: the devices of this worker are {names}")
    return {"device_map": device_map, "max_memory": {**free, **limits}}


def parse_memory(given: Sequence[str]) -> dict[int | str, int]:
    """Return bytes by device: `("0=60GiB", "cpu=200GB")` gives {0: 64424509440, "cpu": 200000000000}.

    Raises:
        ConfigError: a limit cannot be read.
    """
    from accelerate.utils import convert_file_size_to_int

    limits: dict[int | str, int] = {}
    for part in given:
        name, _, limit = part.strip().partition("=")
        try:
            limits["cpu" if name.lower() == "cpu" else int(name)] = convert_file_size_to_int(limit)
        except (ValueError, OverflowError):  # the latter of an infinite one
            message = f"--max-memory is {part!r}: write a device and its limit, as in 0=60GiB,cpu=200GiB"
            raise ConfigError(message) from None
    return limits


def own_memory() -> dict[int | str, int]:
    """Return the bytes of weights that fit on each device of this worker, and on the CPU.

    Raises:
        ConfigError: there are more workers on this machine than devices.
    """
    import torch
    from accelerate.utils import get_max_memory

    rank, workers = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    num_devices = torch.accelerator.device_count() if torch.accelerator.is_available() else 0
    if 0 < num_devices < workers:
        raise ConfigError(
            f"--device-map with {workers} workers on {num_devices} devices: launch at most {num_devices} workers"
        )
    memory: Mapping[int | str, int] = get_max_memory()
    own = range(rank * num_devices // workers, (rank + 1) * num_devices // workers)
    return {n: int(memory[n] * SHARE) for n in own} | {"cpu": int(memory["cpu"] / workers * SHARE)}

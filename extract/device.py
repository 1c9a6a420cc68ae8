"""Which device a worker computes on, and in which dtype. Torch is imported only when asked."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from builders.engines import SERVERS
from builders.options import ConfigError


def default_device() -> str:
    """Name the accelerator of this worker by its local rank, else the CPU."""
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return "cpu"
    return f"{accelerator.type}:{int(os.environ.get('LOCAL_RANK', 0)) % torch.accelerator.device_count()}"


def check_device(name: str) -> None:
    """Refuse a device that torch does not have here.

    Raises:
        ConfigError: with those that it has.
    """
    import torch

    try:
        torch.empty(0, device=name)
    # an unknown kind, a number too high; a kind that this torch was not built for
    except (RuntimeError, AssertionError):
        kind = torch.accelerator.current_accelerator(check_available=True)
        found = [f"{kind.type}:{number}" for number in range(torch.accelerator.device_count())] if kind else []
        raise ConfigError(f"--device {name}: there is no such device; here are {', '.join([*found, 'cpu'])}") from None


def pin_device(device: str | None) -> None:
    """Show this process its own GPU alone, for a library that takes the first it sees. Call it before torch counts them.

    `device` is as in cuda:1; without one it is the local rank's.
    """
    number = int(device.partition(":")[2] or 0) if device else int(os.environ.get("LOCAL_RANK", 0))
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    os.environ["CUDA_VISIBLE_DEVICES"] = visible[number % len(visible)] if visible else str(number)


def best_dtype(device: str) -> str:
    """bfloat16 where the device multiplies it in hardware; elsewhere it is up to 100 times slower than float32."""
    import torch

    if device.startswith("cuda"):
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    if device != "cpu":
        return "bfloat16"
    return "bfloat16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "float32"


def processor() -> str:
    """Name the processor of this machine."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def hardware(build: str, engine: str, device: str | None) -> str:
    """Name what a worker computes on, for the card: a GPU, the processor, or the server that it asks."""
    if engine in SERVERS:
        return f"{engine} server"
    name = "cpu" if build == "lengths" or engine == "fake" else device or default_device()
    if name.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(name)
    return processor() if name == "cpu" else name

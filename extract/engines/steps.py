"""The modules of a sentence-transformers model that stand behind its pooling, with their weights, in float32."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from extract.engines import EngineError
from extract.model_files import ModelFiles
from extract.modules import WEIGHTS, Step


class Dense(nn.Module):
    """activation(linear(x)), plus x where it is residual; through a projection where dimensions differ."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.linear = nn.Linear(step.size_in, step.size_out, bias=step.bias)
        self.is_residual = step.residual
        if step.residual and step.size_in != step.size_out:
            self.residual = nn.Linear(step.size_in, step.size_out, bias=False)
        self.activation_function: nn.Module = getattr(nn, step.activation)()  # a name of an allow-list

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, size_in]."""
        out: Tensor = self.activation_function(self.linear(x))
        if not self.is_residual:
            return out
        return out + (self.residual(x) if hasattr(self, "residual") else x)


class LayerNorm(nn.Module):
    """LayerNorm over all dimensions, under the name that the library gives its weights."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(size)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, size]."""
        normed: Tensor = self.norm(x)
        return normed


class Normalize(nn.Module):
    """Length 1."""

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, D]."""
        return nn.functional.normalize(x, dim=-1)


def load_steps(files: ModelFiles, device: torch.device) -> nn.Sequential:
    """Return what maps pooled vectors float32 [B, D] to those of the model; nothing where it has no such modules.

    Raises:
        EngineError: the weights are not those of the module.
    """
    return nn.Sequential(*(_load(step, files.root) for step in files.modules.steps)).eval().to(device)


def _load(step: Step, root: Path) -> nn.Module:
    if step.kind == "Normalize":
        return Normalize()
    from safetensors.torch import load_file

    weights = {name: tensor.float() for name, tensor in load_file(root / step.path / WEIGHTS).items()}
    module = Dense(step) if step.kind == "Dense" else LayerNorm(len(weights.get("norm.weight", ())))
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        text = " ".join(str(error).split())[:200]
        raise EngineError(f"--model: {step.path}/{WEIGHTS} is not of the {step}: {text}") from error
    return module

"""What stands between the linear layers of a bfloat16 model on a CPU, each in one compiled pass (layers.c).

torch takes one pass for each operation: residual and layer norm of 2,048 x 384 take 450 µs there and 150 here, an RMS norm of
transformers eight passes. Every module is tried against the one whose place it takes, which stays where values differ.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor, nn

from extract.engines.compiled import load_library
from extract.engines.linears import PackedLinear
from extract.engines.swaps import Swaps, has_hooks

WIDTH = 32  # values that a loop of layers.c takes at a time
MAX_SIZE = 2**14  # of a row: one stands on the stack, in float32
TRIED_ROWS = 5
TOLERANCE = 0.03  # bfloat16 rounds by 0.4 %, more than once
OUTPUT = {"dense", "LayerNorm", "dropout"}  # of BERT and its kin: LayerNorm(dropout(dense(x)) + residual)
UNIT = {"gate_proj", "up_proj", "down_proj", "act_fn"}  # of Llama and its kin: down(act(gate(x)) * up(x))


class Compiled(nn.Module):
    """A module that takes another's place."""

    sizes: tuple[int, ...]  # last axes of its inputs


class Norm(Compiled):
    """A layer norm or an RMS norm, of x + residual where there is one."""

    def __init__(self, norm: nn.Module, library: ctypes.CDLL) -> None:
        super().__init__()
        self.is_centered = isinstance(norm, nn.LayerNorm)
        self.epsilon = float(norm.eps if self.is_centered else norm.variance_epsilon)  # type: ignore[arg-type]
        weight, bias = norm.weight, getattr(norm, "bias", None)
        assert isinstance(weight, Tensor)
        self.size = len(weight)
        self.sizes = (self.size,)
        self.scale = weight.detach().float()
        self.shift = torch.zeros(self.size) if bias is None else bias.detach().float()
        self.norm = library.norm

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x, residual: bfloat16 [..., size]. RuntimeError: they are something else."""
        x = x.contiguous()
        return self.into(torch.empty_like(x), x, residual)

    def into(self, out: Tensor, x: Tensor, residual: Tensor | None) -> Tensor:
        """Write to `out`, which may be x. Both are contiguous."""
        other = x if residual is None else residual.contiguous()
        if not x.dtype == other.dtype == torch.bfloat16 or x.shape != other.shape or x.shape[-1] != self.size:
            raise RuntimeError("a norm of something else than bfloat16 rows")
        pointers = (x.data_ptr(), None if residual is None else other.data_ptr(), self.scale.data_ptr())
        sizes = (x.numel() // self.size, self.size, self.epsilon, self.is_centered)
        self.norm(*pointers, self.shift.data_ptr(), out.data_ptr(), *sizes)
        return out


class Output(Compiled):
    """The end of a block of BERT: a linear layer, the residual and a layer norm."""

    def __init__(self, dense: PackedLinear, norm: Norm) -> None:
        super().__init__()
        self.dense, self.norm = dense, norm
        self.sizes = (dense.in_features, norm.size)

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        """Both bfloat16 [..., D]."""
        x = self.dense(hidden_states)
        return self.norm.into(x, x, input_tensor)  # no one else has seen x


class GatedUnit(Compiled):
    """The feed-forward unit of Llama: down(silu(gate(x)) * up(x))."""

    def __init__(
        self, gate_proj: PackedLinear, up_proj: PackedLinear, down_proj: PackedLinear, library: ctypes.CDLL
    ) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = gate_proj, up_proj, down_proj
        self.sizes = (gate_proj.in_features,)
        self.gate = library.gate

    def forward(self, x: Tensor) -> Tensor:
        """x: bfloat16 [..., D]."""
        gate, up = self.gate_proj(x), self.up_proj(x)
        self.gate(gate.data_ptr(), up.data_ptr(), gate.numel())
        out: Tensor = self.down_proj(gate)
        return out


def pack_layers(model: nn.Module, swaps: Swaps) -> None:
    """Replace norms and what stands around them, where the linear layers are packed and there is a compiler."""
    library = load_library()
    if library is None:
        return
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            new = _compiled(child, library)
            if new is not None and _is_same(child, new):
                swaps.put(parent, name, new)


def _compiled(module: nn.Module, library: ctypes.CDLL) -> Compiled | None:
    """What could take a module's place."""
    children = dict(module.named_children())
    if has_hooks(module) or any(map(has_hooks, children.values())):
        return None
    if _is_norm(module):
        return Norm(module, library)
    linears = {name: child for name, child in children.items() if isinstance(child, PackedLinear)}
    if children.keys() == OUTPUT and _is_norm(children["LayerNorm"]) and "dense" in linears:
        return Output(linears["dense"], Norm(children["LayerNorm"], library))
    if children.keys() == UNIT and len(linears) == 3 and linears["gate_proj"].out_features % WIDTH == 0:
        return GatedUnit(**linears, library=library)
    return None


def _is_norm(module: nn.Module) -> bool:
    is_rms = type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon")
    weight = getattr(module, "weight", None)
    if not (is_rms or type(module) is nn.LayerNorm) or not isinstance(weight, Tensor):
        return False
    return weight.dim() == 1 and len(weight) % WIDTH == 0 and len(weight) <= MAX_SIZE


def _is_same(old: nn.Module, new: Compiled) -> bool:
    """Whether both give the same for some rows."""
    draw = torch.Generator().manual_seed(0)
    inputs = [torch.randn(TRIED_ROWS, size, generator=draw).bfloat16() for size in new.sizes]
    with torch.inference_mode():
        expected, got = (module(*inputs).float() for module in (old, new))
    return torch.allclose(got, expected, rtol=TOLERANCE, atol=TOLERANCE * float(expected.abs().mean()))

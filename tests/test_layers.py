"""What stands between linear layers, compiled: python -m pytest tests/test_layers.py."""

import copy
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from extract.engines import compiled
from extract.engines.layers import GatedUnit, Norm, Output, pack_layers
from extract.engines.linears import pack_linears
from extract.engines.packed import PackedModel
from extract.engines.swaps import Swaps
from tests.test_packed import make, one_by_one, sequences_of

WIDE = {"bert": {"intermediate_size": 64}, "qwen3": {"intermediate_size": 64, "head_dim": 32}}


@pytest.fixture(scope="module", autouse=True)
def library():
    found = compiled.load_library()
    if found is None:
        pytest.skip("no C compiler, or no CPU for it")
    return found


class RMSNorm(nn.Module):
    """As transformers writes it."""

    def __init__(self, size, offset=0.0):
        super().__init__()
        self.weight, self.variance_epsilon, self.offset = nn.Parameter(torch.ones(size)), 1e-6, offset

    def forward(self, x):
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return (self.weight + self.offset) * wide.to(x.dtype)


def drawn(module, seed=0):
    """The module in bfloat16, with weights that are not all one."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return module.bfloat16().eval()


def swapped(model):
    """The kinds of compiled modules of a model, by name."""
    swaps = Swaps()
    pack_linears(model, swaps)
    pack_layers(model, swaps)
    kinds = (GatedUnit, Norm, Output)
    return {name: type(module) for name, module in model.named_modules() if isinstance(module, kinds)}, swaps


norms = st.sampled_from([nn.LayerNorm, lambda size: nn.LayerNorm(size, eps=0.1, bias=False), RMSNorm])


@settings(max_examples=30, deadline=None)
@given(
    make_norm=norms,
    size=st.integers(1, 20).map(lambda n: 32 * n),
    rows=st.integers(0, 9),
    has_residual=st.booleans(),
    offset=st.sampled_from([0.0, 3.0]),
    seed=st.integers(0, 99),
)
def test_a_norm_is_that_of_float32(library, make_norm, size, rows, has_residual, offset, seed):
    norm = drawn(make_norm(size), seed)
    x, residual = (
        offset + torch.randn(1, rows, size, generator=torch.Generator().manual_seed(seed + i)) for i in (0, 1)
    )
    x, residual = x.bfloat16(), residual.bfloat16() if has_residual else None
    before = x.clone()
    got = Norm(norm, library)(x, residual)
    whole = x.float() if residual is None else x.float() + residual.float()
    torch.testing.assert_close(got.float(), copy.deepcopy(norm).float()(whole), rtol=0.01, atol=0.01)
    assert torch.equal(x, before) and got.shape == x.shape and got.dtype == torch.bfloat16


@pytest.mark.parametrize("family", WIDE)
def test_a_model_in_bfloat16_gives_the_same(family):
    plain, model = (make(family, **WIDE[family]).bfloat16() for _ in range(2))
    sequences = sequences_of([40, 3, 57])
    packed = PackedModel(model, 100)
    with torch.inference_mode():
        got, expected = packed(sequences).float(), one_by_one(plain, sequences).float()
    assert nn.functional.cosine_similarity(got, expected, dim=-1).min() > 0.999
    kinds = {type(module) for module in model.modules()}
    assert kinds >= {"bert": {Norm, Output}, "qwen3": {Norm, GatedUnit}}[family]


def test_every_block_of_bert_ends_in_one_module():
    found, swaps = swapped(make("bert").bfloat16())
    ends = {f"encoder.layer.{i}.{name}" for i in range(2) for name in ("attention.output", "output")}
    assert {name for name, kind in found.items() if kind is Output} == ends
    swaps.undo()


def test_what_was_swapped_can_be_swapped_back():
    model = make("qwen3", **WIDE["qwen3"]).bfloat16()
    names, before = [str(module) for module in model.modules()], one_by_one(model, sequences_of([9]))
    found, swaps = swapped(model)
    assert len(found) == 2 * 5 + 1  # two norms of a block, those of query and key, its unit; the last norm
    swaps.undo()
    assert [str(module) for module in model.modules()] == names
    assert torch.equal(one_by_one(model, sequences_of([9])), before)


def test_a_norm_that_computes_something_else_stays():
    model = nn.ModuleDict({"same": drawn(RMSNorm(64)), "gemma": drawn(RMSNorm(64, offset=1.0))})
    found, _ = swapped(model)
    assert found == {"same": Norm}


@pytest.mark.parametrize("what", ["a hook", "a width of 48"])
def test_what_the_code_does_not_take_stays(what):
    norm = drawn(nn.LayerNorm(48 if what == "a width of 48" else 64))
    if what == "a hook":
        norm.register_forward_hook(lambda *args: None)
    found, _ = swapped(nn.Sequential(norm))
    assert not found


def test_a_norm_takes_bfloat16_alone(library):
    norm = Norm(drawn(nn.LayerNorm(64)), library)
    for wrong in (torch.zeros(2, 64), torch.zeros(2, 32).bfloat16()):
        with pytest.raises(RuntimeError, match="something else than bfloat16 rows"):
            norm(wrong)


def test_float32_is_left_alone():
    model = make("bert")
    PackedModel(model, 100)
    assert not any(isinstance(module, Norm | Output) for module in model.modules())


def test_code_that_computes_something_else_is_not_taken(monkeypatch, tmp_path):
    shutil.copytree(compiled.FOLDER, tmp_path, dirs_exist_ok=True)
    source = (tmp_path / "layers.c").read_text()
    assert "variance + epsilon" in source
    (tmp_path / "layers.c").write_text(source.replace("variance + epsilon", "variance + 1.0f"))
    monkeypatch.setattr(compiled, "FOLDER", tmp_path)
    compiled.load_library.cache_clear()
    try:
        found, _ = swapped(make("bert").bfloat16())
        assert not found
    finally:
        compiled.load_library.cache_clear()

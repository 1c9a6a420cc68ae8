"""Batches without padding on a CPU: python -m pytest tests/test_packed.py."""

import logging

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import AutoModel

from extract.engines.linears import pack_linears
from extract.engines.packed import PackedModel, PackedUnsupportedError
from extract.engines.swaps import Swaps

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 300,
    "max_position_embeddings": 128,
    "pad_token_id": 1,
}
CONFIGS = {
    "bert": ("BertConfig", {}),
    "roberta": ("RobertaConfig", {"type_vocab_size": 1}),
    "qwen3": ("Qwen3Config", {"num_key_value_heads": 2, "head_dim": 8}),
}
REFUSED = {
    "gemma2": ("Gemma2Config", {"num_key_value_heads": 2, "head_dim": 8}),  # a soft cap
    "sliding": (
        "Qwen3Config",
        {
            "num_key_value_heads": 2,
            "head_dim": 8,
            "sliding_window": 16,
            "use_sliding_window": True,
            "max_window_layers": 0,
        },
    ),
}


def make(family, **more):
    name, options = (CONFIGS | REFUSED)[family]
    torch.manual_seed(0)
    config = getattr(transformers, name)(**{**SIZES, **options, **more})
    return AutoModel.from_config(config).eval()


def sequences_of(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(2, SIZES["vocab_size"], (n,), generator=generator).tolist() for n in lengths]


@torch.inference_mode()
def one_by_one(model, sequences):
    return torch.cat([model(input_ids=torch.tensor(ids)[None])[0][0] for ids in sequences])


@torch.inference_mode()
def padded(model, sequences):
    width = max(map(len, sequences))
    ids = torch.tensor([s + [SIZES["pad_token_id"]] * (width - len(s)) for s in sequences])
    mask = torch.arange(width)[None] < torch.tensor([len(s) for s in sequences])[:, None]
    return model(input_ids=ids, attention_mask=mask.long())[0][mask]


@pytest.fixture(scope="module", params=CONFIGS)
def pair(request):
    """A model as it came, and the same one packed."""
    return make(request.param), PackedModel(make(request.param), 100)


@settings(max_examples=15)
@given(lengths=st.lists(st.integers(1, 100), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_packed_is_padded_is_one_by_one(pair, lengths, seed):
    plain, packed = pair
    sequences = sequences_of(lengths, seed)
    with torch.inference_mode():
        got = packed(sequences)
    expected = one_by_one(plain, sequences)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(got, padded(plain, sequences), atol=1e-5, rtol=0)


def test_every_hidden_state_is_packed(pair):
    plain, packed = pair
    sequences = sequences_of([5, 17])
    packed.arguments = {"output_hidden_states": True}
    with torch.inference_mode():
        got = packed(sequences, layer=1)
        expected = [plain(torch.tensor(s)[None], output_hidden_states=True).hidden_states[1][0] for s in sequences]
    torch.testing.assert_close(got, torch.cat(expected), atol=1e-5, rtol=0)
    packed.arguments = {}


@pytest.mark.parametrize("family", REFUSED)
def test_a_model_that_needs_more_is_refused_and_left_as_it_came(family):
    model, sequences = make(family), sequences_of([40, 9])
    before = one_by_one(model, sequences)
    with pytest.raises(PackedUnsupportedError):
        PackedModel(model, 100)
    torch.testing.assert_close(one_by_one(model, sequences), before, atol=1e-6, rtol=0)
    torch.testing.assert_close(padded(model, sequences), before, atol=1e-5, rtol=0)


def test_a_window_wider_than_any_text_is_no_window():
    plain, packed = (make("sliding", sliding_window=400) for _ in range(2))
    packed = PackedModel(packed, 100)
    sequences = sequences_of([90, 12])
    with torch.inference_mode():
        torch.testing.assert_close(packed(sequences), one_by_one(plain, sequences), atol=1e-5, rtol=0)


def test_a_model_without_the_attention_interface_is_refused():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.config = make("bert").config
            self.embed = nn.Embedding(SIZES["vocab_size"], 8)
            self.dtype, self.device = torch.float32, torch.device("cpu")

        def set_attn_implementation(self, name):
            pass

        def forward(self, input_ids, position_ids=None):
            return (self.embed(input_ids),)

    with pytest.raises(PackedUnsupportedError, match="does not use the attention interface"):
        PackedModel(Plain(), 100)


def test_linear_layers_are_swapped_and_can_be_swapped_back():
    model, sequences = make("bert"), sequences_of([9])
    before = one_by_one(model, sequences)
    names = [name for name, module in model.named_modules() if type(module) is nn.Linear]
    swaps = Swaps()
    pack_linears(model, swaps)
    assert not [name for name, module in model.named_modules() if type(module) is nn.Linear]
    torch.testing.assert_close(one_by_one(model, sequences), before, atol=1e-5, rtol=0)
    swaps.undo()
    assert [name for name, module in model.named_modules() if type(module) is nn.Linear] == names


def test_a_linear_layer_with_a_hook_stays():
    model = make("bert")
    hooked = model.encoder.layer[0].attention.self.query
    hooked.register_forward_hook(lambda *args: None)
    pack_linears(model, Swaps())
    assert model.encoder.layer[0].attention.self.query is hooked


def test_nothing_is_logged_for_a_model_that_packs(caplog):
    with caplog.at_level(logging.INFO):
        PackedModel(make("bert"), 100)
    assert not caplog.messages


@pytest.mark.parametrize("lengths", [[5, 9], [16], [1]])
def test_kernels_are_built_for_few_numbers_of_rows(lengths):
    """oneDNN keeps each: 2 GB after half an hour of batches of every number of tokens."""
    packed, seen = PackedModel(make("bert"), 100), []
    packed.model.embeddings.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[1]))
    with torch.inference_mode():
        assert packed(sequences_of(lengths)).shape == (sum(lengths), SIZES["hidden_size"])
    assert seen == [16]

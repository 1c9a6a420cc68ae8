"""From token vectors to one vector per text. Works on tokens without padding, one text after the other."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from extract.engines.transfer import send


def pool(hidden_ND: Tensor, lengths: list[int], how: str, skip: int = 0) -> Tensor:  # axes: N tokens, D dimensions
    """Return float32 [B, D] of N tokens in B texts of the given lengths, all at least 1.

    Several ways, as in `cls+mean`, are concatenated. The first `skip` tokens of a text, those of a prompt, are left out, but
    never its last. Sums are taken in float32 whatever the model's dtype. `logits-mean` is pooled as `mean`: the mean of logits
    is the logits of the mean, as the head is linear.
    """
    starts = torch.tensor([0, *lengths[:-1]]).cumsum(0)
    counts = torch.tensor(lengths)
    left_out = (counts - 1).clamp(max=skip)
    parts = [_pool(hidden_ND, starts + left_out, counts - left_out, left_out, way) for way in how.split("+")]
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


def _pool(hidden_ND: Tensor, starts: Tensor, counts: Tensor, before: Tensor, how: str) -> Tensor:
    """Pool `counts` tokens of each text from `starts` on, in front of which the text has `before` tokens; all int64 [B]."""
    device = hidden_ND.device
    if how in ("cls", "last"):
        index = starts if how == "cls" else starts + counts - 1
        return hidden_ND[send(index, device)].float()
    text = torch.repeat_interleave(torch.arange(len(counts)), counts)
    place = torch.arange(len(text)) - (counts.cumsum(0) - counts)[text]  # within its text, from 0
    if len(text) < len(hidden_ND):
        hidden_ND = hidden_ND[send(starts[text] + place, device)]
    text_of_token = send(text, device)
    shape = (len(counts), hidden_ND.shape[1])
    if how == "max":
        lowest = hidden_ND.new_full(shape, -torch.inf, dtype=torch.float32)
        return lowest.scatter_reduce_(0, text_of_token[:, None].expand_as(hidden_ND), hidden_ND.float(), "amax")
    values = hidden_ND.float()
    totals = counts.float()
    if how == "weighted-mean":  # a token weighs its place in the whole text, from 1
        weights = (place + before[text] + 1).float()
        totals = torch.zeros(len(counts)).index_add_(0, text, weights)
        values = values * send(weights, device)[:, None]
    sums = hidden_ND.new_zeros(shape, dtype=torch.float32).index_add_(0, text_of_token, values)
    divisors = totals.sqrt() if how == "mean-sqrt-len" else totals
    return sums / send(divisors, device)[:, None]


def finish(vectors_BD: Tensor, dimensions: int | None, normalize: bool | None) -> Tensor:
    """Keep the first dimensions (Matryoshka), then scale to length 1: in this order, or the length is lost.

    None, as in a job that is not settled, scales.
    """
    vectors_BD = vectors_BD[:, :dimensions]
    return vectors_BD if normalize is False else nn.functional.normalize(vectors_BD, dim=-1)

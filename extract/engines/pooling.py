"""From token vectors to one vector per text. Works on tokens without padding, one text after the other."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def pool(hidden_ND: Tensor, lengths: list[int], how: str) -> Tensor:  # axes: N tokens, D dimensions
    """Return float32 [B, D] of N tokens in B texts of the given lengths, all at least 1.

    Sums are taken in float32 whatever the model's dtype. `logits-mean` is pooled as `mean`: the mean of logits is the logits
    of the mean, as the head is linear.
    """
    if how in ("cls", "last"):
        ends = torch.tensor(lengths).cumsum(0)
        index = ends - 1 if how == "last" else ends - torch.tensor(lengths)
        return hidden_ND[index.to(hidden_ND.device, non_blocking=True)].float()
    text_of_token = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    text_of_token = text_of_token.to(hidden_ND.device, non_blocking=True)
    if how == "max":
        lowest = hidden_ND.new_full((len(lengths), hidden_ND.shape[1]), -torch.inf, dtype=torch.float32)
        return lowest.scatter_reduce_(0, text_of_token[:, None].expand_as(hidden_ND), hidden_ND.float(), "amax")
    sums = hidden_ND.new_zeros((len(lengths), hidden_ND.shape[1]), dtype=torch.float32)
    sums.index_add_(0, text_of_token, hidden_ND.float())
    return sums / torch.tensor(lengths, dtype=torch.float32, device=sums.device)[:, None]


def finish(vectors_BD: Tensor, dimensions: int | None, normalize: bool) -> Tensor:
    """Keep the first dimensions (Matryoshka), then scale to length 1: in this order, or the length is lost."""
    vectors_BD = vectors_BD[:, :dimensions]
    return nn.functional.normalize(vectors_BD, dim=-1) if normalize else vectors_BD

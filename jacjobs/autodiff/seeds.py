"""Seeds: what a strategy multiplies J by, made k at a time.

A strategy asks for seeds i..i+k and returns k products. One-hot seeds make entries of J; any other maker
(random vectors, sums of one-hots) makes another product without a change to the strategies.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class SeedMaker(Protocol):
    def __call__(self, start: int, stop: int, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Seeds `start:stop`, shape (stop - start, size): a cotangent of m elements a row, say."""
        ...


class OneHot:
    """Row i of the identity of `size`. Made k rows at a time: a whole identity is never held."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, start: int, stop: int, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        seeds = torch.zeros(stop - start, self.size, dtype=dtype, device=device)
        seeds.diagonal(offset=start).fill_(1)
        return seeds

"""Seeds: what a strategy multiplies J by, made k at a time.

A strategy asks for seeds i..i+k and returns k products. One-hot seeds make entries of J; any other maker
(random vectors, sums of one-hots) makes another product without a change to the strategies.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from jacjobs.precision import coarsest


class SeedMaker(Protocol):
    def __call__(self, start: int, stop: int, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Seeds `start:stop`, shape (stop - start, size): cotangents of m elements, or tangents of n."""
        ...


class OneHot:
    """Row i of the identity of `size`. Made k rows at a time: a whole identity is never held."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, start: int, stop: int, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        if start == 0:
            return torch.eye(stop, self.size, dtype=dtype, device=device)
        seeds = torch.zeros(stop - start, self.size, dtype=dtype, device=device)
        seeds.diagonal(offset=start).fill_(1)
        return seeds


class AllOneHot:
    """All of `OneHot`, made by an operator that says so in a graph: what compiles that may use it."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, start: int, stop: int, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        made: Tensor = identity(torch.empty(0, dtype=dtype, device=device), self.size)
        return made


_library = torch.library.Library("jacjobs", "FRAGMENT")
_library.define("identity(Tensor like, int size) -> Tensor")
_library.impl(
    "identity",
    lambda like, size: torch.eye(size, dtype=like.dtype, device=like.device),
    "CompositeExplicitAutograd",
)
identity: Any = torch.ops.jacjobs.identity.default
"""Of the dtype and on the device of a tensor."""


class Gaussian:
    """Random vectors of `size`: vector i depends on `key` and i alone, on every device and every torch.

    zeros: which elements are zero, (size,); None: none of them.
    """

    def __init__(self, size: int, key: int = 0, zeros: Tensor | None = None) -> None:
        self.size = size
        self.key = key
        self.zeros = zeros

    def __call__(self, start: int, stop: int, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.stack([self._vector(index) for index in range(start, stop)]).to(device, dtype)

    def _vector(self, index: int) -> Tensor:
        generator = torch.Generator().manual_seed((self.key << 32) ^ index)
        vector = torch.randn(self.size, generator=generator, dtype=torch.float64)
        return vector if self.zeros is None else vector.masked_fill(self.zeros, 0.0)


def make(seeds: SeedMaker, start: int, stop: int, like: Sequence[Tensor]) -> list[Tensor]:
    """Seeds `start:stop`, laid out as the leaves `like`: one tensor (stop - start, *shape) a leaf."""
    return lay_out(draw(seeds, start, stop, [leaf.dtype for leaf in like], like[0].device), like)


def draw(
    seeds: SeedMaker, start: int, stop: int, dtypes: Sequence[torch.dtype], device: torch.device
) -> Tensor:
    """Seeds `start:stop`, (stop - start, size), in the coarsest of the dtypes: each can hold them exactly."""
    return seeds(start, stop, dtype=coarsest(dtypes), device=device)


def lay_out(made: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Seeds (k, size) as one tensor (k, *shape) a leaf."""
    # One leaf has all of them: whoever compiles this need not find out.
    parts = [made] if len(like) == 1 else torch.split(made, [leaf.numel() for leaf in like], dim=1)
    return [_shaped(part, leaf) for part, leaf in zip(parts, like, strict=True)]


def _shaped(part: Tensor, like: Tensor) -> Tensor:
    """(k, size) as (k, *shape), in the dtype: each call of torch that need not be is one that takes time."""
    part = part if like.ndim == 1 else part.reshape((part.shape[0], *like.shape))
    return part if part.dtype == like.dtype else part.to(like.dtype)

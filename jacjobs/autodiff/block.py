"""The chunk loop: a block's products, streamed chunk by chunk into a buffer on the host.

The device never holds a block, only the chunk in hand.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from jacjobs.autodiff.catalogue import STRATEGIES
from jacjobs.autodiff.seeds import OneHot
from jacjobs.autodiff.strategy import Chunk, products_of
from jacjobs.problem import Problem
from jacjobs.shape import Rectangle


def compute_block(problem: Problem, strategy: str, block: Rectangle, chunk: int) -> NDArray[np.generic]:
    """Entries of `block`: shape (points, rows, columns), in the dtype that J is stored as.

    A block of a strategy that makes rows has all columns, one of a strategy that makes columns all rows.
    Raises what the user's function raises.
    """
    maker = STRATEGIES[strategy]
    shape = problem.shape
    by_rows = maker.makes == "rows"
    lengths = (block.rows, shape.columns) if by_rows else (block.columns, shape.rows)
    on_cuda = any(problem.leaves[index].is_cuda for index in problem.wanted)
    # (points, products, what one product holds): a product lies in one piece, so a chunk is one copy.
    host = torch.empty((block.points, *lengths), dtype=getattr(torch, shape.dtype), pin_memory=on_cuda)
    first = products_of(maker, block)[0]
    seeds = OneHot(shape.rows if by_rows else shape.columns)
    for part in maker.chunks(problem, block, seeds, chunk):
        _copy(part, host, block.point_start, first, whole=on_cuda)
    if on_cuda:
        torch.cuda.synchronize()
    return host.numpy() if by_rows else host.transpose(1, 2).contiguous().numpy()


def _copy(chunk: Chunk, host: torch.Tensor, point: int, product: int, *, whole: bool) -> None:
    """Put a chunk where it belongs in a buffer that begins at `point` and `product`.

    `whole` gathers its leaves first, so that one transfer suffices.
    """
    points = slice(chunk.points.start - point, chunk.points.stop - point)
    products = slice(chunk.products.start - product, chunk.products.stop - product)
    # A function that differentiates inside itself leaves a graph on its tangents.
    made = [leaf.detach() for leaf in chunk.leaves]
    leaves = [torch.cat(made, dim=2)] if whole else made
    start = 0
    for leaf in leaves:
        host[points, products, start : start + leaf.shape[2]].copy_(leaf, non_blocking=whole)
        start += leaf.shape[2]

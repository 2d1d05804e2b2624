"""The chunk loop: a block's products, streamed chunk by chunk into a buffer on the host.

The device never holds a block, only the chunk in hand.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from jacjobs.autodiff.catalogue import STRATEGIES
from jacjobs.autodiff.seeds import OneHot
from jacjobs.autodiff.strategy import Chunk
from jacjobs.problem import Problem
from jacjobs.shape import Rectangle


def compute_block(problem: Problem, strategy: str, block: Rectangle, chunk: int) -> NDArray[np.generic]:
    """Entries of `block`: shape (points, rows, columns), in the dtype that J is stored as.

    Raises what the user's function raises.
    """
    on_cuda = any(problem.leaves[index].is_cuda for index in problem.wanted)
    host = torch.empty(
        (block.points, block.rows, block.columns),
        dtype=getattr(torch, problem.shape.dtype),
        pin_memory=on_cuda,
    )
    for part in STRATEGIES[strategy].chunks(problem, block, OneHot(problem.shape.rows), chunk):
        _copy(part, host, block, whole=on_cuda)
    if on_cuda:
        torch.cuda.synchronize()
    return host.numpy()


def _copy(chunk: Chunk, host: torch.Tensor, block: Rectangle, *, whole: bool) -> None:
    """Put a chunk where it belongs; `whole` gathers its leaves first, so that one transfer suffices."""
    points = slice(chunk.points.start - block.point_start, chunk.points.stop - block.point_start)
    rows = slice(chunk.rows.start - block.row_start, chunk.rows.stop - block.row_start)
    leaves = [torch.cat(chunk.leaves, dim=2)] if whole else chunk.leaves
    column = 0
    for leaf in leaves:
        host[points, rows, column : column + leaf.shape[2]].copy_(leaf, non_blocking=whole)
        column += leaf.shape[2]

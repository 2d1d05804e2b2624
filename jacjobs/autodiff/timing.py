"""How long products take, by making some."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from jacjobs.autodiff.block import time_chunks
from jacjobs.autodiff.catalogue import COMPILED, strategy_named
from jacjobs.autodiff.device import HOST, give_back
from jacjobs.autodiff.strategy import corner, count_products
from jacjobs.autodiff.words import is_out_of_memory
from jacjobs.problem import Problem
from jacjobs.shape import Rectangle

CHUNKS = 12
"""How many chunks a timing makes, at most; but two."""
SLOW_SECONDS = 3.0
"""Where the first two chunks take so long together, they have to do."""


class Pass(NamedTuple):
    """Seconds before the first chunk (a graph), and of one chunk."""

    setup_seconds: float
    chunk_seconds: float


def timed(
    problem: Problem,
    strategy: str,
    chunk: int,
    *,
    enough_seconds: float,
    most_bytes: int,
    warm: bool = True,
    slow_seconds: float = SLOW_SECONDS,
    into: torch.device | None = HOST,
) -> Pass | None:
    """A few chunks; None where the memory does not suffice after all.

    enough_seconds:  the timing stops there, with two chunks at least.
    most_bytes:      no more of J is made at once than this, but two chunks.
    warm:            two chunks come before, which are not counted unless they take `slow_seconds`; as before
                     any that are compiled, of which the first takes as long as compiling it.
    into:            the copy of a chunk to a device's memory counts; None: there is none.
    """
    try:
        # Two chunks in any case: without a second, what comes before the first would count as the chunk's.
        block = some_chunks(problem, strategy, chunk, 2)
        compiles = strategy in COMPILED
        if warm or compiles:
            made = Pass(*time_chunks(problem, strategy, block, chunk, math.inf, into=into))
            if not compiles:
                if sum(made) >= slow_seconds:
                    return made
                enough_seconds = max(enough_seconds, 1.1 * sum(made))
        many = 2 * most_bytes // (block.entries * problem.shape.item_bytes)
        block = some_chunks(problem, strategy, chunk, max(2, min(CHUNKS, many)))
        return Pass(*time_chunks(problem, strategy, block, chunk, enough_seconds, into=into))
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        give_back()
        return None


def some_chunks(problem: Problem, strategy: str, chunk: int, count: int) -> Rectangle:
    """A rectangle of about `count` chunks: products of the first point, or whole points."""
    maker = strategy_named(strategy)
    products = count_products(maker, problem)
    points = count * chunk // products if chunk >= products else 1
    return corner(maker, problem, points, count * chunk)

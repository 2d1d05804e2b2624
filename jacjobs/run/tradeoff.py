"""The trade-off between memory and speed, measured: every strategy that works, over the chunks that fit."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from jacjobs.autodiff.catalogue import strategy_named
from jacjobs.autodiff.estimate import allocated
from jacjobs.autodiff.words import is_out_of_memory
from jacjobs.planning.choice import Chooser, Timing
from jacjobs.problem import Problem
from jacjobs.run.tuner import time_one

STEP = 4
"""Chunks are looked at in steps of this factor."""


@dataclass(frozen=True)
class Reading:
    """One strategy at one chunk.

    makes:               rows or columns: what `products_a_second` counts.
    entries_a_second:    of J, which compares rows with columns.
    measured_bytes:      the allocator's peak; predicted_bytes what the plan says of it.
    seconds:             for all of J, as the plan reckons from this timing.
    """

    strategy: str
    makes: str
    chunk: int
    products_a_second: float
    entries_a_second: float
    measured_bytes: int
    predicted_bytes: int
    seconds: float


def readings(problem: Problem, chooser: Chooser, threads: int, limit_seconds: float) -> Iterator[Reading]:
    """Measure until `limit_seconds` are over, small chunks first; each strategy at its smallest chunk at
    least.

    What would take too long by itself, by the prediction as corrected so far, is left out.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    start = time.perf_counter()
    bias: dict[str, float] = {}
    try:
        for rank, strategy, chunk in _rounds(chooser):
            model = chooser.models[strategy]
            expected = chooser.predicted(model, chunk).chunk_seconds * bias.get(strategy, 1.0)
            left = limit_seconds - (time.perf_counter() - start)
            if rank and 6 * expected > left:
                continue
            timing = time_one(problem, model, chunk)
            if timing is None:
                continue
            bias[strategy] = timing.chunk_seconds / chooser.predicted(model, chunk).chunk_seconds
            try:
                yield _reading(problem, chooser, timing)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
    finally:
        torch.set_num_threads(before)


def _rounds(chooser: Chooser) -> Iterator[tuple[int, str, int]]:
    """The smallest chunk of every strategy, then the next of each, and so on."""
    grids = {name: _thinned(list(chooser.grid(name))) for name in chooser.models}
    for rank in range(max((len(grid) for grid in grids.values()), default=0)):
        for name, grid in grids.items():
            if rank < len(grid):
                yield rank, name, grid[rank]


def _thinned(grid: list[int]) -> list[int]:
    """Every other power of two, and the largest."""
    factor = STEP.bit_length() - 1
    return [c for i, c in enumerate(grid) if i % factor == 0 or c == grid[-1]]


def _reading(problem: Problem, chooser: Chooser, timing: Timing) -> Reading:
    maker, model = strategy_named(timing.strategy), chooser.models[timing.strategy]
    shape = problem.shape
    rate = timing.chunk / timing.chunk_seconds
    return Reading(
        strategy=timing.strategy,
        makes=maker.makes,
        chunk=timing.chunk,
        products_a_second=rate,
        entries_a_second=rate * (shape.columns if maker.makes == "rows" else shape.rows),
        measured_bytes=allocated(problem, maker, model.step, timing.chunk),
        predicted_bytes=model.peak_bytes(timing.chunk),
        seconds=chooser.at(timing.strategy, timing.chunk, timing).seconds,
    )

"""Times strategies and chunks on the device before the first block: at most a small part of what the job
takes.

A hill climb, led by what the cost models predict: each promising strategy once at its predicted best chunk,
then double and half of the best, as long as it gets better. A timing tells how wrong the prediction of its
strategy is, and so which other one is worth a try. In the end the best few are timed again, in turn, and
count by their medians: the fastest of many noisy timings is rarely the fastest.
"""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import torch

from jacjobs.autodiff.device import give_back, tf32_as_wished
from jacjobs.autodiff.timing import timed
from jacjobs.cost import CostModel
from jacjobs.planning.choice import Chooser, Estimate, Timing
from jacjobs.planning.geometry import BLOCK_BYTES
from jacjobs.planning.sparse import SparseChooser
from jacjobs.problem import Problem
from jacjobs.structure.compression import Grouped

SHARE = 0.05
MOST_SECONDS = 30.0
LEAST_SECONDS = 0.5
"""Tuning takes at most 5% of the predicted time and 30 s; where that is too little to learn anything,
none.
"""
HOPEFUL = 6.0
"""A strategy is timed unless it is predicted to be so many times slower than the best. Predictions are
rough.
"""
CONTENDER = 1.3
"""One whose best timing is so many times slower than the best is not looked at more closely."""
FINALISTS, ROUNDS = 4, 4
"""So many of the best are timed so many times more."""
ENOUGH_SECONDS = 0.15
"""A timing stops there, with two chunks at least."""


def seconds_for(predicted_seconds: float) -> float:
    """How long tuning may take for a job that is predicted to take so long; 0: it is not worth it."""
    limit = min(SHARE * predicted_seconds, MOST_SECONDS)
    return limit if limit >= LEAST_SECONDS else 0.0


def tune(
    problem: Problem,
    chooser: Chooser,
    limit_seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Timing]:
    """Time what is promising, best first, for at most `limit_seconds`; `chooser` says what is predicted."""
    if isinstance(chooser, SparseChooser):
        problem = problem.times(chooser.seeds(Grouped.like))
    start = clock()

    def left() -> float:
        return limit_seconds - (clock() - start)

    timings: list[Timing] = []
    for estimate in _promising(chooser, timings):
        model = chooser.models[estimate.strategy]
        predicted = chooser.predicted(model, estimate.chunk)
        expected = 2 * predicted.setup_seconds + 4 * predicted.chunk_seconds
        if expected * _bias(chooser, timings, model) > left():
            continue
        timing = time_one(problem, model, estimate.chunk)
        if timing is not None:
            timings.append(timing)
        if left() < 0:
            return timings
    return _confirmed(problem, chooser, timings, left)


def _confirmed(
    problem: Problem, chooser: Chooser, timings: list[Timing], left: Callable[[], float]
) -> list[Timing]:
    """The timings, those of the finalists replaced by medians of several, as far as time allows."""
    ranked = sorted(timings, key=lambda t: chooser.at(t.strategy, t.chunk, t).seconds)
    samples = {(t.strategy, t.chunk): [t] for t in ranked[:FINALISTS]}
    for _ in range(ROUNDS):
        for (strategy, chunk), seen in samples.items():
            if 4 * seen[0].chunk_seconds < left():
                again = time_one(problem, chooser.models[strategy], chunk)
                seen += [again] if again is not None else []
    medians = {
        key: seen[0].model_copy(
            update={
                "setup_seconds": statistics.median(t.setup_seconds for t in seen),
                "chunk_seconds": statistics.median(t.chunk_seconds for t in seen),
            }
        )
        for key, seen in samples.items()
    }
    return [medians.get((t.strategy, t.chunk), t) for t in timings]


def time_one(problem: Problem, model: CostModel, chunk: int) -> Timing | None:
    """None where the memory does not suffice after all."""
    found = timed(problem, model.strategy, chunk, enough_seconds=ENOUGH_SECONDS, most_bytes=BLOCK_BYTES)
    return None if found is None else Timing(strategy=model.strategy, chunk=chunk, **found._asdict())


def _promising(chooser: Chooser, timings: list[Timing]) -> Iterator[Estimate]:
    """What to time next, looking at `timings` as they come."""
    ranked = chooser.ranked()
    for estimate in ranked:
        if estimate.seconds <= HOPEFUL * ranked[0].seconds:
            yield estimate
    asked: set[tuple[str, int]] = set()
    while True:
        tried = {(t.strategy, t.chunk) for t in timings} | asked
        best: dict[str, Estimate] = {}
        for timing in timings:
            estimate = chooser.at(timing.strategy, timing.chunk, timing)
            if timing.strategy not in best or estimate.seconds < best[timing.strategy].seconds:
                best[timing.strategy] = estimate
        if not best:
            return
        fastest = min(estimate.seconds for estimate in best.values())
        neighbours = [
            (estimate.seconds, estimate.strategy, chunk)
            for estimate in best.values()
            if estimate.seconds <= CONTENDER * fastest
            for chunk in chooser.neighbours(estimate.strategy, estimate.chunk)
            if (estimate.strategy, chunk) not in tried
        ]
        if not neighbours:
            return
        _, strategy, chunk = min(neighbours)
        asked.add((strategy, chunk))
        yield chooser.at(strategy, chunk)


def _bias(chooser: Chooser, timings: list[Timing], model: CostModel) -> float:
    """How many times longer than predicted chunks take: of this strategy as last timed, else of any."""
    own = [t for t in timings if t.strategy == model.strategy] or timings
    if not own:
        return 1.0
    last = own[-1]
    return last.chunk_seconds / max(
        1e-9, chooser.predicted(chooser.models[last.strategy], last.chunk).chunk_seconds
    )


class Tuner:
    """Times chunks on the device where it is made. A plain class; the Ray actor is a thin wrapper."""

    def __init__(self, problem: Problem, threads: int, device: str = "cpu") -> None:
        self._threads = threads
        self._problem = problem.to(device)

    def tune(self, chooser: Chooser, limit_seconds: float) -> list[Timing]:
        before = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            with tf32_as_wished(self._problem):
                return tune(self._problem, chooser, limit_seconds)
        finally:
            torch.set_num_threads(before)
            _tidy()


def _tidy() -> None:
    """What timings left in the allocators' hands: this process goes on as a worker, within a budget."""
    gc.collect()
    give_back()
    with suppress(OSError, AttributeError):  # no glibc
        ctypes.CDLL(None).malloc_trim(0)

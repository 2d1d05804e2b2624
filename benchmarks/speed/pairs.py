"""Honest timings: warmed up, in turns whose order alternates, medians of the ratios within a turn.

What is short is called several times, after a call that does not count: a thread that has slept starts late,
after up to two ticks of the scheduler (seen: 1.8 ms of work taking 7.8). That is no throughput. Nor is what
a virtual machine takes back: memory that nobody has had for two seconds is the host's, and costs twenty times
as much to touch. It befalls one call in many, of whoever comes next, and so the median of calls counts
(decision 41).
"""

from __future__ import annotations

import signal
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

Work = Callable[[], Any]
PAUSE_SECONDS = 0.02
"""Between timings: the threads of one library spin for a while after they have nothing to do."""


class TooSlowError(Exception):
    """It took longer than it was given."""


def seconds_of(work: Work) -> float:
    time.sleep(PAUSE_SECONDS)
    return _timed(work)


def _timed(work: Work) -> float:
    """Seconds of a call, and on a GPU of what it asked for."""
    start = time.perf_counter()
    work()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def each_of_several(work: Work, least_seconds: float) -> float:
    """Seconds of a call: the median of as many as take so long together. What runs elsewhere times itself."""
    if hasattr(work, "each_of_several"):
        return float(work.each_of_several(least_seconds))
    first = seconds_of(work)
    if first >= least_seconds:
        return first
    calls = [_timed(work)]
    while sum(calls) < least_seconds:
        calls.append(_timed(work))
    return statistics.median(calls)


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise TooSlowError in the main thread when the time is over (as soon as it is in Python again)."""

    def end(*_: object) -> None:
        raise TooSlowError

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def in_turns(works: dict[str, Work], rounds: int, least_seconds: float = 0.0) -> dict[str, list[float]]:
    """Seconds of a call of each, round by round; of as many calls as take `least_seconds`."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds):
        for name in list(works)[:: 1 if number % 2 else -1]:
            seconds[name].append(each_of_several(works[name], least_seconds))
    return seconds


def ratio(of: list[float], to: list[float]) -> float:
    """The median of the ratios within a turn."""
    return statistics.median(a / b for a, b in zip(of, to, strict=True))

"""Which strategy, and how many products at once, are fastest in this process: found by timing them.

A hill climb over (strategy, chunk). Each strategy runs once at a moderate chunk; those that are not far
behind go on to larger or smaller ones, in steps of four and then of two, as long as it gets better; the best
few run again in turn, and count by their best. As far as there is time they make all of J: a few chunks do
not tell what putting them together takes. Nothing is predicted but memory: a chunk that may not fit the
budget is not run.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from jacjobs.autodiff.catalogue import strategy_named
from jacjobs.autodiff.device import device_of
from jacjobs.autodiff.estimate import WHOLE_POINTS
from jacjobs.autodiff.strategy import count_lines
from jacjobs.autodiff.timing import Pass, timed
from jacjobs.problem import Problem
from jacjobs.shape import JacobianShape

START, GPU_START = 64, 1024
"""The chunk that every strategy runs at first. On a GPU, 64 products mostly take as long as 1,024."""
GPU_START_SECONDS = 0.02
"""Where 64 take longer, they do not, and 1,024 might take longer than a race."""
STEPS = {4: 4.0, 2: 1.3}
"""The factors between chunks, and how many times slower than the best, as far as is known, a strategy may be
to go on. At one chunk that says little yet."""
FAR = 8
"""Of chunks: all of J at once, where it is so many times larger than the best is expected to be, has to wait
its turn."""
HOPELESS = 8
"""What takes so many times longer than the best, the first time, is not timed again."""
CLOSE = 1.01
"""A smaller chunk is taken if it is at most so much slower than the best."""
FINALISTS, ROUNDS = 3, 2
"""So many of the best run so many times more."""
FINAL_SECONDS, MOST_ROUNDS = 1.5, 7
"""What a race keeps for its finals. Where they make all of J, there are no more rounds than that."""
SHARE = 0.1
LEAST_SECONDS = 3.0
"""A race takes at most a tenth of what J is seen to take, or three seconds."""
SMALL = 0.2
"""Of J: what may be begun though there is hardly any time left."""
SLOW_SECONDS = 1.0
"""What takes so long the first time is not made again to be timed."""
ENOUGH_SECONDS = 0.03
MOST_BYTES = 64 << 20
"""Of J, made for one timing."""

Timer = Callable[[str, int, bool], Pass | None]
"""Of a strategy at a chunk, after a first one that does not count or without."""
Maker = Callable[[str, int], bool]
"""Makes all of J by a strategy in chunks; False where the memory did not suffice."""


class Choice(NamedTuple):
    """`seconds`: what all of J takes, as far as was seen."""

    strategy: str
    chunk: int
    seconds: float = math.inf


def race(
    problem: Problem,
    names: Sequence[str],
    fits: Callable[[str, int], bool],
    make_all: Maker | None = None,
    least_seconds: float = LEAST_SECONDS,
    start: int | None = None,
    near: int | None = None,
) -> Choice:
    """The winner.

    names:          strategies that work, and fit at their smallest chunk.
    fits:           may a strategy run at a chunk? Asked for as few as possible: it may take a while.
    make_all:       makes all of J, for the finals.
    least_seconds:  the race may take so long, or a tenth of what J takes.
    start:          the chunk that every strategy runs at first; None: small, or larger where a GPU is idle.
    near:           where each chunk costs much to try, one that the best is expected near to: others go first
                    that are nearer to it. None: large ones go first, and all of J at once.
    """

    # A GPU gets each kernel's code when that is first asked for: seconds, where chunks take milliseconds.
    on_gpu = device_of(problem).type == "cuda"

    def time_it(strategy: str, chunk: int, warm: bool) -> Pass | None:
        if not fits(strategy, chunk):
            return None
        return timed(
            problem,
            strategy,
            chunk,
            enough_seconds=ENOUGH_SECONDS,
            most_bytes=MOST_BYTES,
            warm=warm or on_gpu,
            slow_seconds=SLOW_SECONDS,
            # A chunk that is all of J is returned as it is.
            into=device_of(problem) if chunk < whole_of(strategy, problem.shape) else None,
        )

    if start is None:
        start = START
        sizes = chunks_of(names[0], problem.shape)
        if on_gpu and sizes[-1] > START:
            small = time_it(names[0], max(size for size in sizes if size <= START), True)
            if small is not None and small.chunk_seconds <= GPU_START_SECONDS:
                start = GPU_START
    racing = Race(
        problem.shape, names, time_it, make_all, least_seconds=least_seconds, start=start, near=near
    )
    return racing.winner()


def chunks_of(strategy: str, shape: JacobianShape) -> list[int]:
    """The chunks that come into question, ascending: about powers of two within a point, and of whole points.

    Within a point they share its products evenly: of 1,100, a chunk of 1,024 would leave 76.
    """
    maker = strategy_named(strategy)
    if maker.batching == "loop":
        return [1]
    products = count_lines(maker, shape)
    within = {math.ceil(products / math.ceil(products / (1 << p))) for p in range(products.bit_length())}
    several = range(1, shape.points.bit_length()) if products <= WHOLE_POINTS else ()
    together = {products * (1 << p) for p in several} | {products * shape.points for _ in several}
    return sorted(within | {products} | together)


def whole_of(strategy: str, shape: JacobianShape) -> int:
    """The chunk that is all of J."""
    return shape.points * count_lines(strategy_named(strategy), shape)


class Race:
    """`timer` makes some chunks, and says None where the memory does not suffice."""

    def __init__(
        self,
        shape: JacobianShape,
        names: Sequence[str],
        timer: Timer,
        make_all: Maker | None = None,
        clock: Callable[[], float] = time.perf_counter,
        least_seconds: float = LEAST_SECONDS,
        start: int = START,
        near: int | None = None,
    ) -> None:
        self._shape = shape
        self._sizes = {name: chunks_of(name, shape) for name in names}
        self._timer = timer
        self._make_all = make_all
        self._clock = clock
        self._least_seconds = least_seconds
        self._start_chunk = start
        self._near = near
        self._start = clock()
        self._seconds: dict[tuple[str, int], list[float]] = {}
        """Of all of J, each time that it was seen."""

    def winner(self) -> Choice:
        if sum(map(len, self._sizes.values())) > 1:
            for strategy in self._sizes:
                self._run_first(strategy)
            for strategy, chunk in reversed(list(self._seconds)):
                self._run_again(strategy, chunk)
            for strategy in self._sizes:
                if self._near is None or whole_of(strategy, self._shape) <= FAR * self._near:
                    self._run_whole(strategy)
            for factor, far in STEPS.items():
                while (ahead := self._ahead(factor, far)) is not None:
                    strategy, chunk = ahead
                    self._run(strategy, chunk, warm=self._takes_no_time(strategy))
            self._run_finals()
        if not self._seconds:  # there was no choice, or there is hardly any memory
            return Choice(next(iter(self._sizes)), 1)
        typical = {key: min(seen) for key, seen in self._seconds.items()}  # others took what is more
        strategy, chunk = min(typical, key=typical.__getitem__)
        limit = CLOSE * typical[strategy, chunk]
        close = [c for (s, c), seconds in typical.items() if s == strategy and seconds <= limit]
        return Choice(strategy, min(close), typical[strategy, min(close)])

    def _run_first(self, strategy: str) -> None:
        """Warm: what comes first pays for what threads and libraries do once in a process."""
        chunk = self._start_chunk
        while not self._run(
            strategy, max((c for c in self._sizes[strategy] if c <= chunk), default=1), warm=True
        ):
            if chunk == 1:
                return
            chunk = max(1, chunk // 4)

    def _run_again(self, strategy: str, chunk: int) -> None:
        """The heap grows for longer than that: what came first was seen to take five times what it takes."""
        fastest = min(seen[0] for seen in self._seconds.values())
        if self._seconds[strategy, chunk][0] <= HOPELESS * fastest and self._left_seconds > 0:
            self._run(strategy, chunk)

    def _run_whole(self, strategy: str) -> None:
        """All of J at once, which is not copied, is no neighbour of anything: where that takes no time."""
        whole = whole_of(strategy, self._shape)
        there = whole in self._sizes[strategy] and (strategy, whole) not in self._seconds
        if there and self._takes_no_time(strategy):
            self._run(strategy, whole, warm=True)

    def _takes_no_time(self, strategy: str) -> bool:
        """All of J, as far as is known: then a first pass in vain costs little, and memory that the process
        has not touched yet (15 times slower was seen) counts against no chunk.
        """
        tried = [seen[0] for (name, _), seen in self._seconds.items() if name == strategy]
        return bool(tried) and min(tried) <= SHARE * self._limit_seconds

    def _ahead(self, factor: int, far: float) -> tuple[str, int] | None:
        """What to run next: a neighbour, not run yet, of the best chunk of a strategy that may still win."""
        left = self._left_seconds
        if left < 0:
            return None
        best: dict[str, tuple[float, int]] = {}
        for (strategy, chunk), seen in self._seconds.items():
            best[strategy] = min(best.get(strategy, (math.inf, 0)), (min(seen), chunk))
        fastest = min((seconds for seconds, _ in best.values()), default=0.0)
        hopeful = [
            (seconds, strategy, self._turn(size), size)
            for strategy, (seconds, chunk) in best.items()
            if seconds <= far * fastest
            for size in self._around(strategy, chunk, factor)
            if self._shortly(strategy, size, seconds, left)
        ]
        if not hopeful:
            return None
        _, strategy, _, size = min(hopeful)
        return strategy, size

    def _shortly(self, strategy: str, chunk: int, seconds: float, left: float) -> bool:
        """Are two chunks a small part of J, or expected to take no longer than what is left of the climb?"""
        two = 2 * chunk / whole_of(strategy, self._shape)
        return two <= SMALL or two * seconds <= left

    def _turn(self, chunk: int) -> float:
        """Of two neighbours, the lower goes first."""
        return -chunk if self._near is None else abs(math.log(chunk / self._near))

    def _around(self, strategy: str, chunk: int, factor: int) -> list[int]:
        """The nearest chunks that are about so many times larger and smaller, of those not run yet."""
        sizes = self._sizes[strategy]
        if not sizes:
            return []
        larger = min((size for size in sizes if size >= factor * chunk), default=sizes[-1])
        smaller = max((size for size in sizes if size <= chunk // factor), default=sizes[0])
        return [size for size in (larger, smaller) if (strategy, size) not in self._seconds]

    def _run_finals(self) -> None:
        ranked = sorted(self._seconds, key=lambda key: min(self._seconds[key]))
        finalists = ranked[:FINALISTS]
        if not finalists:
            return
        if self._make_all is not None:
            best, *others = finalists
            whole = best[0], whole_of(best[0], self._shape)
            if whole != best and whole in ranked:  # first of those that there may be no time for
                others = [whole, *(key for key in others if key != whole)]
            candidates = [best, *others]
            for rounds in (ROUNDS, 1):
                some = self._in_time(candidates, rounds)
                if len(some) > 1 or some == candidates:
                    self._compare_all(some, self._make_all, rounds)
                    return
        for number in range(ROUNDS):
            for strategy, chunk in finalists[:: 1 if number % 2 else -1]:
                if self._clock() - self._start < self._limit_seconds:
                    self._run(strategy, chunk, warm=True)

    def _in_time(self, candidates: list[tuple[str, int]], rounds: int) -> list[tuple[str, int]]:
        """The first of them, as many as can make all of J so many times in the time of the finals."""
        taken = itertools.accumulate(rounds * min(self._seconds[key]) for key in candidates)
        return candidates[: sum(seconds <= FINAL_SECONDS for seconds in taken)]

    def _compare_all(self, candidates: list[tuple[str, int]], make_all: Maker, rounds: int) -> None:
        """By nothing but the seconds of all of J. What there is no memory for is out."""
        seconds: dict[tuple[str, int], list[float]] = {key: [] for key in candidates}
        began = self._clock()
        for number in range(MOST_ROUNDS):
            spent = self._clock() - began
            if number >= rounds and spent + spent / number > FINAL_SECONDS:
                break
            for key in [*seconds][:: 1 if number % 2 else -1]:
                start = self._clock()
                if make_all(*key):
                    seconds[key].append(self._clock() - start)
                else:
                    del seconds[key], self._seconds[key]
        self._seconds = seconds or self._seconds

    def _run(self, strategy: str, chunk: int, *, warm: bool = False) -> bool:
        made = self._timer(strategy, chunk, warm)
        if made is None:  # nothing larger fits either
            self._sizes[strategy] = [size for size in self._sizes[strategy] if size < chunk]
            self._seconds.pop((strategy, chunk), None)
            return False
        self._seconds.setdefault((strategy, chunk), []).append(self._whole(strategy, chunk, made))
        return True

    def _whole(self, strategy: str, chunk: int, made: Pass) -> float:
        """Seconds of all of J."""
        products = count_lines(strategy_named(strategy), self._shape)
        if chunk >= products:
            return math.ceil(self._shape.points / (chunk // products)) * made.chunk_seconds
        each = made.setup_seconds + math.ceil(products / chunk) * made.chunk_seconds
        return self._shape.points * each

    @property
    def _left_seconds(self) -> float:
        """Before the finals."""
        return self._limit_seconds - FINAL_SECONDS - (self._clock() - self._start)

    @property
    def _limit_seconds(self) -> float:
        fastest = min((seen[0] for seen in self._seconds.values()), default=math.inf)
        return max(self._least_seconds, SHARE * fastest) if math.isfinite(fastest) else math.inf

"""Tens of thousands of runs in virtual time, with every fault that there is: no rule is ever broken; and bugs
that are planted in the ledger are found, so the rules are worth something.
"""

from __future__ import annotations

import multiprocessing
import sys
import tracemalloc
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

import pytest

from jacjobs.run.ledger import Ledger
from jacjobs.run.messages import (
    AssemblerJoined,
    BlockAbsorbed,
    BlockId,
    Compute,
    Drop,
    StartWorker,
    Sweep,
    Tick,
    Transposed,
    WorkerJoined,
    WorkerLost,
)
from jacjobs.run.patience import SLOW_FACTOR, Patience
from jacjobs.run.remaining import remaining
from jacjobs.run.roster import Roster
from jacjobs.run.transposer import Transposer
from tests.faults.scenarios import Scenario, grid
from tests.faults.simulator import BrokenRuleError, Simulation, play

SMALL_RUNS = 20_000
LARGE_RUNS = {60: 200, 500: 10, 2000: 4}
"""Workers: runs."""
SEEDS_FOR_A_BUG = 20_000


def play_many(workers: int | None, seeds: range) -> dict[str, int]:
    """How the runs ended."""
    ends: dict[str, int] = {}
    for seed in seeds:
        end = play(seed, workers=workers).ends[-1]
        ends[end] = ends.get(end, 0) + 1
    return ends


@pytest.mark.timeout(900)
def test_no_run_breaks_a_rule() -> None:
    chunks: list[tuple[int | None, range]] = [(workers, range(n)) for workers, n in LARGE_RUNS.items()]
    chunks += [(None, range(start, start + 500)) for start in range(0, SMALL_RUNS, 500)]
    ends: dict[str, int] = {}
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        for counts in pool.map(play_many, *zip(*chunks, strict=True)):
            for end, count in counts.items():
                ends[end] = ends.get(end, 0) + count
    print(f"{sum(ends.values()):,} runs: {ends}")
    assert sum(ends.values()) == SMALL_RUNS + sum(LARGE_RUNS.values())
    # Most come through, and the others are worth something too: killers and raising functions do end runs.
    assert ends["complete"] > 0.6 * sum(ends.values())
    assert ends["incomplete"] > 100
    assert ends["failed"] > 100


def test_a_seed_plays_the_same_run_again() -> None:
    for seed in range(50):
        first, second = play(seed), play(seed)
        assert (first.now, first.ends, first.computes) == (second.now, second.ends, second.computes)


def test_work_and_memory_per_block_do_not_grow_with_the_number_of_blocks() -> None:
    """Calls are counted, not timed. (A million blocks: benchmarks/coordinator.py.)"""
    few, many = (cost_of(blocks) for blocks in (2_000, 20_000))
    assert many.calls / 20_000 < 1.05 * few.calls / 2_000
    assert many.nbytes / 20_000 < 1.2 * few.nbytes / 2_000


class Cost(NamedTuple):
    calls: int
    nbytes: int


def cost_of(blocks: int) -> Cost:
    """Of a run without faults, 64 workers: Python calls, and the peak of memory."""
    calls = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event == "call"

    scenario = Scenario(tiling=grid(blocks // 4, 4), workers=64)
    tracemalloc.start()
    Simulation(scenario, 0).play()
    nbytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    sys.setprofile(count)
    Simulation(scenario, 0).play()
    sys.setprofile(None)
    return Cost(calls, nbytes)


def test_a_late_block_is_doubled_at_the_end_and_the_first_result_counts() -> None:
    """Without that, the slow worker alone would decide when the run ends."""
    scenario = Scenario(tiling=grid(5, 4), workers=4, block_seconds=10.0)
    ends = []
    for ledger in (Ledger, NothingDoubled):
        simulation = Simulation(scenario, 3, ledger)
        born = simulation._born

        def slow_first(kind: str, simulation: Simulation = simulation, born: Any = born) -> None:
            born(kind)
            if kind == "w" and sum(name[0] == "w" for name in simulation._actors) == 1:
                next(a for n, a in simulation._actors.items() if n[0] == "w").speed = 0.02

        simulation._born = slow_first  # type: ignore[method-assign]
        simulation.play()
        assert simulation.ends == ["complete"]
        ends.append(simulation.now)
    doubled, waited = ends
    assert 10 * SLOW_FACTOR < doubled < 20 * SLOW_FACTOR
    assert waited > 2 * doubled


class NothingDoubled(Ledger):
    def _double_the_late(self) -> Any:
        return []


def test_a_run_without_workers_is_paused_and_goes_on_when_one_comes() -> None:
    tiling = grid(2, 2)
    left = remaining(tiling, lambda part: False, lambda spill: False)
    ledger = Ledger(tiling, left, workers=1)
    ledger.start()
    assert ledger.paused
    ledger.handle(AssemblerJoined("a"))
    assert ledger.paused
    assert ledger.handle(WorkerJoined("w1")) == [Compute("w1", BlockId(0, 0)), Compute("w1", BlockId(0, 1))]
    assert not ledger.paused
    assert ledger.handle(WorkerLost("w1", "its node is gone")) == [StartWorker()]
    assert ledger.paused
    assert not ledger.finished
    assert ledger.handle(Tick()) == []
    assert ledger.handle(WorkerJoined("w2")) == [Compute("w2", BlockId(0, 0))], "a suspect, alone"


def test_nobody_is_late_before_enough_is_known_and_the_users_word_counts() -> None:
    patience = Patience(expected_seconds=20.0)
    assert patience.late_after_seconds() == float("inf")
    assert patience.hung_after_seconds() == 2000.0
    for seconds in (1.0, 3.0, 2.0):
        patience.took(seconds)
    assert patience.late_after_seconds() == 20.0
    assert patience.hung_after_seconds() == 2000.0
    assert Patience(limit_seconds=5.0, expected_seconds=20.0).hung_after_seconds() == 5.0
    assert Patience(limit_seconds="off").hung_after_seconds() == float("inf")


# -- planted bugs ------------------------------------------------------------------------------------------


class LostRequeue(Ledger):
    """A block whose worker died is handed out to nobody."""

    def _again(self, block: BlockId) -> None:
        self.history.blocks_repeated += 1


class ForgottenRoom(Ledger):
    """A worker whose block was absorbed does not count as free."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._roster.release = lambda name, block: None  # type: ignore[method-assign]


class UnboundedQueue(Ledger):
    """What lost workers left behind does not count."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._roster.__class__ = type("Unbounded", (Roster,), {"full": property(lambda self: False)})


class BothResults(Ledger):
    """Of a block that two workers computed, both results are taken."""

    def _take_in(self, name: str, block: BlockId, findings: Any) -> Any:
        bundle = self._open.get(block.bundle)
        if bundle is not None and self._roster.state(name, block) == "computing":
            bundle.computing.setdefault(block.position, (name,))
            bundle.computing[block.position] = (name,)
        return super()._take_in(name, block, findings)


class NoQuarantine(Ledger):
    """A block may kill as many workers as it likes."""

    def _blame(self, block: BlockId, cause: str) -> Any:
        return []


class InnocentSuspects(Ledger):
    """All blocks of a worker that died are to blame."""

    def _lose_worker(self, name: str, cause: str, guilty: BlockId | None = None) -> Any:
        worker = self._roster.get(name)
        computing = list(worker.computing) if worker is not None else []
        commands = super()._lose_worker(name, cause, guilty)
        for block in computing if len(computing) > 1 else []:
            self.losses.suspects.discard(block)
            commands += self._blame(block, cause)
        return commands


class DataKept(Ledger):
    """What nobody needs is not dropped."""

    def _take_in(self, name: str, block: BlockId, findings: Any) -> Any:
        commands = super()._take_in(name, block, findings)
        return [command for command in commands if not isinstance(command, Drop)]


class HeldBlocksLost(Ledger):
    """What an assembler was about to take in goes with it."""

    def _lose_assembler(self, name: str, cause: str) -> Any:
        for bundle in self._open.values():
            if bundle.assembler == name:
                bundle.absorbing.clear()
        return super()._lose_assembler(name, cause)


class AbsorbedBlocksBelieved(Ledger):
    """What an assembler had taken in counts as done, though it died before the file was written."""

    def _lose_assembler(self, name: str, cause: str) -> Any:
        for bundle in self._open.values():
            if bundle.assembler == name:
                bundle.absorbed.clear()
        return super()._lose_assembler(name, cause)


class Resurrection(Ledger):
    """A worker that is gone joins again when its message comes late."""

    def _join_worker(self, event: WorkerJoined) -> None:
        self._gone.discard(event.worker)
        super()._join_worker(event)


class NoDoubt(Ledger):
    """When a node is gone, its other workers are given blocks, one after the other."""

    def _ask_for_life(self, where: str) -> Any:
        return []


class NoDeadline(Ledger):
    """A block that never comes is waited for."""

    def _kill_the_hung(self) -> Any:
        return []


class RequeuedWhileDoubled(Ledger):
    """One of two workers at a block dies, and a third gets it, though the other goes on."""

    def _take_back(self, name: str, block: BlockId) -> bool:
        bundle = self._open.get(block.bundle)
        names = bundle.computing.get(block.position, ()) if bundle is not None else ()
        again = super()._take_back(name, block)
        if len(names) > 1:
            self._again(block)
        return again


class CommittedAndForgotten(Ledger):
    """Where a file is committed before all its blocks are said to be taken in, those are waited for. (Found
    by the simulator.)
    """

    def _absorbed(self, event: BlockAbsorbed) -> Any:
        bundle = self._open.get(event.block.bundle)
        if bundle is not None and event.committed is not None and event.block.position in bundle.absorbing:
            bundle.absorbing = {event.block.position: bundle.absorbing[event.block.position]}
        return super()._absorbed(event)


class HandedOutTwice(Ledger):
    """A late worker gets the block again that it still is at. (Found by the simulator.)"""

    def _may_share(self, worker: Any, block: BlockId) -> bool:
        computing = worker.computing
        return not computing or self.losses.suspects.isdisjoint((*computing, block))


class SweptEarly(Ledger):
    """A point's spills are swept when the first of its parts is there."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._transposer.__class__ = _SweepsEarly


class _SweepsEarly(Transposer):
    def transposed(self, event: Transposed) -> list[Sweep] | None:
        sweeps = super().transposed(event)
        return None if sweeps is None else [Sweep(event.assembler, self._tiling.part(event.part).point_start)]


class TransposedEarly(Ledger):
    """A point's parts are made when the first of its spills is there."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._transposer.__class__ = _TransposesEarly


class _TransposesEarly(Transposer):
    def spilled(self, bundle: int) -> None:
        self._spills_left[self._tiling.point_of(bundle)] = 1
        super().spilled(bundle)


class LostTransposition(Ledger):
    """A part that a lost assembler was at is forgotten."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._transposer.lose_assembler = lambda name: None  # type: ignore[method-assign]


class EndsEarly(Ledger):
    """What is still on its way does not count."""

    def _look_for_the_end(self) -> None:
        if not self._pending and not self._with_work and self._transposer.done:
            self.state = "complete"


BUGS = [
    LostRequeue,
    ForgottenRoom,
    UnboundedQueue,
    BothResults,
    NoQuarantine,
    InnocentSuspects,
    DataKept,
    HeldBlocksLost,
    AbsorbedBlocksBelieved,
    Resurrection,
    NoDoubt,
    NoDeadline,
    RequeuedWhileDoubled,
    CommittedAndForgotten,
    HandedOutTwice,
    SweptEarly,
    TransposedEarly,
    LostTransposition,
    EndsEarly,
]


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.__name__)
def test_a_planted_bug_is_found(bug: type[Ledger]) -> None:
    """By a broken rule, or by the ledger's own books, which do not add up any more."""
    for seed in range(SEEDS_FOR_A_BUG):
        try:
            play(seed, bug)
        except (BrokenRuleError, KeyError, AssertionError) as error:
            print(f"{bug.__name__}: seed {seed}: {error}")
            return
    pytest.fail(f"{bug.__doc__} Not noticed in {SEEDS_FOR_A_BUG:,} runs.")

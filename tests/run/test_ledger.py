"""What the state machine decides, case by case. tests/faults/test_simulation.py plays all cases together."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

import pytest

from jacjobs.errors import FunctionError, IncompleteError, StoppedError, WorkersError
from jacjobs.planning.geometry import Tiling
from jacjobs.run.ledger import Ledger
from jacjobs.run.messages import (
    Absorb,
    AssemblerJoined,
    AssemblerLost,
    BlockAbsorbed,
    BlockComputed,
    BlockId,
    BlockRaised,
    Capacity,
    Command,
    Compute,
    Event,
    Findings,
    Kill,
    Ping,
    StartAssembler,
    StartWorker,
    StopRequested,
    Tick,
    Transpose,
    TransposeLost,
    WorkerAlive,
    WorkerJoined,
    WorkerLost,
)
from jacjobs.run.remaining import Remaining, remaining
from jacjobs.run.roster import most_in_flight
from tests.faults.scenarios import Scenario, grid, spilling
from tests.faults.simulator import Simulation

FOR_EVER = 10**9


def all_of(tiling: Tiling) -> Remaining:
    return remaining(tiling, lambda part: False, lambda spill: False)


def played(tiling: Tiling, seed: int = 0, **scenario: Any) -> Simulation:
    simulation = Simulation(Scenario(tiling=tiling, **scenario), seed)
    simulation.play()
    return simulation


@pytest.mark.parametrize("seed", range(20))
def test_without_faults_every_block_is_computed_once(seed: int) -> None:
    run = played(grid(parts=7, blocks=5), seed, workers=1 + seed % 9)
    assert run.ends == ["complete"]
    assert run.computes == run.ledger.blocks_done == run.ledger.entries_done == 35
    assert run.ledger.history.blocks_repeated == run.ledger.history.failures_total == 0
    assert sum(work.blocks for work in run.ledger.history.work) == 35


class _Counted(Simulation):
    """After every event, each block is in one place."""

    def _hear(self, event: Event) -> None:
        super()._hear(event)
        ledger = self.ledger
        assert ledger.blocks_waiting + ledger.blocks_in_flight + ledger.blocks_done == ledger.blocks_total


@pytest.mark.parametrize("crash", [0.0, 0.05])
@pytest.mark.parametrize("seed", range(20))
def test_every_block_waits_is_on_its_way_or_is_done(seed: int, crash: float) -> None:
    run = _Counted(Scenario(tiling=grid(parts=7, blocks=5), workers=1 + seed % 5, crash=crash), seed)
    run.play()
    assert run.ends == ["complete"]
    assert run.ledger.blocks_waiting == 0
    if not crash:
        assert run.ledger.workers_lost == 0


@pytest.mark.parametrize("seed", range(50))
def test_spills_that_are_there_are_not_computed_again(seed: int) -> None:
    tiling = spilling(points=4, lines=3, blocks=5)
    chance = random.Random(seed)
    whole = played(tiling)
    lacking = sorted(chance.sample(range(tiling.parts), 5))
    points = {tiling.part(part).point_start for part in lacking}
    wanted = [bundle for point in points for bundle in tiling.bundles_of(point)]
    there = [bundle for bundle in wanted if chance.random() < 0.6]
    run = Simulation(Scenario(tiling=tiling, workers=2), seed)
    run.disk.parts = {part: content for part, content in whole.disk.parts.items() if part not in lacking}
    for bundle in there:
        run.disk.spills[bundle] = tuple(BlockId(bundle, i) for i in range(tiling.blocks_in(bundle)))
    run.play()
    assert run.ends == ["complete"]
    assert run.disk.parts == whole.disk.parts
    assert run.computes == sum(map(tiling.blocks_in, set(wanted) - set(there)))


def test_a_killer_block_costs_its_point_and_its_spills_stay() -> None:
    tiling = spilling(points=4, lines=2, blocks=6)
    run = played(tiling, workers=2, killers={BlockId(4, 1): FOR_EVER})
    assert run.ends == ["incomplete"]
    assert sorted(run.disk.parts) == [0, 1, 4, 5, 6, 7]
    assert sorted(run.disk.spills) == [3, 5]


def test_a_part_that_is_never_transposed_ends_the_run() -> None:
    ledger = Ledger(spilling(1, 1, 1), Remaining([], 0, 0, {0: [0]}))
    ledger.start()
    commands = ledger.handle(AssemblerJoined("a"))
    for _ in range(3):
        assert commands == [Transpose("a", 0)]
        commands = ledger.handle(TransposeLost("a", 0, "no such key"))
    assert commands == []
    assert "no such key" in str(ledger.error)
    assert [failure.cause for failure in ledger.history.failures] == ["no such key"] * 3


def test_a_killer_block_is_quarantined_and_the_rest_goes_on() -> None:
    run = played(grid(5, 4), workers=3, killers={BlockId(2, 1): FOR_EVER})
    assert run.ends == ["incomplete"]
    assert isinstance(run.ledger.error, IncompleteError)
    assert list(run.ledger.losses.quarantined) == [BlockId(2, 1)]
    assert "points 9:10" in str(run.ledger.error)
    assert sorted(run.disk.parts) == [0, 1, 3, 4]
    assert all("points 9:10" in " ".join(failure.blocks) for failure in run.ledger.history.failures)


@pytest.mark.parametrize("seed", range(50))
def test_a_part_of_killers_costs_that_part_alone(seed: int) -> None:
    """However many workers it takes at a time: deaths that a block explains are no sign of a bad machine."""
    killers = {BlockId(2, position): FOR_EVER for position in range(1 + seed % 4)}
    run = played(grid(5, 4), seed, workers=1 + seed % 5, killers=killers)
    assert run.ends == ["incomplete"]
    assert set(run.ledger.losses.quarantined) <= set(killers)
    assert len(run.ledger.losses.quarantined) == 1
    assert sorted(run.disk.parts) == [0, 1, 3, 4]


@pytest.mark.parametrize("seed", range(20))
def test_a_function_that_kills_every_worker_ends_the_run_and_names_blocks(seed: int) -> None:
    killers = {BlockId(part, position): FOR_EVER for part in range(100) for position in range(4)}
    run = played(grid(100, 4), seed, workers=1 + seed % 5, killers=killers)
    assert run.ends == ["failed"]
    assert isinstance(run.ledger.error, WorkersError)
    assert "killed by" in str(run.ledger.error)
    assert run.ledger.history.failures_total < 40


def test_a_block_that_hangs_is_given_to_another_worker() -> None:
    run = played(grid(2, 3), workers=1, hangs={BlockId(1, 1): 1})
    assert run.ends == ["complete"]
    (failure,) = run.ledger.history.failures
    assert failure.cause.startswith("points 4:5, rows 0:1, columns 0:1 was not there after 6")


def test_workers_that_never_start_end_the_run_with_their_reason() -> None:
    tiling = grid(2, 2)
    ledger = Ledger(tiling, all_of(tiling), workers=2)
    commands = ledger.start()
    ledger.handle(AssemblerJoined("a"))
    lost = 0
    while commands and not ledger.finished:
        starts = sum(isinstance(command, StartWorker) for command in commands)
        commands = []
        for _ in range(starts):
            if ledger.finished:
                break
            lost += 1
            commands += ledger.handle(WorkerLost(f"w{lost}", "ModuleNotFoundError: no module named 'nope'"))
    assert lost == 3
    assert isinstance(ledger.error, WorkersError)
    assert str(ledger.error) == "no worker could start: ModuleNotFoundError: no module named 'nope'"


def test_a_node_that_takes_eight_workers_along_counts_once_against_a_block() -> None:
    """Idle workers are lost unnoticed: the block must not pass from one dead worker to the next."""
    tiling = grid(1, 1)
    ledger = Ledger(tiling, all_of(tiling), workers=9)
    ledger.start()
    ledger.handle(AssemblerJoined("a"))
    for number in range(8):
        ledger.handle(WorkerJoined(f"w{number}", "one node"))
    ledger.handle(WorkerJoined("elsewhere", "another node"))
    first, *rest = ledger.handle(WorkerLost("w0", "its node is gone"))
    assert [first, *rest[:6]] == [Ping(f"w{number}") for number in range(1, 8)]
    assert rest[6:] == [Compute("elsewhere", BlockId(0, 0))], "one block wants no more workers"
    assert ledger.handle(WorkerLost("elsewhere", "its node is gone")) == [StartWorker()], "w1 is in doubt"
    assert ledger.handle(WorkerAlive("w1")) == [Compute("w1", BlockId(0, 0))]
    for number in range(2, 8):
        assert ledger.handle(WorkerLost(f"w{number}", "its node is gone")) == []
    assert not ledger.finished


def test_a_worker_that_gives_no_sign_of_life_is_given_up() -> None:
    tiling, now = grid(1, 1), 0.0
    ledger = Ledger(tiling, all_of(tiling), workers=2, clock=lambda: now)
    ledger.start()
    ledger.handle(AssemblerJoined("a"))
    for name in ("w1", "w2"):
        ledger.handle(WorkerJoined(name, "one node"))
    assert ledger.handle(WorkerLost("w1", "killed")) == [Ping("w2"), StartWorker()]
    assert ledger.handle(Tick()) == []
    now = 61.0
    assert ledger.handle(Tick()) == [Kill("w2")], "another one is on its way"


def test_workers_follow_the_room_that_there_is() -> None:
    """More where it grows, as many as there are blocks for; fewer where it shrinks, and always one."""
    tiling = grid(2, 4)
    ledger = Ledger(tiling, all_of(tiling), workers=2)
    assert ledger.start() == [StartAssembler(), StartWorker(), StartWorker()]
    ledger.handle(AssemblerJoined("a"))
    ledger.handle(WorkerJoined("w1", "a node"))
    assert starts(ledger.handle(Capacity(3))) == 1, "one has joined, one is on its way"
    assert starts(ledger.handle(Capacity(3))) == 0
    assert starts(ledger.handle(Capacity(100))) == 5, "there are 8 blocks"
    for number in range(2, 9):
        ledger.handle(WorkerJoined(f"w{number}", "a node"))
    ledger.handle(Capacity(7))
    assert starts(ledger.handle(WorkerLost("w8", "its node is gone"))) == 0, "no room for another one"
    assert starts(ledger.handle(WorkerLost("w7", "killed"))) == 1, "there is room"
    ledger.handle(Capacity(0))
    for number in range(1, 7):
        assert starts(ledger.handle(WorkerLost(f"w{number}", "its node is gone"))) == 0
    assert starts(ledger.handle(WorkerLost("w9", "its node is gone"))) == 1, "one waits for room"
    assert not ledger.finished


def starts(commands: list[Command]) -> int:
    return commands.count(StartWorker())


def test_a_function_that_raises_ends_the_run_at_once() -> None:
    tiling = grid(2, 2)
    ledger = Ledger(tiling, all_of(tiling))
    ledger.start()
    ledger.handle(AssemblerJoined("a"))
    commands = ledger.handle(WorkerJoined("w"))
    error = FunctionError("boom")
    assert isinstance(commands[0], Compute)
    assert ledger.handle(BlockRaised(commands[0].block, error)) == []
    assert ledger.state == "failed"
    assert ledger.error is error


def test_a_stop_lets_what_is_on_its_way_arrive() -> None:
    run = Simulation(Scenario(tiling=grid(30, 2), workers=1, stops=1), seed=1)
    attempt = run._attempt

    def first_attempt() -> str:
        if run.attempts == 2:
            assert isinstance(run.ledger.error, StoppedError)
            assert run.ledger.blocks_in_flight == 0
            assert 0 < run.computes == run.ledger.blocks_done < 60
        return attempt()

    run._attempt = first_attempt  # type: ignore[method-assign]
    run.play()
    assert run.ends == ["stopped", "complete"]


def test_a_stop_while_nobody_is_there_ends_at_once() -> None:
    tiling = grid(2, 2)
    ledger = Ledger(tiling, all_of(tiling))
    ledger.start()
    ledger.handle(AssemblerJoined("a"))
    (first, _) = ledger.handle(WorkerJoined("w"))
    assert isinstance(first, Compute)
    ledger.handle(AssemblerLost("a", "its node is gone"))
    assert ledger.handle(BlockComputed("w", first.block)) == []
    ledger.handle(StopRequested())
    assert ledger.state == "stopped"


def test_nothing_missing_is_complete_at_once() -> None:
    ledger = Ledger(grid(3, 2), Remaining([], 0, 0, {}), workers=2)
    assert ledger.start() == []
    assert ledger.state == "complete"


@pytest.mark.parametrize(
    ("block_seconds", "most", "queued"), [(0.001, 16, 16), (0.001, 2, 2), (0.01, 16, 5), (1.0, 16, 2)]
)
def test_a_worker_has_more_blocks_on_their_way_while_they_are_quick(
    block_seconds: float, most: int, queued: int
) -> None:
    run = played(
        grid(2, 200), workers=1, block_seconds=block_seconds, most_in_flight=most, jitter_seconds=1e-6
    )
    assert abs(run.most_in_store - queued) <= (queued == 5), "of the median, which is not quite that"


def test_only_tiny_blocks_may_queue_up() -> None:
    assert [most_in_flight(nbytes) for nbytes in (8, 1 << 16, 1 << 17, 1 << 20, 1 << 26)] == [32, 16, 8, 2, 2]


def test_of_tiny_blocks_that_come_together_none_is_blamed_before_it_hangs_alone() -> None:
    now = [0.0]
    tiling = grid(1, 100)
    ledger = Ledger(tiling, all_of(tiling), most_in_flight=16, clock=lambda: now[0])
    ledger.start()
    ledger.handle(AssemblerJoined("a"))
    commands = ledger.handle(WorkerJoined("w"))
    asked = deque[BlockId]()
    while commands or ledger.blocks_done < 40:
        if not commands:
            commands = ledger.handle(BlockComputed("w", asked.popleft(), Findings(seconds=0.001)))
        command = commands.pop(0)
        if isinstance(command, Compute):
            asked.append(command.block)
        elif isinstance(command, Absorb):
            commands += ledger.handle(BlockAbsorbed("a", command.block))
    assert len(asked) == 16
    now[0] = 700.0
    commands = ledger.handle(Tick())
    assert commands[0] == Kill("w")
    assert not ledger.losses.deaths
    assert set(ledger.history.failures[0].blocks) >= {str(tiling.block(*block)) for block in asked}
    commands = ledger.handle(WorkerJoined("v"))
    (alone,) = [command for command in commands if isinstance(command, Compute)]
    now[0] += 700.0
    ledger.handle(Tick())
    assert ledger.losses.deaths == {alone.block: 1}

"""The state machine under random schedules of work, death and loss: no Ray, no clock."""

from __future__ import annotations

import random
from collections.abc import Collection

import pytest

from jacjobs.errors import FunctionError, IncompleteError, StoppedError, WorkersError
from jacjobs.planning.geometry import Tiling
from jacjobs.run.ledger import Ledger
from jacjobs.run.roster import IN_FLIGHT
from jacjobs.run.transposer import TRANSPOSES
from jacjobs.run.messages import (
    Abandon,
    Absorb,
    AssemblerJoined,
    AssemblerLost,
    BlockAbsorbed,
    BlockComputed,
    BlockId,
    BlockLost,
    BlockRaised,
    Command,
    Compute,
    Drop,
    Event,
    StartAssembler,
    StartWorker,
    StopRequested,
    Sweep,
    Transpose,
    Transposed,
    TransposeLost,
    WorkerJoined,
    WorkerLost,
)
from jacjobs.store.writer import PartRecord


def tiling_of(parts: int, blocks: int) -> Tiling:
    return Tiling(
        points=parts * blocks,
        rows=1,
        columns=1,
        part_points=blocks,
        part_lines=1,
        block_points=1,
        block_rows=1,
        block_columns=1,
    )


class World:
    """Workers and assemblers that exist only as lists of what they were told; chance decides what happens."""

    def __init__(
        self,
        ledger: Ledger,
        seed: int,
        workers: int = 1,
        deaths: float = 0.0,
        killers: Collection[BlockId] = (),
        answers_get_lost: bool = False,
    ) -> None:
        self.ledger = ledger
        self.tiling = ledger._tiling
        self.workers = workers
        self.random = random.Random(seed)
        self.deaths = deaths
        self.killers = set(killers)
        self.answers_get_lost = answers_get_lost
        """A worker that dies of its second block takes the answer to the first along."""
        self.queues: dict[str, list[BlockId]] = {}
        self.taken: dict[str, dict[int, set[int]]] = {}
        self.inbox: list[Absorb] = []
        self.births: list[Event] = []
        self.data: set[tuple[str, BlockId]] = set()
        self.commits: dict[int, int] = {}
        self.computed = 0
        self.names = 0
        self.steps = 0
        self.most_workers = 0
        self.orders: list[Transpose] = []
        self.spills: set[int] = set()
        self.found: set[int] = set()
        """Spills that an earlier attempt left."""
        self.made: list[int] = []

    def carry_out(self, commands: list[Command]) -> None:
        for command in commands:
            match command:
                case StartWorker():
                    self.names += 1
                    self.births.append(WorkerJoined(f"w{self.names}"))
                case StartAssembler():
                    self.names += 1
                    self.births.append(AssemblerJoined(f"a{self.names}"))
                case Compute(worker, block):
                    self.queues[worker].append(block)
                    assert len(self.queues[worker]) <= IN_FLIGHT
                case Absorb(assembler, block, worker):
                    assert (worker, block) in self.data
                    assert assembler in self.taken
                    self.inbox.append(command)
                case Drop(block, worker):
                    self.data.discard((worker, block))
                case Abandon(assembler, part):
                    self.taken[assembler].pop(part, None)
                case Transpose(assembler, part):
                    assert assembler in self.taken
                    self.orders.append(command)
                    assert sum(o.assembler == assembler for o in self.orders) <= TRANSPOSES
                    point = self.tiling.part(part).point_start
                    assert self.spills.issuperset(self.tiling.bundles_of(point)), "not all blocks are there"
                case Sweep(assembler, point):
                    assert assembler in self.taken
                    assert set(self.made).issuperset(self.tiling.parts_of(point)), "swept too early"
                    self.spills.difference_update(self.tiling.bundles_of(point))

    def run(self) -> None:
        while not self.ledger.finished:
            self.steps += 1
            assert self.steps < 200_000, "no end in sight"
            event = self.next_event()
            self.carry_out(self.ledger.handle(event))
            self.most_workers = max(self.most_workers, self.ledger.workers)
            assert self.ledger.blocks_in_flight <= IN_FLIGHT * self.most_workers

    def next_event(self) -> Event:
        choices = [self.born] * bool(self.births) + [self.compute] * any(self.queues.values())
        choices += [self.absorb] * bool(self.inbox) + [self.transpose] * bool(self.orders)
        if self.random.random() < self.deaths and self.queues and self.taken:
            choices = [self.die]
        assert choices, "nothing can happen: the ledger waits for ever"
        return self.random.choice(choices)()

    def born(self) -> Event:
        event = self.births.pop(0)
        if isinstance(event, WorkerJoined):
            self.queues[event.worker] = []
        elif isinstance(event, AssemblerJoined):
            self.taken[event.assembler] = {}
        return event

    def compute(self) -> Event:
        worker = self.random.choice([name for name, queue in self.queues.items() if queue])
        block, *behind = self.queues[worker]
        if block in self.killers or (self.answers_get_lost and self.killers.intersection(behind)):
            del self.queues[worker]
            return WorkerLost(worker, "killed by the block")
        self.queues[worker].pop(0)
        self.data.add((worker, block))
        self.computed += 1
        return BlockComputed(worker, block)

    def absorb(self) -> Event:
        order = self.inbox.pop(self.random.randrange(len(self.inbox)))
        if self.random.random() < self.deaths / 10:
            self.data.discard((order.worker, order.block))
            return BlockLost(order.assembler, order.block, "lost on the way")
        part, index = order.block
        taken = self.taken[order.assembler].setdefault(part, set())
        assert index not in taken, "a block was absorbed twice"
        taken.add(index)
        self.data.discard((order.worker, order.block))
        if len(taken) < self.tiling.blocks_in(part):
            return BlockAbsorbed(order.assembler, order.block)
        del self.taken[order.assembler][part]
        self.commits[part] = self.commits.get(part, 0) + 1
        if self.tiling.spills:
            self.spills.add(part)
            begun = {self.tiling.point_of(spill) for spill in self.spills - self.found}
            assert len(begun) <= self.tiling.points_at_once(self.workers), "too much on the disk"
            return BlockAbsorbed(order.assembler, order.block, "spill")
        return BlockAbsorbed(
            order.assembler, order.block, PartRecord(name=str(part), bytes=0, digest="", footer="")
        )

    def transpose(self) -> Event:
        order = self.orders.pop(self.random.randrange(len(self.orders)))
        if self.random.random() < self.deaths / 10:
            return TransposeLost(order.assembler, order.part, "lost on the way")
        assert order.part not in self.made, "a part was made twice"
        self.made.append(order.part)
        record = PartRecord(name=str(order.part), bytes=0, digest="", footer="")
        return Transposed(order.assembler, order.part, record)

    def die(self) -> Event:
        if self.random.random() < 0.3:
            name = self.random.choice(list(self.taken))
            del self.taken[name]
            self.inbox = [order for order in self.inbox if order.assembler != name]
            self.orders = [order for order in self.orders if order.assembler != name]
            return AssemblerLost(name, "chance")
        name = self.random.choice(list(self.queues))
        del self.queues[name]
        return WorkerLost(name, "chance")


def play(parts: int, blocks: int, workers: int, seed: int, **chance) -> World:  # type: ignore[no-untyped-def]
    ledger = Ledger(tiling_of(parts, blocks), range(parts), parts * blocks, workers=workers)
    world = World(ledger, seed, **chance)
    world.carry_out(ledger.start())
    world.run()
    return world


@pytest.mark.parametrize("seed", range(20))
def test_without_faults_every_block_is_computed_once(seed: int) -> None:
    world = play(parts=7, blocks=5, workers=1 + seed % 9, seed=seed)
    assert world.ledger.state == "complete"
    assert world.computed == 35
    assert world.commits == dict.fromkeys(range(7), 1)
    assert world.ledger.blocks_done == world.ledger.entries_done == 35
    assert not world.data


@pytest.mark.parametrize("seed", range(300))
def test_deaths_lose_nothing(seed: int) -> None:
    world = play(parts=6, blocks=4, workers=1 + seed % 12, seed=seed, deaths=0.02)
    if world.ledger.state == "incomplete":  # chance killed three workers with one block
        assert world.ledger.quarantined
    else:
        assert world.ledger.state == "complete", f"seed {seed}: {world.ledger.error}"
        assert world.commits == dict.fromkeys(range(6), 1)
        assert world.ledger.blocks_done == 24


def spilling(points: int, lines: int, blocks: int) -> Tiling:
    """Blocks are columns of all lines, two in a spill; a part is a line."""
    return Tiling(
        points=points,
        rows=lines,
        columns=blocks,
        part_points=1,
        part_lines=1,
        block_points=1,
        block_rows=lines,
        block_columns=1,
        spill_blocks=2,
    )


def play_spilling(  # type: ignore[no-untyped-def]
    tiling: Tiling, workers: int, seed: int, parts=None, spilled=(), assemblers: int = 1, **chance
) -> World:
    """A run that lacks `parts` (all, by default) and has the spills `spilled`."""
    wanted = range(tiling.parts) if parts is None else parts
    transposes: dict[int, list[int]] = {}
    for part in wanted:
        transposes.setdefault(tiling.part(part).point_start, []).append(part)
    missing = [b for point in transposes for b in tiling.bundles_of(point) if b not in spilled]
    blocks = sum(map(tiling.blocks_in, missing))
    ledger = Ledger(tiling, missing, blocks, transposes, workers, assemblers)
    world = World(ledger, seed, workers, **chance)
    world.spills |= set(spilled)
    world.found |= set(spilled)
    world.made += set(range(tiling.parts)) - set(wanted)
    world.carry_out(ledger.start())
    world.run()
    return world


@pytest.mark.parametrize("seed", range(200))
def test_spills_become_parts_whatever_dies(seed: int) -> None:
    tiling = spilling(points=1 + seed % 5, lines=1 + seed % 4, blocks=1 + seed % 7)
    deaths = 0.02 * (seed % 3)
    world = play_spilling(tiling, 1 + seed % 6, seed, assemblers=1 + seed % 3, deaths=deaths)
    if world.ledger.state == "incomplete":
        assert world.ledger.quarantined
        return
    assert world.ledger.state == "complete", f"seed {seed}: {world.ledger.error}"
    assert sorted(world.made) == list(range(tiling.parts))
    assert [int(record.name) for record in world.ledger.committed] == world.made
    assert not world.spills
    if not deaths:
        assert world.computed == tiling.blocks


@pytest.mark.parametrize("seed", range(50))
def test_spills_that_are_there_are_not_computed_again(seed: int) -> None:
    tiling = spilling(points=4, lines=3, blocks=5)
    chance = random.Random(seed)
    parts = sorted(chance.sample(range(tiling.parts), 5))
    points = {tiling.part(part).point_start for part in parts}
    spilled = [b for point in points for b in tiling.bundles_of(point) if chance.random() < 0.6]
    world = play_spilling(tiling, 2, seed, parts=parts, spilled=spilled)
    assert world.ledger.state == "complete"
    assert sorted(world.made) == list(range(tiling.parts))
    wanted = {b for point in points for b in tiling.bundles_of(point)} - set(spilled)
    assert world.computed == sum(map(tiling.blocks_in, wanted))


def test_a_killer_block_costs_its_point_and_its_spills_stay() -> None:
    tiling = spilling(points=4, lines=2, blocks=6)
    world = play_spilling(tiling, 2, seed=1, killers=[BlockId(4, 1)])
    assert world.ledger.state == "incomplete"
    assert sorted(world.made) == [0, 1, 4, 5, 6, 7]
    assert world.spills == {3, 5}


def test_a_part_that_is_never_transposed_ends_the_run() -> None:
    ledger = Ledger(spilling(1, 1, 1), [], 0, {0: [0]})
    ledger.start()
    commands = ledger.handle(AssemblerJoined("a"))
    for _ in range(3):
        assert commands == [Transpose("a", 0)]
        commands = ledger.handle(TransposeLost("a", 0, "no such key"))
    assert commands == []
    assert "no such key" in str(ledger.error)


def test_a_killer_block_is_quarantined_and_the_rest_goes_on() -> None:
    world = play(parts=5, blocks=4, workers=3, seed=1, killers=[BlockId(2, 1)])
    assert world.ledger.state == "incomplete"
    assert isinstance(world.ledger.error, IncompleteError)
    assert list(world.ledger.quarantined) == [BlockId(2, 1)]
    assert "points 9:10" in str(world.ledger.error)
    assert sorted(world.commits) == [0, 1, 3, 4]


@pytest.mark.parametrize("seed", range(50))
def test_a_part_of_killers_costs_that_part_alone(seed: int) -> None:
    """However many workers it takes at a time: deaths that a block explains are no sign of a bad machine."""
    killers = [BlockId(2, position) for position in range(1 + seed % 4)]
    world = play(5, 4, workers=1 + seed % 5, seed=seed, killers=killers, answers_get_lost=seed % 2 == 0)
    assert world.ledger.state == "incomplete"
    assert set(world.ledger.quarantined) <= set(killers)
    assert len(world.ledger.quarantined) == 1
    assert sorted(world.commits) == [0, 1, 3, 4]


@pytest.mark.parametrize("seed", range(20))
def test_a_function_that_kills_every_worker_ends_the_run_and_names_blocks(seed: int) -> None:
    killers = [BlockId(part, position) for part in range(100) for position in range(4)]
    world = play(parts=100, blocks=4, workers=1 + seed % 5, seed=seed, killers=killers)
    assert world.ledger.state == "failed"
    assert isinstance(world.ledger.error, WorkersError)
    assert "killed by the block" in str(world.ledger.error)
    assert world.names < 40


def test_a_thousand_workers() -> None:
    world = play(parts=300, blocks=20, workers=1000, seed=3, deaths=0.001)
    assert world.ledger.state == "complete"
    assert len(world.commits) == 300


def test_workers_that_never_start_end_the_run() -> None:
    ledger = Ledger(tiling_of(2, 2), range(2), 4, workers=2)
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
    assert "nope" in str(ledger.error)


def test_a_function_that_raises_ends_the_run_at_once() -> None:
    ledger = Ledger(tiling_of(2, 2), range(2), 4)
    ledger.start()
    ledger.handle(AssemblerJoined("a"))
    commands = ledger.handle(WorkerJoined("w"))
    error = FunctionError("boom")
    assert isinstance(commands[0], Compute)
    assert ledger.handle(BlockRaised(commands[0].block, error)) == []
    assert ledger.state == "failed"
    assert ledger.error is error


def test_a_stop_lets_what_is_on_its_way_arrive() -> None:
    ledger = Ledger(tiling_of(3, 2), range(3), 6)
    world = World(ledger, seed=0)
    world.carry_out(ledger.start())
    while world.computed < 3:
        world.carry_out(ledger.handle(world.next_event()))
    world.carry_out(ledger.handle(StopRequested()))
    world.run()
    assert ledger.state == "stopped"
    assert isinstance(ledger.error, StoppedError)
    assert world.computed < 6
    assert not world.inbox


def test_nothing_missing_is_complete_at_once() -> None:
    ledger = Ledger(tiling_of(3, 2), [], 0, workers=2)
    assert ledger.start() == []
    assert ledger.state == "complete"

"""A cluster that exists only as a schedule: the real ledger among virtual workers, in virtual time.

As FoundationDB and TigerBeetle test themselves: everything that happens follows from one seed, so a run that
breaks a rule is replayed exactly (`python -m tests.faults.simulator SEED`). Nothing here is simulated of the
ledger: it is the one that real runs use, and so is what finds out what is left to do after a crash.

The world is worse than Ray's: messages come late, out of order, twice, or never; actors that count as lost go
on working and commit what they have; whole nodes go with all that is on them. As with Ray, a loss is noticed
only by those who have asked for something.
"""

from __future__ import annotations

import heapq
import random
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from jacjobs.errors import FunctionError, JacjobsError, StoppedError, StoreError, WorkersError
from jacjobs.run.ledger import Ledger
from jacjobs.run.losses import DEATHS_TO_QUARANTINE
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
    Capacity,
    Command,
    Compute,
    Drop,
    Event,
    Findings,
    Kill,
    Ping,
    StartAssembler,
    StartWorker,
    StopRequested,
    Sweep,
    Tick,
    Transpose,
    Transposed,
    TransposeLost,
    WorkerAlive,
    WorkerJoined,
    WorkerLost,
    WriteFailed,
)
from jacjobs.run.patience import Patience
from jacjobs.run.remaining import remaining
from jacjobs.run.transposer import TRANSPOSES
from jacjobs.store.writer import PartRecord
from tests.faults.scenarios import Scenario, any_scenario

TICK_SECONDS = 10.0
GRACE_SECONDS = 30.0
FOR_EVER_SECONDS = 2_000_000.0
"""Longer than every deadline: nothing comes any more."""
ATTEMPTS = 40
STEPS = 20_000
"""Of an attempt, and 500 more for each block: what takes longer goes in circles."""
Content = tuple[Any, ...]


class BrokenRuleError(AssertionError):
    """What must never happen has happened."""


@dataclass
class _Node:
    name: int
    alive: bool = True


@dataclass
class _Actor:
    name: str
    node: _Node
    alive: bool = True
    known: bool = True
    """To the executor: it has not been reported lost."""
    speed: float = 1.0
    queue: list[BlockId] = field(default_factory=list)
    busy: bool = False
    bundles: dict[int, _Bundle] = field(default_factory=dict)
    transposing: int = 0
    asked: int = 0
    """Requests that it has not answered: without any, its loss goes unnoticed."""
    unnoticed: str = ""
    cut_off: bool = False
    """It lives, and nobody hears it until it has been reported lost."""
    doom: float = 0.0
    """When its node was lost."""


@dataclass
class _Bundle:
    """As in the real assembler: blocks are written in order, and early ones wait."""

    content: list[Any] = field(default_factory=list)
    early: dict[int, Any] = field(default_factory=dict)
    taken: int = 0


@dataclass
class Disk:
    """What survives everything."""

    parts: dict[int, Content] = field(default_factory=dict)
    spills: dict[int, Content] = field(default_factory=dict)


class Simulation:
    """One run, from its first command until nothing more can be done, resumed whenever it is interrupted."""

    def __init__(self, scenario: Scenario, seed: int, ledger: Callable[..., Ledger] = Ledger) -> None:
        self.scenario = scenario
        self.tiling = scenario.tiling
        self.random = random.Random(seed)
        self.now = 0.0
        self.disk = Disk()
        self.ledger: Ledger
        self.attempts = 0
        self.computes = 0
        self.most_in_store = 0
        self.ends: list[str] = []
        self.spared = dict(scenario.killers), dict(scenario.hangs)
        self.losses_at: Counter[BlockId] = Counter()
        """Of workers that had the block, over all attempts; a node counts once, however many it had."""
        self._doomed: set[tuple[BlockId, float]] = set()
        self._make_ledger = ledger
        self._queue: list[tuple[float, int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._number = 0
        self._names = 0
        self._restarts, self._stops = scenario.restarts, scenario.stops
        self._disk_full, self._extra = scenario.disk_full, scenario.extra_workers
        self._nodes = [_Node(i) for i in range(scenario.nodes)]

    # -- time ----------------------------------------------------------------------------------------------

    def _later(self, seconds: float, action: Callable[..., None], *arguments: Any) -> None:
        self._number += 1
        heapq.heappush(self._queue, (self.now + seconds, self._number, self.attempts, action, arguments))

    def _soon(self) -> float:
        """How long a message takes."""
        seconds = self.random.expovariate(1.0) * self.scenario.jitter_seconds
        if self.random.random() < 0.01 and self.scenario.jitter_seconds > 0.1:
            seconds += self.random.uniform(0, 120)
        return seconds

    def _happens(self, probability: float) -> bool:
        return probability > 0 and self.random.random() < probability

    # -- attempts ------------------------------------------------------------------------------------------

    def play(self) -> None:
        """Attempt after attempt, until one ends for good."""
        while True:
            self.attempts += 1
            if self.attempts > ATTEMPTS:
                raise BrokenRuleError(f"no end after {ATTEMPTS} attempts: {self.ends}")
            self.ends.append(self._attempt())
            if self.ends[-1] == "complete":
                self._check_all_parts(set())
                return
            if self.ends[-1] == "incomplete":
                self._check_all_parts({block.bundle for block in self.ledger.losses.quarantined})
                return
            if self.ends[-1] in ("failed", "give up"):
                return

    def _attempt(self) -> str:
        left = remaining(self.tiling, self.disk.parts.__contains__, self.disk.spills.__contains__)
        parts = [p for parts in left.transposes.values() for p in parts]
        self._to_make = sorted(parts if self.tiling.spills else left.bundles)
        self.ledger = self._make_ledger(
            self.tiling,
            left,
            self.scenario.workers,
            self.scenario.assemblers,
            Patience("auto", self.scenario.block_seconds),
            self.scenario.most_in_flight,
            clock=lambda: self.now,
        )
        self.computes = 0
        self._actors: dict[str, _Actor] = {}
        self._requests: Counter[tuple[str, BlockId | int | None]] = Counter()
        """How often an actor was asked for a block."""
        self._data: dict[tuple[str, BlockId], str] = {}
        """As in the Ray executor: asked for, computed, or gone with its node."""
        self._most_workers = 0
        self._heard = self.now
        self._dead_coordinator = False
        self._stopping_since: float | None = None
        self._carry_out(self.ledger.start())
        self._later(TICK_SECONDS, self._tick)
        for chance, action in ((self._restarts, self._crash_coordinator), (self._stops, self._stop)):
            if chance:
                self._later(self.random.expovariate(1 / (20 * self.scenario.block_seconds)), action)
        steps = STEPS + 500 * left.blocks
        while not self.ledger.finished and not self._dead_coordinator:
            steps -= 1
            if not steps:
                raise BrokenRuleError("no end in sight")
            self.now, _, attempt, action, arguments = heapq.heappop(self._queue)
            if attempt == self.attempts:
                action(*arguments)
            elif action == self._absorb:
                self._absorb_late(*arguments)
        if self._dead_coordinator:
            self._end_all(zombies=True)
            return "crashed"
        self._check_end(left.blocks)
        self._end_all(zombies=False)
        return self._what_next()

    def _what_next(self) -> str:
        """An end that the world's next attempt would not repeat is followed by one."""
        if isinstance(self.ledger.error, StoreError) and self._disk_full >= 0:
            return "disk full"
        return self.ledger.state

    def _end_all(self, *, zombies: bool) -> None:
        """The executor is closed, or its process was killed: then assemblers may go on for a while."""
        for actor in self._actors.values():
            actor.known = False
            if not (zombies and self._happens(0.3)):
                actor.alive = False

    # -- what the coordinator's shell does -----------------------------------------------------------------

    def _tick(self) -> None:
        self._hear(Tick())
        if self._stopping_since is not None and self.now - self._stopping_since > GRACE_SECONDS:
            self.ledger.give_up_waiting()
        if self.now - self._heard > FOR_EVER_SECONDS:
            raise BrokenRuleError("nothing happens any more, and the run has not ended")
        # Where nothing happens, time flies.
        self._later(max(TICK_SECONDS, (self.now - self._heard) / 20), self._tick)
        self._misfortune()

    def _stop(self) -> None:
        self._stops -= 1
        self._stopping_since = self.now
        self._hear(StopRequested())

    def _crash_coordinator(self) -> None:
        self._restarts -= 1
        self._dead_coordinator = True

    def _hear(self, event: Event) -> None:
        """An event reaches the ledger, and what it answers is carried out."""
        if self.ledger.finished:
            return
        if not isinstance(event, (Tick, Capacity)):
            self._heard = self.now
        commands = self.ledger.handle(event)
        self._most_workers = max(self._most_workers, self.ledger.workers)
        self._carry_out(commands)
        if self.ledger.blocks_in_flight > self.scenario.most_in_flight * max(1, self._most_workers):
            raise BrokenRuleError(
                f"{self.ledger.blocks_in_flight} blocks on their way, {self._most_workers} workers"
            )

    # -- what the executor does ----------------------------------------------------------------------------

    def _carry_out(self, commands: list[Command]) -> None:
        for command in commands:
            match command:
                case StartWorker():
                    self._later(self._soon() + self.random.uniform(0, 5), self._born, "w")
                case StartAssembler():
                    self._later(self._soon() + self.random.uniform(0, 5), self._born, "a")
                case Kill(name):
                    self._end(name)
                    self._actors[name].alive = False
                case Ping(name):
                    self._ask(name)
                    self._later(self._soon(), self._pong, self._actors[name])
                case Compute(name, block):
                    self._ask_to_compute(name, block)
                case Absorb(name, block, worker):
                    if (worker, block) not in self._data:
                        raise BrokenRuleError(f"{block} of {worker} is to be absorbed, and nobody has it")
                    actor = self._ask(name)
                    self._requests[name, block] += 1
                    self._later(self._soon() + self.random.uniform(0, 1), self._absorb, actor, block, worker)
                case Drop(block, worker):
                    self._data.pop((worker, block), None)
                case Abandon(name, bundle):
                    self._later(self._soon(), self._actor(name).bundles.pop, bundle, None)
                case Transpose(name, part):
                    actor = self._ask(name)
                    self._requests[name, part] += 1
                    actor.transposing += 1
                    if actor.transposing > TRANSPOSES:
                        raise BrokenRuleError(f"{actor.transposing} parts transposed at once")
                    self._later(self._soon() + self.random.uniform(0, 3), self._transpose, name, part)
                case Sweep(name, point):
                    self._actor(name)
                    if any(part not in self.disk.parts for part in self.tiling.parts_of(point)):
                        raise BrokenRuleError(f"spills of point {point} swept before its parts were there")
                    for bundle in self.tiling.bundles_of(point):
                        self.disk.spills.pop(bundle, None)
        self.most_in_store = max(self.most_in_store, len(self._data))
        if len(self._data) > self.scenario.most_in_flight * max(1, self._most_workers):
            raise BrokenRuleError(f"{len(self._data)} blocks in the store, {self._most_workers} workers")

    def _ask(self, name: str) -> _Actor:
        """Something that has an answer."""
        actor = self._actor(name)
        actor.asked += 1
        if actor.unnoticed:
            self._later(self._soon(), self._lost, actor, actor.unnoticed)
        return actor

    def _actor(self, name: str) -> _Actor:
        """Whom the executor knows: it would fail to ask anybody else."""
        actor = self._actors.get(name)
        if actor is None or not actor.known:
            raise BrokenRuleError(f"{name} is asked for something, and it is lost")
        return actor

    def _end(self, name: str) -> None:
        """Forget what was asked of an actor, and the data that it will not make."""
        actor = self._actors[name]
        if actor.known:
            actor.known = False
            asked = [key for key, state in self._data.items() if key[0] == name and state == "asked"]
            for key in asked:
                del self._data[key]
                if (key[1], actor.doom) not in self._doomed:
                    self.losses_at[key[1]] += 1
                if actor.doom:
                    self._doomed.add((key[1], actor.doom))

    def _tell(self, actor: _Actor, event: Event, then: Callable[[], None] | None = None) -> None:
        """A message on its way from an actor to the executor."""
        if self._happens(self.scenario.lose):
            return
        about = getattr(event, "block", getattr(event, "part", None))
        request = self._requests[actor.name, about]
        self._later(self._soon(), self._deliver, actor, event, then, about, request)
        if self._happens(self.scenario.duplicate):
            late = self._soon() + self.random.uniform(0, 30)
            self._later(late, self._deliver, actor, event, then, about, request)

    def _deliver(
        self,
        actor: _Actor,
        event: Event,
        then: Callable[[], None] | None,
        about: BlockId | int | None,
        request: int,
    ) -> None:
        if actor.cut_off and actor.known:
            self._later(5.0, self._deliver, actor, event, then, about, request)
            return
        if request != self._requests[actor.name, about]:
            return  # what answers an earlier request is no answer to this one: the executor knows them apart
        if not actor.known and self.random.random() < 0.5:
            return  # as the executor does; the ledger must bear the other half
        if actor.known and then is not None:
            then()
        actor.asked = max(0, actor.asked - 1)
        self._hear(event)

    def _lost(self, actor: _Actor, cause: str) -> None:
        """The executor learns that an actor is gone."""
        if not actor.known:
            return
        if not actor.asked and not actor.unnoticed:
            actor.unnoticed = cause
            return
        self._end(actor.name)
        if actor.name[0] == "w":
            self._hear(WorkerLost(actor.name, cause))
        else:
            self._hear(AssemblerLost(actor.name, cause))

    # -- actors --------------------------------------------------------------------------------------------

    def _born(self, kind: str) -> None:
        nodes = [node for node in self._nodes if node.alive]
        if not nodes:  # asked for, and waited for
            if self.now - self._heard > 1000:
                self._nodes[0].alive = True
            self._later(15.0, self._born, kind)
            return
        self._names += 1
        name = f"{kind}{self._names}"
        actor = self._actors[name] = _Actor(name, self.random.choice(nodes), asked=1)
        if self._happens(self.scenario.slow):
            actor.speed = self.random.choice([0.3, 0.05, 0.004])
        if self._happens(self.scenario.start_failure):
            actor.alive = False
            self._later(self._soon(), self._lost, actor, "could not start")
            return
        self._later(self._soon(), self._join_late, actor)
        if self._happens(self.scenario.duplicate):
            self._later(self._soon() + self.random.uniform(0, 60), self._join_late, actor)

    def _join_late(self, actor: _Actor) -> None:
        if actor.known or self.random.random() < 0.5:
            joined = WorkerJoined if actor.name[0] == "w" else AssemblerJoined
            actor.asked = max(0, actor.asked - 1)
            self._hear(joined(actor.name, f"node {actor.node.name}"))

    def _die(self, actor: _Actor, cause: str) -> None:
        """The process is gone, or cut off and only seems so: then it works on."""
        if not actor.alive:
            return
        if self._happens(self.scenario.zombie):
            actor.cut_off = True
        else:
            actor.alive = False
        self._later(self._soon() + self.random.uniform(0, 20), self._lost, actor, cause)

    def _misfortune(self) -> None:
        """Of the last ten seconds."""
        scenario = self.scenario
        if self._happens(scenario.node_loss):
            node = self.random.choice(self._nodes)
            if node.alive:
                node.alive = False
                for actor in list(self._actors.values()):
                    if actor.node is node and actor.alive:
                        actor.doom = self.now
                        self._die(actor, "its node is gone")
                for key, state in self._data.items():
                    if state == "computed" and self._actors[key[0]].node is node:
                        self._data[key] = "gone"
                self._later(self.random.uniform(0, 100), setattr, node, "alive", True)
        if self._extra and self._happens(0.2):
            self._extra -= 1
            self._born("w")
        if self._happens(scenario.room):
            self._hear(Capacity(self.random.randint(0, 2 * scenario.workers)))
        if scenario.crash:
            for actor in list(self._actors.values()):
                if actor.known and self._happens(scenario.crash):
                    self._die(actor, "chance")

    def _pong(self, actor: _Actor) -> None:
        """When it has computed what it is at."""
        if actor.busy and actor.alive:
            self._later(1.0, self._pong, actor)
        elif actor.alive:
            self._tell(actor, WorkerAlive(actor.name))

    def _ask_to_compute(self, name: str, block: BlockId) -> None:
        actor = self._ask(name)
        self.computes += 1
        if (name, block) in self._data:
            raise BrokenRuleError(f"{name} is asked for {block} while its data is awaited")
        self._data[name, block] = "asked"
        self._requests[name, block] += 1
        actor.queue.append(block)
        if len(actor.queue) + actor.busy > self.scenario.most_in_flight:
            raise BrokenRuleError(f"{name} has {len(actor.queue) + actor.busy} blocks to compute")
        self._compute_next(actor)

    def _compute_next(self, actor: _Actor) -> None:
        if actor.busy or not actor.queue or not actor.alive:
            return
        block = actor.queue.pop(0)
        actor.busy = True
        killers, hangs = self.spared
        seconds = self.scenario.block_seconds * self.random.uniform(0.5, 1.5) / actor.speed
        if killers.get(block, 0) > 0:
            killers[block] -= 1
            self._later(seconds * self.random.random(), self._killed, actor, block)
        elif hangs.get(block, 0) > 0:
            hangs[block] -= 1  # and that is the last that anybody hears of it
        else:
            self._later(seconds, self._computed, actor, block, seconds)

    def _killed(self, actor: _Actor, block: BlockId) -> None:
        if actor.alive:
            actor.alive = False
            self._later(self._soon(), self._lost, actor, f"killed by {block}")

    def _computed(self, actor: _Actor, block: BlockId, seconds: float) -> None:
        if not actor.alive:
            return
        actor.busy = False
        self._compute_next(actor)
        if block == self.scenario.raises:
            self._tell(actor, BlockRaised(block, FunctionError("boom")))
            return

        def computed() -> None:
            if self._data.get((actor.name, block)) == "asked":
                self._data[actor.name, block] = "computed"

        self._tell(actor, BlockComputed(actor.name, block, Findings(seconds=seconds)), computed)

    # -- assemblers ----------------------------------------------------------------------------------------

    def _absorb(self, actor: _Actor, block: BlockId, worker: str) -> None:
        if not actor.alive:
            return
        if self._data.get((worker, block)) == "gone":

            def forget() -> None:
                self._data.pop((worker, block), None)
                self.losses_at[block] += 1

            self._tell(actor, BlockLost(actor.name, block, "its node is gone"), forget)
            return
        if self._disk_full > 0 and self._happens(0.05):
            self._disk_full = -self._disk_full + 1  # room is made before the next attempt
            self._tell(actor, WriteFailed(StoreError("no space left on device")))
            return
        self._take(actor, block, worker)

    def _absorb_late(self, actor: _Actor, block: BlockId, worker: str) -> None:
        """By an assembler that a coordinator before this one had started, and that outlives it."""
        if actor.alive:
            self._put(actor, block)

    def _take(self, actor: _Actor, block: BlockId, worker: str) -> None:
        committed = self._put(actor, block)

        def forget() -> None:
            self._data.pop((worker, block), None)

        self._tell(actor, BlockAbsorbed(actor.name, block, committed), forget)

    def _put(self, actor: _Actor, block: BlockId) -> Any:
        """What the real assembler does with a block."""
        number, position = block
        bundle = actor.bundles.setdefault(number, _Bundle())
        bundle.taken += 1
        total = self.tiling.blocks_in(number)
        if self.tiling.splits_lines and not self.tiling.spills:
            bundle.early[position] = block
            if bundle.taken == total:
                bundle.content = [bundle.early.get(i) for i in range(total)]
        elif position == len(bundle.content):
            bundle.content.append(block)
            while (early := bundle.early.pop(len(bundle.content), None)) is not None:
                bundle.content.append(early)
        else:
            bundle.early[position] = block
        if len(bundle.content) < total:
            return None
        del actor.bundles[number]
        content = tuple(bundle.content)
        if content != tuple(BlockId(number, i) for i in range(total)):
            raise BrokenRuleError(f"bundle {number} was committed with other blocks than it has: {content}")
        if self.tiling.spills:
            self.disk.spills[number] = content
            return "spill"
        self._commit(number, content)
        return PartRecord(name=str(number), bytes=0, digest="", footer="")

    def _commit(self, part: int, content: Content) -> None:
        if self.disk.parts.setdefault(part, content) != content:
            raise BrokenRuleError(f"part {part} was committed twice, with different bytes")

    def _transpose(self, name: str, part: int) -> None:
        actor = self._actors[name]
        actor.transposing -= 1
        if not actor.alive:
            return
        if self._happens(self.scenario.crash / 10):
            self._tell(actor, TransposeLost(name, part, "lost on the way"))
            return
        point = self.tiling.part(part).point_start
        spills = [self.disk.spills.get(bundle) for bundle in self.tiling.bundles_of(point)]
        if None in spills:
            if part in self.disk.parts or not actor.known:
                return  # somebody who was thought lost is late: its spills are swept
            raise BrokenRuleError(f"part {part} is transposed before all its spills are there")
        self._commit(part, tuple(spills))
        self._tell(actor, Transposed(name, part, PartRecord(name=str(part), bytes=0, digest="", footer="")))

    # -- the end -------------------------------------------------------------------------------------------

    def _check_end(self, blocks: int) -> None:
        ledger = self.ledger
        state, error = ledger.state, ledger.error
        if state == "complete":
            if ledger.blocks_done != ledger.blocks_total or ledger.blocks_total != blocks:
                raise BrokenRuleError(f"complete with {ledger.blocks_done} of {blocks} blocks")
            made = sorted(int(record.name) for record in ledger.committed)
            if made != self._to_make:
                raise BrokenRuleError(f"complete, and the parts made are {made}")
        elif state == "incomplete":
            for block in ledger.losses.quarantined:
                if self.losses_at[block] < DEATHS_TO_QUARANTINE:
                    raise BrokenRuleError(f"{block} was given up after {self.losses_at[block]} losses")
                if self._only_killers_trouble and block not in self.scenario.killers:
                    raise BrokenRuleError(f"{block} was given up, and was innocent")
        elif state == "stopped":
            if self._stopping_since is None:
                raise BrokenRuleError("stopped, and nobody asked for it")
        elif not self._may_fail(error):
            raise BrokenRuleError(f"failed without a cause: {error}")
        if self.computes > blocks + ledger.history.blocks_repeated:
            raise BrokenRuleError(
                f"{self.computes} blocks handed out, of {blocks}, and not counted as repeated"
            )

    @property
    def _only_killers_trouble(self) -> bool:
        s = self.scenario
        return not (s.crash or s.node_loss or s.slow or s.lose or s.hangs)

    def _may_fail(self, error: JacjobsError | None) -> bool:
        scenario = self.scenario
        if isinstance(error, FunctionError):
            return scenario.raises is not None
        if isinstance(error, StoreError):
            return scenario.disk_full > 0
        if isinstance(error, WorkersError):
            trouble = max(scenario.start_failure, scenario.crash, scenario.node_loss, scenario.lose)
            return trouble >= 0.005 or len(scenario.killers) + len(scenario.hangs) >= 3 or scenario.slow > 0.1
        return isinstance(error, StoppedError)

    def _check_all_parts(self, given_up: set[int]) -> None:
        """Every part is there that no lost block belongs to."""
        points = {self.tiling.point_of(bundle) for bundle in given_up}
        for part in range(self.tiling.parts):
            lost = self.tiling.part(part).point_start in points if self.tiling.spills else part in given_up
            if not lost and part not in self.disk.parts:
                raise BrokenRuleError(f"part {part} is not there, and no block of it was given up")


def play(seed: int, ledger: Callable[..., Ledger] = Ledger, workers: int | None = None) -> Simulation:
    """Raises BrokenRuleError, or whatever the ledger raised, with the seed that does it again."""
    simulation = Simulation(any_scenario(seed, workers), seed, ledger)
    try:
        simulation.play()
    except Exception as error:
        error.add_note(f"seed {seed}, {workers=}: python -m tests.faults.simulator {seed} {workers or ''}")
        raise
    return simulation


if __name__ == "__main__":
    asked = [int(argument) for argument in sys.argv[1:]]
    print(any_scenario(*asked))
    done = play(asked[0], workers=asked[1] if len(asked) > 1 else None)
    print(f"{done.ends} after {done.now:,.1f} s")

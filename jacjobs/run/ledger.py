"""The coordinator's mind: a state machine. Events go in, commands come out; no clock, no IO, no Ray.

Who computes which block, which part goes to which assembler, what is done again where, what is given up,
when it ends: all of that is decided here and nowhere else, so a test can play any order of failures.

A part belongs to the worker that opened it, which gets the part's blocks in order; there are at most as many
open parts as workers. A worker that finds no part to open helps with the oldest open one. At most
`IN_FLIGHT` blocks a worker are on their way between "handed out" and "absorbed by an assembler": that, and
the bound on open parts, bounds memory however large J is. Work per event does not grow with the number of
blocks.

A worker that dies takes the answers along that it was about to send, so of two blocks either may have killed
it. Both become suspects, and a suspect is computed with no other block on the worker: only a death alone
with a block counts against the block.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from jacjobs.errors import IncompleteError, JacjobsError, StoppedError, WorkersError
from jacjobs.planning.geometry import Tiling
from jacjobs.store.writer import PartRecord

IN_FLIGHT = 2
"""Blocks on their way, a worker: one computed while the one before is absorbed."""
DEATHS_TO_QUARANTINE = 3
"""A block that, alone on them, has taken this many workers with it is not handed out again."""
QUARANTINES_TO_GIVE_UP = 3
"""Blocks quarantined in a row without one finished: the function cannot be computed here."""
LOSSES_TO_GIVE_UP = 3
"""Workers without a block, or assemblers, lost in a row for each that lives: they cannot live here."""

STOPPED = "stopped on request; what was committed stays, and `jacjobs resume` goes on from there"


class BlockId(NamedTuple):
    part: int
    position: int


# -- events: what happened ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class WorkerJoined:
    worker: str


@dataclass(frozen=True)
class WorkerLost:
    worker: str
    cause: str


class Findings(NamedTuple):
    """What a worker noticed in a block.

    nonfinite:   entries that are NaN or infinite.
    checked:     points compared with another mode of differentiation; `error` is the worst, relative.
    recomputed:  the check failed at first.
    peak_bytes:  what the block took in memory; 0 where that cannot be measured.
    retreats:    what was done, in words, where memory ran out.
    """

    nonfinite: int = 0
    checked: int = 0
    error: float = 0.0
    recomputed: bool = False
    peak_bytes: int = 0
    retreats: tuple[str, ...] = ()


NOTHING_FOUND = Findings()


@dataclass(frozen=True)
class BlockComputed:
    worker: str
    block: BlockId
    findings: Findings = NOTHING_FOUND


@dataclass(frozen=True)
class BlockRaised:
    """The user's function raised: computing it again would raise again."""

    block: BlockId
    error: JacjobsError


@dataclass(frozen=True)
class AssemblerJoined:
    assembler: str


@dataclass(frozen=True)
class AssemblerLost:
    assembler: str
    cause: str


@dataclass(frozen=True)
class BlockAbsorbed:
    """The assembler needs the block's data no more. `committed` comes with the part's last block."""

    assembler: str
    block: BlockId
    committed: PartRecord | None = None


@dataclass(frozen=True)
class BlockLost:
    """Computed, but its data never reached the assembler."""

    assembler: str
    block: BlockId
    cause: str


@dataclass(frozen=True)
class WriteFailed:
    """A part cannot be written: disk full, denied."""

    error: JacjobsError


@dataclass(frozen=True)
class StopRequested:
    pass


Event = (
    WorkerJoined
    | WorkerLost
    | BlockComputed
    | BlockRaised
    | AssemblerJoined
    | AssemblerLost
    | BlockAbsorbed
    | BlockLost
    | WriteFailed
    | StopRequested
)


# -- commands: what to do ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class StartWorker:
    pass


@dataclass(frozen=True)
class StartAssembler:
    pass


@dataclass(frozen=True)
class Compute:
    worker: str
    block: BlockId


@dataclass(frozen=True)
class Absorb:
    """Give the data that `worker` computed for `block` to the assembler."""

    assembler: str
    block: BlockId
    worker: str


@dataclass(frozen=True)
class Drop:
    """Forget the data that `worker` computed for `block`."""

    block: BlockId
    worker: str


@dataclass(frozen=True)
class Abandon:
    """Leave the part unfinished and remove what was written of it."""

    assembler: str
    part: int


Command = StartWorker | StartAssembler | Compute | Absorb | Drop | Abandon


# -- the machine -------------------------------------------------------------------------------------------

State = Literal["running", "stopping", "complete", "incomplete", "failed", "stopped"]


@dataclass
class _Worker:
    blocks: dict[BlockId, Literal["computing", "absorbing"]] = field(default_factory=dict)
    part: int | None = None

    @property
    def computing(self) -> list[BlockId]:
        return [block for block, what in self.blocks.items() if what == "computing"]


@dataclass
class _OpenPart:
    total: int
    assembler: str | None
    next: int = 0
    again: list[int] = field(default_factory=list)
    computing: dict[int, str] = field(default_factory=dict)
    absorbing: dict[int, str] = field(default_factory=dict)
    held: dict[int, str] = field(default_factory=dict)
    """Computed while no assembler lives."""
    absorbed: set[int] = field(default_factory=set)

    @property
    def has_work(self) -> bool:
        return bool(self.again) or self.next < self.total

    def upcoming(self) -> int:
        return self.again[0] if self.again else self.next

    def take(self) -> int:
        if self.again:
            return heapq.heappop(self.again)
        self.next += 1
        return self.next - 1


class Ledger:
    """Feed it every event with `handle` and carry out the commands it returns, until `finished`."""

    def __init__(self, tiling: Tiling, missing: Iterable[int], blocks: int) -> None:
        """`missing` are the parts to make, `blocks` how many blocks they have together."""
        self.state: State = "running"
        self.error: JacjobsError | None = None
        self.blocks_total = blocks
        self.blocks_done = 0
        self.entries_done = 0
        self.committed: list[PartRecord] = []
        self.quarantined: dict[BlockId, str] = {}
        self.nonfinite: dict[BlockId, int] = {}
        """Blocks with NaN or infinity, and how many of them."""
        self.recomputed: set[BlockId] = set()
        self.points_checked = 0
        self.worst_error = 0.0
        self.peak_bytes = 0
        self.retreats: list[str] = []
        self._tiling = tiling
        self._pending = deque(missing)
        self._workers: dict[str, _Worker] = {}
        self._room: dict[str, None] = {}
        self._assemblers: dict[str, set[int]] = {}
        self._open: dict[int, _OpenPart] = {}
        self._with_work: dict[int, None] = {}
        self._suspects: set[BlockId] = set()
        self._deaths: dict[BlockId, int] = {}
        self._losses_in_a_row = 0
        self._quarantines_in_a_row = 0

    @property
    def finished(self) -> bool:
        return self.state in ("complete", "incomplete", "failed", "stopped")

    @property
    def workers(self) -> int:
        return len(self._workers)

    @property
    def blocks_in_flight(self) -> int:
        return sum(len(worker.blocks) for worker in self._workers.values())

    def start(self, workers: int, assemblers: int) -> list[Command]:
        """The first commands."""
        if not self._pending:
            self.state = "complete"
            return []
        return [*([StartAssembler()] * assemblers), *([StartWorker()] * workers)]

    def handle(self, event: Event) -> list[Command]:
        if self.finished:
            return []
        commands = self._react(event)
        if not self.finished:
            commands += self._hand_out()
            self._look_for_the_end()
        return commands

    def give_up_waiting(self) -> None:
        """The grace period is over: end now, whatever is on its way."""
        if not self.finished:
            self.state = "stopped"
            self.error = StoppedError(STOPPED)

    def _react(self, event: Event) -> list[Command]:
        match event:
            case WorkerJoined(worker):
                self._workers[worker] = _Worker()
                self._room[worker] = None
            case WorkerLost(worker, cause):
                return self._lose_worker(worker, cause)
            case BlockComputed(worker, block, findings):
                self._note(block, findings)
                return self._take_in(worker, block)
            case BlockRaised(_, error) | WriteFailed(error):
                self._fail(error)
            case AssemblerJoined(assembler):
                self._assemblers[assembler] = set()
                return self._adopt_orphans()
            case AssemblerLost(assembler, cause):
                return self._lose_assembler(assembler, cause)
            case BlockAbsorbed():
                self._absorbed(event)
            case BlockLost(assembler, block, cause):
                return self._lose_block(assembler, block, cause)
            case StopRequested():
                self.state = "stopping"
        return []

    # -- handing out ---------------------------------------------------------------------------------------

    def _hand_out(self) -> list[Command]:
        commands: list[Command] = []
        if self.state != "running":
            return commands
        # Idle workers come first; only then does one get a second block to have ready.
        for depth in range(IN_FLIGHT):
            if not (self._with_work or self._pending):
                break
            for name in [n for n in self._room if len(self._workers[n].blocks) == depth]:
                part = self._part_for(self._workers[name])
                if part is None or not self._may_share(self._workers[name], part):
                    continue
                block = BlockId(part, self._open[part].take())
                self._open[part].computing[block.position] = name
                self._note_work(part)
                self._give(name, block)
                commands.append(Compute(name, block))
        return commands

    def _part_for(self, worker: _Worker) -> int | None:
        """The worker's own part, else a new one, else the oldest that has blocks left."""
        if worker.part in self._with_work:
            return worker.part
        if self._pending and self._assemblers and len(self._open) < len(self._workers):
            part = self._pending.popleft()
            assembler = min(self._assemblers, key=lambda name: len(self._assemblers[name]))
            self._assemblers[assembler].add(part)
            self._open[part] = _OpenPart(self._tiling.blocks_in(part), assembler)
            self._with_work[part] = None
            worker.part = part
            return part
        return next(iter(self._with_work), None)

    def _may_share(self, worker: _Worker, part: int) -> bool:
        """A suspect is alone on its worker, whether it comes first or second."""
        computing = worker.computing
        upcoming = BlockId(part, self._open[part].upcoming())
        return not computing or self._suspects.isdisjoint((*computing, upcoming))

    def _give(self, name: str, block: BlockId) -> None:
        worker = self._workers[name]
        worker.blocks[block] = "computing"
        if len(worker.blocks) >= IN_FLIGHT:
            self._room.pop(name, None)

    def _release(self, name: str, block: BlockId) -> None:
        worker = self._workers.get(name)
        if worker is not None and worker.blocks.pop(block, None) is not None:
            self._room[name] = None

    def _note_work(self, part: int) -> None:
        """Keep `_with_work` in step with the part."""
        if part in self._open and self._open[part].has_work:
            self._with_work.setdefault(part)
        else:
            self._with_work.pop(part, None)

    def _note(self, block: BlockId, findings: Findings) -> None:
        if findings.nonfinite:
            self.nonfinite[block] = findings.nonfinite
        if findings.recomputed:
            self.recomputed.add(block)
        self.points_checked += findings.checked
        self.worst_error = max(self.worst_error, findings.error)
        self.peak_bytes = max(self.peak_bytes, findings.peak_bytes)
        self.retreats += findings.retreats

    # -- blocks coming in ----------------------------------------------------------------------------------

    def _take_in(self, worker: str, block: BlockId) -> list[Command]:
        part = self._open.get(block.part)
        if part is None or part.computing.get(block.position) != worker:
            # Its part was given up, or the block was handed to somebody else in the meantime.
            self._release(worker, block)
            return [Drop(block, worker)]
        del part.computing[block.position]
        self._suspects.discard(block)
        self._workers[worker].blocks[block] = "absorbing"
        if part.assembler is None:
            part.held[block.position] = worker
            return []
        part.absorbing[block.position] = worker
        return [Absorb(part.assembler, block, worker)]

    def _absorbed(self, event: BlockAbsorbed) -> None:
        block = event.block
        part = self._open.get(block.part)
        if part is None or part.assembler != event.assembler or block.position not in part.absorbing:
            return
        self._release(part.absorbing.pop(block.position), block)
        part.absorbed.add(block.position)
        self.blocks_done += 1
        self.entries_done += self._tiling.block(*block).entries
        self._losses_in_a_row = self._quarantines_in_a_row = 0
        if event.committed is not None:
            self.committed.append(event.committed)
            self._close(block.part)

    def _close(self, number: int) -> None:
        part = self._open.pop(number)
        self._note_work(number)
        if part.assembler is not None:
            self._assemblers[part.assembler].discard(number)

    # -- losses --------------------------------------------------------------------------------------------

    def _lose_worker(self, name: str, cause: str) -> list[Command]:
        worker = self._workers.pop(name, None)
        self._room.pop(name, None)
        commands: list[Command] = []
        if worker is not None:
            computing = worker.computing
            for block in computing:
                part = self._open.get(block.part)
                if part is not None and part.computing.get(block.position) == name:
                    del part.computing[block.position]
                    self._again(block)
            self._suspects.update(computing)
            if len(computing) == 1:
                commands += self._blame(computing[0], cause)
            if computing:
                return commands + ([StartWorker()] if self.state == "running" else [])
        return commands + self._replace(StartWorker(), f"workers keep dying, the last one of: {cause}")

    def _lose_assembler(self, name: str, cause: str) -> list[Command]:
        parts = self._assemblers.pop(name, None)
        for number in parts or ():
            part = self._open[number]
            # What it had taken in went with it; what it was about to take in is still at hand.
            part.held.update(part.absorbing)
            part.absorbing.clear()
            for index in part.absorbed:
                heapq.heappush(part.again, index)
            self.blocks_done -= len(part.absorbed)
            self.entries_done -= sum(self._tiling.block(number, index).entries for index in part.absorbed)
            part.absorbed.clear()
            part.assembler = None
            self._note_work(number)
        commands = self._replace(StartAssembler(), f"assemblers keep dying, the last one of: {cause}")
        return commands + self._adopt_orphans()

    def _lose_block(self, assembler: str, block: BlockId, cause: str) -> list[Command]:
        part = self._open.get(block.part)
        if part is None or part.assembler != assembler or block.position not in part.absorbing:
            return []
        self._release(part.absorbing.pop(block.position), block)
        self._again(block)
        return self._blame(block, cause)

    def _adopt_orphans(self) -> list[Command]:
        """Parts whose assembler died go to one that lives, with the blocks that wait for it."""
        commands: list[Command] = []
        if not self._assemblers:
            return commands
        for number, part in self._open.items():
            if part.assembler is None:
                part.assembler = min(self._assemblers, key=lambda name: len(self._assemblers[name]))
                self._assemblers[part.assembler].add(number)
                commands += [
                    Absorb(part.assembler, BlockId(number, index), worker)
                    for index, worker in part.held.items()
                ]
                part.absorbing.update(part.held)
                part.held.clear()
        return commands

    def _replace(self, command: Command, why: str) -> list[Command]:
        if self.state != "running":
            return []
        self._losses_in_a_row += 1
        if self._losses_in_a_row >= LOSSES_TO_GIVE_UP * max(1, len(self._workers) + 1):
            self._fail(WorkersError(why))
            return []
        return [command]

    def _again(self, block: BlockId) -> None:
        heapq.heappush(self._open[block.part].again, block.position)
        self._note_work(block.part)

    def _blame(self, block: BlockId, cause: str) -> list[Command]:
        """Count a loss against the block; at the limit its whole part is given up, and the rest goes on."""
        self._deaths[block] = self._deaths.get(block, 0) + 1
        if self._deaths[block] < DEATHS_TO_QUARANTINE or block.part not in self._open:
            return []
        self.quarantined[block] = cause
        self._quarantines_in_a_row += 1
        if self._quarantines_in_a_row >= QUARANTINES_TO_GIVE_UP:
            self._fail(WorkersError(self._quarantine_sentence()))
            return []
        part = self._open[block.part]
        for index, worker in (*part.absorbing.items(), *part.held.items()):
            self._release(worker, BlockId(block.part, index))
        commands: list[Command] = [Drop(BlockId(block.part, i), worker) for i, worker in part.held.items()]
        if part.assembler is not None:
            commands.append(Abandon(part.assembler, block.part))
        self._close(block.part)
        return commands

    # -- the end -------------------------------------------------------------------------------------------

    def _fail(self, error: JacjobsError) -> None:
        self.state = "failed"
        self.error = error

    def _look_for_the_end(self) -> None:
        if self.state == "stopping":
            if not self._pending and not self._open:
                self.state = "complete"
            elif self.blocks_in_flight == 0:
                self.state = "stopped"
                self.error = StoppedError(STOPPED)
        elif not self._pending and not self._open:
            self.state = "incomplete" if self.quarantined else "complete"
            if self.quarantined:
                self.error = IncompleteError(self._quarantine_sentence())

    def _quarantine_sentence(self) -> str:
        blocks = "; ".join(
            f"{self._tiling.block(*block)} ({cause})" for block, cause in self.quarantined.items()
        )
        return f"{len(self.quarantined)} blocks each took {DEATHS_TO_QUARANTINE} workers with them: {blocks}"

"""The coordinator's mind: a state machine. Events go in, commands come out; no clock, no IO, no Ray.

Who computes which block, which bundle goes to which assembler, what is done again where, what is given up,
when it ends: all of that is decided here and nowhere else, so a test can play any order of failures.

A bundle is the blocks of one file: of a part, or of a spill, from which parts are read later. It belongs to
the worker that opened it, which gets its blocks in order; there are at most as many open bundles as workers.
A worker that finds no bundle to open helps with the oldest open one. At most `IN_FLIGHT` blocks a worker are
on their way between "handed out" and "absorbed by an assembler": that, and the bound on open bundles, bounds
memory however large J is. Work per event does not grow with the number of blocks.

Where blocks are spilled, a point is ready when all its spills are committed: then its parts are transposed,
by the assemblers, a few at a time, and its spills are swept away. Only so many points are begun before the
first of them is swept as keep all workers busy: that bounds the disk.

A worker that dies takes the answers along that it was about to send, so of two blocks either may have killed
it. Both become suspects, and a suspect is computed with no other block on the worker: only a death alone
with a block counts against the block.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from jacjobs.errors import IncompleteError, JacjobsError, StoppedError, WorkersError
from jacjobs.planning.geometry import Tiling
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
    Findings,
    StartAssembler,
    StartWorker,
    StopRequested,
    Sweep,
    Transpose,
    Transposed,
    TransposeLost,
    WorkerJoined,
    WorkerLost,
    WriteFailed,
)
from jacjobs.store.writer import PartRecord

IN_FLIGHT = 2
"""Blocks on their way, a worker: one computed while the one before is absorbed."""
DEATHS_TO_QUARANTINE = 3
"""A block that, alone on them, has taken this many workers with it is not handed out again."""
TRANSPOSES = 2
"""Parts that an assembler transposes at a time."""
LOSSES_OF_A_PART = 3
"""A part whose transposition was lost so often is not tried again."""
QUARANTINES_TO_GIVE_UP = 3
"""Blocks quarantined in a row without one finished: the function cannot be computed here."""
LOSSES_TO_GIVE_UP = 3
"""Workers without a block, or assemblers, lost in a row for each that lives: they cannot live here."""

STOPPED = "stopped on request; what was committed stays, and `jacjobs resume` goes on from there"


# -- the machine -------------------------------------------------------------------------------------------

State = Literal["running", "stopping", "complete", "incomplete", "failed", "stopped"]


@dataclass
class _Worker:
    blocks: dict[BlockId, Literal["computing", "absorbing"]] = field(default_factory=dict)
    bundle: int | None = None

    @property
    def computing(self) -> list[BlockId]:
        return [block for block, what in self.blocks.items() if what == "computing"]


@dataclass
class _OpenBundle:
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

    def __init__(
        self,
        tiling: Tiling,
        missing: Iterable[int],
        blocks: int,
        transposes: Mapping[int, Collection[int]] | None = None,
        workers: int = 1,
    ) -> None:
        """What there is to do.

        missing:     the bundles to make; `blocks` is how many blocks they have together.
        transposes:  where bundles are spills: the parts to make of each point that lacks any.
        workers:     how many are meant to come: they decide how many points are begun at once.
        """
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
        self._open: dict[int, _OpenBundle] = {}
        self._with_work: dict[int, None] = {}
        self._suspects: set[BlockId] = set()
        self._deaths: dict[BlockId, int] = {}
        self._losses_in_a_row = 0
        self._quarantines_in_a_row = 0
        self._transposing: dict[int, str] = {}
        """Part: assembler."""
        self._to_transpose: deque[int] = deque()
        self._losses_of_parts: dict[int, int] = {}
        self._parts_left = {point: set(parts) for point, parts in (transposes or {}).items()}
        self._spills_left = dict.fromkeys(self._parts_left, 0)
        self._begun: set[int] = set()
        """Points that have spills, and will be swept."""
        self._hopeless: set[int] = set()
        """Points with a quarantined block. They keep their spills, for a run that is resumed."""
        self._points_at_once = tiling.points_at_once(workers) if tiling.spills else 0
        if tiling.spills:
            for bundle in self._pending:
                self._spills_left[tiling.point_of(bundle)] += 1
            for point in [p for p, left in self._spills_left.items() if not left]:
                self._begun.add(point)
                self._to_transpose.extend(sorted(self._parts_left[point]))

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
        if not self._pending and not self._to_transpose:
            self.state = "complete"
            return []
        workers = workers if self._pending else 0
        return [*([StartAssembler()] * assemblers), *([StartWorker()] * workers)]

    def handle(self, event: Event) -> list[Command]:
        if self.finished:
            return []
        commands = self._react(event)
        if not self.finished:
            commands += self._hand_out()
            commands += self._transpose()
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
            case Transposed():
                return self._transposed(event)
            case TransposeLost(assembler, part, cause):
                self._lose_transpose(assembler, part, cause)
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
                bundle = self._bundle_for(self._workers[name])
                if bundle is None or not self._may_share(self._workers[name], bundle):
                    continue
                block = BlockId(bundle, self._open[bundle].take())
                self._open[bundle].computing[block.position] = name
                self._note_work(bundle)
                self._give(name, block)
                commands.append(Compute(name, block))
        return commands

    def _bundle_for(self, worker: _Worker) -> int | None:
        """The worker's own bundle, else a new one, else the oldest that has blocks left."""
        if worker.bundle in self._with_work:
            return worker.bundle
        if self._may_open():
            bundle = self._pending.popleft()
            if self._tiling.spills and self._tiling.point_of(bundle) not in self._hopeless:
                self._begun.add(self._tiling.point_of(bundle))
            assembler = min(self._assemblers, key=lambda name: len(self._assemblers[name]))
            self._assemblers[assembler].add(bundle)
            self._open[bundle] = _OpenBundle(self._tiling.blocks_in(bundle), assembler)
            self._with_work[bundle] = None
            worker.bundle = bundle
            return bundle
        return next(iter(self._with_work), None)

    def _may_open(self) -> bool:
        if not (self._pending and self._assemblers and len(self._open) < len(self._workers)):
            return False
        if not self._tiling.spills or len(self._begun) < self._points_at_once:
            return True
        return self._tiling.point_of(self._pending[0]) in self._begun | self._hopeless

    def _may_share(self, worker: _Worker, bundle: int) -> bool:
        """A suspect is alone on its worker, whether it comes first or second."""
        computing = worker.computing
        upcoming = BlockId(bundle, self._open[bundle].upcoming())
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

    def _note_work(self, bundle: int) -> None:
        """Keep `_with_work` in step with the bundle."""
        if bundle in self._open and self._open[bundle].has_work:
            self._with_work.setdefault(bundle)
        else:
            self._with_work.pop(bundle, None)

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
        bundle = self._open.get(block.bundle)
        if bundle is None or bundle.computing.get(block.position) != worker:
            # Its bundle was given up, or the block was handed to somebody else in the meantime.
            self._release(worker, block)
            return [Drop(block, worker)]
        del bundle.computing[block.position]
        self._suspects.discard(block)
        self._workers[worker].blocks[block] = "absorbing"
        if bundle.assembler is None:
            bundle.held[block.position] = worker
            return []
        bundle.absorbing[block.position] = worker
        return [Absorb(bundle.assembler, block, worker)]

    def _absorbed(self, event: BlockAbsorbed) -> None:
        block = event.block
        bundle = self._open.get(block.bundle)
        if bundle is None or bundle.assembler != event.assembler or block.position not in bundle.absorbing:
            return
        self._release(bundle.absorbing.pop(block.position), block)
        bundle.absorbed.add(block.position)
        self.blocks_done += 1
        self.entries_done += self._tiling.block(*block).entries
        self._losses_in_a_row = self._quarantines_in_a_row = 0
        if event.committed is not None:
            self._close(block.bundle)
        if isinstance(event.committed, PartRecord):
            self.committed.append(event.committed)
        elif event.committed is not None:
            self._spilled(self._tiling.point_of(block.bundle))

    def _close(self, number: int) -> None:
        bundle = self._open.pop(number)
        self._note_work(number)
        if bundle.assembler is not None:
            self._assemblers[bundle.assembler].discard(number)

    # -- transposing ---------------------------------------------------------------------------------------

    def _spilled(self, point: int) -> None:
        self._spills_left[point] -= 1
        if not self._spills_left[point]:
            self._to_transpose.extend(sorted(self._parts_left[point]))

    def _transpose(self) -> list[Command]:
        commands: list[Command] = []
        while self.state == "running" and self._to_transpose and self._assemblers:
            load = Counter(self._transposing.values())
            assembler = min(self._assemblers, key=lambda name: load[name])
            if load[assembler] >= TRANSPOSES:
                break
            part = self._to_transpose.popleft()
            self._transposing[part] = assembler
            commands.append(Transpose(assembler, part))
        return commands

    def _transposed(self, event: Transposed) -> list[Command]:
        if self._transposing.get(event.part) != event.assembler:
            return []
        del self._transposing[event.part]
        self.committed.append(event.committed)
        self._losses_in_a_row = 0
        point = self._tiling.part(event.part).point_start
        self._parts_left[point].discard(event.part)
        if self._parts_left[point]:
            return []
        self._begun.discard(point)
        return [Sweep(event.assembler, point)]

    def _lose_transpose(self, assembler: str, part: int, cause: str) -> None:
        if self._transposing.get(part) != assembler:
            return
        del self._transposing[part]
        self._losses_of_parts[part] = self._losses_of_parts.get(part, 0) + 1
        if self._losses_of_parts[part] >= LOSSES_OF_A_PART:
            self._fail(WorkersError(f"{self._tiling.part(part)} cannot be transposed: {cause}"))
        else:
            self._to_transpose.append(part)

    # -- losses --------------------------------------------------------------------------------------------

    def _lose_worker(self, name: str, cause: str) -> list[Command]:
        worker = self._workers.pop(name, None)
        self._room.pop(name, None)
        commands: list[Command] = []
        if worker is not None:
            computing = worker.computing
            for block in computing:
                bundle = self._open.get(block.bundle)
                if bundle is not None and bundle.computing.get(block.position) == name:
                    del bundle.computing[block.position]
                    self._again(block)
            self._suspects.update(computing)
            if len(computing) == 1:
                commands += self._blame(computing[0], cause)
            if computing:
                return commands + ([StartWorker()] if self.state == "running" else [])
        return commands + self._replace(StartWorker(), f"workers keep dying, the last one of: {cause}")

    def _lose_assembler(self, name: str, cause: str) -> list[Command]:
        bundles = self._assemblers.pop(name, None)
        for number in bundles or ():
            bundle = self._open[number]
            # What it had taken in went with it; what it was about to take in is still at hand.
            bundle.held.update(bundle.absorbing)
            bundle.absorbing.clear()
            for index in bundle.absorbed:
                heapq.heappush(bundle.again, index)
            self.blocks_done -= len(bundle.absorbed)
            self.entries_done -= sum(self._tiling.block(number, index).entries for index in bundle.absorbed)
            bundle.absorbed.clear()
            bundle.assembler = None
            self._note_work(number)
        for part in [p for p, assembler in self._transposing.items() if assembler == name]:
            del self._transposing[part]
            self._to_transpose.append(part)
        commands = self._replace(StartAssembler(), f"assemblers keep dying, the last one of: {cause}")
        return commands + self._adopt_orphans()

    def _lose_block(self, assembler: str, block: BlockId, cause: str) -> list[Command]:
        bundle = self._open.get(block.bundle)
        if bundle is None or bundle.assembler != assembler or block.position not in bundle.absorbing:
            return []
        self._release(bundle.absorbing.pop(block.position), block)
        self._again(block)
        return self._blame(block, cause)

    def _adopt_orphans(self) -> list[Command]:
        """Parts whose assembler died go to one that lives, with the blocks that wait for it."""
        commands: list[Command] = []
        if not self._assemblers:
            return commands
        for number, bundle in self._open.items():
            if bundle.assembler is None:
                bundle.assembler = min(self._assemblers, key=lambda name: len(self._assemblers[name]))
                self._assemblers[bundle.assembler].add(number)
                commands += [
                    Absorb(bundle.assembler, BlockId(number, index), worker)
                    for index, worker in bundle.held.items()
                ]
                bundle.absorbing.update(bundle.held)
                bundle.held.clear()
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
        heapq.heappush(self._open[block.bundle].again, block.position)
        self._note_work(block.bundle)

    def _blame(self, block: BlockId, cause: str) -> list[Command]:
        """Count a loss against the block; at the limit its whole bundle is given up, and the rest goes on."""
        self._deaths[block] = self._deaths.get(block, 0) + 1
        if self._deaths[block] < DEATHS_TO_QUARANTINE or block.bundle not in self._open:
            return []
        self.quarantined[block] = cause
        self._quarantines_in_a_row += 1
        if self._quarantines_in_a_row >= QUARANTINES_TO_GIVE_UP:
            self._fail(WorkersError(self._quarantine_sentence()))
            return []
        self._hopeless.add(self._tiling.point_of(block.bundle))
        self._begun -= self._hopeless
        bundle = self._open[block.bundle]
        for index, worker in (*bundle.absorbing.items(), *bundle.held.items()):
            self._release(worker, BlockId(block.bundle, index))
        commands: list[Command] = [
            Drop(BlockId(block.bundle, i), worker) for i, worker in bundle.held.items()
        ]
        if bundle.assembler is not None:
            commands.append(Abandon(bundle.assembler, block.bundle))
        self._close(block.bundle)
        return commands

    # -- the end -------------------------------------------------------------------------------------------

    def _fail(self, error: JacjobsError) -> None:
        self.state = "failed"
        self.error = error

    def _look_for_the_end(self) -> None:
        blocks_left = bool(self._pending or self._open)
        parts_left = bool(self._to_transpose or self._transposing)
        if self.state == "stopping":
            if not blocks_left and not parts_left:
                self.state = "complete"
            elif self.blocks_in_flight == 0 and not self._transposing:
                self.state = "stopped"
                self.error = StoppedError(STOPPED)
        elif not blocks_left and not parts_left:
            self.state = "incomplete" if self.quarantined else "complete"
            if self.quarantined:
                self.error = IncompleteError(self._quarantine_sentence())

    def _quarantine_sentence(self) -> str:
        blocks = "; ".join(
            f"{self._tiling.block(*block)} ({cause})" for block, cause in self.quarantined.items()
        )
        return f"{len(self.quarantined)} blocks each took {DEATHS_TO_QUARANTINE} workers with them: {blocks}"

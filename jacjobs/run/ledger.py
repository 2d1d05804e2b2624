"""The coordinator's mind: a state machine. Events go in, commands come out; no IO, no Ray, and an injected
clock.

Who computes which block, which bundle goes to which assembler, what is done again where, what is given up,
when it ends: all of that is decided here and nowhere else, so a test can play any order of failures.

A bundle is the blocks of one file: of a part, or of a spill, from which parts are read later. It belongs to
the worker that opened it, which gets its blocks in order; there are at most as many open bundles as workers.
A worker that finds no bundle to open helps with the oldest open one. At most two blocks a worker, or a few
more that are tiny, are on their way between "handed out" and "absorbed by an assembler": that, and the bound
on open bundles, bounds memory however large J is. Work per event does not grow with the number of blocks.

Workers and assemblers may come and go at any time; while there are none, the run waits for one. What is said
of one that is gone, or said twice, or late, is not believed.

A block that one worker had together with others when it died is a suspect (`losses.py`), and computed with no
other block on the worker. And since it may have been its node that died, with all its workers, the others
there are asked for a sign of life before they get a block: else one would pass from one dead worker to the
next.

At the end of a run, when a worker has nothing to do, it also gets the block of one that is late; the first
result counts. One that is so late that it must be hung is killed, and its block counts as its killer.
"""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from jacjobs.errors import IncompleteError, JacjobsError, StoppedError, WorkersError
from jacjobs.planning.geometry import Cut
from jacjobs.run.bundle import OpenBundle
from jacjobs.run.history import History
from jacjobs.run.losses import Kind, Losses
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
    Tick,
    Transposed,
    TransposeLost,
    WorkerAlive,
    WorkerJoined,
    WorkerLost,
    WriteFailed,
)
from jacjobs.run.patience import Patience
from jacjobs.run.remaining import Remaining
from jacjobs.run.roster import IN_FLIGHT, Member, Roster
from jacjobs.run.tally import Tally
from jacjobs.run.transposer import Transposer
from jacjobs.store.writer import PartRecord

LOSSES_OF_A_PART = 3
"""A part whose transposition was lost so often is not tried again."""
DOUBT_SECONDS = 60.0
"""A worker that was asked for a sign of life and gives none for so long is gone."""
SILENCE_SECONDS = 900.0
"""An assembler that has something to do and says nothing for so long is hung."""

STOPPED = "stopped on request; what was committed stays, and `jacjobs resume` goes on from there"

State = Literal["running", "stopping", "complete", "incomplete", "failed", "stopped"]


@dataclass
class _Assembler:
    where: str
    heard: float
    """When it last answered, or was asked."""
    bundles: set[int] = field(default_factory=set)


class Ledger:
    """Feed it every event with `handle` and carry out the commands it returns, until `finished`."""

    def __init__(
        self,
        tiling: Cut,
        left: Remaining,
        workers: int = 1,
        assemblers: int = 1,
        patience: Patience | None = None,
        most_in_flight: int = IN_FLIGHT,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        left:       what there is to do.
        workers, assemblers:  how many are wanted.
        patience:   how long to wait for a block.
        most_in_flight:  blocks on their way, a worker, where they are quick.
        clock:      seconds, from any beginning.
        """
        self.state: State = "running"
        self.error: JacjobsError | None = None
        self.blocks_total = left.blocks
        self.blocks_done = 0
        self.entries_done = 0
        self.committed: list[PartRecord] = []
        self.tally = Tally()
        self.losses = Losses(tiling, workers, assemblers)
        self.history = History(clock)
        self._clock = clock
        self._patience = patience or Patience()
        self._tiling = tiling
        self.workers_lost = 0
        self._pending = deque(left.bundles)
        self._blocks_pending = left.blocks
        self._transposer = Transposer(tiling, left.bundles, left.transposes, workers)
        self._wanted = {"worker": workers, "assembler": assemblers}
        self._starting = 0
        """Workers that were asked for, and have not joined yet."""
        self._roster = Roster(most_in_flight)
        self._gone: set[str] = set()
        """Workers and assemblers that were lost."""
        self._assemblers: dict[str, _Assembler] = {}
        self._open: dict[int, OpenBundle] = {}
        self._with_work: dict[int, None] = {}

    @property
    def finished(self) -> bool:
        return self.state in ("complete", "incomplete", "failed", "stopped")

    @property
    def paused(self) -> bool:
        """Is there work, and nobody to do it? It goes on when somebody comes."""
        blocks_left = self._pending or self._open
        return not self.finished and not (self._assemblers and (len(self._roster) or not blocks_left))

    @property
    def workers(self) -> int:
        return len(self._roster)

    @property
    def blocks_waiting(self) -> int:
        """To be handed out."""
        return self._blocks_pending + sum(bundle.waiting for bundle in self._open.values())

    @property
    def blocks_in_flight(self) -> int:
        """Handed out and not absorbed; all of them may be in memory."""
        return self._roster.blocks_in_flight

    def start(self) -> list[Command]:
        """The first commands."""
        if not self._pending and self._transposer.done:
            self.state = "complete"
            return []
        assemblers: list[Command] = [StartAssembler()] * self._wanted["assembler"]
        return [*assemblers, *self._start_workers()]

    def handle(self, event: Event) -> list[Command]:
        if self.finished:
            return []
        commands = self._react(event)
        if not self.finished:
            commands += self._start_workers()
            commands += self._hand_out()
            if self.state == "running":
                transposes = self._transposer.hand_out(self._assemblers)
                for command in transposes:
                    self._assemblers[command.assembler].heard = self._clock()
                commands += transposes
            self._look_for_the_end()
        return commands

    def give_up_waiting(self) -> None:
        """The grace period is over: end now, whatever is on its way."""
        if not self.finished:
            self.state = "stopped"
            self.error = StoppedError(STOPPED)

    def _react(self, event: Event) -> list[Command]:
        match event:
            case Tick():
                return self._look_at_the_clock()
            case WorkerJoined():
                self._join_worker(event)
            case WorkerAlive(worker):
                self._roster.trust(worker)
            case WorkerLost(worker, cause):
                return self._lose_worker(worker, cause)
            case BlockComputed(worker, block, findings):
                return self._take_in(worker, block, findings)
            case BlockRaised(_, error) | WriteFailed(error):
                self._fail(error)
            case AssemblerJoined(assembler, where):
                return self._join_assembler(assembler, where)
            case AssemblerLost(assembler, cause):
                return self._lose_assembler(assembler, cause)
            case BlockAbsorbed():
                return self._absorbed(event)
            case BlockLost(assembler, block, cause):
                return self._lose_block(assembler, block, cause)
            case Transposed():
                return self._transposed(event)
            case TransposeLost(assembler, part, cause):
                self._lose_transpose(assembler, part, cause)
            case Capacity(workers):
                # Where it has become less, those that are lost are not replaced. One is always wanted, and
                # waits for room.
                self._wanted["worker"] = max(1, workers)
                self.losses.expect("worker", workers)
            case StopRequested():
                self.state = "stopping"
        return []

    # -- handing out ---------------------------------------------------------------------------------------

    def _hand_out(self) -> list[Command]:
        commands: list[Command] = []
        # Idle workers come first; only then does one get a second block to have ready.
        for depth in range(self._roster.in_flight):
            if self.state != "running" or not (self._with_work or self._may_open()):
                break
            for name in self._roster.free(depth):
                worker = self._roster.get(name)
                assert worker is not None
                bundle = self._bundle_for(worker)
                if bundle is None or self._roster.full:
                    break
                upcoming = BlockId(bundle, self._open[bundle].upcoming())
                if self._may_share(worker, upcoming):
                    block = BlockId(bundle, self._open[bundle].take())
                    self._note_work(bundle)
                    commands.append(self._give(name, block))
                elif depth and upcoming in self.losses.suspects and bundle != worker.bundle:
                    break  # nobody who has a block may take it
        return commands

    def _bundle_for(self, worker: Member) -> int | None:
        """The worker's own bundle, else a new one, else the oldest that has blocks left."""
        if worker.bundle in self._with_work:
            return worker.bundle
        if self._may_open():
            bundle = self._pending.popleft()
            self._blocks_pending -= self._tiling.blocks_in(bundle)
            self._transposer.begin(bundle)
            assembler = self._least_busy()
            self._assemblers[assembler].bundles.add(bundle)
            self._open[bundle] = OpenBundle(self._tiling.blocks_in(bundle), assembler)
            self._with_work[bundle] = None
            worker.bundle = bundle
            return bundle
        return next(iter(self._with_work), None)

    def _may_open(self) -> bool:
        if not (self._pending and self._assemblers and len(self._open) < len(self._roster)):
            return False
        return self._transposer.may_begin(self._pending[0])

    def _may_share(self, worker: Member, block: BlockId) -> bool:
        """A suspect is alone on its worker, whether it comes first or second. A worker that was late with a
        block, and still is at it, does not get it again.
        """
        computing, suspects = worker.computing, self.losses.suspects
        return not computing or (block not in computing and suspects.isdisjoint((*computing, block)))

    def _give(self, name: str, block: BlockId) -> Compute:
        self._roster.give(name, block, self._clock())
        computing = self._open[block.bundle].computing
        computing[block.position] = (*computing.get(block.position, ()), name)
        return Compute(name, block, self._roster.together)

    def _note_work(self, bundle: int) -> None:
        """Keep `_with_work` in step with the bundle."""
        if bundle in self._open and self._open[bundle].has_work:
            self._with_work.setdefault(bundle)
        else:
            self._with_work.pop(bundle, None)

    def _again(self, block: BlockId) -> None:
        heapq.heappush(self._open[block.bundle].again, block.position)
        self._note_work(block.bundle)
        self.history.blocks_repeated += 1

    # -- blocks coming in ----------------------------------------------------------------------------------

    def _take_in(self, name: str, block: BlockId, findings: Findings) -> list[Command]:
        state = self._roster.state(name, block)
        if state == "absorbing":
            return []  # said twice, and its data is on its way
        self._roster.trust(name)
        if state == "computing":
            self._roster.computed(name, block, self._clock())
            self._patience.took(findings.seconds)
            self._roster.pace(self._patience.usual_seconds)
            self.history.computed(name, findings.seconds, self._entries(block), findings.peak_bytes)
        bundle = self._open.get(block.bundle)
        if bundle is None or name not in bundle.computing.get(block.position, ()):
            # Its bundle was given up, another worker was faster, or it counts as lost.
            self._roster.release(name, block)
            return [Drop(block, name)]
        self.tally.add(block, findings)
        del bundle.computing[block.position]
        self.losses.suspects.discard(block)
        if bundle.assembler is None:
            bundle.held[block.position] = name
            return []
        return [self._absorb(bundle.assembler, block, name)]

    def _absorb(self, assembler: str, block: BlockId, worker: str) -> Absorb:
        self._open[block.bundle].absorbing[block.position] = worker
        self._assemblers[assembler].heard = self._clock()
        return Absorb(assembler, block, worker, self._roster.together)

    def _absorbed(self, event: BlockAbsorbed) -> list[Command]:
        block = event.block
        bundle = self._open.get(block.bundle)
        if bundle is None or bundle.assembler != event.assembler or block.position not in bundle.absorbing:
            return []
        # What is committed holds all its blocks, though of some nobody has said yet that they were taken in.
        positions = [block.position] if event.committed is None else list(bundle.absorbing)
        drops: list[Command] = []
        entries = 0
        for position in positions:
            taken, worker = BlockId(block.bundle, position), bundle.absorbing.pop(position)
            self._roster.release(worker, taken)
            drops += [Drop(taken, worker)] if taken != block else []
            bundle.absorbed.add(position)
            self.blocks_done += 1
            entries += self._entries(taken)
        self._take(entries)
        self._progress(event.assembler)
        if event.committed is not None:
            self._close(block.bundle)
        if isinstance(event.committed, PartRecord):
            self.committed.append(event.committed)
        elif event.committed is not None:
            self._transposer.spilled(block.bundle)
        return drops

    def _entries(self, block: BlockId) -> int:
        """Asked twice of a block, as a rule; its rectangle takes longer to find than to remember."""
        bundle = self._open.get(block.bundle)
        if bundle is None:
            return self._tiling.block(*block).entries
        if block.position not in bundle.entries:
            bundle.entries[block.position] = self._tiling.block(*block).entries
        return bundle.entries[block.position]

    def _take(self, entries: int) -> None:
        """So many are with an assembler now; or, a negative number, are not any more."""
        self.entries_done += entries
        self.history.taken(entries)

    def _progress(self, assembler: str) -> None:
        self._assemblers[assembler].heard = self._clock()
        self.losses.progressed()

    def _close(self, number: int) -> None:
        bundle = self._open.pop(number)
        self._note_work(number)
        if bundle.assembler is not None:
            self._assemblers[bundle.assembler].bundles.discard(number)

    def _transposed(self, event: Transposed) -> list[Command]:
        sweeps = self._transposer.transposed(event)
        if sweeps is None:
            return []
        self.committed.append(event.committed)
        self._progress(event.assembler)
        return [*sweeps]

    # -- coming and going ----------------------------------------------------------------------------------

    def _start_workers(self) -> list[Command]:
        """Those that are wanted and lacking, as far as there are blocks for them; one more, where all that
        there are may be dead.
        """
        blocks_left = self.blocks_total - self.blocks_done
        lacking = min(self._wanted["worker"], blocks_left) - len(self._roster) - self._starting
        if blocks_left and not self._starting and self._roster.all_in_doubt:
            lacking = max(1, lacking)
        if self.state != "running" or lacking <= 0:
            return []
        self._starting += lacking
        return [StartWorker()] * lacking

    def _join_worker(self, event: WorkerJoined) -> None:
        if event.worker in self._roster or event.worker in self._gone:
            return
        self._starting = max(0, self._starting - 1)
        self.losses.joined("worker")
        self._roster.join(event.worker, event.where, self._clock())
        self.history.joined(event.worker, event.where, event.device)

    def _join_assembler(self, name: str, where: str) -> list[Command]:
        if name in self._assemblers or name in self._gone:
            return []
        self.losses.joined("assembler")
        self._assemblers[name] = _Assembler(where, heard=self._clock())
        return self._adopt_orphans()

    def _lose_worker(self, name: str, cause: str, guilty: BlockId | None = None) -> list[Command]:
        """`guilty`: the block that is known to have brought its worker down."""
        if name in self._gone:
            return []
        self._gone.add(name)
        self.workers_lost += 1
        worker = self._roster.lose(name)
        if worker is None:
            self._starting = max(0, self._starting - 1)
        computing = worker.computing if worker is not None else []
        self.history.left(name)
        self.history.failed(name, cause, [str(self._tiling.block(*block)) for block in computing])
        again = [block for block in computing if self._take_back(name, block)]
        suspects = [block for block in again if guilty in (None, block)]
        self.losses.suspects.update(suspects)
        commands = self._ask_for_life(worker.where if worker is not None else "")
        if not computing:
            return commands + self._replace("worker", cause)
        if len(computing) == 1 or guilty is not None:
            for block in suspects:
                commands += self._blame(block, cause)
        return commands

    def _ask_for_life(self, where: str) -> list[Command]:
        """Of the idle workers of a node that has lost somebody. Those at work will be heard of."""
        idle = self._roster.idle_at(where) if where else []
        return [Ping(name) for name in idle if self._roster.doubt(name, self._clock())]

    def _take_back(self, name: str, block: BlockId) -> bool:
        """The worker will not compute it. Must it be computed again? Not if another worker is at it."""
        bundle = self._open.get(block.bundle)
        names = bundle.computing.get(block.position, ()) if bundle is not None else ()
        if bundle is None or name not in names:
            return False
        others = tuple(other for other in names if other != name)
        if others:
            bundle.computing[block.position] = others
            return False
        del bundle.computing[block.position]
        self._again(block)
        return True

    def _lose_assembler(self, name: str, cause: str) -> list[Command]:
        if name in self._gone:
            return []
        self._gone.add(name)
        assembler = self._assemblers.pop(name, None)
        self.history.failed(name, cause)
        for number in sorted(assembler.bundles) if assembler is not None else ():
            bundle = self._open[number]
            # What it had taken in went with it; what it was about to take in is still at hand.
            bundle.held.update(bundle.absorbing)
            bundle.absorbing.clear()
            self.blocks_done -= len(bundle.absorbed)
            for index in bundle.absorbed:
                self._take(-self._entries(BlockId(number, index)))
                self._again(BlockId(number, index))
            bundle.absorbed.clear()
            bundle.assembler = None
        self._transposer.lose_assembler(name)
        commands = self._ask_for_life(assembler.where if assembler is not None else "")
        return commands + self._replace("assembler", cause) + self._adopt_orphans()

    def _lose_block(self, assembler: str, block: BlockId, cause: str) -> list[Command]:
        bundle = self._open.get(block.bundle)
        if bundle is None or bundle.assembler != assembler or block.position not in bundle.absorbing:
            return []
        self.history.failed(assembler, cause, [str(self._tiling.block(*block))])
        self._roster.release(bundle.absorbing.pop(block.position), block)
        self._again(block)
        return self._blame(block, cause)

    def _lose_transpose(self, assembler: str, part: int, cause: str) -> None:
        times = self._transposer.lose(assembler, part)
        if times:
            self.history.failed(assembler, cause, [str(self._tiling.part(part))])
        if times >= LOSSES_OF_A_PART:
            self._fail(WorkersError(f"{self._tiling.part(part)} cannot be transposed: {cause}"))

    def _adopt_orphans(self) -> list[Command]:
        """Bundles whose assembler died go to one that lives, with the blocks that wait for it."""
        commands: list[Command] = []
        if not self._assemblers:
            return commands
        for number, bundle in self._open.items():
            if bundle.assembler is None:
                bundle.assembler = self._least_busy()
                self._assemblers[bundle.assembler].bundles.add(number)
                for index, worker in bundle.held.items():
                    commands.append(self._absorb(bundle.assembler, BlockId(number, index), worker))
                bundle.held.clear()
        return commands

    def _least_busy(self) -> str:
        return min(self._assemblers, key=lambda name: len(self._assemblers[name].bundles))

    def _replace(self, kind: Kind, cause: str) -> list[Command]:
        """One is gone, and it was no block's fault."""
        if self.state != "running":
            return []
        if (why := self.losses.unexplained(kind, cause)) is not None:
            self._fail(WorkersError(why))
            return []
        return [StartAssembler()] if kind == "assembler" else []

    def _blame(self, block: BlockId, cause: str) -> list[Command]:
        """Count a loss against the block; at the limit its whole bundle is given up, and the rest goes on."""
        if not self.losses.death(block) or block.bundle not in self._open:
            return []
        if (why := self.losses.quarantine(block, cause)) is not None:
            self._fail(WorkersError(why))
            return []
        self._transposer.give_up(block.bundle)
        bundle = self._open[block.bundle]
        commands: list[Command] = []
        for index, worker in (*bundle.absorbing.items(), *bundle.held.items()):
            self._roster.release(worker, BlockId(block.bundle, index))
            commands.append(Drop(BlockId(block.bundle, index), worker))
        if bundle.assembler is not None:
            commands.append(Abandon(bundle.assembler, block.bundle))
        self._close(block.bundle)
        return commands

    # -- the clock -----------------------------------------------------------------------------------------

    def _look_at_the_clock(self) -> list[Command]:
        commands = self._kill_the_hung()
        if self.state == "running" and not (self._with_work or self._may_open()):
            commands += self._double_the_late()
        return commands

    def _kill_the_hung(self) -> list[Command]:
        commands: list[Command] = []
        now = self._clock()
        for name, worker in self._roster.overdue(now, self._patience.hung_after_seconds):
            block = worker.computing[0]
            cause = f"{self._tiling.block(*block)} was not there after {now - worker.since:,.0f} s"
            # Of blocks that come together, nobody knows at which it is: all are suspects, and go alone next.
            guilty = block if worker.at_once == 1 else None
            commands += [Kill(name), *self._lose_worker(name, cause, guilty)]
        for name in self._roster.doubted(now, DOUBT_SECONDS):
            cause = f"no sign of life for {DOUBT_SECONDS:.0f} s"
            commands += [Kill(name), *self._lose_worker(name, cause)]
        for name, assembler in list(self._assemblers.items()):
            if now - assembler.heard > SILENCE_SECONDS and self._is_asked(name, assembler):
                cause = f"no answer for {now - assembler.heard:,.0f} s"
                commands += [Kill(name), *self._lose_assembler(name, cause)]
        return commands

    def _is_asked(self, name: str, assembler: _Assembler) -> bool:
        absorbs = any(self._open[bundle].absorbing for bundle in assembler.bundles)
        return absorbs or bool(self._transposer.asked_of(name))

    def _double_the_late(self) -> list[Command]:
        """Give what late workers have to those that have nothing to do. The first result counts."""
        commands: list[Command] = []
        idle = iter(self._roster.free(0))
        for _, worker in self._roster.overdue(self._clock(), self._patience.late_after_seconds):
            for block in worker.computing:
                bundle = self._open.get(block.bundle)
                if bundle is None or len(bundle.computing.get(block.position, ())) != 1:
                    continue  # it has come already, or somebody else is at it
                helper = next(idle, None)
                if helper is None or self._roster.full:
                    return commands
                self.history.blocks_repeated += 1
                commands.append(self._give(helper, block))
        return commands

    # -- the end -------------------------------------------------------------------------------------------

    def _fail(self, error: JacjobsError) -> None:
        self.state = "failed"
        self.error = error

    def _look_for_the_end(self) -> None:
        if not self._pending and not self._open and self._transposer.done:
            self.state = "incomplete" if self.losses.quarantined else "complete"
            if self.losses.quarantined:
                self.error = IncompleteError(self.losses.sentence())
        elif self.state == "stopping" and not (
            self._assemblers and (self.blocks_in_flight or self._transposer.busy)
        ):
            self.state = "stopped"
            self.error = StoppedError(STOPPED)

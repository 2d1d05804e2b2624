"""The coordinator's shell: feeds the ledger with events and carries its commands to an executor.

The same loop runs for every executor. It owns the lock, the manifest and the clock; it decides nothing.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from jacjobs.errors import StoreError
from jacjobs.planning.planner import Plan
from jacjobs.run.executor import Executor
from jacjobs.run.journal import Journal
from jacjobs.run.ledger import Ledger, State
from jacjobs.run.messages import StopRequested, Tick
from jacjobs.run.patience import Patience
from jacjobs.run.readings import Readings
from jacjobs.run.remaining import remaining
from jacjobs.run.roster import most_in_flight
from jacjobs.store.commit import reading
from jacjobs.store.folder import Manifest, RunFolder, RunRecord
from jacjobs.store.lock import RunLock
from jacjobs.store.parts import WAITING
from jacjobs.store.schema import part_name
from jacjobs.store.sparse_parts import parts_of
from jacjobs.store.spill import spilled
from jacjobs.store.writer import PartRecord, describe

POLL_SECONDS = 0.5
STOP_SECONDS = 2.0
"""How often a request to stop is looked for in the run's folder."""
GRACE_SECONDS = 30.0
"""After a request to stop: how long blocks on their way may take before they are dropped."""


@dataclass(frozen=True)
class Progress:
    """Where a run stands. Counts are of this attempt: what an earlier one committed is not counted again."""

    state: State
    paused: bool
    blocks_done: int
    blocks_total: int
    entries_done: int
    entries_total: int
    workers: int
    seconds: float
    nonfinite: int
    failures: int = 0


class Coordinator:
    """Carries one run out. `run` blocks; `progress` and `stop` may be called from other threads."""

    def __init__(
        self,
        record: RunRecord,
        path: str,
        executor: Callable[[], Executor],
        workers: int,
        assemblers: int = 1,
        observer: Callable[[Readings], None] | None = None,
    ) -> None:
        """observer: is told every half second, and at the end, where the run stands."""
        self._record = record
        self._plan = Plan.model_validate(record.plan)
        self._folder = RunFolder(path)
        self._make_executor = executor
        self._workers = workers
        self._assemblers = assemblers
        self._observer = observer
        self._stop = threading.Event()
        self._started = time.monotonic()
        self._entries_total = 0
        self._ledger: Ledger | None = None

    def run(self) -> Manifest:
        """Compute what is missing, then write the manifest.

        Raises FunctionError, IncompleteError, StoppedError, WorkersError or StoreError; parts that were
        committed stay in every case.
        """
        lock = RunLock(self._folder.place)
        lock.acquire()
        try:
            manifest = self._run(lock)
        except BaseException:
            with suppress(StoreError):  # what came first is what the user has to know
                lock.release()
            raise
        lock.release()
        return manifest

    def _run(self, lock: RunLock) -> Manifest:
        self._folder.clear_scratch()
        self._folder.clear_stop()
        before = self._folder.manifest()
        ledger = self._ledger = self._new_ledger(before)
        if before is not None and not self._entries_total:
            return before
        attempts = self._folder.attempts(before)
        number = max([0, *(a.number for a in attempts)]) + 1
        journal = Journal(self._folder, ledger, number, self._entries_total)
        try:
            self._drive(ledger, journal, lock)
            if ledger.error is not None:
                raise ledger.error
            lock.check()
        except BaseException as error:
            journal.end(error)
            raise
        self._folder.clear_spills()
        manifest = self._manifest(ledger, before)
        return self._folder.write_manifest(
            manifest.model_copy(update={"attempts": (*attempts, journal.attempt())})
        )

    def progress(self) -> Progress:
        ledger = self._ledger
        if ledger is None:
            return Progress("running", False, 0, 0, 0, 0, 0, 0.0, 0)
        return Progress(
            state=ledger.state,
            paused=ledger.paused,
            blocks_done=ledger.blocks_done,
            blocks_total=ledger.blocks_total,
            entries_done=ledger.entries_done,
            entries_total=self._entries_total,
            workers=ledger.workers,
            seconds=time.monotonic() - self._started,
            nonfinite=sum(list(ledger.tally.nonfinite.values())),
            failures=ledger.history.failures_total,
        )

    def stop(self) -> None:
        """Hand out no more blocks; end when those on their way are done or the grace period is over."""
        self._stop.set()

    def _new_ledger(self, before: Manifest | None) -> Ledger:
        """What is there is what the run wrote, by its footers, and by the manifest if there was one."""
        tiling = self._plan.tiling
        there = set(self._folder.part_names())
        parts_of(self._folder, self._record, before).check(there)
        done = spilled(self._folder.place) if tiling.spills else set()
        left = remaining(
            tiling, lambda part: part_name(tiling.part(part)) in there, lambda b: tiling.bundle(b) in done
        )
        self._entries_total = left.entries
        patience = Patience(
            self._plan.block_timeout,
            self._plan.seconds * self._plan.resources.workers / max(1, tiling.blocks),
        )
        most = most_in_flight(self._plan.block_bytes)
        return Ledger(tiling, left, self._workers, self._assemblers, patience, most)

    def _drive(self, ledger: Ledger, journal: Journal, lock: RunLock) -> None:
        commands = ledger.start()
        if not commands:  # nothing is missing
            return
        executor = self._make_executor()
        give_up = float("inf")
        looked = asked = time.monotonic()
        try:
            executor.execute(commands)
            while time.monotonic() < give_up:
                for event in executor.poll(POLL_SECONDS):
                    executor.execute(ledger.handle(event))
                if ledger.finished:
                    break  # with an error, perhaps of a store that is down: ask nothing more of it
                if self._stop.is_set() and ledger.state == "running":
                    executor.execute(ledger.handle(StopRequested()))
                    give_up = time.monotonic() + GRACE_SECONDS
                if time.monotonic() - looked >= POLL_SECONDS:
                    looked = time.monotonic()
                    executor.execute(ledger.handle(Tick()))
                    journal.keep()
                    self._observe(ledger)
                    lock.check()
                if time.monotonic() - asked >= STOP_SECONDS:
                    asked = time.monotonic()
                    if self._folder.stop_requested():
                        self.stop()
            ledger.give_up_waiting()
        finally:
            self._observe(ledger)
            executor.close()
            with suppress(StoreError):  # what came first is what the user has to know
                self._clear_up(lock)

    def _observe(self, ledger: Ledger) -> None:
        """A run goes on whatever its observer does; one that fails is not asked again."""
        if self._observer is None:
            return
        try:
            self._observer(Readings.of(ledger, self._plan))
        except Exception:
            logging.getLogger(__name__).warning("this run is not watched any more", exc_info=True)
            self._observer = None

    def _clear_up(self, lock: RunLock) -> None:
        """Unless another process has taken the run over."""
        lock.check()
        self._folder.clear_scratch()

    def _manifest(self, ledger: Ledger, before: Manifest | None) -> Manifest:
        made = {record.name: record for record in (*(before.parts if before else ()), *ledger.committed)}
        names = [part_name(self._plan.tiling.part(i)) for i in range(self._plan.tiling.parts)]
        earlier = [name for name in names if name not in made]
        with ThreadPoolExecutor(WAITING) as pool:
            made.update(zip(earlier, pool.map(self._describe, earlier), strict=True))
        return Manifest(
            run=self._record.run,
            name=self._record.name,
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            shape=self._plan.shape,
            strategy=self._plan.strategy,
            chunk=self._plan.chunk,
            compression=self._plan.compression,
            versions=self._record.versions,
            checks=self._checks(ledger, before),
            memory={
                "budget_bytes": self._plan.resources.budget_bytes,
                "predicted_bytes": self._plan.peak_bytes,
                "measured_bytes": ledger.tally.peak_bytes or None,
                "retreats": ledger.tally.retreats,
            },
            timings={
                "seconds": round(time.monotonic() - self._started, 3),
                "predicted_seconds": round(self._plan.seconds, 3),
            },
            parts=tuple(made[name] for name in names),
        )

    def _describe(self, name: str) -> PartRecord:
        with reading(self._folder.place.at(name)):
            return describe(self._folder.place, name)

    def _checks(self, ledger: Ledger, before: Manifest | None) -> dict[str, Any]:
        """What the manifest says of the check; of this attempt, and of one that was complete before."""
        earlier = before.checks if before else {}
        recomputed = [str(self._plan.tiling.block(*b)) for b in sorted(ledger.tally.recomputed)]
        return {
            "by": self._plan.checked_by,
            "points": ledger.tally.points_checked + earlier.get("points", 0),
            "worst_relative_error": max(ledger.tally.worst_error, earlier.get("worst_relative_error", 0.0)),
            "blocks_recomputed": [*earlier.get("blocks_recomputed", ()), *recomputed],
        }


def part_metadata(record: RunRecord) -> dict[str, str]:
    """What every part says of itself, besides its rectangle and dtype."""
    return {
        "format": str(record.format),
        "run": record.run,
        "strategy": str(record.plan["strategy"]),
        "torch": record.versions["torch"],
    }

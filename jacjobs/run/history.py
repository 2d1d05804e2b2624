"""What an attempt's record says: who worked for how long, what was lost and why."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from jacjobs.run.timeline import Chronicle
from jacjobs.store.attempt import FAILURES_KEPT, Failure, Timeline, Work


class History:
    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._began = clock()
        self._work: dict[str, Work] = {}
        self._chronicle = Chronicle(lambda: clock() - self._began)
        self.failures: list[Failure] = []
        self.failures_total = 0
        self.blocks_repeated = 0

    @property
    def seconds(self) -> float:
        """Since the attempt began."""
        return self._clock() - self._began

    @property
    def work(self) -> tuple[Work, ...]:
        return tuple(
            work.model_copy(update={"busy": self._chronicle.lane(name)})
            for name, work in list(self._work.items())
        )

    @property
    def timeline(self) -> Timeline:
        return self._chronicle.record()

    def joined(self, worker: str, where: str, device: str) -> None:
        joined = round(self.seconds, 3)
        self._work[worker] = Work(name=worker, where=where, device=device, joined=joined)
        self._chronicle.joined(worker, joined)

    def computed(self, worker: str, seconds: float, entries: int = 0, peak_bytes: int = 0) -> None:
        """A block has come: it took so long, and so much memory (0: not measured)."""
        work = self._work[worker]
        work.blocks += 1
        work.seconds = round(work.seconds + seconds, 6)
        work.peak_bytes = max(work.peak_bytes, peak_bytes)
        self._chronicle.computed(worker, seconds, entries)

    def taken(self, entries: int) -> None:
        """By an assembler; a negative number is lost with one."""
        self._chronicle.taken(entries)

    def left(self, worker: str) -> None:
        if worker in self._work:
            self._work[worker].left = round(self.seconds, 3)

    def failed(self, who: str, cause: str, blocks: Iterable[str] = (), where: str = "") -> None:
        self.failures_total += 1
        if len(self.failures) < FAILURES_KEPT:
            where = where or (self._work[who].where if who in self._work else "")
            self.failures.append(
                Failure(
                    seconds=round(self.seconds, 3), who=who, where=where, cause=cause, blocks=tuple(blocks)
                )
            )

"""What an attempt's record says: who worked for how long, what was lost and why."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from jacjobs.store.attempt import FAILURES_KEPT, Failure, Work


class History:
    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._began = clock()
        self._work: dict[str, Work] = {}
        self.failures: list[Failure] = []
        self.failures_total = 0
        self.blocks_repeated = 0

    @property
    def seconds(self) -> float:
        """Since the attempt began."""
        return self._clock() - self._began

    @property
    def work(self) -> tuple[Work, ...]:
        return tuple(work.model_copy() for work in list(self._work.values()))

    def joined(self, worker: str, where: str, device: str) -> None:
        self._work[worker] = Work(name=worker, where=where, device=device, joined=round(self.seconds, 3))

    def computed(self, worker: str, seconds: float) -> None:
        work = self._work[worker]
        work.blocks += 1
        work.seconds = round(work.seconds + seconds, 6)

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

"""All that is known of a run, from its folder alone; no entry of J is read.

What a stranger's run says of itself may be any number: what is shown or drawn is brought within bounds here,
once, so that nothing after this has to ask.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from jacjobs.planning.planner import Plan
from jacjobs.shape import JacobianShape, Rectangle
from jacjobs.store.attempt import Attempt, Failure, Work
from jacjobs.store.folder import Manifest, RunRecord
from jacjobs.store.plausible import LARGEST
from jacjobs.store.reader import open_run
from jacjobs.store.status import Status, status_of

LONGEST_SECONDS = 1e10
"""Three hundred years."""


@dataclass(frozen=True)
class Facts:
    """
    plan:       what it was frozen with; None if another version wrote it, or it is of another J.
    attempts:   in their order, with times and counts within bounds.
    missing:    what is not there yet.
    bytes:      of the parts that are there.
    """

    path: str
    record: RunRecord
    manifest: Manifest | None
    status: Status
    plan: Plan | None
    attempts: tuple[Attempt, ...]
    missing: tuple[Rectangle, ...]
    bytes: int

    @property
    def shape(self) -> JacobianShape:
        return self.record.shape

    @property
    def complete(self) -> bool:
        return self.manifest is not None

    @property
    def seconds(self) -> float | None:
        """Of all attempts together; None if nobody wrote that down."""
        if self.attempts:
            return sum(attempt.seconds for attempt in self.attempts)
        return None if self.manifest is None else finite(self.manifest.timings.get("seconds"))

    @property
    def entries_done(self) -> int:
        """Of J, in all attempts; of a complete run, all: an attempt that was killed left an old record."""
        shape = self.shape
        total = shape.points * shape.rows * shape.columns
        if self.plan is not None and self.plan.groups is not None:
            total = shape.points * self.plan.groups.entries
        return total if self.complete else min(total, sum(attempt.entries_done for attempt in self.attempts))

    @property
    def workers(self) -> int:
        """The most that were there at once."""
        return max((_at_once(attempt) for attempt in self.attempts), default=0)

    @property
    def failures(self) -> int:
        return sum(attempt.failures_total for attempt in self.attempts)

    @property
    def blocks_repeated(self) -> int:
        return sum(attempt.blocks_repeated for attempt in self.attempts)

    @property
    def retreats(self) -> list[tuple[int, str]]:
        """With the number of the attempt."""
        return [(attempt.number, what) for attempt in self.attempts for what in attempt.retreats]

    @property
    def budget_bytes(self) -> int | None:
        return self._memory("budget_bytes", None if self.plan is None else self.plan.resources.budget_bytes)

    @property
    def predicted_bytes(self) -> int | None:
        return self._memory("predicted_bytes", None if self.plan is None else self.plan.peak_bytes)

    @property
    def measured_bytes(self) -> int | None:
        """The most that any block took, in any attempt."""
        each = [work.peak_bytes for attempt in self.attempts for work in attempt.workers]
        return max([*each, self._memory("measured_bytes", None) or 0]) or None

    def _memory(self, key: str, planned: int | None) -> int | None:
        said = planned if self.manifest is None else self.manifest.memory.get(key, planned)
        number = finite(said)
        return None if number is None else whole(int(number))


def facts_of(path: str) -> Facts:
    """Raises InputError where there is no run, StoreError where it is damaged."""
    dataset = open_run(path)
    attempts = sorted(dataset.attempts, key=lambda attempt: attempt.number)
    return Facts(
        path=dataset.path,
        record=dataset.record,
        manifest=dataset.manifest,
        status=status_of(path),
        plan=_plan_of(dataset.record),
        attempts=tuple(_bounded(attempt) for attempt in attempts),
        missing=tuple(dataset.missing),
        bytes=dataset.stored_bytes,
    )


def finite(number: Any) -> float | None:
    """A number that can be shown and drawn; None for anything else."""
    if isinstance(number, bool) or not isinstance(number, int | float):
        return None
    if isinstance(number, int):
        return float(max(-LARGEST, min(number, LARGEST)))
    return number if math.isfinite(number) and abs(number) <= LARGEST else None


def whole(number: int) -> int:
    """A count."""
    return max(0, min(number, LARGEST))


def _seconds(number: float) -> float:
    return min(max(0.0, number), LONGEST_SECONDS) if math.isfinite(number) else 0.0


def _bounded(attempt: Attempt) -> Attempt:
    seconds = _seconds(attempt.seconds)
    return attempt.model_copy(
        update={
            "number": whole(attempt.number),
            "seconds": seconds,
            "pid": whole(attempt.pid),
            "blocks_done": whole(attempt.blocks_done),
            "blocks_total": whole(attempt.blocks_total),
            "entries_done": whole(attempt.entries_done),
            "entries_total": whole(attempt.entries_total),
            "blocks_repeated": whole(attempt.blocks_repeated),
            "failures_total": whole(max(attempt.failures_total, len(attempt.failures))),
            "workers": tuple(_bounded_work(work, seconds) for work in attempt.workers),
            "failures": tuple(_bounded_failure(failure) for failure in attempt.failures),
        }
    )


def _bounded_work(work: Work, until: float) -> Work:
    joined = min(_seconds(work.joined), until)
    left = None if work.left is None else min(max(joined, _seconds(work.left)), until)
    changes = {
        "joined": joined,
        "left": left,
        "blocks": whole(work.blocks),
        "seconds": _seconds(work.seconds),
    }
    return work.model_copy(update=changes)


def _bounded_failure(failure: Failure) -> Failure:
    return failure.model_copy(update={"seconds": _seconds(failure.seconds)})


def _plan_of(record: RunRecord) -> Plan | None:
    try:
        plan = Plan.model_validate(record.plan)
    except ValidationError:
        return None
    shape, tiling = record.shape, plan.tiling
    cut = JacobianShape.model_copy(
        shape, update={"points": tiling.points, "rows": tiling.rows, "columns": tiling.columns}
    )
    return plan if plan.shape == shape == cut and plan.layout == tiling.layout == record.layout else None


def _at_once(attempt: Attempt) -> int:
    """The most workers that were there at the same time."""
    steps = [(work.joined, 1) for work in attempt.workers]
    steps += [(work.left, -1) for work in attempt.workers if work.left is not None]
    most = now = 0
    for _, step in sorted(steps):  # one that comes when another goes is not there beside it
        now += step
        most = max(most, now)
    return most

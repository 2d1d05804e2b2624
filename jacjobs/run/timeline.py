"""When an attempt did what, in bounded size: buckets of time whose width doubles when there are too many.

Widths are powers of two, so the buckets of a moment at all widths contain each other, and neighbours merge
without anything being split. Work per event is constant, amortised: an event adds to the buckets that its
block took, and a merge, which touches all, comes after as many new buckets as it leaves.

Workers have lanes of their own, of buckets that are wider where there are many workers: what a lane tells is
for the eye, and together they are kept small.
"""

from __future__ import annotations

from collections.abc import Callable

from jacjobs.store.attempt import BUCKETS, Timeline, digits

FINEST_SECONDS = 2.0**-5
CELLS = 1 << 14
"""Buckets of all lanes together, where these are not so many that each has fewer than CELLS_OF_A_LANE."""
CELLS_OF_A_LANE = 16
LONGEST_SECONDS = 2.0**40
"""What a clock that has gone mad says is taken for this."""


class Chronicle:
    """Feed it what happens, at seconds since the attempt began that do not decrease by much."""

    def __init__(self, seconds: Callable[[], float]) -> None:
        self._now = seconds
        self._width = self._lane_width = FINEST_SECONDS
        self._computed: list[int] = []
        self._taken: list[int] = []
        self._busy: list[float] = []
        self._lanes: dict[str, _Lane] = {}
        self._cells = 0

    def joined(self, worker: str, at: float) -> None:
        self._lanes[worker] = _Lane(int(max(0.0, at) / self._lane_width))

    def computed(self, worker: str, seconds: float, entries: int) -> None:
        """A worker has given a block that took it so long, until now."""
        stop = self._moment()
        start = max(0.0, stop - seconds) if seconds > 0 else stop
        first, last = int(start / self._width), int(stop / self._width)
        if last >= BUCKETS:
            self._widen(stop)
            first, last = int(start / self._width), int(stop / self._width)
        self._reach(last)
        if first == last:
            self._busy[last] += stop - start
            self._computed[last] += entries
        else:
            self._spread(start, stop, entries)
        lane = self._lanes.get(worker)
        if lane is not None:
            self._cells += lane.add(start, stop, self._lane_width)
            if self._cells > CELLS and self._cells > CELLS_OF_A_LANE * len(self._lanes):
                self._widen_lanes()

    def taken(self, entries: int) -> None:
        """So many entries are with an assembler now; a negative number: they were, and went with it."""
        moment = self._moment()
        bucket = int(moment / self._width)
        if bucket >= BUCKETS:
            self._widen(moment)
            bucket = int(moment / self._width)
        self._reach(bucket)
        self._taken[bucket] += entries

    def record(self) -> Timeline:
        """All of it so far."""
        return Timeline(
            seconds=self._width,
            computed=tuple(self._computed),
            taken=tuple(self._taken),
            busy=tuple(round(seconds, 3) for seconds in self._busy),
            lane_seconds=self._lane_width,
        )

    def lane(self, worker: str) -> str:
        """How much of each bucket a worker was computing."""
        lane = self._lanes.get(worker)
        return "" if lane is None else digits(lane.busy, self._lane_width)

    def _moment(self) -> float:
        return min(max(0.0, self._now()), LONGEST_SECONDS)

    def _reach(self, bucket: int) -> None:
        lacking = bucket + 1 - len(self._busy)
        if lacking > 0:
            self._computed += [0] * lacking
            self._taken += [0] * lacking
            self._busy += [0.0] * lacking

    def _spread(self, start: float, stop: float, entries: int) -> None:
        """Over several buckets, evenly over the time."""
        width, given = self._width, 0
        last = int(stop / width)
        for bucket in range(int(start / width), last + 1):
            end = min(stop, (bucket + 1) * width)
            self._busy[bucket] += end - max(start, bucket * width)
            until = entries if bucket == last else int(entries * ((end - start) / (stop - start)))
            self._computed[bucket] += until - given
            given = until

    def _widen(self, moment: float) -> None:
        """Until that moment has a bucket."""
        while moment / self._width >= BUCKETS:
            self._width *= 2
            self._computed = [sum(self._computed[i : i + 2]) for i in range(0, len(self._computed), 2)]
            self._taken = [sum(self._taken[i : i + 2]) for i in range(0, len(self._taken), 2)]
            self._busy = [sum(self._busy[i : i + 2]) for i in range(0, len(self._busy), 2)]
        while self._lane_width < self._width:  # a lane has no more buckets than there are
            self._widen_lanes()

    def _widen_lanes(self) -> None:
        self._lane_width *= 2
        for lane in self._lanes.values():
            lane.widen()
        self._cells = sum(len(lane.busy) for lane in self._lanes.values())


class _Lane:
    """Seconds at work in each bucket, from the one with the number `first`."""

    __slots__ = ("busy", "first")

    def __init__(self, first: int) -> None:
        self.first = first
        self.busy: list[float] = []

    def add(self, start: float, stop: float, width: float) -> int:
        """Returns how many buckets that makes more."""
        first, last = max(self.first, int(start / width)), max(self.first, int(stop / width))
        more = last + 1 - self.first - len(self.busy)
        if more > 0:
            self.busy += [0.0] * more
        if first == last:
            self.busy[last - self.first] += stop - start
        else:
            for bucket in range(first, last + 1):
                within = min(stop, (bucket + 1) * width) - max(start, bucket * width)
                self.busy[bucket - self.first] += within
        return max(0, more)

    def widen(self) -> None:
        """Merge neighbours; the first may have none."""
        busy = [0.0, *self.busy] if self.first % 2 and self.busy else self.busy
        self.busy = [sum(busy[i : i + 2]) for i in range(0, len(busy), 2)]
        self.first //= 2

"""The part of the ledger that turns spills into parts.

Where blocks are spilled, a point is ready when all its spills are committed: then its parts are transposed,
by the assemblers, a few at a time, and its spills are swept away. Only so many points are begun before the
first of them is swept as keep all workers busy: that bounds the disk.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Iterable, Mapping

from jacjobs.planning.geometry import Cut
from jacjobs.run.messages import Sweep, Transpose, Transposed

TRANSPOSES = 2
"""Parts that an assembler transposes at a time."""


class Transposer:
    def __init__(
        self,
        tiling: Cut,
        missing: Iterable[int],
        parts: Mapping[int, Collection[int]],
        workers: int,
    ) -> None:
        """`missing`: the spills to make. `parts`: those to make of each point that lacks any."""
        self._tiling = tiling
        self._transposing: dict[int, str] = {}
        """Part: assembler."""
        self._waiting: deque[int] = deque()
        self._losses: dict[int, int] = {}
        self._parts_left = {point: set(numbers) for point, numbers in parts.items()}
        self._spills_left = dict.fromkeys(self._parts_left, 0)
        self._begun: set[int] = set()
        """Points that have spills, and will be swept."""
        self._hopeless: set[int] = set()
        """Points with a quarantined block. They keep their spills, for a run that is resumed."""
        self._points_at_once = tiling.points_at_once(workers) if tiling.spills else 0
        if tiling.spills:
            for bundle in missing:
                self._spills_left[tiling.point_of(bundle)] += 1
            for point in [p for p, left in self._spills_left.items() if not left]:
                self._begun.add(point)
                self._waiting.extend(sorted(self._parts_left[point]))

    @property
    def busy(self) -> bool:
        return bool(self._transposing)

    @property
    def done(self) -> bool:
        """No part waits or is on its way."""
        return not self._transposing and not self._waiting

    def asked_of(self, assembler: str) -> list[int]:
        return [part for part, name in self._transposing.items() if name == assembler]

    def may_begin(self, bundle: int) -> bool:
        """Is there room on the disk for it?"""
        if not self._tiling.spills or len(self._begun) < self._points_at_once:
            return True
        return self._tiling.point_of(bundle) in self._begun | self._hopeless

    def begin(self, bundle: int) -> None:
        if self._tiling.spills and self._tiling.point_of(bundle) not in self._hopeless:
            self._begun.add(self._tiling.point_of(bundle))

    def give_up(self, bundle: int) -> None:
        """One of its blocks will never come."""
        self._hopeless.add(self._tiling.point_of(bundle))
        self._begun -= self._hopeless

    def spilled(self, bundle: int) -> None:
        point = self._tiling.point_of(bundle)
        self._spills_left[point] -= 1
        if not self._spills_left[point]:
            self._waiting.extend(sorted(self._parts_left[point]))

    def hand_out(self, assemblers: Collection[str]) -> list[Transpose]:
        commands: list[Transpose] = []
        while self._waiting and assemblers:
            load = Counter(self._transposing.values())
            assembler = min(assemblers, key=lambda name: load[name])
            if load[assembler] >= TRANSPOSES:
                break
            part = self._waiting.popleft()
            self._transposing[part] = assembler
            commands.append(Transpose(assembler, part))
        return commands

    def transposed(self, event: Transposed) -> list[Sweep] | None:
        """None, if nobody waits for it."""
        if self._transposing.get(event.part) != event.assembler:
            return None
        del self._transposing[event.part]
        point = self._tiling.part(event.part).point_start
        self._parts_left[point].discard(event.part)
        if self._parts_left[point]:
            return []
        self._begun.discard(point)
        return [Sweep(event.assembler, point)]

    def lose(self, assembler: str, part: int) -> int:
        """It will be tried again. Returns how often it was lost; 0, if nobody waits for it."""
        if self._transposing.get(part) != assembler:
            return 0
        del self._transposing[part]
        self._waiting.append(part)
        self._losses[part] = self._losses.get(part, 0) + 1
        return self._losses[part]

    def lose_assembler(self, assembler: str) -> None:
        for part in self.asked_of(assembler):
            del self._transposing[part]
            self._waiting.append(part)

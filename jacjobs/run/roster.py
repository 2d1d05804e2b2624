"""The workers that live, and which blocks each has on its way.

A block is on its way from the moment it is handed out until its data is needed no more. A worker has at most
`in_flight` of them. Those that a lost worker left behind are orphans; they count against all: together there
are never more than `in_flight` for each worker that lives, which bounds memory.

A worker that may be gone with its node, unnoticed since nothing was asked of it, is in doubt: it gets no
block until it shows life.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from jacjobs.run.messages import BlockId

IN_FLIGHT = 2
"""Blocks on their way, a worker: one computed while the one before is absorbed."""
MOST_IN_FLIGHT = 32
QUEUE_BYTES = 1 << 20
QUEUE_SECONDS = 0.05
"""A worker has more blocks on their way, up to `MOST_IN_FLIGHT`, while they are so small and so quick that
together they take less: asking for one takes about a millisecond, in which its worker would wait."""


@dataclass
class Member:
    since: float
    """When it began with the first of the blocks that it computes."""
    where: str = ""
    doubted_since: float | None = None
    blocks: dict[BlockId, Literal["computing", "absorbing"]] = field(default_factory=dict)
    bundle: int | None = None
    together: int = 1
    """So many blocks may have been asked for in one call."""

    @property
    def computing(self) -> list[BlockId]:
        """In the order in which it computes them."""
        return [block for block, what in self.blocks.items() if what == "computing"]

    @property
    def at_once(self) -> int:
        """Of the blocks that it computes, how many may come at once."""
        return min(self.together, len(self.computing))


def most_in_flight(block_bytes: int) -> int:
    """Blocks of that size that a worker may have on their way, however quick they are."""
    return max(IN_FLIGHT, min(MOST_IN_FLIGHT, QUEUE_BYTES // block_bytes))


class Roster:
    def __init__(self, most: int = IN_FLIGHT) -> None:
        """most: blocks that a worker may have on their way, if they are quick."""
        self.in_flight = IN_FLIGHT
        self._most = most
        self._workers: dict[str, Member] = {}
        self._free: tuple[dict[str, None], ...] = tuple({} for _ in range(most))
        """Those with room for another block, by how many they have."""
        self._held = 0
        """Blocks that count against a worker that lives."""
        self._orphans: set[tuple[str, BlockId]] = set()

    def __len__(self) -> int:
        return len(self._workers)

    def __contains__(self, name: str) -> bool:
        return name in self._workers

    def get(self, name: str) -> Member | None:
        return self._workers.get(name)

    @property
    def blocks_in_flight(self) -> int:
        return self._held + len(self._orphans)

    @property
    def full(self) -> bool:
        """Is as much on its way as may be?"""
        return self.blocks_in_flight >= self.in_flight * len(self._workers)

    def pace(self, block_seconds: float | None) -> None:
        """Blocks take about so long."""
        if block_seconds is not None:
            queue = int(QUEUE_SECONDS / block_seconds) if block_seconds else self._most
            self.in_flight = max(IN_FLIGHT, min(self._most, queue))

    @property
    def together(self) -> int:
        """Blocks that may be asked for at once: so that a worker has as many again to go on with."""
        return self.in_flight // IN_FLIGHT

    def free(self, blocks: int) -> list[str]:
        """Workers that have so many blocks, and room for another."""
        return list(self._free[blocks])

    def join(self, name: str, where: str, now: float) -> None:
        self._workers[name] = Member(since=now, where=where)
        self._note_room(name)

    def idle_at(self, where: str) -> list[str]:
        """Those on that node that are not computing."""
        return [name for name, w in self._workers.items() if w.where == where and not w.computing]

    def doubt(self, name: str, now: float) -> bool:
        """Whether nobody had doubts before."""
        worker = self._workers[name]
        if worker.doubted_since is not None:
            return False
        worker.doubted_since = now
        for free in self._free:
            free.pop(name, None)
        return True

    def trust(self, name: str) -> None:
        """It has shown life."""
        if name in self._workers:
            self._workers[name].doubted_since = None
            self._note_room(name)

    def doubted(self, now: float, seconds: float) -> list[str]:
        """Those that have shown no life for longer than so."""
        return [
            name
            for name, worker in self._workers.items()
            if worker.doubted_since is not None and now - worker.doubted_since > seconds
        ]

    @property
    def all_in_doubt(self) -> bool:
        """Has nobody been heard of since they were asked for a sign of life?"""
        return all(worker.doubted_since is not None for worker in self._workers.values())

    def lose(self, name: str) -> Member | None:
        """What it had computed stays at hand."""
        worker = self._workers.pop(name, None)
        if worker is not None:
            self._held -= len(worker.blocks)
            for free in self._free:
                free.pop(name, None)
            absorbing = [block for block, what in worker.blocks.items() if what == "absorbing"]
            self._orphans.update((name, block) for block in absorbing)
        return worker

    def give(self, name: str, block: BlockId, now: float) -> None:
        worker = self._workers[name]
        if not worker.computing:
            worker.since = now
            worker.together = 1
        worker.together = max(worker.together, self.together)
        self._free[len(worker.blocks)].pop(name)
        worker.blocks[block] = "computing"
        self._held += 1
        self._note_room(name)

    def computed(self, name: str, block: BlockId, now: float) -> None:
        """The block has come."""
        worker = self._workers[name]
        worker.blocks[block] = "absorbing"
        worker.since = now

    def state(self, name: str, block: BlockId) -> Literal["computing", "absorbing"] | None:
        """Of a block that this worker has or had, as far as its data is still awaited."""
        if (name, block) in self._orphans:
            return "absorbing"
        worker = self._workers.get(name)
        return worker.blocks.get(block) if worker is not None else None

    def release(self, name: str, block: BlockId) -> None:
        """The block's data is needed no more: the worker has room."""
        self._orphans.discard((name, block))
        worker = self._workers.get(name)
        if worker is not None and block in worker.blocks:
            if len(worker.blocks) < self._most:
                self._free[len(worker.blocks)].pop(name, None)
            del worker.blocks[block]
            self._held -= 1
            self._note_room(name)

    def overdue(self, now: float, after_seconds: Callable[[int], float]) -> Iterator[tuple[str, Member]]:
        """Those that have been at it for longer than so many blocks may take, which come together."""
        for name, worker in list(self._workers.items()):
            if worker.computing and now - worker.since > after_seconds(worker.at_once):
                yield name, worker

    def _note_room(self, name: str) -> None:
        worker = self._workers[name]
        if len(worker.blocks) < self._most and worker.doubted_since is None:
            self._free[len(worker.blocks)][name] = None

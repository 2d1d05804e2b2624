"""What is lost is put down to a block, or to the place where it happened; and when either has been too often.

A worker that dies takes the answers along that it was about to send, so of two blocks either may have killed
it: both are suspects, and only a death alone with a block counts against the block. One that nothing it did
explains counts against the place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jacjobs.planning.geometry import Cut
from jacjobs.run.messages import BlockId

DEATHS_TO_QUARANTINE = 3
"""A block that, alone on them, has taken this many workers with it is not handed out again."""
QUARANTINES_TO_GIVE_UP = 3
"""Blocks quarantined in a row without one finished: the function cannot be computed here."""
LOSSES_TO_GIVE_UP = 3
"""So many losses in a row that no block explains, for each worker wanted: they cannot live here. Before the
first has joined, so many in all: they cannot start here."""
BLOCKS_NAMED = 5
"""In a sentence; the record of the attempt names all."""

Kind = Literal["worker", "assembler"]


@dataclass
class _Unexplained:
    """Losses of one kind of actor."""

    most: int
    """How many were ever wanted."""
    in_a_row: int = 0
    joined: bool = False
    """Has one ever lived?"""


class Losses:
    """Told of every loss, it says when a block is given up (`death`), and in a sentence why all is
    (`unexplained`, `quarantine`).
    """

    def __init__(self, tiling: Cut, workers: int, assemblers: int) -> None:
        self.quarantined: dict[BlockId, str] = {}
        """Blocks that are given up, and what they did last."""
        self.suspects: set[BlockId] = set()
        """Blocks that one dead worker had together, until they have come: each is computed alone."""
        self.deaths: dict[BlockId, int] = {}
        self._tiling = tiling
        self._of = {"worker": _Unexplained(workers), "assembler": _Unexplained(assemblers)}
        self._quarantines_in_a_row = 0

    def expect(self, kind: Kind, number: int) -> None:
        """So many are wanted now."""
        self._of[kind].most = max(self._of[kind].most, number)

    def joined(self, kind: Kind) -> None:
        self._of[kind].joined = True

    def progressed(self) -> None:
        """Something was finished: no row of losses goes on."""
        self._quarantines_in_a_row = 0
        for losses in self._of.values():
            losses.in_a_row = 0

    def unexplained(self, kind: Kind, cause: str) -> str | None:
        """One is gone, and it was no block's fault."""
        losses = self._of[kind]
        losses.in_a_row += 1
        if losses.in_a_row < LOSSES_TO_GIVE_UP * (losses.most if losses.joined else 1):
            return None
        what = f"{kind}s keep dying, the last one of" if losses.joined else f"no {kind} could start"
        return f"{what}: {cause}"

    def death(self, block: BlockId) -> bool:
        """It was this block's fault. Is that once too often?"""
        self.deaths[block] = self.deaths.get(block, 0) + 1
        return self.deaths[block] >= DEATHS_TO_QUARANTINE

    def quarantine(self, block: BlockId, cause: str) -> str | None:
        """It is given up."""
        self.quarantined[block] = cause
        self._quarantines_in_a_row += 1
        return self.sentence() if self._quarantines_in_a_row >= QUARANTINES_TO_GIVE_UP else None

    def sentence(self) -> str:
        """On what is in quarantine."""
        blocks = [f"{self._tiling.block(*block)} ({cause})" for block, cause in self.quarantined.items()]
        more = f"; … and {len(blocks) - BLOCKS_NAMED:,} more" if len(blocks) > BLOCKS_NAMED else ""
        which = "a block took" if len(blocks) == 1 else f"{len(blocks):,} blocks each took"
        return f"{which} {DEATHS_TO_QUARANTINE} workers down: {'; '.join(blocks[:BLOCKS_NAMED])}{more}"

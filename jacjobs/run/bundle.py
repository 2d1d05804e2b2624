"""A bundle on its way, and where each of its blocks is: to be handed out, computed, taken in."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field


@dataclass
class OpenBundle:
    total: int
    assembler: str | None
    next: int = 0
    again: list[int] = field(default_factory=list)
    computing: dict[int, tuple[str, ...]] = field(default_factory=dict)
    """By whom: by two workers, where one was late."""
    absorbing: dict[int, str] = field(default_factory=dict)
    held: dict[int, str] = field(default_factory=dict)
    """Computed while no assembler lives."""
    absorbed: set[int] = field(default_factory=set)
    entries: dict[int, int] = field(default_factory=dict)
    """Of J, in blocks of which that was asked."""

    @property
    def waiting(self) -> int:
        """Blocks to be handed out, for the first time or again."""
        return self.total - self.next + len(self.again)

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

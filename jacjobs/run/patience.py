"""When a block is late, and when its worker counts as hung: learned from the blocks that came before."""

from __future__ import annotations

import statistics
from collections import deque
from dataclasses import dataclass, field
from typing import Literal

SLOW_FACTOR = 10.0
"""A block that takes so many times the median is late: at the end of the run another worker gets it too."""
SLOW_SECONDS = 2.0
"""Sooner than this no block is late: handing one out takes time of its own."""
HUNG_FACTOR = 100.0
"""A block that takes so many times the median, and `HUNG_SECONDS`, will never come."""
HUNG_SECONDS = 600.0
REMEMBERED = 101
"""The median is that of so many blocks, the latest."""
ENOUGH = 3
"""Fewer blocks than this say nothing about the next."""
PLENTY = 20
"""So many say what the next will take, but for misfortune."""


@dataclass
class Patience:
    """How long to wait for a block.

    limit_seconds:     the user's word: after so long a worker counts as hung; off: never; auto: see above.
    expected_seconds:  what the plan predicts for a block: all that is known before the first has come.
    """

    limit_seconds: float | Literal["auto", "off"] = "auto"
    expected_seconds: float = 0.0
    _taken: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    _median: float | None = None

    def took(self, seconds: float) -> None:
        """A block has come after so long."""
        self._taken.append(seconds)
        self._median = None

    @property
    def median_seconds(self) -> float | None:
        """Of the latest blocks; None while they are too few to say."""
        if len(self._taken) < ENOUGH:
            return None
        if self._median is None:
            self._median = statistics.median(self._taken)
        return self._median

    @property
    def usual_seconds(self) -> float | None:
        """As `median_seconds`, but only once it is well known."""
        return self.median_seconds if len(self._taken) >= PLENTY else None

    def late_after_seconds(self, together: int = 1) -> float:
        """For blocks that come together, so many."""
        median = self.median_seconds
        return float("inf") if median is None else max(SLOW_SECONDS, SLOW_FACTOR * median * together)

    def hung_after_seconds(self, together: int = 1) -> float:
        if self.limit_seconds == "off":
            return float("inf")
        if self.limit_seconds != "auto":
            return self.limit_seconds * together
        usual = max(self.median_seconds or 0.0, self.expected_seconds)
        return max(HUNG_SECONDS, HUNG_FACTOR * usual * together)

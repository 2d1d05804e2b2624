"""What workers noticed in their blocks, summed up."""

from __future__ import annotations

from dataclasses import dataclass, field

from jacjobs.run.messages import BlockId, Findings


@dataclass
class Tally:
    nonfinite: dict[BlockId, int] = field(default_factory=dict)
    """Blocks with NaN or infinity, and how many of them."""
    recomputed: set[BlockId] = field(default_factory=set)
    points_checked: int = 0
    worst_error: float = 0.0
    peak_bytes: int = 0
    retreats: list[str] = field(default_factory=list)

    def add(self, block: BlockId, findings: Findings) -> None:
        if findings.nonfinite:
            self.nonfinite[block] = findings.nonfinite
        if findings.recomputed:
            self.recomputed.add(block)
        self.points_checked += findings.checked
        self.worst_error = max(self.worst_error, findings.error)
        self.peak_bytes = max(self.peak_bytes, findings.peak_bytes)
        self.retreats += findings.retreats

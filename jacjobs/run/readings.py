"""What can be watched of a run while it goes on."""

from __future__ import annotations

from dataclasses import dataclass

from jacjobs.errors import OUT_OF_MEMORY
from jacjobs.planning.planner import Plan
from jacjobs.run.ledger import Ledger


@dataclass(frozen=True)
class Readings:
    """Where an attempt stands; what an earlier one committed is not counted again.

    oom_halvings:  with the times when a chunk of one was too much, and a leaner strategy went on.
    device_memory: of one worker: the most that a block took as far as it was measured, what was predicted,
                   and what it may take.
    """

    rows: int
    bytes: int
    blocks: int
    blocks_repeated: int
    blocks_quarantined: int
    workers_lost: int
    oom_halvings: int
    workers: int
    blocks_waiting: int
    blocks_in_flight: int
    device_memory_peak_bytes: int
    device_memory_predicted_bytes: int
    device_memory_budget_bytes: int

    @classmethod
    def of(cls, ledger: Ledger, plan: Plan) -> Readings:
        return cls(
            rows=ledger.entries_done // plan.shape.columns,
            bytes=ledger.entries_done * plan.shape.item_bytes,
            blocks=ledger.blocks_done,
            blocks_repeated=ledger.history.blocks_repeated,
            blocks_quarantined=len(ledger.losses.quarantined),
            workers_lost=ledger.workers_lost,
            oom_halvings=sum(OUT_OF_MEMORY in what for what in ledger.tally.retreats),
            workers=ledger.workers,
            blocks_waiting=ledger.blocks_waiting,
            blocks_in_flight=ledger.blocks_in_flight,
            device_memory_peak_bytes=ledger.tally.peak_bytes,
            device_memory_predicted_bytes=plan.peak_bytes,
            device_memory_budget_bytes=plan.resources.budget_bytes,
        )

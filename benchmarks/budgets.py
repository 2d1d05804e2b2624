"""The residual that made users of torch run out of memory, as a job within ever smaller budgets.

    python benchmarks/budgets.py [0.25GiB …]

10,000 × 1,001 in float64 (76 MiB; `jobs/kernel_residual.py` has its source). For each budget a job of its
own, one worker in a process of its own: the strategy and chunk that the plan chose, memory as it was
predicted and as the kernel measured it (the growth of the worker's resident memory while it computes), and
the rate. Each result is compared with the closed form. Prints a table, for benchmarks/results/budgets.md.
"""

from __future__ import annotations

import platform
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

import jacjobs
from jobs.kernel_residual import problem, reference

BUDGETS = ("0.25GiB", "0.5GiB", "1GiB", "2GiB")
MIB = 1 << 20


def largest_chunk(problem: jacjobs.Problem, strategy: str, budget: str) -> int:
    """The largest power of two that a plan accepts within the budget."""
    chunk = 1
    while True:
        try:
            jacjobs.plan(problem, strategy=strategy, chunk=2 * chunk, memory=budget, workers=1)
        except jacjobs.JacjobsError:
            return chunk
        chunk *= 2


def main() -> None:
    budgets = sys.argv[1:] or BUDGETS
    residual = problem()
    want = reference([0])
    print("| budget | asked for | strategy | chunk | predicted MiB | measured MiB | halvings | s | rows/s |")
    print("| --- | --- | --- |" + " ---: |" * 6)
    with tempfile.TemporaryDirectory() as folder:
        for budget in budgets:
            largest = largest_chunk(residual, "vjp/vmap", budget)
            for asked, options in {
                "auto": {},
                "vjp/vmap, the largest chunk": {"strategy": "vjp/vmap", "chunk": largest},
            }.items():
                path = Path(folder) / f"{budget} {asked}"
                run = jacjobs.submit(residual, path, memory=budget, workers=1, **options)
                manifest = run.wait()
                memory, seconds = manifest.memory, manifest.timings["seconds"]
                np.testing.assert_allclose(jacjobs.open(run.path).to_numpy(), want, rtol=1e-7, atol=1e-10)
                assert memory["measured_bytes"] <= memory["budget_bytes"]
                print(
                    f"| {budget} | {asked} | {run.plan.strategy} | {run.plan.chunk:,} | "
                    f"{memory['predicted_bytes'] / MIB:,.0f} | {memory['measured_bytes'] / MIB:,.0f} | "
                    f"{len(memory['retreats'])} | {seconds:.1f} | {10_000 / seconds:,.0f} |",
                    flush=True,
                )
    print(
        f"\n{platform.machine()}, one core, torch {torch.__version__}; from the start of the coordinator on."
    )


if __name__ == "__main__":
    main()

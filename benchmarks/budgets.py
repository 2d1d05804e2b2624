"""The residual that made users of torch run out of memory, as a job within ever smaller budgets.

    python benchmarks/budgets.py [0.25GiB …]

10,000 × 1,001 in float64 (76 MiB; `benchmarks/functions.py` has its source). For each budget a job of its
own, one worker in a process of its own: the strategy and chunk that the plan chose, memory as it was
predicted and as the kernel measured it (the growth of the worker's resident memory while it computes), and
the rate. Each result is compared with the closed form. Prints a table, for benchmarks/results/budgets.md.
"""

from __future__ import annotations

import platform
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

import jacjobs
from benchmarks.functions import kernel_residual

BUDGETS = ("0.25GiB", "0.5GiB", "1GiB", "2GiB")
MIB = 1 << 20


def closed_form(theta: Tensor) -> Tensor:
    """J of `kernel_residual()` at theta, by hand: (10,000, 1,001)."""
    generator = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    points = torch.randn(10_000, 20, generator=generator[0], dtype=torch.float64)
    weights = torch.randn(50, generator=generator[1], dtype=torch.float64)
    centres, width = theta[:-1].reshape(50, 20), theta[-1]
    offsets = points[:, None] - centres
    squares = offsets.square().sum(2)
    terms = torch.exp(-squares / (2 * width**2)) * weights
    to_centres = (terms / width**2)[:, :, None] * offsets
    to_width = (terms * squares / width**3).sum(1, keepdim=True)
    return torch.cat([to_centres.reshape(10_000, 1_000), to_width], 1)


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
    problem = kernel_residual()
    want = closed_form(problem.leaves[0])
    print("| budget | asked for | strategy | chunk | predicted MiB | measured MiB | halvings | s | rows/s |")
    print("| --- | --- | --- |" + " ---: |" * 6)
    with tempfile.TemporaryDirectory() as folder:
        for budget in budgets:
            largest = largest_chunk(problem, "vjp/vmap", budget)
            for asked, options in {
                "auto": {},
                "vjp/vmap, the largest chunk": {"strategy": "vjp/vmap", "chunk": largest},
            }.items():
                path = Path(folder) / f"{budget} {asked}"
                run = jacjobs.submit(problem, path, memory=budget, workers=1, **options)
                manifest = run.wait()
                memory, seconds = manifest.memory, manifest.timings["seconds"]
                torch.testing.assert_close(jacjobs.open(run.path).to_torch()[0], want)
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

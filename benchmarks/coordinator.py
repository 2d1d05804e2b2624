"""What the coordinator costs: a million blocks in virtual time, and blocks a second through a real Ray.

    PYTHONPATH=. .venv/bin/python -m benchmarks.coordinator

The kernel is as good as null (J is 1 × 1 at each point, a block a point), so what is timed is the handing
out, the calls, the assembly and the commits.
"""

from __future__ import annotations

import os
import resource
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

import jacjobs
from jacjobs import api
from jacjobs.job import job_from_options
from jacjobs.planning.geometry import Tiling
from jacjobs.planning.planner import Plan
from jacjobs.record import new_record
from jacjobs.run.cluster.actors import Payload
from jacjobs.run.cluster.executor import RayExecutor
from jacjobs.run.cluster.session import Placement
from jacjobs.run.coordinator import Coordinator, part_metadata
from jacjobs.run.roster import MOST_IN_FLIGHT
from jacjobs.store.folder import RunFolder
from tests.faults.scenarios import Scenario, grid
from tests.faults.simulator import Simulation

BLOCKS = 2000
ROUNDS = 3
RESULT = Path(__file__).parent / "results" / "coordinator.md"


def simulated() -> list[str]:
    """The ledger and the simulated world together; 64 workers, four blocks a part, no faults."""
    lines = ["| blocks | seconds | µs a block | peak MiB of the process |", "| ---: | ---: | ---: | ---: |"]
    for blocks in (10_000, 100_000, 1_000_000):
        began = time.perf_counter()
        simulation = Simulation(Scenario(tiling=grid(blocks // 4, 4), workers=64, block_seconds=1.0), 0)
        simulation.play()
        assert simulation.ends == ["complete"]
        seconds = time.perf_counter() - began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        lines.append(f"| {blocks:,} | {seconds:.1f} | {1e6 * seconds / blocks:.0f} | {peak:,.0f} |")
    return lines


def real(workers: int) -> float:
    """Blocks a second, from the first that is computed to the manifest."""
    problem = jacjobs.Problem(torch.sin, (torch.zeros(BLOCKS, 1),), in_dims=0)
    with tempfile.TemporaryDirectory(prefix="jj") as folder:
        options = {"strategy": "vjp/loop", "chunk": 1, "check": "off", "compression": "none"}
        job = job_from_options(problem, f"{folder}/run", options)
        tiling = Tiling(
            points=BLOCKS,
            rows=1,
            columns=1,
            part_points=BLOCKS // 8,
            part_lines=1,
            block_points=1,
            block_rows=1,
            block_columns=1,
        )
        record = new_record(job, api.plan_job(job).model_copy(update={"tiling": tiling}), {})
        place = RunFolder(job.output.path)
        place.create(record)
        plan, metadata = Plan.model_validate(record.plan), part_metadata(record)
        payload, placement = Payload.pack(problem), Placement(workers, 1, 0)
        coordinator = Coordinator(
            record, place.uri, lambda: RayExecutor(payload, plan, place.uri, metadata, placement), workers
        )
        manifest = coordinator.run()
        attempt = manifest.attempts[-1]
        assert attempt.blocks_done == BLOCKS
        return BLOCKS / (attempt.seconds - max(work.joined for work in attempt.workers))


class _NullWorker:
    @ray.method(num_returns=2)
    def compute(self, block: tuple[int, int]) -> tuple[np.ndarray, tuple[int, ...]]:
        return np.zeros((1, 1, 1), np.float32), (0, 0)


class _NullAssembler:
    def absorb(self, block: tuple[int, int], values: np.ndarray) -> None:
        return None


def bare(workers: int) -> float:
    """Blocks a second of the same two calls a block, with as many in flight, and nothing else."""
    computing = [ray.remote(_NullWorker).options(num_cpus=1).remote() for _ in range(workers)]
    assembler = ray.remote(_NullAssembler).options(num_cpus=0, max_concurrency=2).remote()
    for worker in computing:
        ray.get(assembler.absorb.remote((0, 0), worker.compute.remote((0, 0))[0]), timeout=60)
    calls: dict[Any, tuple[int, Any]] = {}
    handed_out = done = 0

    def hand_out(number: int) -> None:
        nonlocal handed_out
        if handed_out < BLOCKS:
            handed_out += 1
            data, result = computing[number].compute.remote((0, handed_out))
            calls[result] = number, data

    began = time.perf_counter()
    for number in [*range(workers)] * MOST_IN_FLIGHT:
        hand_out(number)
    while done < BLOCKS:
        waiting = list(calls)
        ray.wait(waiting, num_returns=1, timeout=10, fetch_local=False)
        ready, _ = ray.wait(waiting, num_returns=len(waiting), timeout=0, fetch_local=False)
        for ref in ready:
            number, data = calls.pop(ref)
            ray.get(ref, timeout=10)
            if data is not None:
                calls[assembler.absorb.remote((0, 0), data)] = number, None
            else:
                done += 1
                hand_out(number)
    rate = BLOCKS / (time.perf_counter() - began)
    for actor in (*computing, assembler):
        ray.kill(actor)
    return rate


def main() -> None:
    os.environ["RAY_AUTH_MODE"] = "disabled"
    ray.init(
        address="local",
        num_cpus=2,
        object_store_memory=256 << 20,
        include_dashboard=False,
        log_to_driver=False,
    )
    real(1)  # warm up
    rates = {workers: [(real(workers), bare(workers)) for _ in range(ROUNDS)] for workers in (1, 2)}
    ray.shutdown()
    lines = [
        "# The coordinator",
        "",
        f"{os.cpu_count()} cores. Written by `python -m benchmarks.coordinator`.",
        "",
        "## A million blocks, simulated",
        "",
        "The ledger that real runs use, and the world that plays its workers, in one process.",
        "",
        *simulated(),
        "",
        "## Blocks a second through Ray",
        "",
        f"{BLOCKS:,} blocks with a kernel that is as good as null, in 8 parts; from the last worker's",
        f"joining to the manifest; median of {ROUNDS} (least, most). Coordinator, workers, assembler and",
        "raylet share the cores. Bare: the same two calls a block, with as much in flight, and nothing else:",
        "no ledger, no torch, no file.",
        "",
        "| workers | blocks a second | bare | ratio, median of pairs |",
        "| ---: | ---: | ---: | ---: |",
        *(f"| {workers} | {_row(found)} |" for workers, found in rates.items()),
        "",
    ]
    RESULT.write_text("\n".join(lines))
    print("\n".join(lines))


def _row(found: list[tuple[float, float]]) -> str:
    ours, theirs = zip(*found, strict=True)
    ratio = statistics.median(mine / bare for mine, bare in found)
    return " | ".join([*(_spread(rates) for rates in (ours, theirs)), f"{ratio:.2f}"])


def _spread(rates: Sequence[float]) -> str:
    return f"{statistics.median(rates):,.0f} ({min(rates):,.0f}, {max(rates):,.0f})"


if __name__ == "__main__":
    main()

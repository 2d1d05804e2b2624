"""How far one coordinator carries: simulated efficiency on 8 to 4,096 GPUs, from costs measured here.

Three queues, in virtual time. A worker computes a block in so many seconds, a little more or less. The
coordinator, one process, spends its CPU time on each block, one after another. Assemblers, one for eight
workers, write at the rate of one. Workers have two blocks each on their way, as in a run. What waits longest
for the others is what breaks first.
"""

from __future__ import annotations

import heapq
import random
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import ray

from benchmarks import coordinator
from benchmarks.speed.end_to_end import warm_cluster
from jacjobs.planning.geometry import BLOCK_BYTES, Tiling
from jacjobs.run.assembler import Assembler
from jacjobs.run.cluster.session import WORKERS_AN_ASSEMBLER
from jacjobs.run.messages import BlockId
from jacjobs.run.roster import IN_FLIGHT
from tests.store.datasets import METADATA, make_run, plan_of

WORKERS = (8, 64, 512, 4096)
BLOCK_SECONDS = (1.0, 10.0, 30.0)
"""Of computing a block of 64 MiB."""
BLOCKS_A_WORKER = 20


def measure(*, quick: bool = False) -> Iterator[dict[str, Any]]:
    warm_cluster()
    try:
        coordinator.real(2)  # warm up
        began = time.process_time()
        rate = coordinator.real(2)
        cpu_seconds = (time.process_time() - began) / coordinator.BLOCKS
    finally:
        ray.shutdown()
    write_rate = written_bytes_per_second()
    yield {
        "blocks_per_second": rate,
        "coordinator_seconds": cpu_seconds,
        "assembler_bytes_per_second": write_rate,
    }
    for workers in WORKERS:
        for block_seconds in BLOCK_SECONDS:
            efficiency, waits = simulate(workers, block_seconds, cpu_seconds, BLOCK_BYTES / write_rate)
            yield {
                "workers": workers,
                "block_seconds": block_seconds,
                "efficiency": efficiency,
                "first_to_break": max(waits, key=waits.__getitem__) if efficiency < 0.95 else "",
            }


def written_bytes_per_second(parts: int = 4) -> float:
    """Of one assembler, one thread, whose parts go to the disk."""
    tiling = Tiling(
        points=4 * parts,
        rows=1024,
        columns=16384,
        part_points=4,
        part_lines=1024,
        block_points=1,
        block_rows=1024,
        block_columns=16384,
    )
    block = np.random.default_rng(0).standard_normal((1, 1024, 16384), dtype=np.float32)
    with tempfile.TemporaryDirectory(prefix="jj") as folder:
        plan = plan_of(tiling, "float32")
        assembler = Assembler(make_run(Path(folder), plan).uri, plan, METADATA)
        began = time.perf_counter()
        for bundle in range(tiling.bundles):
            for position in range(tiling.blocks_in(bundle)):
                assembler.absorb(BlockId(bundle, position), block)
        return 4 * parts * block.nbytes / (time.perf_counter() - began)


def simulate(
    workers: int, block_seconds: float, coordinator_seconds: float, write_seconds: float
) -> tuple[float, dict[str, float]]:
    """Efficiency (what the workers compute, of the time that they are there), and the mean wait for each."""
    chance = random.Random(0)
    free = [0.0] * -(-workers // WORKERS_AN_ASSEMBLER)
    waited = {"coordinator": 0.0, "writing": 0.0}
    on_their_way: list[deque[float]] = [deque() for _ in range(workers)]
    coordinator_free = busy = end = 0.0

    def computed(begin: float, worker: int) -> tuple[float, int]:
        nonlocal busy
        seconds = block_seconds * chance.uniform(0.9, 1.1)
        busy += seconds
        return begin + seconds, worker

    events = [computed(0.0, worker) for worker in range(workers)]
    heapq.heapify(events)
    for number in range(workers * BLOCKS_A_WORKER):
        done, worker = heapq.heappop(events)
        told = max(done, coordinator_free) + coordinator_seconds
        coordinator_free = told
        assembler = worker % len(free)
        written = max(told, free[assembler]) + write_seconds
        waited["coordinator"] += told - done
        waited["writing"] += written - told
        free[assembler], end = written, max(end, written)
        on_their_way[worker].append(written)
        if number + len(events) + 1 < workers * BLOCKS_A_WORKER:
            full = len(on_their_way[worker]) >= IN_FLIGHT
            begin = max(done, on_their_way[worker].popleft()) if full else done
            heapq.heappush(events, computed(begin, worker))
    return busy / (workers * end), waited

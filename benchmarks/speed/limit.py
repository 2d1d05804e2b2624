"""What a job takes against the larger of its computing alone and its writing alone, both by jacjobs' own code
with all cores; at sizes at which its start, some seconds, is a small part.

A local disk may take more than two cores can compute and write, so what is bound by writing is measured once
more on a disk that is slowed down to what a volume of a cloud takes.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import ray
import torch

from benchmarks.speed.end_to_end import THREADS, hessian, submit, tangents, warm_cluster
from benchmarks.speed.page import COMPUTING, WRITING
from benchmarks.speed.pairs import seconds_of
from jacjobs import Problem
from jacjobs.planning.planner import Plan
from jacjobs.run.assembler import Assembler
from jacjobs.run.coordinator import part_metadata
from jacjobs.run.messages import BlockId
from jacjobs.run.worker import Worker
from jacjobs.store.folder import RunFolder, RunRecord

SLOW_MB = 300
"""Megabytes a second, of a slow disk."""
BLKIO = Path("/sys/fs/cgroup/blkio")
"""Where Linux says what processes may write (control groups, version 1)."""
QUICK = 16
SAMPLES = 24
"""Blocks of which the time of computing all is made up."""


class Case(NamedTuple):
    make: Callable[[float], Problem]
    gib: float
    disk: Callable[[], AbstractContextManager[None]] = nullcontext


@contextmanager
def slow_disk() -> Iterator[None]:
    """This process, and what it starts meanwhile, write to the disk of the results no faster."""
    group = BLKIO / "jacjobs-bench"
    group.mkdir()
    try:
        device = Path(os.environ.get("JACJOBS_BENCH_DIR", tempfile.gettempdir())).stat().st_dev
        limit = f"{os.major(device)}:{os.minor(device)} {SLOW_MB * 10**6}"
        (group / "blkio.throttle.write_bps_device").write_text(limit)
        (group / "cgroup.procs").write_text(str(os.getpid()))
        yield
    finally:
        for process in (group / "cgroup.procs").read_text().split():
            (BLKIO / "cgroup.procs").write_text(process)
        group.rmdir()


CASES = {
    COMPUTING: Case(hessian, 8.0),
    WRITING: Case(tangents, 24.0),
    f"tangent features, on a disk of {SLOW_MB} MB/s": Case(tangents, 24.0, slow_disk),
}


def measure(*, quick: bool = False) -> Iterator[dict[str, Any]]:
    torch.set_num_threads(THREADS)
    for name, case in CASES.items():
        if case.disk is slow_disk and not os.access(BLKIO / "cgroup.procs", os.W_OK):
            continue
        with case.disk():
            yield {"job": name, **_row(case.make(case.gib / (QUICK if quick else 1)))}


def _row(problem: Problem) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="jj", dir=os.environ.get("JACJOBS_BENCH_DIR")) as folder:
        out = Path(folder) / "run"
        warm_cluster()
        try:
            submit(hessian(0.01), out)  # warm up
            shutil.rmtree(out)
            seconds = seconds_of(lambda: submit(problem, out))
        finally:
            ray.shutdown()
        record = RunFolder(out).record()
        shutil.rmtree(out)  # there may be no room for two
        plan = Plan.model_validate(record.plan)
        compute, write = _computing(problem, plan), _writing(problem, plan, record, Path(folder) / "alone")
    return {
        "gib": plan.shape.total_bytes / 2**30,
        "strategy": plan.strategy,
        "chunk": plan.chunk,
        "seconds": seconds,
        "alone_seconds": {"compute": compute, "write": write},
        "ratio": seconds / max(compute, write),
    }


def _computing(problem: Problem, plan: Plan) -> float:
    """Of all blocks, from some: one after another in one process, with all threads; or by two workers in two
    threads, if that is faster.
    """
    blocks = _blocks(plan)
    sample = blocks[:: max(1, len(blocks) // SAMPLES)]
    one = Worker(problem, plan.model_copy(update={"threads": THREADS, "checked_by": None}))
    one.compute(blocks[0])
    together = seconds_of(lambda: [one.compute(block) for block in sample])
    several = [Worker(problem, plan.model_copy(update={"checked_by": None})) for _ in range(THREADS)]
    with ThreadPoolExecutor(THREADS) as pool:
        shares = [(worker, sample[i::THREADS]) for i, worker in enumerate(several)]
        apart = seconds_of(
            lambda: list(pool.map(lambda share: [share[0].compute(b) for b in share[1]], shares))
        )
    torch.set_num_threads(THREADS)
    return min(together, apart) * len(blocks) / len(sample)


def _writing(problem: Problem, plan: Plan, record: RunRecord, path: Path) -> float:
    """Of all blocks, each with the same entries."""
    folder = RunFolder(path)
    folder.create(record)
    assembler = Assembler(folder.uri, plan, part_metadata(record))
    one = Worker(problem, plan).compute(_blocks(plan)[0]).values

    def write(bundle: int) -> None:
        for position in range(plan.tiling.blocks_in(bundle)):
            block = BlockId(bundle, position)
            extent = plan.tiling.block(*block).box(plan.layout).extent
            assembler.absorb(block, one if one.shape == extent else np.resize(one, extent))

    began = time.perf_counter()
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(write, range(plan.tiling.bundles)))
    return time.perf_counter() - began


def _blocks(plan: Plan) -> list[BlockId]:
    tiling = plan.tiling
    return [BlockId(b, i) for b in range(tiling.bundles) for i in range(tiling.blocks_in(b))]

"""A job on a warm local cluster against the script that a competent user writes: the best peer in chunks that
fit, then `pyarrow.parquet.write_table`. Two workers against the script's two threads.

And the limit: what a job takes against the larger of its computing alone and its writing alone, both by
jacjobs' own code with all cores.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch
from torch.func import jacrev, vmap

import jacjobs
from benchmarks import functions
from benchmarks.speed.pairs import in_turns, ratio, seconds_of
from benchmarks.speed.peers import Case
from jacjobs import Problem
from jacjobs.planning.planner import Plan
from jacjobs.run.assembler import Assembler
from jacjobs.run.coordinator import part_metadata
from jacjobs.run.messages import BlockId
from jacjobs.run.worker import Worker
from jacjobs.store.folder import RunFolder

THREADS = 2
ROUNDS, QUICK_ROUNDS = 3, 1


class JobCase(NamedTuple):
    """A problem whose J has so many GiB, and the script's chunk, of rows or points, at its best."""

    make: Callable[[float], Problem]
    chunk: int
    gib: float


def hessian(gib: float) -> Problem:
    """Computing dominates: of a loss on 1,536 samples, so many parameters as make a matrix of so many GiB."""
    side = int((gib * 2**30 / 4) ** 0.5)
    inputs, targets = functions.randn(1536, 64, seed=1), functions.randn(1536, 1, seed=2)
    hidden = (side - 1) // 66

    def loss(flat: torch.Tensor) -> torch.Tensor:
        weight = flat[: 64 * hidden].view(64, hidden)
        bias, out = flat[64 * hidden : 65 * hidden], flat[65 * hidden : 66 * hidden]
        return ((torch.tanh(inputs @ weight + bias) @ out[:, None]) - targets).square().mean()

    return Problem.hessian(loss, (functions.randn(66 * hidden) / 8,))


def tangents(gib: float) -> Problem:
    """Writing dominates: features of a network, 85,002 columns of which hardly anything is computed."""
    return functions.parameters(count=int(gib * 2**30 / (10 * 85_002 * 4)))


CASES = {
    "Hessian of a loss, computing dominates": JobCase(hessian, 32, 1.0),
    "tangent features, writing dominates": JobCase(tangents, 32, 4.0),
}


# -- the script ----------------------------------------------------------------------------------------------


def script(case: Case, chunk: int, path: Path) -> None:
    """All of J in memory, then in one file."""
    if case.in_dims is None:
        J = jacrev(case.fn, case.argnums, chunk_size=chunk)(*case.args)
        matrix = J.reshape(case.shape.points, case.shape.rows, case.shape.columns)
    else:
        tree = vmap(jacrev(case.fn, case.argnums), case.in_dims, chunk_size=chunk)(*case.args)
        matrix = case.entries(tree)
    pq.write_table(
        as_table(matrix.numpy()),
        path,
        use_dictionary=False,
        compression="none",
        write_statistics=False,
        row_group_size=1024,
    )
    with path.open("rb") as file:
        os.fsync(file.fileno())  # as jacjobs does: both have it on the disk


def as_table(J: np.ndarray) -> pa.Table:
    """A row of J a record, as a script would have it."""
    points, rows, columns = J.shape
    return pa.table(
        {
            "point": np.repeat(np.arange(points), rows),
            "row": np.tile(np.arange(rows), points),
            "values": pa.FixedSizeListArray.from_arrays(pa.array(J.reshape(-1)), columns),
        }
    )


# -- measuring -----------------------------------------------------------------------------------------------


def warm_cluster() -> None:
    os.environ["RAY_AUTH_MODE"] = "disabled"
    ray.init(
        address="local",
        num_cpus=THREADS,
        object_store_memory=1 << 30,
        include_dashboard=False,
        log_to_driver=False,
    )


def submit(problem: Problem, path: Path) -> jacjobs.Run:
    run = jacjobs.submit(problem, str(path), workers=THREADS, compression="none")
    run.wait()
    return run


def measure(*, quick: bool = False) -> Iterator[dict[str, Any]]:
    torch.set_num_threads(THREADS)
    warm_cluster()
    try:
        for name, job in CASES.items():
            yield _row(name, job, job.gib / 8 if quick else job.gib, quick=quick)
    finally:
        ray.shutdown()


def _row(name: str, job: JobCase, gib: float, *, quick: bool) -> dict[str, Any]:
    problem = job.make(gib)
    case = Case(problem)
    with tempfile.TemporaryDirectory(prefix="jj", dir=os.environ.get("JACJOBS_BENCH_DIR")) as folder:
        place = Path(folder)
        file, out = place / "script.parquet", place / "run"

        def ours() -> None:
            shutil.rmtree(out, ignore_errors=True)
            runs.append(submit(problem, out))

        def theirs() -> None:
            file.unlink(missing_ok=True)
            script(case, job.chunk, file)

        runs: list[jacjobs.Run] = []
        ours()  # warm up
        _check_same(file, theirs, out)
        seconds = in_turns({"script": theirs, "jacjobs": ours}, QUICK_ROUNDS if quick else ROUNDS)
        plan = runs[-1].plan
        file.unlink()
        alone = _alone(problem, out, place / "alone")
    larger = max(alone["compute"], alone["write"])
    return {
        "job": name,
        "gib": plan.shape.total_bytes / 2**30,
        "strategy": plan.strategy,
        "chunk": plan.chunk,
        "seconds": {who: statistics.median(taken) for who, taken in seconds.items()},
        "ratio": ratio(seconds["jacjobs"], seconds["script"]),
        "alone_seconds": alone,
        "limit_ratio": statistics.median(taken / larger for taken in seconds["jacjobs"]),
    }


def _check_same(file: Path, theirs: Callable[[], None], out: Path) -> None:
    """The two files hold the same J."""
    theirs()
    first = pq.ParquetFile(file).read_row_group(0, ["values"])["values"].chunk(0)
    want = first.flatten().to_numpy().reshape(len(first), -1)[:8]
    got = jacjobs.open(str(out))[0].to_numpy()[:8]
    error = float(np.abs(got - want).max() / np.abs(want).max())
    if not error < 1e-3:
        raise AssertionError(f"the script's J and jacjobs' differ by {error:.1e}")


def _alone(problem: Problem, run: Path, path: Path) -> dict[str, float]:
    """Seconds of all blocks without writing any, and of writing as many without computing any; two threads
    each, as the job has two workers.
    """
    record = RunFolder(run).record()
    plan = Plan.model_validate(record.plan)
    blocks = [BlockId(b, i) for b in range(plan.tiling.bundles) for i in range(plan.tiling.blocks_in(b))]
    sample = blocks[:: max(1, len(blocks) // 16)]
    worker = Worker(problem, plan.model_copy(update={"threads": THREADS, "checked_by": None}))
    worker.compute(blocks[0])
    share = len(blocks) / len(sample)
    compute = seconds_of(lambda: [worker.compute(block) for block in sample]) * share
    folder = RunFolder(path)
    folder.create(record)
    assembler = Assembler(folder.uri, plan, part_metadata(record))
    one = worker.compute(blocks[0]).values

    def write(bundle: int) -> None:
        for position in range(plan.tiling.blocks_in(bundle)):
            block = BlockId(bundle, position)
            extent = plan.tiling.block(*block).box(plan.layout).extent
            data = one if one.shape == extent else np.resize(one, extent)
            assembler.absorb(block, data)

    began = time.perf_counter()
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(write, range(plan.tiling.bundles)))
    return {"compute": compute, "write": time.perf_counter() - began}

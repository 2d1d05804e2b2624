"""A job on a warm local cluster against the script that a competent user writes: the best peer at its best
chunk, then `pyarrow.parquet.write_table`. Two workers against the script's two threads.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch
from torch.func import jacrev, vmap

import jacjobs
from benchmarks import functions
from benchmarks.speed.page import COMPUTING, WRITING
from benchmarks.speed.pairs import Work, in_turns, ratio, seconds_of
from benchmarks.speed.peers import Case
from jacjobs import Problem

THREADS = 2
ROUNDS, QUICK_ROUNDS = 3, 1
CHUNKS = (1, 2, 4, 8, 16, 32, 64, 128)
"""Of the script."""


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
    COMPUTING: hessian,
    WRITING: tangents,
}
GIB = {hessian: 1.0, tangents: 4.0}
QUICK = 8


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


def best_chunk(case: Case) -> int:
    """Of the script, from a few of its rows or points at each."""
    return min(CHUNKS, key=lambda chunk: min(_seconds_each(case, chunk) for _ in range(2)))


def _seconds_each(case: Case, chunk: int) -> float:
    work = _one_chunk(case, chunk)
    work()
    times = max(2, CHUNKS[-1] // 4 // chunk)
    return seconds_of(lambda: [work() for _ in range(times)]) / (times * chunk)


def _one_chunk(case: Case, chunk: int) -> Work:
    if case.in_dims is None:
        value, pull_back = torch.func.vjp(case.fn, *case.args)
        seeds = torch.eye(chunk, value.numel(), dtype=value.dtype).reshape(chunk, *value.shape)
        # As jacrev does: one by one, without vmap, where the chunk is 1.
        return (lambda: pull_back(seeds[0])) if chunk == 1 else (lambda: vmap(pull_back)(seeds))
    some = [arg if axis is None else arg[:chunk] for arg, axis in zip(case.args, case.axes, strict=True)]
    return lambda: vmap(jacrev(case.fn, case.argnums), case.in_dims)(*some)


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
        for name, make in CASES.items():
            yield _row(name, make(GIB[make] / (QUICK if quick else 1)), QUICK_ROUNDS if quick else ROUNDS)
    finally:
        ray.shutdown()


def _row(name: str, problem: Problem, rounds: int) -> dict[str, Any]:
    case = Case(problem)
    chunk = best_chunk(case)
    with tempfile.TemporaryDirectory(prefix="jj", dir=os.environ.get("JACJOBS_BENCH_DIR")) as folder:
        place = Path(folder)
        file, out = place / "script.parquet", place / "run"

        def ours() -> None:
            shutil.rmtree(out, ignore_errors=True)
            runs.append(submit(problem, out))

        def theirs() -> None:
            file.unlink(missing_ok=True)
            script(case, chunk, file)

        runs: list[jacjobs.Run] = []
        ours()  # warm up
        _check_same(file, theirs, out)
        seconds = in_turns({"script": theirs, "jacjobs": ours}, rounds)
    plan = runs[-1].plan
    return {
        "job": name,
        "gib": plan.shape.total_bytes / 2**30,
        "strategy": plan.strategy,
        "chunk": plan.chunk,
        "script_chunk": chunk,
        "seconds": {who: statistics.median(taken) for who, taken in seconds.items()},
        "ratio": ratio(seconds["jacjobs"], seconds["script"]),
    }


def _check_same(file: Path, theirs: Callable[[], None], out: Path) -> None:
    """The two files hold the same J."""
    theirs()
    first = pq.ParquetFile(file).read_row_group(0, ["values"])["values"].chunk(0)
    want = first.flatten().to_numpy().reshape(len(first), -1)[:8]
    got = np.asarray(jacjobs.open(str(out))[0, :8])
    error = float(np.abs(got - want).max() / np.abs(want).max())
    if not error < 1e-3:
        raise AssertionError(f"the script's J and jacjobs' differ by {error:.1e}")

"""`jobs/digits-parameters.yaml` against the script that a competent user writes, with the same threads.

    python benchmarks/against_script.py [--limit 256] [--rounds 5]

Times, a round, in alternating order: the script (jacrev under vmap, chunked, then pyarrow.parquet.write_table
with the same compression), and jacjobs with a warm Ray and with one that it starts. Building the problem
(training the network) is outside all of them. Prints medians, and the median of the ratios taken a round.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import torch
from torch.func import jacrev, vmap

import jacjobs
from benchmarks.speed.end_to_end import as_table

JOBS = Path(__file__).parent.parent / "jobs"
THREADS = 2
GROUP = 28
"""Images at once in the script: the group that jacjobs' automatic chunk of 280 rows makes, too."""


def script(problem: jacjobs.Problem, path: Path) -> None:
    """All of J in memory, one file."""
    torch.set_num_threads(THREADS)
    weights = jacrev(problem.fn)
    leaves = problem.leaves
    names = [segment.name for segment in problem.shape.inputs]
    params, images = dict(zip(names, leaves[:-1], strict=True)), leaves[-1]
    blocks = []
    for start in range(0, len(images), GROUP):
        tree = vmap(weights, (None, 0))(params, images[start : start + GROUP])
        blocks.append(torch.cat([tree[name].flatten(2) for name in names], 2))
    J = torch.cat(blocks).numpy()
    pq.write_table(
        as_table(J),
        path,
        use_dictionary=False,
        compression="zstd",
        compression_level=1,
        use_byte_stream_split=["values.list.element"],
        row_group_size=280,
        write_statistics=False,
    )


def run(problem: jacjobs.Problem, path: Path) -> None:
    jacjobs.submit(problem, path, workers=THREADS, compression="zstd").wait()


def timed(work: Callable[[jacjobs.Problem, Path], None], problem: jacjobs.Problem, path: Path) -> float:
    shutil.rmtree(path, ignore_errors=True)
    path.unlink(missing_ok=True)
    started = time.perf_counter()
    work(problem, path)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--limit", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    sys.path.insert(0, str(JOBS))
    import digits
    import ray

    problem = digits.parameters(options.limit)
    times: dict[str, list[float]] = {"script": [], "jacjobs, warm Ray": [], "jacjobs, starting Ray": []}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        timed(script, problem, place / "script.parquet")  # warm up
        for round_ in range(options.rounds):
            for name in list(times)[:: 1 if round_ % 2 else -1]:
                if name == "script":
                    times[name].append(timed(script, problem, place / "script.parquet"))
                elif name == "jacjobs, starting Ray":
                    times[name].append(timed(run, problem, place / "cold"))
                else:
                    ray.init(address="local", num_cpus=THREADS, include_dashboard=False, log_to_driver=False)
                    timed(run, problem, place / "warm")
                    times[name].append(timed(run, problem, place / "warm"))
                    ray.shutdown()
    print(f"J: {problem.shape}, {THREADS} threads, {options.rounds} rounds")
    print("| | median s | median ratio to the script |\n| --- | --- | --- |")
    for name, seconds in times.items():
        ratio = statistics.median(a / b for a, b in zip(seconds, times["script"], strict=True))
        print(f"| {name} | {statistics.median(seconds):.2f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()

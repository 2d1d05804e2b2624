"""The peak of all processes together as J grows: a job that writes as fast as it can, on a warm cluster.

Each size in a process of its own, which has not measured anything else before.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray

from benchmarks.speed.end_to_end import submit, tangents, warm_cluster
from jobs.run_all import peak_memory

SIZES_GIB, QUICK_SIZES_GIB = (1.0, 2.0, 4.0, 8.0), (0.25, 0.5)


def measure(*, quick: bool = False) -> Iterator[dict[str, Any]]:
    for gib in QUICK_SIZES_GIB if quick else SIZES_GIB:
        command = [sys.executable, "-m", "benchmarks.speed.memory", str(gib)]
        printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        yield json.loads(printed.splitlines()[-1])


def of_size(gib: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="jj", dir=os.environ.get("JACJOBS_BENCH_DIR")) as folder:
        out = Path(folder) / "run"
        with peak_memory() as peak:
            warm_cluster()
            try:
                run = submit(tangents(gib), out)
            finally:
                ray.shutdown()
        stored = sum(part.stat().st_size for part in out.glob("part-*"))
    return {
        "gib": run.plan.shape.total_bytes / 2**30,
        "stored_gib": stored / 2**30,
        "peak_bytes": peak[0],
    }


if __name__ == "__main__":
    print(json.dumps(of_size(float(sys.argv[1]))))

"""The peak of all processes together as J grows: a job that writes as fast as it can, on a warm cluster."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray

from benchmarks.speed.end_to_end import submit, tangents, warm_cluster
from jobs.run_all import peak_memory

SIZES_GIB, QUICK_SIZES_GIB = (1.0, 2.0, 4.0, 8.0), (0.25, 0.5)


def measure(*, quick: bool = False) -> Iterator[dict[str, Any]]:
    """The cluster of each size is its own: what Ray keeps of one run does not count for the next."""
    for gib in QUICK_SIZES_GIB if quick else SIZES_GIB:
        with tempfile.TemporaryDirectory(prefix="jj") as folder:
            out = Path(folder) / "run"
            with peak_memory() as peak:
                warm_cluster()
                try:
                    run = submit(tangents(gib), out)
                finally:
                    ray.shutdown()
            stored = sum(part.stat().st_size for part in out.glob("part-*"))
            shutil.rmtree(out)
        yield {
            "gib": run.plan.shape.total_bytes / 2**30,
            "stored_gib": stored / 2**30,
            "peak_bytes": peak[0],
        }

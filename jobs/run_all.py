"""Runs the jobs of this folder, compares each with its reference, and says what they found: `make jobs`.

    python jobs/run_all.py [NAME …] [--write]

All run at their default size on one local Ray, into runs/jobs/NAME. Then one table, and each job's finding.
Exit code 1 if a job differs from its reference. `--write` puts the same into benchmarks/results/jobs.md.
(A job on a schedule is one of the others again, and is left out unless it is named; then its latest
occurrence runs.)
"""

from __future__ import annotations

import argparse
import logging
import platform
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray
import torch

from jacjobs import JacobianDataset
from jacjobs.api import submit_job
from jacjobs.cli.follow import follow
from jacjobs.cli.render import duration, note, print_table, size
from jacjobs.cli.sinks import LogFormat, sink_for
from jacjobs.job import Job, job_from_spec
from jacjobs.jobspec import read_job
from jacjobs.occurrences import latest

JOBS = Path(__file__).parent
RESULTS = JOBS.parent / "benchmarks" / "results" / "jobs.md"
TOLERANCE = {"float64": 1e-10, "float32": 32 * float(np.finfo(np.float32).eps)}
"""Of J against its reference, relative to the largest entry. What is right differs by a few roundings (1e-14
and 5e-7 were measured), a wrong derivative by about 1."""
STORE_BYTES = 1 << 30


@dataclass(frozen=True)
class Ready:
    """A job, and what its module has beside the problem."""

    job: Job
    params: dict[str, Any]
    reference: Callable[..., np.ndarray]
    finding: Callable[..., str]


def load(path: Path, settings: Sequence[str] = (), out: Path | None = None) -> Ready:
    """The job in a file, its output moved to `out`: README.md says what its module has to have."""
    spec = read_job(path, list(settings))
    if spec.schedule is not None:
        spec = spec.at(latest(spec.schedule, datetime.now(UTC)))
    if out is not None:
        spec = spec.model_copy(update={"output": spec.output.model_copy(update={"path": str(out)})})
    job = job_from_spec(spec, path.parent)
    (module,) = job.modules
    name = spec.problem.rpartition(":")[2]
    prefix = "" if name == "problem" else f"{name}_"
    return Ready(job, spec.params, getattr(module, f"{prefix}reference"), getattr(module, f"{prefix}finding"))


def difference(got: Any, want: Any) -> float:
    """The largest error of an entry, relative to the largest entry: of an array, or of sparse matrices."""
    if isinstance(want, list):
        return max(float(abs(a - b).max() / abs(b).max()) for a, b in zip(got, want, strict=True))
    return float(np.abs(got - want).max() / np.abs(want).max())


# -- running -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """`error`: of J against its reference. `family_bytes`: the most that all processes together held."""

    name: str
    J: JacobianDataset
    plan_seconds: float
    run_seconds: float
    family_bytes: int
    error: float
    finding: str

    @property
    def agrees(self) -> bool:
        return self.error <= TOLERANCE[self.J.dtype.name]


def run(path: Path) -> Result:
    out = JOBS.parent / "runs" / "jobs" / path.stem
    shutil.rmtree(out, ignore_errors=True)
    note(f"\n{path.stem}")
    ready = load(path, out=out)
    started = time.monotonic()
    with peak_memory() as peak:
        handle = submit_job(ready.job)
        planned = time.monotonic()
        follow(handle, sink_for(LogFormat.text, as_json=False))
    ended = time.monotonic()
    J = handle.result()
    points = sorted({0, J.points // 2, J.points - 1})
    return Result(
        path.stem,
        J,
        planned - started,
        ended - planned,
        peak[0],
        difference(J[points], ready.reference(points, **ready.params)),
        ready.finding(J, **ready.params),
    )


@contextmanager
def peak_memory() -> Iterator[list[int]]:
    """The most that this process and all below it hold meanwhile, in bytes. On Linux, pages that several
    share count once.
    """
    peak, over = [0], threading.Event()

    def look() -> None:
        while not over.wait(0.5):
            peak[0] = max(peak[0], family_bytes())

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        over.set()
        watcher.join()


def family_bytes() -> int:
    here = psutil.Process()
    total = 0
    for process in (here, *here.children(recursive=True)):
        try:
            memory = process.memory_full_info()
        except psutil.Error:  # it has just ended
            continue
        total += getattr(memory, "pss", memory.rss)
    return total


# -- saying --------------------------------------------------------------------------------------------------

HEAD = (
    "job",
    "J",
    "size",
    "strategy",
    "chunk",
    "plan",
    "run",
    "entries/s",
    "worker's peak",
    "all processes",
    "worst check",
    "against reference",
)

LEGEND = (
    "Each job at its default size, compared with a reference of its own (`jobs/README.md` says which).",
    "",
    "- plan: from the submission to the start. Strategies are tried, and timed where that pays.",
    "- run: from then on, with the start of the workers.",
    "- worker's peak: by how much a worker's resident memory grew while it computed.",
    "- all processes: what Ray's, the workers and the one that submits held together, at most.",
    "- worst check: relative error of products with J, which the run itself made.",
    "- against reference: the largest error at up to three points, relative to the largest entry.",
)


def entries_of(J: JacobianDataset) -> int:
    """That were computed."""
    groups = J.record.plan.get("groups")
    return int(np.prod(J.shape)) if groups is None else J.points * int(groups["ends"][-1])


def row(result: Result) -> tuple[str, ...]:
    J, manifest = result.J, result.J.manifest
    assert manifest is not None
    measured = manifest.memory["measured_bytes"]
    return (
        result.name,
        f"{' × '.join(f'{length:,}' for length in J.shape)} {J.dtype}",
        size(J.nbytes),
        manifest.strategy,
        f"{manifest.chunk:,}",
        duration(result.plan_seconds),
        duration(result.run_seconds),
        f"{entries_of(J) / result.run_seconds:,.0f}",
        "" if measured is None else size(measured),
        size(result.family_bytes),
        f"{manifest.checks['worst_relative_error']:.0e}" if manifest.checks.get("by") else "none",
        f"{result.error:.0e}" + ("" if result.agrees else " DIFFERS"),
    )


def page(results: Sequence[Result]) -> str:
    """For benchmarks/results."""
    machine = (
        f"{datetime.now(UTC):%Y-%m-%d}, {psutil.cpu_count()} cores ({platform.machine()}), "
        f"{size(psutil.virtual_memory().total)} of memory, Python {platform.python_version()}, "
        f"torch {torch.__version__}, Ray {ray.__version__}."
    )
    lines = [
        "# `python jobs/run_all.py --write`",
        "",
        machine,
        "",
        *LEGEND,
        "",
        f"| {' | '.join(HEAD)} |",
        f"| --- | --- |{' ---: | --- |' + ' ---: |' * (len(HEAD) - 4)}",
        *(f"| {' | '.join(row(result))} |" for result in results),
        "",
        *(f"- **{result.name}**: {result.finding}" for result in results),
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="which jobs; all by default")
    parser.add_argument("--write", action="store_true", help=f"also write {RESULTS.relative_to(JOBS.parent)}")
    options = parser.parse_args()
    files = {path.stem: path for path in sorted(JOBS.glob("*.yaml"))}
    unknown = set(options.names) - set(files)
    if unknown:
        parser.error(f"no job {', '.join(sorted(unknown))}; there are {', '.join(files)}")
    names = options.names or [name for name, path in files.items() if read_job(path, []).schedule is None]
    ray.init(
        address="local",
        object_store_memory=STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    try:
        results = [run(files[name]) for name in names]
    finally:
        ray.shutdown()
    note("")
    print_table(HEAD, [row(result) for result in results])
    for result in results:
        note(f"\n{result.name}: {result.finding}")
    if options.write:
        RESULTS.write_text(page(results), encoding="utf-8")
    return 0 if all(result.agrees for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())

"""Writes docs/memory.md: `python docs/make_memory.py`, some minutes. A test repeats a part of it."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.functions import FUNCTIONS  # noqa: E402
from jacjobs.autodiff.catalogue import STRATEGIES  # noqa: E402
from jacjobs.autodiff.estimate import Estimator, allocated  # noqa: E402
from jacjobs.autodiff.legality import try_strategies  # noqa: E402
from jacjobs.problem import Problem  # noqa: E402

MIB = 1 << 20
BUDGET_BYTES = 4 << 30
MOST_BYTES = 600 * MIB
"""Larger chunks are not measured here."""
CHUNKS = (1, 32, 512)

INTRODUCTION = """\
# Memory: predicted against measured

Made by `python docs/make_memory.py`. A chunk's peak is modelled as `fixed + per product × chunk`. *Predicted*
is what the plan says, with a device at hand: the growth that fake tensors show, corrected by tiny real
chunks. *Fakes alone* is what it says for a device that is not here. *Measured* is the allocator's peak while
two such chunks are made: on a CPU by the profiler's memory events, on CUDA by its statistics. Arguments and
what the function captured are counted in none of them. MiB; in bold what is off by more than 10% and more
than 16 MiB.
"""


@dataclass(frozen=True)
class Row:
    strategy: str
    chunk: int
    predicted: int
    fakes: int
    measured: int

    @property
    def error(self) -> float:
        return self.predicted / self.measured - 1

    @property
    def within(self) -> bool:
        """10% or 16 MiB."""
        return abs(self.predicted - self.measured) <= max(0.1 * self.measured, 16 * MIB)


def rows(problem: Problem, chunks: tuple[int, ...] = CHUNKS, most_bytes: int = MOST_BYTES) -> Iterator[Row]:
    """Every strategy that works at every chunk (of whole points, where the strategy takes them whole)."""
    verdicts = try_strategies(problem, STRATEGIES)
    corrected, alone = (Estimator(problem, BUDGET_BYTES, correct=c) for c in (True, False))
    for name, maker in STRATEGIES.items():
        if verdicts[name].reason is not None:
            continue
        model, fakes = corrected.model(name), alone.model(name)
        done = set()
        for chunk in chunks:
            size = max(model.step, model.rounded(chunk))
            while size > model.step and model.peak_bytes(size) > most_bytes:
                size = max(model.step, model.rounded(size // 2))
            if size in done or (size == model.step and model.peak_bytes(size) > most_bytes):
                continue
            done.add(size)
            measured = allocated(problem, maker, model.step, size)
            yield Row(name, size, model.peak_bytes(size), fakes.peak_bytes(size), measured)


def page() -> str:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU ({platform.machine()})"
    lines = [INTRODUCTION, f"Here: {device}, torch {torch.__version__}.", ""]
    errors = []
    for name, build in FUNCTIONS.items():
        problem = build()
        if torch.cuda.is_available():
            problem = problem.to("cuda")
        lines += [f"## {name}", "", f"J: {problem.shape}", ""]
        lines += [
            "| strategy | chunk | predicted | measured | off by | fakes alone |",
            "| --- |" + " ---: |" * 5,
        ]
        for row in rows(problem):
            errors.append(row)
            off = f"{row.error:+.1%}" if row.within else f"**{row.error:+.1%}**"
            predicted, measured, fakes = (f"{b / MIB:,.2f}" for b in (row.predicted, row.measured, row.fakes))
            lines.append(f"| {row.strategy} | {row.chunk:,} | {predicted} | {measured} | {off} | {fakes} |")
            print(name, lines[-1], file=sys.stderr)
        lines.append("")
    off = sorted(abs(row.error) for row in errors)
    outside = sum(not row.within for row in errors)
    lines[3:3] = [
        f"{len(errors)} readings: {outside} outside 10% or 16 MiB; off by {off[len(off) // 2]:.1%} in the "
        f"median, {off[-1]:.1%} at the worst.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    torch.set_num_threads(1)
    (ROOT / "docs" / "memory.md").write_text(page(), encoding="utf-8")

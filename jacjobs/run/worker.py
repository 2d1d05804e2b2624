"""A worker: holds the problem once, computes blocks. A plain class; the Ray actor is a thin wrapper."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from jacjobs.autodiff.block import Pace, ProductTooLargeError, compute_block
from jacjobs.autodiff.check import Checker
from jacjobs.autodiff.device import device_of, tf32_as_wished
from jacjobs.autodiff.meter import AllocatedPeak, ResidentPeak, worker_peak
from jacjobs.autodiff.words import is_out_of_memory, tolerance
from jacjobs.errors import CheckError, DeviceLostError, DeviceMemoryError, JacjobsError, NonFiniteError
from jacjobs.planning.planner import Plan
from jacjobs.problem import Problem, function_error
from jacjobs.run.messages import BlockId, Findings
from jacjobs.shape import Rectangle

PEAK_SECONDS = 0.05
"""So often the peak of a block's memory is looked at: that takes as long as a tiny block."""
RECOMPUTED_BY = {"rows": "vjp/loop", "columns": "double-vjp/loop"}
"""What computes a block again that failed its check: no batching, no forward-mode rule."""


class Computed(NamedTuple):
    """A block's entries, as assemblers take them, and what was noticed in them.

    Of a dense J their shape is (points, lines, width); lines are what the layout of the dataset says: rows or
    columns. Of a sparse one it is (points, entries), in the order of the pattern, or (entries,) of `triples`.
    """

    values: NDArray[Any]
    findings: Findings


class BlockWorker(ABC):
    """Computes blocks of `plan` on one device."""

    def __init__(self, problem: Problem, plan: Plan, device: str) -> None:
        torch.set_num_threads(plan.threads)
        self._problem = problem.to(device)
        self._plan = plan
        self._looked = -PEAK_SECONDS

    @abstractmethod
    def _computed(self, where: Any) -> Computed:
        """The entries of a block as assemblers take them, and what was noticed."""

    @abstractmethod
    def _paces(self) -> list[Pace]:
        """Of its products, which retreat where memory runs out."""

    def compute(self, block: BlockId) -> Computed:
        """Raises FunctionError where the user's function raised, NonFiniteError where J must be finite,
        CheckError where two modes of differentiation disagree for good, DeviceMemoryError where not even one
        product fits the memory, DeviceLostError where only a new process can go on.
        """
        began = time.perf_counter()
        where = self._plan.tiling.block(*block)
        for pace in self._paces():
            pace.retreats.clear()
        try:
            with self._peak() as peak, tf32_as_wished(self._problem):
                values, findings = self._computed(where)
        except JacjobsError:
            raise
        except ProductTooLargeError as error:
            raise self._does_not_fit(f"one product of {error}", error.__cause__) from None
        except torch.AcceleratorError as error:
            raise DeviceLostError(f"{where}: {_first_line(error)}") from None
        except Exception as error:
            if is_out_of_memory(error):  # of the host, for the block itself, or for the check at one point
                raise self._does_not_fit(f"{where} of the Jacobian", error) from None
            raise function_error(error, f"while computing {where}{self._of_devices(error)}") from None
        return Computed(
            values,
            findings._replace(
                peak_bytes=peak.nbytes or 0 if peak is not None else 0,
                retreats=(*findings.retreats, *(word for pace in self._paces() for word in pace.retreats)),
                seconds=time.perf_counter() - began,
            ),
        )

    def _peak(self) -> AbstractContextManager[AllocatedPeak | ResidentPeak | None]:
        now = time.monotonic()
        if now - self._looked < PEAK_SECONDS:
            return nullcontext()
        self._looked = now
        return worker_peak(device_of(self._problem))

    def _of_devices(self, error: Exception) -> str:
        """A hint, where a function brings tensors of its own that stayed on the host."""
        if "to be on the same device" not in str(error):
            return ""
        device = device_of(self._problem)
        return f"; its arguments are on {device}: make tensors where they are (device=x.device)"

    def _does_not_fit(self, what: str, error: BaseException | None) -> DeviceMemoryError:
        plan = self._plan
        said = _first_line(error) or type(error).__name__
        return DeviceMemoryError(
            f"{what} does not fit the memory of {plan.resources.device.name}: predicted were "
            f"{plan.peak_bytes:,} bytes, of a budget of {plan.resources.budget_bytes:,}, for {plan.strategy} "
            f"in chunks of {plan.chunk:,}; the allocator says: {said} (free the device of others, take "
            "one with more memory, or make the function's intermediate results smaller)"
        )

    @property
    def _too_narrow(self) -> str:
        """A hint, where entries that are finite may not be so in the dtype that they are stored as."""
        shape = self._plan.shape
        narrower = np.dtype(shape.dtype).itemsize < np.dtype(self._problem.shape.dtype).itemsize
        return f", or store J as more than {shape.dtype} (output.dtype)" if narrower else ""

    def _nonfinite(self, where: Any, values: NDArray[Any], place: Callable[[NDArray[np.int64]], str]) -> int:
        """How many entries are NaN or infinite. Raises NonFiniteError where none may be.

        place: of one of them, by its index, in words.
        """
        if self._plan.nonfinite == "allow":
            return 0
        with np.errstate(all="ignore"):
            # NaN and infinity survive a sum, which is one fast pass; a sum that overflows only costs the
            # closer look.
            if np.isfinite(values.sum()):
                return 0
        bad = ~np.isfinite(values)
        count = int(bad.sum())
        if count and self._plan.nonfinite == "error":
            entries = "1 entry that is" if count == 1 else f"{count:,} entries that are"
            raise NonFiniteError(
                f"the Jacobian has {entries} NaN or infinite in {where}, the first at "
                f"{place(np.argwhere(bad)[0])}; mend the function there{self._too_narrow}, "
                "or --set compute.nonfinite=warn"
            )
        return count


class Worker(BlockWorker):
    """Computes blocks of a dense J."""

    def __init__(self, problem: Problem, plan: Plan, device: str = "cpu") -> None:
        super().__init__(problem, plan, device)
        self._makes = "columns" if plan.by_columns else "rows"
        self._pace = Pace(plan.strategy, chunk_on(plan, plan.chunk, device), plan.leaner)
        self._checker = None
        if plan.checked_by is not None:
            self._checker = Checker(
                self._problem,
                self._makes,
                plan.checked_by,
                plan.check_points,
                every_point=plan.check_all,
                stored=plan.shape.dtype,
            )

    def _paces(self) -> list[Pace]:
        return [self._pace]

    def _computed(self, where: Rectangle) -> Computed:
        values, findings = self._checked(where, self._made(where, self._pace))
        nonfinite = self._nonfinite(where, values, lambda index: _place(where, index))
        return Computed(self._lines(values), findings._replace(nonfinite=nonfinite))

    def _made(self, rectangle: Rectangle, pace: Pace) -> NDArray[Any]:
        return compute_block(self._problem, pace, rectangle, self._plan.shape.dtype)

    def _lines(self, values: NDArray[Any]) -> NDArray[Any]:
        """Entries of shape (points, rows, columns) as the layout wants them, each line in one piece."""
        lines = values if self._plan.layout == "rows" else values.transpose(0, 2, 1)
        if lines.flags.c_contiguous:
            return lines
        # torch copies a transposed matrix in tiles, NumPy element by element
        return torch.from_numpy(lines).contiguous().numpy()

    def _checked(self, rectangle: Rectangle, values: NDArray[Any]) -> Computed:
        if self._checker is None:
            return Computed(values, Findings())
        first = self._checker.check(rectangle, values)
        if first.passed:
            return Computed(values, Findings(checked=first.points, error=first.error))
        by = RECOMPUTED_BY[self._makes]
        values = self._made(rectangle, Pace(by, 1))
        second = self._checker.check(rectangle, values)
        if not second.passed:
            raise CheckError(
                f"{rectangle} of the Jacobian, computed by {self._plan.strategy} and again by {by}, differs "
                f"from the products of {self._plan.checked_by} by {second.error:.1e}, relative (allowed: "
                f"{tolerance(self._problem.precision):.1e}); a custom derivative is wrong, or the function "
                "has none there; mend it, or --set compute.check=off"
            )
        return Computed(values, Findings(checked=second.points, error=second.error, recomputed=True))


def _place(where: Rectangle, index: NDArray[np.int64]) -> str:
    point, row, column = index
    return (
        f"point {where.point_start + point}, row {where.row_start + row}, "
        f"column {where.column_start + column}"
    )


def chunk_within(plan: Plan, chunk: int, nbytes: float) -> int:
    """A chunk of the plan, or half of it and so on, until its predicted peak is within so many bytes. What
    that leaves out, memory that does not shrink with the chunk, is met by the retreat when memory runs out.
    """
    planned = chunk
    while chunk > 1 and plan.peak_bytes * chunk / planned > nbytes:
        chunk = (chunk + 1) // 2
    return chunk


def chunk_on(plan: Plan, chunk: int, device: str) -> int:
    """On a GPU that is smaller than the one that the plan was made for. All of its memory counts, and not
    what is free, so that the same kind of GPU computes the same bits.
    """
    if torch.device(device).type != "cuda":
        return chunk
    share = plan.resources.budget_bytes * plan.resources.sharing / plan.resources.device.memory_bytes
    total = torch.cuda.get_device_properties(device).total_memory
    return chunk_within(plan, chunk, total * share / plan.resources.sharing)


def _first_line(error: BaseException | None) -> str:
    return str(error).partition("\n")[0]

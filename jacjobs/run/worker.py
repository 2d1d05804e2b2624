"""A worker: holds the problem once, computes blocks. A plain class; the Ray actor is a thin wrapper."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from jacjobs.autodiff.block import compute_block
from jacjobs.errors import JacjobsError, NonFiniteError
from jacjobs.planning.planner import Plan
from jacjobs.problem import Problem, function_error
from jacjobs.run.ledger import BlockId
from jacjobs.shape import Rectangle


class Computed(NamedTuple):
    """A block's entries, shape (points, rows, columns), and how many of them are NaN or infinite."""

    values: NDArray[np.generic]
    nonfinite: int


class Worker:
    """Computes blocks of `plan` on one device."""

    def __init__(self, problem: Problem, plan: Plan, device: str = "cpu") -> None:
        torch.set_num_threads(plan.threads)
        self._problem = problem.to(device)
        self._plan = plan

    def compute(self, block: BlockId) -> Computed:
        """Raises FunctionError where the user's function raised, NonFiniteError where J must be finite."""
        rectangle = self._plan.tiling.block(*block)
        try:
            values = compute_block(self._problem, self._plan.strategy, rectangle, self._plan.chunk)
        except JacjobsError:
            raise
        except Exception as error:
            raise function_error(error, f"while computing {rectangle}") from None
        return Computed(values, self._nonfinite(rectangle, values))

    def _nonfinite(self, rectangle: Rectangle, values: NDArray[np.generic]) -> int:
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
            point, row, column = np.argwhere(bad)[0]
            raise NonFiniteError(
                f"the Jacobian has {count:,} entries that are NaN or infinite in {rectangle}, the first at "
                f"point {rectangle.point_start + point}, row {rectangle.row_start + row}, "
                f"column {rectangle.column_start + column}; mend the function there, "
                "or --set compute.nonfinite=warn"
            )
        return count

"""A dataset against the products of its problem, long after they were computed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jacjobs.autodiff.check import CHECKERS, Checker, Finding
from jacjobs.autodiff.device import tf32_as_wished
from jacjobs.planning.planner import Plan
from jacjobs.problem import Problem, function_error
from jacjobs.shape import Rectangle
from jacjobs.store.reader import JacobianDataset
from jacjobs.store.verify import Fault


def differing_products(J: JacobianDataset, plan: Plan, problem: Problem) -> Iterator[Fault]:
    """Where entries differ from the problem's own products: Freivalds' check, at every point.

    Raises FunctionError where the problem's function raises.
    """
    # Lines of the dataset are compared, whatever the products were: each part is read once.
    works = {c.strategy for c in plan.candidates if c.reason is None}
    lines = "columns" if plan.layout == "columns" else "rows"
    by = next(name for name in CHECKERS[lines] if name in works or name.endswith("loop"))
    stored = plan.shape.dtype
    checker = Checker(problem, lines, by, plan.check_points, every_point=True, stored=stored)
    with tf32_as_wished(problem):
        for piece in (piece for number in range(plan.tiling.parts) for piece in plan.pieces(number)):
            if _agrees(checker, J, piece).passed:
                continue
            for point in range(piece.point_start, piece.point_stop):
                one = piece._replace(point_start=point, point_stop=point + 1)
                found = _agrees(checker, J, one)
                if not found.passed:
                    what = f"{one} differs from products of {by} by {found.error:.1e}, relative"
                    yield Fault(", ".join(J.parts_with(one)), what)


def _agrees(checker: Checker, J: JacobianDataset, r: Rectangle) -> Finding:
    entries: Any = J[r.slices]
    try:
        if J.record.layout == "sparse":
            return checker.check_sparse(r.point_start, entries)
        return checker.check(r, entries)
    except Exception as error:
        raise function_error(error, f"while its products at {r} were computed") from None

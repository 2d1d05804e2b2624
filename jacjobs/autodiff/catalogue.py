"""Every strategy by name, and whether a function supports it: found by trying, not declared."""

from __future__ import annotations

from jacjobs.autodiff.reverse import VjpLoop, VjpRepeat, VjpVmap
from jacjobs.autodiff.seeds import OneHot
from jacjobs.autodiff.strategy import Strategy
from jacjobs.problem import Problem
from jacjobs.shape import Rectangle

STRATEGIES: dict[str, Strategy] = {s.name: s for s in (VjpVmap(), VjpRepeat(), VjpLoop())}
"""In the order in which the planner prefers them as long as it knows no costs."""


def why_unsupported(problem: Problem, name: str) -> Exception | None:
    """Try the strategy on a tiny real chunk: two points, two rows at once. None means that it works."""
    shape = problem.shape
    corner = Rectangle(0, min(2, shape.points), 0, min(2, shape.rows), 0, shape.columns)
    try:
        for _ in STRATEGIES[name].chunks(problem, corner, OneHot(shape.rows), chunk=4):
            pass
    except Exception as error:
        return error
    return None

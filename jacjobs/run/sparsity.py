"""Is J sparse, and how can all its entries be made? The user says which they are, or they are found."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from scipy.sparse import csr_array, issparse
from torch import Tensor

from jacjobs.autodiff.catalogue import strategy_named
from jacjobs.cost import CostModel
from jacjobs.errors import InputError
from jacjobs.planning.choice import Resources
from jacjobs.planning.planner import Facts, Way
from jacjobs.planning.sparse import Groups, kind_of
from jacjobs.problem import Problem, canonical, function_error
from jacjobs.run.survey import estimator_of
from jacjobs.structure.coloured import Coloured
from jacjobs.structure.colouring import groupings
from jacjobs.structure.compression import Grouped
from jacjobs.structure.detection import MOST_ENTRIES, detect

DENSE_SHARE = 0.25
"""A pattern with more of all entries is of no use."""
SMALLEST = 10_000_000
"""Entries that a value on the way may have anyway."""
GROUPED_PER_SECOND = 1_500_000
"""Entries of a pattern whose columns and rows are grouped in a second."""


@dataclass(frozen=True)
class Sparsity:
    """ways: what their products cost, to be planned; coloured: which entries each makes, of the same ways."""

    ways: tuple[Way, ...] = ()
    coloured: tuple[Coloured, ...] = ()
    dense_because: str | None = None

    def of(self, groups: Groups) -> Coloured:
        return next(c for c, way in zip(self.coloured, self.ways, strict=True) if way.groups == groups)


def look(problem: Problem, facts: Facts, asked: str, resources: Resources, most_seconds: float) -> Sparsity:
    """Find the pattern, within about so many seconds, group its columns and rows, and see what products cost.

    asked: a strategy by name, or auto. Raises InputError for a pattern of the user's that is none of J's.
    """
    pattern, because = _pattern(problem, most_seconds)
    if pattern is None:
        return Sparsity(dense_because=because)
    found: list[tuple[Coloured, Way]] = []
    for grouping in groupings(pattern, all_kinds=asked != "auto"):
        coloured = Coloured(pattern, grouping)
        groups = Groups(columns=coloured.columns, rows=coloured.rows, ends=coloured.ends)
        if asked != "auto" and groups.kinds != [kind_of(asked)]:
            continue
        if way := _way(problem, facts, groups, resources):
            found.append((coloured, way))
    if not found:
        return Sparsity(dense_because="no strategy that works makes the groups of its columns, or rows")
    return Sparsity(tuple(way for _, way in found), tuple(coloured for coloured, _ in found))


def _pattern(problem: Problem, most_seconds: float) -> tuple[csr_array | None, str | None]:
    """(m, n), rows sorted; or None, and why J is dense."""
    m, n = problem.shape.rows, problem.shape.columns
    if problem.pattern is not None:
        try:
            given = problem.pattern() if callable(problem.pattern) else problem.pattern
        except Exception as error:
            raise function_error(error, "while it made the pattern") from None
        if not issparse(given) or given.shape != (m, n):
            raise InputError.about(
                "Problem pattern",
                got=f"{type(given).__name__} of shape {getattr(given, 'shape', 'unknown')}",
                expected=f"a SciPy sparse matrix of shape {(m, n)}: rows are outputs, columns inputs",
            )
        found = canonical(given)
    else:
        most = min(MOST_ENTRIES, max(SMALLEST, int(DENSE_SHARE * m * n)))
        detected = _detected(problem, most, most_seconds)
        if detected.pattern is None:
            return None, detected.reason
        found = detected.pattern
        if found.nnz > DENSE_SHARE * m * n:
            return None, f"{found.nnz / (m * n):.0%} of its entries may be other than zero"
        if found.nnz > most_seconds * GROUPED_PER_SECOND:
            return None, f"to group its {found.nnz:,} entries takes longer than {most_seconds:,.0f} s"
    if not found.nnz:
        return None, "none of its entries may be other than zero"
    return found, None


def _detected(problem: Problem, most: int, most_seconds: float) -> Any:
    """At the first point; what others have values of their own for counts as anything."""
    leaves = problem.at_point(0)
    tensors = [index for index, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    place = {index: i for i, index in enumerate(tensors)}

    def fn(*values: Tensor) -> list[Tensor]:
        called = list(leaves)
        for index, value in zip(tensors, values, strict=True):
            called[index] = value
        return problem.call_one(called)

    others = problem.points > 1
    varying = [
        i for index, i in place.items() if others and problem.carried[index] and index not in problem.wanted
    ]
    with warnings.catch_warnings(action="ignore"):
        return detect(
            fn,
            [leaves[index] for index in tensors],
            [place[index] for index in problem.wanted],
            varying=varying,
            most=most,
            most_seconds=most_seconds,
        )


def _way(problem: Problem, facts: Facts, groups: Groups, resources: Resources) -> Way | None:
    """What products of groups cost; None where no strategy makes some of them."""
    models = [model for model in facts.models if strategy_named(model.strategy).makes in groups.kinds]
    if problem.points == 1:  # as one by one, but that there are fewer
        models = [
            model.model_copy(update={"most": min(model.most, groups.of(kind_of(model.strategy)))})
            for model in models
        ]
    else:
        models = list(_estimated(problem, [model.strategy for model in models], groups, resources))
    if {kind_of(model.strategy) for model in models} != set(groups.kinds):
        return None
    return Way(groups=groups, models=tuple(models))


def _estimated(
    problem: Problem, names: Sequence[str], groups: Groups, resources: Resources
) -> Iterator[CostModel]:
    estimator = estimator_of(problem.times(groups.seeds(problem.shape, Grouped.like)), resources)
    with warnings.catch_warnings(action="ignore"):
        for name in names:
            # One that works with one-hot seeds, and not with sums of them, there need not be.
            with suppress(Exception):
                yield estimator.model(name)


def knowing(facts: Facts, sparsity: Sparsity, *, given: bool) -> Facts:
    """The facts with what was found."""
    return facts.model_copy(
        update={"sparse": sparsity.ways, "dense_because": sparsity.dense_because, "given": given}
    )

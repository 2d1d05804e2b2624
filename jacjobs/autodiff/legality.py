"""Which strategies a function supports, found by trying each on a tiny real chunk.

Nothing is declared: forward-mode rules, batching rules, saved-tensor hooks, in-place writes and control flow
on values all show when a strategy is tried. A trial also compares what comes out with vjp/loop, so that a
rule that is there but wrong is found as well.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from jacjobs.autodiff.catalogue import STRATEGIES, eager_name
from jacjobs.autodiff.seeds import Gaussian
from jacjobs.autodiff.strategy import Strategy, corner, count_lines, flat, products_of
from jacjobs.autodiff.words import explain, tolerance
from jacjobs.problem import Problem


@dataclass(frozen=True)
class Verdict:
    """What a trial found.

    reason:  why the strategy is no choice, in plain words; None if it works.
    error:   what was raised, if that is the reason.
    slow:    it works, but only by torch's loop over samples where an operator has no batching rule.
    """

    reason: str | None = None
    error: Exception | None = None
    slow: bool = False


REFERENCE = "vjp/loop"
"""Works for everything that `backward()` works for."""


def try_strategies(problem: Problem, names: Iterable[str], chunk: int = 4) -> dict[str, Verdict]:
    """Try strategies on at most two points and two products each, `chunk` at once, with random seeds.

    Of a compiled strategy, what it compiles is tried. The reference is vjp/loop at the same points: a row uᵀJ
    is compared as it is, a column J·v by u·(J·v) = (uᵀJ)·v. If vjp/loop itself fails, it is the function that
    fails, and every verdict says so.
    """
    try:
        reference = _trial(problem, STRATEGIES[REFERENCE], chunk)
    except Exception as error:
        return {name: Verdict(reason=explain(error), error=error) for name in names}
    return {
        name: Verdict()
        if name == REFERENCE
        else _try(problem, STRATEGIES[eager_name(name)], reference, chunk)
        for name in names
    }


def _try(problem: Problem, strategy: Strategy, reference: Tensor, chunk: int) -> Verdict:
    try:
        with _without_fallback(), warnings.catch_warnings(action="ignore"):
            products = _trial(problem, strategy, chunk)
    except Exception as error:
        missing = _MISSING_BATCHING_RULE.search(str(error))
        if missing is None:
            return Verdict(reason=explain(error), error=error)
        try:
            with warnings.catch_warnings(action="ignore"):
                products = _trial(problem, strategy, chunk)
        except Exception as second:
            return Verdict(reason=explain(second), error=second)
        wrong = _difference(problem, strategy, products, reference)
        slow = f"no batching rule for {missing[1]}: torch would loop over the samples"
        return Verdict(reason=wrong or slow, slow=wrong is None)
    return Verdict(reason=_difference(problem, strategy, products, reference))


_MISSING_BATCHING_RULE = re.compile(r"(\S+) hit the vmap fallback which is currently disabled")


def _trial(problem: Problem, strategy: Strategy, chunk: int) -> Tensor:
    """Two random products at each of two points: (points, products, n or m), in float64."""
    block = corner(strategy, problem, 2, 2)
    start, stop = products_of(strategy, block)
    seeds = Gaussian(count_lines(strategy, problem.shape), key=int(strategy.makes == "columns"))
    chunks = list(strategy.chunks(problem, block, seeds, chunk))
    made = [torch.cat([flat(leaf).double() for leaf in chunk.leaves], dim=2) for chunk in chunks]
    return torch.cat([part.flatten(0, 1) for part in made]).reshape(block.points, stop - start, -1)


def _difference(problem: Problem, strategy: Strategy, found: Tensor, reference: Tensor) -> str | None:
    """How far the products are from vjp/loop's; None if that is rounding."""
    shape = problem.shape
    if strategy.makes == "columns":
        like = {"dtype": torch.float64, "device": found.device}
        u = Gaussian(shape.rows)(0, reference.shape[1], **like)  # type: ignore[arg-type]
        v = Gaussian(shape.columns, key=1)(0, found.shape[1], **like)  # type: ignore[arg-type]
        scale = found.norm(dim=2)[:, None, :] * u.norm(dim=1)[None, :, None]
        scale = torch.maximum(scale, reference.norm(dim=2)[:, :, None] * v.norm(dim=1)[None, None, :])
        reference, found = reference @ v.T, (found @ u.T).transpose(1, 2)
    else:
        scale = reference.norm(dim=2, keepdim=True)
    both = torch.isfinite(reference) & torch.isfinite(found)
    error = torch.where(both, (found - reference).abs() / scale.clamp_min(1e-300), 0).max().item()
    if error <= tolerance(problem.precision):
        return None
    return f"its products differ from those of vjp/loop (by {error:.1e}, relative)"


@contextmanager
def _without_fallback() -> Iterator[None]:
    """Where an operator has no batching rule, torch loops over the samples, and hardly says so."""
    functorch: Any = torch._C._functorch
    before = functorch._is_vmap_fallback_enabled()
    functorch._set_vmap_fallback_enabled(False)
    try:
        yield
    finally:
        functorch._set_vmap_fallback_enabled(before)

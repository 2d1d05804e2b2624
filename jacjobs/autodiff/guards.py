"""What a function must be, whatever the strategy: deterministic, and, if batched, independent from sample to
sample.

Both are checked by running it; a function that breaks them has no Jacobian to speak of, and would break
silently: dropout gives each row another network, batch normalisation makes every sample depend on all.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jacjobs.autodiff.words import tolerance
from jacjobs.errors import InputError
from jacjobs.problem import Problem, function_error


def check_function(problem: Problem) -> None:
    """Call `fn` a few times at the first points. Raises InputError where it is not what it must be."""
    _check_deterministic(problem)
    if problem.batched:
        _check_independent(problem)


def _check_deterministic(problem: Problem) -> None:
    """Two calls agree to the bit."""
    leaves = problem.at_point(0)
    try:
        first, second = _detached(problem.call_one(leaves)), _detached(problem.call_one(leaves))
    except Exception as error:
        if problem.batched:  # as batch normalisation does when there is nothing to average over
            raise _not_independent(f"it raised {type(error).__name__} for a batch of one: {error}") from None
        raise function_error(error, "when it was called on the first point") from None
    difference = _difference(first, second)
    if difference is not None:
        raise InputError.about(
            "fn",
            got=f"two different results for the same input (they differ by {difference:.1e}, relative)",
            expected="a deterministic function",
            do="switch randomness off (module.eval()), or fix it with a seed (compute.seed)",
        )


def _check_independent(problem: Problem) -> None:
    """A sample gives in a batch with another, on either side of it, what it gives alone."""
    here = problem.at_point(0)
    there = problem.at_point(1) if problem.points > 1 else here
    there = [
        _shifted(b) if carried and isinstance(b, Tensor) and torch.equal(a, b) else b
        for a, b, carried in zip(here, there, problem.carried, strict=True)
    ]
    batch = [
        torch.stack([a, b]) if carried else a
        for a, b, carried in zip(here, there, problem.carried, strict=True)
    ]
    try:
        together = _detached(problem.call_batch(batch, problem.carried))
        alone = [_detached(problem.call_one(leaves)) for leaves in (here, there)]
    except Exception as error:
        raise _not_independent(f"it raised {type(error).__name__}: {error}") from None
    for index, single in enumerate(alone):
        difference = _difference([output[index] for output in together], single)
        if difference is not None and difference > tolerance(problem.precision):
            raise _not_independent(
                f"a sample alone and in a batch of two differ by {difference:.1e}, relative"
            )


def _not_independent(what: str) -> InputError:
    return InputError.about(
        "fn with batched=True, independence of samples",
        got=what,
        expected="a sample's output that depends on that sample alone",
        do="put batch normalisation into module.eval(), or leave batched out",
    )


def _shifted(leaf: Tensor) -> Tensor:
    """Another sample, of the same kind: floating-point values move a little, others stay."""
    return leaf + 0.01 * (1 + leaf.abs()) if leaf.is_floating_point() else leaf


def _detached(outputs: list[Any]) -> list[Tensor]:
    return [output.detach() for output in outputs]


def _difference(ours: list[Tensor], theirs: list[Tensor]) -> float | None:
    """The largest difference relative to the largest value; None if all is equal to the bit, NaN included."""
    if all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(ours, theirs, strict=True)):
        return None
    pairs = [(a.double(), b.double()) for a, b in zip(ours, theirs, strict=True) if a.numel()]
    scale = max(float(a.abs().nan_to_num().max()) for a, _ in pairs)
    error = max(float((a - b).abs().nan_to_num().max()) for a, b in pairs)
    return error / scale if scale else error

"""What is known of a problem before it is planned."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from jacjobs.autodiff.catalogue import STRATEGIES
from jacjobs.autodiff.estimate import MANY_CALLS
from jacjobs.errors import FunctionError
from jacjobs.planning.choice import Resources
from jacjobs.planning.devices import cpu
from jacjobs.planning.planner import Candidate, Facts
from jacjobs.problem import Problem
from jacjobs.run.survey import survey

STEPS = MANY_CALLS // 2 + 10


def resources(memory: int = 1 << 30) -> Resources:
    return Resources(device=cpu(memory), budget_bytes=memory, workers=1)


def steps(count: int) -> Callable[[Tensor], Tensor]:
    """Two operators each."""

    def path(x: Tensor) -> Tensor:
        for _ in range(count):
            x = x + 0.01 * x
        return x

    return path


def found(facts: Facts) -> dict[str, Candidate]:
    return {candidate.strategy: candidate for candidate in facts.verdicts}


def modelled(facts: Facts) -> set[str]:
    return {model.strategy for model in facts.models}


def test_of_many_small_operators_loops_are_not_looked_at() -> None:
    facts = survey(Problem(steps(STEPS), (torch.rand(4),)), "auto", resources())
    assert modelled(facts) == {"vjp/vmap", "jvp/vmap", "double-vjp/vmap"}
    for name, candidate in found(facts).items():
        assert candidate.tried
        reason = None if name.endswith("/vmap") else f"no faster than {name.partition('/')[0]}/vmap: "
        assert (candidate.reason or "").startswith(reason or "")
        assert (candidate.reason is None) == (reason is None)


def test_a_function_that_takes_batches_is_looked_at_in_batches() -> None:
    problem = Problem(steps(STEPS), (torch.rand(3, 4),), in_dims=0, batched=True)
    facts = survey(problem, "auto", resources())
    assert modelled(facts) == {name for name in STRATEGIES if not name.endswith("/loop")}


@pytest.mark.parametrize(("count", "size"), [(20, 4), (STEPS, 1 << 14)])
def test_few_or_large_operators_leave_nothing_out(count: int, size: int) -> None:
    facts = survey(Problem(lambda x: steps(count)(x)[:3], (torch.rand(size),)), "auto", resources())
    assert modelled(facts) == set(STRATEGIES)


@pytest.mark.parametrize("asked", ["vjp/loop", "jvp/loop", "vjp/repeat", "double-vjp/repeat"])
def test_what_is_asked_for_is_never_left_out(asked: str) -> None:
    facts = survey(Problem(steps(STEPS), (torch.rand(4),)), asked, resources())
    assert asked in modelled(facts)
    assert found(facts)[asked].reason is None


def test_what_does_not_work_is_not_looked_at_and_what_is_slow_only_if_asked_for() -> None:
    def attention(x: Tensor) -> Tensor:
        return torch.nn.functional.scaled_dot_product_attention(x[None], x[None], x[None])[0]

    problem = Problem(attention, (torch.rand(2, 6, 4),))
    by = found(survey(problem, "auto", resources()))
    assert by["jvp/vmap"].reason is not None
    assert by["vjp/vmap"].slow
    facts = survey(problem, "auto", resources())
    assert modelled(facts) == {name for name, candidate in by.items() if candidate.reason is None}
    assert "vjp/vmap" in modelled(survey(problem, "vjp/vmap", resources()))


def test_a_function_that_fails_is_the_functions_fault() -> None:
    def fails(x: Tensor) -> Tensor:
        raise ZeroDivisionError("no")

    with pytest.raises(FunctionError, match="ZeroDivisionError: no"):
        survey(Problem(fails, (torch.rand(4),)), "auto", resources())


def test_where_four_products_may_not_fit_strategies_are_looked_at_first() -> None:
    """A call of the function holds 8 MB; there are 100 for it."""
    problem = Problem(lambda x: torch.tanh(x).square().sum()[None], (torch.rand(1 << 20),))
    facts = survey(problem, "auto", resources(100 << 20))
    by = found(facts)
    assert modelled(facts) == set(STRATEGIES)
    assert by["vjp/vmap"].reason is None
    assert by["vjp/vmap"].tried

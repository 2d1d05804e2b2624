"""What is known of a problem before it is planned: which strategies it supports, and what each costs."""

from __future__ import annotations

import contextlib
import warnings

import numpy as np

from jacjobs.autodiff.block import Pace, compute_block
from jacjobs.autodiff.catalogue import STRATEGIES, eager_name, in_order_of_preference, strategy_named
from jacjobs.autodiff.check import CHECKERS
from jacjobs.autodiff.estimate import Estimator
from jacjobs.autodiff.guards import check_function
from jacjobs.autodiff.legality import REFERENCE, Verdict, try_strategies
from jacjobs.autodiff.meter import available_memory_bytes
from jacjobs.autodiff.strategy import count_products, products_between
from jacjobs.autodiff.words import explain
from jacjobs.cost import CostModel
from jacjobs.errors import InputError
from jacjobs.planning.choice import Resources
from jacjobs.planning.planner import Candidate, Facts
from jacjobs.problem import Problem, function_error
from jacjobs.store.writer import compressible

TRIAL_CHUNK = 4
SAMPLED_POINTS = 4
"""How well J compresses is seen from a trial chunk at each of so many points."""
TRIAL_SHARE = 0.8
"""A trial may take so much of the memory that is there: what a plan for elsewhere allows may not be."""


def survey(problem: Problem, asked: str, resources: Resources, *, sample: str | None = None) -> Facts:
    """Call the function a few times, on fake tensors and on tiny real chunks, within the budget.

    asked:   a strategy by name, or auto for all of them. Those that check its blocks are looked at as well.
    sample:  see how well J compresses, stored as this dtype; None: nobody wants to know.

    Raises FunctionError where the function raises whatever the strategy, InputError where it is random or
    mixes its samples, or does not support the strategy that is asked for.
    """
    shape = problem.shape
    names = in_order_of_preference(shape)
    if asked != "auto":
        names = list(dict.fromkeys([asked, REFERENCE, *CHECKERS[strategy_named(asked).makes]]))
    allowed = trial_bytes(resources)
    estimator = estimator_of(problem, resources)
    if _runs_here(estimator, allowed):
        check_function(problem)
    models: dict[str, CostModel] = {}
    failures: dict[str, Exception] = {}
    verdicts: dict[str, Verdict] = {}
    chunk = TRIAL_CHUNK if estimator.safe(TRIAL_CHUNK) else 1
    if chunk > 1:  # whatever it is, it fits: what does not work need not be looked at any closer
        verdicts = try_strategies(problem, names, chunk=chunk)
    outdone = _outdone(problem, names, verdicts) if estimator.call_bound else {}
    with warnings.catch_warnings(action="ignore"):
        for name in names:
            tried = verdicts.get(name, Verdict())
            if name in outdone or not (tried.reason is None or (tried.slow and name == asked)):
                continue
            try:
                models[name] = estimator.model(name)
            except Exception as error:
                failures[name] = error
    if not verdicts:
        small = [name for name in names if name in failures or models[name].peak_bytes(1) <= allowed]
        if REFERENCE in small:  # what every trial is compared with
            verdicts = try_strategies(problem, small, chunk=chunk)
    broken = verdicts[REFERENCE].error if REFERENCE in verdicts else None
    if broken is not None:
        raise function_error(broken, f"when {REFERENCE} was tried on the first point")
    candidates = []
    for name in names:
        verdict = verdicts.get(name)
        reason = None if verdict is None else verdict.reason
        if reason is None and name in failures:
            reason = explain(failures[name])
        if reason is None and name in outdone:
            reason = f"no faster than {outdone[name]}: what costs is calling the function's many operators"
        slow = verdict is not None and verdict.slow
        candidates.append(Candidate(strategy=name, reason=reason, slow=slow, tried=verdict is not None))
    if asked != "auto":
        _check_asked(candidates[0])
    working = [c.strategy for c in candidates if c.tried and c.reason is None]
    saving = _saving(problem, working[0], chunk, sample) if sample and working else None
    return Facts(shape=shape, verdicts=tuple(candidates), models=tuple(models.values()), saving=saving)


def trial_bytes(resources: Resources) -> int:
    """What trials may take here."""
    return min(resources.budget_bytes, int(available_memory_bytes() * TRIAL_SHARE))


def estimator_of(problem: Problem, resources: Resources) -> Estimator:
    device, allowed = resources.device, trial_bytes(resources)
    here = all(not problem.leaves[i].is_cuda for i in problem.wanted) == device.host
    # As `Chooser.needed_bytes` adds it up: what the allocator keeps is at most as much as is alive.
    beside = allowed - device.process_bytes
    whole_points = max(beside // 2, beside - device.kept_bytes)
    return Estimator(problem, allowed, whole_points_bytes=whole_points, correct=here)


def _outdone(problem: Problem, names: list[str], verdicts: dict[str, Verdict]) -> dict[str, str]:
    """The strategies that another outdoes, where the number of operators called is what costs; and which.

    The first of `names` is never one: it may be what was asked for.
    """
    works = {name for name, verdict in verdicts.items() if verdict.reason is None}
    found: dict[str, str] = {}
    for name in names[1:]:
        strategy = STRATEGIES[name]
        lifted = strategy.batching == "repeat" and not problem.batched  # by vmap: its graph is never smaller
        better = f"{strategy.product}/vmap"
        if (strategy.batching == "loop" or lifted) and better in works:
            found[name] = better
    return found


def _saving(problem: Problem, strategy: str, chunk: int, dtype: str) -> float | None:
    """The part of its bytes that compression saves, of a chunk of products at each of a few points, spread
    over J. A point at which the function raises is left to the block that computes it.
    """
    maker = strategy_named(strategy)
    products = count_products(maker, problem)
    found = []
    for i in range(SAMPLED_POINTS):
        point = i * problem.points // SAMPLED_POINTS
        first = i * max(0, products - chunk) // SAMPLED_POINTS
        last = min(first + chunk, products)
        some = products_between(maker, problem.shape, (point, point + 1), (first, last))
        with contextlib.suppress(Exception):
            pace = Pace(eager_name(strategy), chunk)
            found.append(compute_block(problem, pace, some, dtype).reshape(-1))
    return compressible(np.concatenate(found)) if found else None


def _runs_here(estimator: Estimator, allowed_bytes: int) -> bool:
    """Whether one call fits the memory that is here. One that fails is called again, to be explained."""
    try:
        return estimator.forward.peak_bytes <= allowed_bytes
    except Exception:
        return True


def _check_asked(asked: Candidate) -> None:
    if asked.reason is not None and not asked.slow:
        raise InputError.about(
            "compute.strategy",
            got=f"{asked.strategy}, which this function does not support ({asked.reason})",
            expected="one that it does",
            do="--set compute.strategy=auto picks one",
        )

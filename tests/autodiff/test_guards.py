"""Functions that have no Jacobian to speak of are refused, with what they failed and by how much."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev, vmap

from jacjobs import Problem
from jacjobs.autodiff.block import Pace, compute_block
from jacjobs.autodiff.catalogue import STRATEGIES
from jacjobs.autodiff.guards import check_function
from jacjobs.autodiff.legality import try_strategies
from jacjobs.errors import InputError
from jacjobs.shape import Rectangle

X = torch.randn(6, 4, dtype=torch.float64)


def dropout(x: torch.Tensor) -> torch.Tensor:
    return nn.functional.dropout(torch.sin(x), 0.5, training=True) * x.sum()


def test_randomness_is_refused_with_the_remedy() -> None:
    with pytest.raises(InputError, match=r"two different results .* relative\).*module.eval\(\).*seed"):
        check_function(Problem(dropout, (X,), in_dims=0))


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_seed_gives_one_consistent_jacobian(strategy: str, batched: bool) -> None:
    """Every strategy, chunk and point sees the same mask."""
    fn = (lambda x: vmap(dropout, randomness="same")(x)) if batched else dropout
    problem = Problem(fn, (X,), in_dims=0, batched=batched, seed=3)
    check_function(problem)
    assert try_strategies(problem, [strategy])[strategy].reason is None
    with torch.random.fork_rng():
        torch.manual_seed(3)
        mask = nn.functional.dropout(torch.ones(4, dtype=torch.float64), 0.5)
    assert 0 < mask.count_nonzero() < 4
    want = vmap(jacrev(lambda x: torch.sin(x) * mask * x.sum()))(X).numpy()
    state = torch.get_rng_state()
    for chunk in (1, 3, 100):
        got = compute_block(problem, Pace(strategy, chunk), Rectangle(0, 6, 0, 4, 0, 4))
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-14)
    assert torch.equal(torch.get_rng_state(), state), "the generator outside was touched"


def test_batch_normalisation_in_training_mode_is_refused_by_name_and_size() -> None:
    module = nn.Sequential(nn.Conv1d(1, 2, 3), nn.BatchNorm1d(2), nn.Flatten()).double()
    with pytest.raises(InputError, match=r"independence of samples: got .*batch of two differ by .*eval\(\)"):
        check_function(Problem.parameters(module, X[:, None]))
    check_function(Problem.parameters(module.eval(), X[:, None]))


def test_batch_normalisation_that_cannot_take_one_sample_is_refused_too() -> None:
    module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).double()
    with pytest.raises(InputError, match="independence of samples: got it raised ValueError"):
        check_function(Problem.parameters(module, X))


@pytest.mark.parametrize("points", [1, 6])
def test_a_function_that_mixes_samples_is_refused_even_at_equal_points(points: int) -> None:
    def mixing(x: torch.Tensor) -> torch.Tensor:
        return x - x.mean(0)

    with pytest.raises(InputError, match="independence of samples"):
        check_function(Problem(mixing, (torch.ones(points, 4),), in_dims=0, batched=True))


def test_honest_functions_pass() -> None:
    module = nn.Sequential(nn.Linear(4, 300), nn.Tanh(), nn.Linear(300, 5))
    check_function(Problem.parameters(module, X.float()))
    check_function(
        Problem(lambda x: functional_call(module, {}, (x,)), (X.float(),), in_dims=0, batched=True)
    )
    check_function(Problem(lambda x: x / 0, (X,), in_dims=0))

"""What a problem says of itself, and what it refuses."""

from __future__ import annotations

import pickle

import pytest
import torch

from jacjobs import Problem
from jacjobs.errors import FunctionError, InputError

X = torch.randn(5, 3)


def test_shape_names_every_leaf() -> None:
    def fn(weights, x):  # type: ignore[no-untyped-def]
        return {"mean": (weights["w"] @ x).mean(), "both": weights["w"] @ x + weights["b"]}

    problem = Problem(fn, ({"w": torch.randn(2, 3), "b": torch.randn(2)}, X), in_dims=(None, 0))
    shape = problem.shape
    assert (shape.points, shape.rows, shape.columns) == (5, 3, 8)
    assert [(s.name, s.start, s.stop, s.shape) for s in shape.inputs] == [
        ("w", 0, 6, (2, 3)),
        ("b", 6, 8, (2,)),
    ]
    assert [(s.name, s.start, s.stop) for s in shape.outputs] == [("mean", 0, 1), ("both", 1, 3)]


def test_shape_runs_on_fakes() -> None:
    """A function of 10^12 elements is only asked for its shape."""
    problem = Problem(lambda x: x.expand(10**6, 10**6).sum(0), (torch.ones(1),))
    assert problem.shape.rows == 10**6


def test_a_function_that_reads_values_runs_once_for_real() -> None:
    problem = Problem(lambda x: x * 2 if x.sum().item() > -1e9 else x, (torch.ones(3),))
    assert problem.shape.rows == 3


@pytest.mark.parametrize(
    ("make", "got", "expected"),
    [
        (lambda: Problem(3, (X,)), "int", "a function"),
        (lambda: Problem(torch.sin, X), "Tensor", "a tuple"),
        (lambda: Problem(torch.sin, (X.int(),)), "torch.int32", "floating-point"),
        (lambda: Problem(torch.sin, (X.to(torch.complex64),)), "torch.complex64", "real"),
        (lambda: Problem(torch.sin, (2.0,)), "float", "floating-point tensor"),
        (lambda: Problem(torch.sin, (X[:, :0],)), "n = 0", "at least one"),
        (lambda: Problem(torch.sin, (X[:0],), in_dims=0), "size 0", "at least one point"),
        (lambda: Problem(torch.sin, (X,), argnums=1), "1", "positions among 1"),
        (lambda: Problem(torch.sin, (X,), in_dims=2), "(5, 3)", "an axis 2"),
        (lambda: Problem(torch.sin, (X,), in_dims=(0, 0)), "(0, 0)", "for each argument"),
        (lambda: Problem(torch.mul, (X, X.T), in_dims=(0, 0)), "[3, 5]", "the same number"),
        (lambda: Problem(torch.sin, (X,), in_dims=(None,)), "(None,)", "at least one axis"),
        (lambda: Problem(torch.sin, (X,), batched=True), "in_dims=None", "leading axis"),
        (lambda: Problem(lambda x: 1.0, (X,)).shape, "float", "a tensor"),
        (lambda: Problem(lambda x: x > 0, (X,)).shape, "torch.bool", "floating-point"),
        (lambda: Problem(lambda x: torch.fft.fft(x), (X,)).shape, "complex64", "real"),
        (lambda: Problem(lambda x: x.detach(), (X,)).shape, "none that depends", "at least one"),
        (lambda: Problem(lambda x: x[:0], (X,)).shape, "m = 0", "at least one"),
        (lambda: Problem(lambda x: x.sum(), (X,), in_dims=0, batched=True).shape, "shape ()", "axis of 2"),
    ],
)
def test_refused_in_one_sentence(make, got: str, expected: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError) as caught:
        make()
    message = str(caught.value)
    assert f"got {got}" in message or got in message.partition("expected")[0]
    assert expected in message.partition("expected")[2]
    assert "\n" not in message


def test_a_function_that_raises_shows_the_users_frames_first() -> None:
    def fn(x: torch.Tensor) -> torch.Tensor:
        raise ValueError("boom")

    with pytest.raises(FunctionError, match="ValueError: boom") as caught:
        _ = Problem(fn, (X,)).shape
    frames = [line for line in caught.value.user_traceback.splitlines() if line.startswith("  File")]
    assert "test_problem.py" in frames[0]


def test_pickles_only_what_it_sees() -> None:
    """A slice of a large array does not drag the array along."""
    large = torch.zeros(1_000_000)
    assert len(pickle.dumps(Problem(torch.sin, (large[:10],)))) < 10_000

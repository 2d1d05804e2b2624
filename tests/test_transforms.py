"""The transforms of lists against torch.func's own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from jacjobs import transforms

A, B = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 5, 3, dtype=torch.float64)


def of_two(a: Tensor, b: Tensor) -> list[Tensor]:
    return [torch.sin(a) * b.sum(0), (b @ a).cumsum(0), torch.ones(2)]


def test_vmap_is_that_of_torch() -> None:
    want = torch.func.vmap(of_two)(A, B)
    torch.testing.assert_close(transforms.vmap(of_two, [A, B]), list(want))


def test_some_arguments_are_shared() -> None:
    want = torch.func.vmap(lambda a, b, factor: of_two(a, b)[0] * factor, in_dims=(None, 0, None))(A[0], B, 3)
    (got,) = transforms.vmap(
        lambda a, b, factor: [of_two(a, b)[0] * factor], [A[0], B, 3], [False, True, False]
    )
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("randomness", ["same", "different"])
def test_randomness_is_that_of_torch(randomness: Literal["same", "different"]) -> None:
    def noisy(a: Tensor) -> list[Tensor]:
        return [a + torch.rand_like(a)]

    torch.manual_seed(0)
    (want,) = torch.func.vmap(noisy, randomness=randomness)(A)
    torch.manual_seed(0)
    (got,) = transforms.vmap(noisy, [A], randomness=randomness)
    assert torch.equal(got, want)


def test_randomness_is_refused_by_default() -> None:
    with pytest.raises(RuntimeError, match="randomness"):
        transforms.vmap(lambda a: [torch.rand_like(a)], [A])


@pytest.mark.parametrize("transform", ["vmap", "jvp"])
def test_nothing_is_left_behind_where_the_function_raises(transform: str) -> None:
    def broken(a: Tensor) -> list[Tensor]:
        raise ArithmeticError

    run = partial(transforms.vmap, broken, [A])
    if transform == "jvp":
        run = partial(transforms.jvp, broken, [A], [A])
    for _ in range(2):
        with pytest.raises(ArithmeticError):
            run()
        assert torch._C._functorch.maybe_current_level() is None
    torch.testing.assert_close(transforms.jvp(lambda a: [a * a], [A], [A]), [2 * A * A])


def test_jvp_is_that_of_torch() -> None:
    tangents = torch.randn_like(A[0]), torch.randn_like(B[0])
    want = torch.func.jvp(of_two, (A[0], B[0]), tangents)[1]
    torch.testing.assert_close(transforms.jvp(of_two, [A[0], B[0]], tangents), list(want))


def test_a_batch_of_tangents_has_one_pass_of_values() -> None:
    """What is no tangent stays without the axis, as under torch's own."""
    shapes: list[torch.Size] = []

    def watched(a: Tensor) -> list[Tensor]:
        shapes.append(torch.autograd.forward_ad.unpack_dual(a).primal.shape)
        return [torch.sin(a)]

    (got,) = transforms.vmap(lambda t: transforms.jvp(watched, [A[0]], [t]), [torch.eye(3).double()])
    torch.testing.assert_close(got, torch.func.jacfwd(torch.sin)(A[0]).T)
    assert shapes == [A[0].shape]


def test_transforms_of_torch_go_on_inside() -> None:
    def inner(a: Tensor) -> list[Tensor]:
        return [torch.func.jacfwd(torch.sin)(a) @ a, torch.func.grad(lambda x: (x**3).sum())(a)]

    want = torch.func.vmap(lambda t: torch.func.jvp(inner, (A[0],), (t,))[1])(A)
    torch.testing.assert_close(transforms.vmap(lambda t: transforms.jvp(inner, [A[0]], [t]), [A]), list(want))


def test_rules_that_torch_has_in_python_are_loaded() -> None:
    """In a process where no vmap of torch ran before."""
    code = (
        "import torch; from jacjobs.transforms import vmap\n"
        "torch._C._functorch._set_vmap_fallback_enabled(False)\n"
        "a, b = torch.randn(4, 3), torch.randn(4, 3, 3)\n"
        "(made,) = vmap(lambda a, b: [torch.addr(b, a, a)], [a, b])\n"
        "torch.testing.assert_close(made, b + a[:, :, None] * a[:, None, :])"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def calls_of(work: Any) -> int:
    """Functions of Python that a warm call calls."""
    work()
    count = 0

    def seen(_: Any, event: str, __: Any) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(seen)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def test_they_call_much_less_than_torchs() -> None:
    """Why they are there: a third of a small J's time goes into trees."""

    def many(*args: Tensor) -> Sequence[Tensor]:
        return args

    ours = calls_of(lambda: transforms.vmap(many, [A, A]))
    assert 5 * ours <= calls_of(lambda: torch.func.vmap(many)(A, A))
    ours = calls_of(lambda: transforms.jvp(many, [A, A], [A, A]))
    assert 2 * ours <= calls_of(lambda: torch.func.jvp(many, (A, A), (A, A)))

"""The kernels for tangents of zeros against torch's own."""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import jacfwd

import jacjobs
from jacjobs.autodiff import zeros
from jacjobs.autodiff.zeros import forward_mode

TANGENTS = (torch.float32, torch.float64, torch.float16, torch.complex64)
DTYPES = (*TANGENTS, torch.int64)
"""Of zeros, which stand for the tangent of anything."""
SHAPES = ((), (1,), (3,), (2, 3), (2, 1), (0, 3))
OPERATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "add twice": lambda a, b: torch.add(a, b, alpha=2),
    "sub": torch.sub,
    "sub twice": lambda a, b: torch.sub(a, b, alpha=2),
    "mul": torch.mul,
}


def operand(dtype: torch.dtype, shape: tuple[int, ...], zero: bool) -> Tensor:
    if zero:
        return torch._efficientzerotensor(shape, dtype=dtype)
    return (10 * torch.rand(shape, generator=torch.Generator().manual_seed(len(shape))) - 5).to(dtype)


@pytest.mark.parametrize("which", [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("operator", OPERATORS)
def test_they_make_what_torch_makes(operator: str, which: tuple[bool, bool]) -> None:
    apply, compared = OPERATORS[operator], 0
    for dtypes, shapes in itertools.product(
        itertools.product(*(DTYPES if zero else TANGENTS for zero in which)),
        itertools.product(SHAPES, repeat=2),
    ):
        a, b = (operand(*each) for each in zip(dtypes, shapes, which, strict=True))
        try:
            want = apply(a, b)
        except RuntimeError:  # shapes that do not fit
            continue
        with forward_mode():
            got = apply(a, b)
        assert got.dtype == want.dtype
        assert got.shape == want.shape
        assert got._is_zerotensor() == want._is_zerotensor()
        if not want._is_zerotensor():
            torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)
            assert got.data_ptr() not in (a.data_ptr(), b.data_ptr()) or got.numel() == 0
        compared += 1
    assert compared > 500


@pytest.mark.parametrize("number", [0, 2, -1.5, 1j])
@pytest.mark.parametrize("operator", OPERATORS)
def test_so_they_do_with_numbers(operator: str, number: complex) -> None:
    apply = OPERATORS[operator]
    for dtype, swapped in itertools.product(TANGENTS, (False, True)):
        zero = torch._efficientzerotensor((2, 3), dtype=dtype)
        try:
            want = apply(number, zero) if swapped else apply(zero, number)  # type: ignore[arg-type]
        except (RuntimeError, TypeError):
            continue
        with forward_mode():
            got = apply(number, zero) if swapped else apply(zero, number)  # type: ignore[arg-type]
        torch.testing.assert_close(got + 0, want + 0, rtol=0, atol=0, equal_nan=True)


def test_none_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def counted(a: Tensor, b: Tensor) -> Tensor:
        calls.append("mul")
        return zeros._mul(a, b)

    monkeypatch.setitem(zeros._KERNELS, "mul.Tensor", counted)
    zero, one = torch._efficientzerotensor((3,)), torch.ones(3)
    with forward_mode(), forward_mode():
        torch.mul(zero, one)
        with pytest.raises(ArithmeticError), forward_mode():
            raise ArithmeticError
        torch.mul(zero, one)
    assert len(calls) == 2
    with pytest.raises(ArithmeticError), forward_mode():
        raise ArithmeticError
    torch.mul(zero, one)
    assert len(calls) == 2


def shifted(x: Tensor) -> Tensor:
    """Constants of all kinds, on either side."""
    one, three = torch.ones(()), torch.arange(3)
    return torch.cat([x + three, three - x, x * three, three / (2 + x * x), (1 - x) / 3, one.double() - x])


@pytest.mark.parametrize("strategy", ["jvp/vmap", "jvp/repeat", "jvp/loop"])
def test_forward_mode_runs_no_python_of_torch_for_shapes(strategy: str) -> None:
    """Counted, not timed. torch's own jacfwd does, in each operator that meets a constant."""
    x = torch.randn(3)
    J = jacjobs.jacobian(shifted, strategy=strategy)
    torch.testing.assert_close(J(x), jacfwd(shifted)(x))
    seen = {"jacjobs": 0, "jacfwd": 0}
    for who, run in {"jacjobs": J, "jacfwd": jacfwd(shifted)}.items():

        def count(frame: FrameType, event: str, _: Any, who: str = who) -> None:
            seen[who] += event == "call" and "_refs" in frame.f_code.co_filename

        before = sys.getprofile()
        sys.setprofile(count)
        try:
            run(x)
        finally:
            sys.setprofile(before)
    assert seen["jacjobs"] == 0
    assert seen["jacfwd"] > 0


def test_threads_wait_for_each_other() -> None:
    x, wrong = torch.randn(3), []
    want = jacfwd(shifted)(x)
    J = jacjobs.jacobian(shifted, strategy="jvp/vmap")
    J(x)

    def work() -> None:
        wrong.extend(index for index in range(50) if not torch.equal(J(x), want))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong

"""Matrix products of compiled chunks: right for every shape, order and dtype, and there in compiled code."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from torch.profiler import profile

from jacjobs.autodiff import matmul
from jacjobs.autodiff.block import Pace, compute_block
from jacjobs.autodiff.catalogue import COMPILED
from jacjobs.problem import Problem
from jacjobs.shape import Rectangle
from tests.autodiff.test_compiled import needs_a_compiler
from tests.functions import randn


def laid_out(matrix: Tensor, order: str) -> Tensor:
    """The same entries, row by row, column by column, or in a larger matrix."""
    if order == "columns":
        return matrix.t().contiguous().t()
    if order == "part":
        larger = matrix.new_zeros(matrix.shape[0] + 3, matrix.shape[1] + 5)
        larger[:-3, :-5] = matrix
        return larger[:-3, :-5]
    return matrix


ORDERS = ("rows", "columns", "part")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("orders", list(itertools.product(ORDERS, ORDERS)), ids="-".join)
@pytest.mark.parametrize("sizes", [(33, 20, 7), (7, 20, 33), (1, 5, 5)], ids=str)
def test_products_are_right_and_lie_as_torch_was_told(
    dtype: torch.dtype, orders: tuple[str, str], sizes: tuple[int, int, int]
) -> None:
    m, k, n = sizes
    a, b = randn(m, k, seed=1), randn(k, n, seed=2)
    left, right = laid_out(a.to(dtype), orders[0]), laid_out(b.to(dtype), orders[1])
    made = torch.ops.jacjobs.mm(left, right)
    torch.testing.assert_close(made.double(), a @ b, atol=1e-5 if dtype == torch.float32 else 1e-12, rtol=0)
    torch.library.opcheck(
        torch.ops.jacjobs.mm.default, (left, right), test_utils=("test_schema", "test_faketensor")
    )


@pytest.mark.parametrize("at_home", [False, True])
def test_products_with_a_vector_are_right(at_home: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matmul, "MKL_AT_HOME", at_home)
    a, x = randn(33, 20, seed=1), randn(20, seed=2)
    made = torch.ops.jacjobs.mv(a.float(), x.float())
    torch.testing.assert_close(made.double(), a @ x, atol=1e-5, rtol=0)
    torch.library.opcheck(
        torch.ops.jacjobs.mv.default, (a.float(), x.float()), test_utils=("test_schema", "test_faketensor")
    )


@needs_a_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("strategy", COMPILED)
def test_compiled_chunks_call_them(
    strategy: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A layer with a bias on several rows, a layer on one, and both ways to lie."""
    monkeypatch.setattr(matmul, "LEAST_FLOPS", dict.fromkeys(matmul.LEAST_FLOPS, 4_000_000))
    W, V, bias = (randn(*size, seed=3).to(dtype) / 8 for size in [(96, 160), (160, 64), (160,)])

    def network(x: Tensor) -> Tensor:
        return torch.tanh(torch.addmm(bias, x, W) @ V)

    problem = Problem(network, (randn(4, 96).to(dtype),))
    some = Rectangle(0, 1, 0, 256, 0, 384)
    with torch._inductor.config.patch(force_disable_caches=True):
        compute_block(problem, Pace(strategy, 128), some)  # compiled, and compared with plain products
    with profile() as seen:
        compute_block(problem, Pace(strategy, 128), some)
    assert COMPILED[strategy].code(problem).reason is None
    assert sum(event.count for event in seen.key_averages() if event.key == "jacjobs::mm") >= 4


def test_small_products_and_other_dtypes_are_left_to_torch() -> None:
    a, b = torch.zeros(800, 100), torch.zeros(100, 800)
    assert matmul._is_faster(a, b)
    assert not matmul._is_faster(a[:200], b[:, :200])
    assert not matmul._is_faster(a[:200].double(), b[:, :200].double())
    assert matmul._is_faster(a[:400].double(), b[:, :400].double()), "more is to be saved"
    assert not matmul._is_faster(a.bfloat16(), b.bfloat16())
    assert not matmul._is_faster(a.to("meta"), b.to("meta"))

"""Patterns: never an entry too few, whatever operators a function consists of; exact where that counts."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import jacrev

from jacjobs.structure.detection import detect
from jacjobs.structure.rules.call import RULES
from tests.structure import functions
from tests.structure.functions import OPERATORS, SHAPE, randn

shares: list[tuple[int, int]] = []
"""Of each example: entries that are other than zero, and those of the pattern."""


def entries(fn: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Where the Jacobian is other than zero: (m, n)."""
    J = jacrev(fn)(x)
    return J.reshape(-1, x.numel()) != 0


def pattern(fn: Callable[..., Any], *leaves: Tensor) -> Tensor:
    found = detect(fn, leaves, range(len(leaves)))
    assert found.pattern is not None, found.reason
    return torch.from_numpy(found.pattern.toarray())


def check(fn: Callable[[Tensor], Tensor], points: int = 3) -> tuple[int, int]:
    found = pattern(fn, randn(*SHAPE, seed=50))
    real = torch.zeros_like(found)
    for seed in range(points):
        real |= entries(fn, randn(*SHAPE, seed=100 + seed))
    missed = (real & ~found).nonzero()
    assert not len(missed), f"missed {missed[:3].tolist()}"
    return int(real.sum()), int(found.sum())


@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_misses_nothing(name: str) -> None:
    check(OPERATORS[name])


@settings(max_examples=150, deadline=None)
@given(
    names=st.lists(st.sampled_from(list(OPERATORS)), min_size=2, max_size=5),
    join=st.sampled_from(["one after another", "sum", "product"]),
)
def test_compositions_miss_nothing(names: list[str], join: str) -> None:
    def fn(x: Tensor) -> Tensor:
        if join == "one after another":
            for name in names:
                x = OPERATORS[name](x)
            return x
        parts = torch.stack([OPERATORS[name](x) for name in names])
        return parts.sum(0) if join == "sum" else parts.prod(0)

    shares.append(check(fn))


def test_the_share_of_false_entries() -> None:
    """Of all compositions together; what depends on values (sorting, branches, pooling) has most of them."""
    if not shares:
        pytest.skip("the compositions did not run")
    real, found = (sum(column) for column in zip(*shares, strict=True))
    print(f"{1 - real / found:.1%} of the entries of {len(shares)} patterns are zero at three points")
    assert real > found / 2


EXACT = (
    *("sin", "gelu", "atan2", "roll", "flip", "transposed", "unfolded", "strided", "repeated", "split"),
    *("unbound", "chunks", "padded", "mirrored", "tril", "diagonal", "indexed", "indexed twice", "selected"),
    *("gathered", "put", "put upon", "scattered", "scattered upon", "added at", "masked", "either"),
    *("times zeros", "assigned", "sums", "means", "product", "variance", "logsumexp", "softmax"),
    *("layer norm", "group norm", "matrix", "band", "band before", "einsum", "convolution"),
    *("grouped convolution", "transposed convolution", "gradient of a convolution", "average pool"),
    *("upsampled", "cross", "gradient", "vmapped"),
)


@pytest.mark.parametrize("name", EXACT)
def test_what_moves_or_groups_is_exact(name: str) -> None:
    real, found = check(OPERATORS[name])
    assert found == real


def test_a_pattern_that_misses_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison can fail: a rule that forgets an operand."""
    from torch import ops

    from jacjobs.structure.rules import call

    def forgetful(one: call.Call) -> call.Pattern:
        return call.broadcast(one.args[0], one.shape)

    monkeypatch.setitem(call.RULES, ops.aten.atan2, forgetful)
    with pytest.raises(AssertionError, match="missed"):
        check(OPERATORS["atan2"])


KNOWN: dict[str, tuple[Callable[[Tensor], Tensor], int, int]] = {
    "Brusselator, 8": (functions.brusselator, 128, 6 * 128),
    "heat": (functions.heat, 200, 598),
    "Burgers": (functions.burgers, 60, 180),
    **{f"{k}-th differences": (functions.differences(k), 50, (50 - k) * (k + 1)) for k in (1, 2, 3, 5)},
    "squared differences": (functions.squared_differences, 50, 98),
    "batched network": (functions.batched_network(16, 6), 96, 16 * 3 * 6),
    "banded": (functions.banded(40, 2), 40, 5 * 40 - 6),
}


@pytest.mark.parametrize("name", KNOWN)
def test_functions_of_known_patterns(name: str) -> None:
    fn, size, count = KNOWN[name]
    found = pattern(fn, randn(size))
    assert int(found.sum()) == count
    torch.testing.assert_close(found, entries(fn, randn(size, seed=1)))


def test_large_ones() -> None:
    found = detect(functions.brusselator, [randn(2 * 32 * 32)], [0]).pattern
    assert found is not None
    assert (found.shape, found.nnz) == ((2048, 2048), 12_288)
    residuals, size = functions.bundle(20, 400, 2400)
    found = detect(residuals, [randn(size)], [0]).pattern
    assert found is not None
    assert (found.shape, found.nnz) == ((4800, 1380), 57_600)
    assert set(found.indptr[1:] - found.indptr[:-1]) == {12}
    phases, size = functions.baselines(20, 8)
    found = detect(phases, [randn(size)], [0]).pattern
    assert found is not None
    assert found.nnz == 2 * found.shape[0]


def test_trees_and_what_is_not_differentiated() -> None:
    def fn(a: Tensor, b: Tensor, c: Tensor) -> dict[str, Tensor]:
        return {"x": a * c, "y": b[:1] * a.sum(), "nothing": torch.ones(2)}

    a, b, c = randn(3), randn(2), torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64)
    found = detect(fn, [a, b, c], [1, 0])
    assert found.pattern is not None
    want = [[0, 0, 1, 0, 0], [0] * 5, [0, 0, 0, 0, 1], [1, 0, 1, 1, 1], [0] * 5, [0] * 5]
    assert found.pattern.toarray().astype(int).tolist() == want


def test_modules_and_loops_are_followed() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = torch.nn.Linear(6, 3).double().requires_grad_(False)

    def fn(x: Tensor) -> Tensor:
        h = x
        for i in range(3):
            h = h + (i + 1) * torch.nn.functional.pad(layer(h), (0, 3))
        return h

    found = pattern(fn, randn(4, 6))
    torch.testing.assert_close(found, entries(fn, randn(4, 6, seed=1)))


def test_a_branch_on_values_counts_as_dense_and_says_so() -> None:
    found = detect(lambda x: x if x.sum() > 0 else x.flip(0), [randn(4)], [0])
    assert found.pattern is None
    assert found.reason is not None
    assert "cannot be traced" in found.reason


def test_indices_that_depend_on_the_inputs_mean_all_that_they_may() -> None:
    x = torch.tensor([3.0, 1.0, 2.0], dtype=torch.float64)
    assert pattern(lambda x: x.index_select(0, x.argmax()[None]), x).all()
    assert pattern(lambda x: x[x.argsort()[:1]] * 2, x).all()


def test_what_varies_counts_as_anything() -> None:
    """Indices and factors of one point say nothing of the others."""
    x, places, weights = randn(6), torch.tensor([0, 0, 1]), torch.zeros(6, dtype=torch.float64)

    def fn(x: Tensor, places: Tensor, weights: Tensor) -> Tensor:
        return torch.cat([x[places], x * weights])

    fixed = detect(fn, [x, places, weights], [0]).pattern
    varying = detect(fn, [x, places, weights], [0], varying=[1, 2]).pattern
    assert fixed is not None
    assert varying is not None
    assert fixed.nnz == 3
    assert (varying.toarray() == np.vstack([np.ones((3, 6)), np.eye(6)])).all()


def test_what_takes_too_long_is_dense() -> None:
    found = detect(functions.brusselator, [randn(2 * 8**2)], [0], most_seconds=0.0)
    assert found.pattern is None
    assert found.reason == "its pattern was not found in 0 s"


def test_a_rule_that_fails_means_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(call: Any) -> Any:
        raise ValueError("what is this?")

    monkeypatch.setitem(RULES, torch.ops.aten.roll, broken)
    found = detect(functions.burgers, [randn(8)], [0])
    assert found.pattern is None
    assert found.reason == "its pattern cannot be found: what is this?"


def peak_of(code: str) -> float:
    """MiB of a process that runs this, at the peak: what `getrusage` says of one begins with its parent's."""
    whole = f"""
import re, time, torch
from jacjobs.structure.colouring import group
from jacjobs.structure.detection import detect
began = time.perf_counter()
{code}
status = open("/proc/self/status").read()
print(time.perf_counter() - began, int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) / 1024)
"""
    done = subprocess.run([sys.executable, "-c", whole], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    seconds, mib = map(float, done.stdout.split())
    print(f"{seconds:.1f} s, {mib:,.0f} MiB")
    return mib


@pytest.mark.timeout(120)
def test_a_million_rows_of_ten_entries_take_less_than_two_gib() -> None:
    mib = peak_of(
        """
shifts = (0, 1, -1, 2, -2, 999, 1000, -1000, 1001, -1001)
fn = lambda x: sum((x.roll(k) * (k + 1)).sin() for k in shifts).square()
pattern = detect(fn, [torch.linspace(0, 1, 1_000_000)], [0]).pattern
assert pattern.nnz == 10_000_000 and pattern.indices.dtype == "int32"
assert group(pattern).products < 30
"""
    )
    assert mib < 2048


def test_what_is_dense_takes_little_memory_to_find_that_out() -> None:
    """Of a matrix product whose pattern would have 40 million entries, and of what follows 40 billion."""
    mib = peak_of(
        """
W = torch.ones(2_000, 20_000)
found = detect(lambda x: (W @ x)[:, None] * torch.ones(1000), [torch.ones(20_000)], [0], most=50_000_000)
assert "too dense" in found.reason
"""
    )
    assert mib < 2048


def test_above_a_budget_it_is_dense_and_says_so() -> None:
    found = detect(lambda x: x.sum() * torch.ones(1000, dtype=x.dtype), [randn(1000)], [0], most=10_000)
    assert found.pattern is None
    assert found.reason == "its pattern is too dense: 1,000,000 entries, of 10,000 allowed"

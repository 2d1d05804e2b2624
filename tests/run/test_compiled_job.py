"""A job whose chunks are compiled. (Apart from the other tests of compiled chunks: a run in this process sets
torch's threads, after which torch's own batched `linalg.solve` may fail in it; pytorch issue 142815.)
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.func import jacrev, vmap

import jacjobs
from jacjobs import Problem
from jacjobs.autodiff import compiled as compiling
from tests.functions import randn

W = randn(13, 7, seed=3)


def fn(x: Tensor) -> Tensor:
    return torch.tanh(W @ torch.sin(x))


@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
def test_it_is_planned_computed_and_checked(tmp_path: Path) -> None:
    x = randn(6, 7)
    problem = Problem(fn, (x,), in_dims=0)
    run = jacjobs.submit(problem, tmp_path / "run", strategy="vjp/compiled", chunk=26, address="inline")
    J = run.result()
    torch.testing.assert_close(torch.from_numpy(J.to_numpy()), vmap(jacrev(fn))(x))
    manifest = J.manifest
    assert manifest is not None
    assert manifest.strategy == "vjp/compiled"
    assert manifest.checks["points"]
    assert not manifest.memory["retreats"]


def test_without_a_compiler_it_goes_on_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(products: object) -> object:
        def call(*arguments: object) -> None:
            raise RuntimeError("no C++ compiler")

        return call

    monkeypatch.setattr(compiling, "_compile", broken)
    x = randn(6, 7)
    problem = Problem(fn, (x,), in_dims=0)
    run = jacjobs.submit(problem, tmp_path / "run", strategy="jvp/compiled", chunk=4, address="inline")
    J = run.result()
    torch.testing.assert_close(torch.from_numpy(J.to_numpy()), vmap(jacrev(fn))(x))
    manifest = J.manifest
    assert manifest is not None
    assert manifest.memory["retreats"] == ["jvp/compiled goes on as jvp/vmap: RuntimeError: no C++ compiler"]

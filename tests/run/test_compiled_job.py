"""A job whose chunks are compiled. (Apart from the other tests of compiled chunks: a run in this process sets
torch's threads, after which torch's own batched `linalg.solve` may fail in it; pytorch issue 142815.)
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.func import jacrev, vmap

import jacjobs
from jacjobs import Problem
from jacjobs.autodiff import compiled as compiling
from jacjobs.store.folder import Manifest
from tests.autodiff.test_compiled import fn, needs_a_compiler
from tests.functions import randn


def manifest_of(folder: Path, strategy: str, chunk: int) -> Manifest:
    """Of a run in `folder`, whose J is right."""
    x = randn(6, 7)
    problem = Problem(fn, (x,), in_dims=0)
    J = jacjobs.submit(problem, folder, strategy=strategy, chunk=chunk, address="inline").result()
    torch.testing.assert_close(torch.from_numpy(J.to_numpy()), vmap(jacrev(fn))(x))
    assert J.manifest is not None
    return J.manifest


@needs_a_compiler
def test_it_is_planned_computed_and_checked(tmp_path: Path) -> None:
    manifest = manifest_of(tmp_path / "run", "vjp/compiled", 26)
    assert manifest.strategy == "vjp/compiled"
    assert manifest.checks["points"]
    assert not manifest.memory["retreats"]


def test_without_a_compiler_it_goes_on_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(products: object, **_: bool) -> object:
        def call(*arguments: object) -> None:
            raise RuntimeError("no C++ compiler")

        return call

    monkeypatch.setattr(compiling, "_compile", broken)
    manifest = manifest_of(tmp_path / "run", "jvp/compiled", 4)
    assert manifest.memory["retreats"] == ["jvp/compiled goes on as jvp/vmap: RuntimeError: no C++ compiler"]

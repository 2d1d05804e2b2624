"""A worker that computes something wrong: noticed, computed again, and not let through."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import jacjobs
from jacjobs.errors import CheckError, DeviceMemoryError, FunctionError
from jacjobs.run import worker
from jacjobs.run.messages import BlockId
from tests.autodiff.test_block import Device
from tests.functions import CASES, randn

W = randn(7, 10, seed=1)
X = randn(60, 10, seed=2) / 10  # tanh does not saturate: all entries of J are of one size


def problem() -> jacjobs.Problem:
    return jacjobs.Problem(lambda x: torch.tanh(W @ x), (X,), in_dims=0)


def corrupting(strategies: set[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Blocks computed by one of `strategies` get one wrong entry. Returns what was called."""
    called: list[str] = []
    compute = worker.compute_block

    def wrong(problem: Any, pace: Any, block: Any, dtype: str) -> Any:
        called.append(pace.strategy)
        values = compute(problem, pace, block, dtype)
        if pace.strategy in strategies:
            values[0, 3, 4] *= 1.001
        return values

    monkeypatch.setattr(worker, "compute_block", wrong)
    return called


@pytest.mark.parametrize(("strategy", "again"), [("vjp/vmap", "vjp/loop"), ("jvp/vmap", "double-vjp/loop")])
def test_a_wrong_block_is_computed_again(
    strategy: str, again: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    want = jacjobs.submit(problem(), tmp_path / "good", strategy=strategy, address="inline").result()
    called = corrupting({strategy}, monkeypatch)
    options = {"strategy": strategy, "address": "inline"}
    J = jacjobs.submit(problem(), tmp_path / "a", check="all", **options).result()
    assert called == [strategy, again]
    np.testing.assert_allclose(J.to_numpy(), want.to_numpy(), rtol=1e-12)
    assert J.manifest is not None
    assert J.manifest.checks["blocks_recomputed"] == ["points 0:60, rows 0:7, columns 0:10"]
    # The naive way: without the check the wrong entry is in the dataset.
    unchecked = jacjobs.submit(problem(), tmp_path / "b", check="off", **options).result()
    assert not np.allclose(unchecked.to_numpy(), want.to_numpy(), rtol=1e-4)


def test_what_stays_wrong_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corrupting({"vjp/vmap", "vjp/loop"}, monkeypatch)
    with pytest.raises(
        CheckError, match=r"vjp/vmap and again by vjp/loop, differs .* of jvp/vmap by"
    ) as caught:
        jacjobs.submit(problem(), tmp_path / "a", strategy="vjp/vmap", check="all", address="inline").wait()
    assert caught.value.exit_code == 3
    assert not list((tmp_path / "a").glob("part-*"))


def test_a_wrong_forward_mode_rule_is_no_checker() -> None:
    case = CASES["custom Function, wrong jvp"]
    made = jacjobs.plan(jacjobs.Problem(case.fn, case.args), strategy="vjp/vmap")
    assert made.checked_by == "double-vjp/vmap"


def test_half_a_run_without_the_check_can_be_finished_with_other_options(tmp_path: Path) -> None:
    options = {"strategy": "vjp/vmap", "address": "inline"}
    jacjobs.submit(problem(), tmp_path / "a", **options).wait()
    run = jacjobs.submit(problem(), tmp_path / "a", check="off", **options)
    assert run.plan.checked_by is None
    assert run.wait()


def test_a_worker_says_what_it_found() -> None:
    made = jacjobs.plan(problem(), strategy="vjp/vmap")
    computed = worker.Worker(problem(), made).compute(BlockId(0, 0))
    assert computed.findings.checked == max(1, int(60 * 7 * 0.02))
    assert 0 < computed.findings.error < 1e-12
    assert not computed.findings.recomputed


def test_tensors_that_stayed_on_another_device_are_told_where_to_go(monkeypatch: pytest.MonkeyPatch) -> None:
    made = jacjobs.plan(problem(), strategy="vjp/vmap")

    def elsewhere(*_: object) -> None:
        raise RuntimeError("Expected all tensors to be on the same device, but found at least two devices")

    monkeypatch.setattr(worker, "compute_block", elsewhere)
    with pytest.raises(FunctionError, match=r"arguments are on cpu: make tensors where they are"):
        worker.Worker(problem(), made).compute(BlockId(0, 0))


@pytest.mark.parametrize(("share", "chunk"), [(2.0, 96), (1.0, 96), (0.9, 48), (0.4, 24), (0.0, 1)])
def test_a_smaller_device_begins_with_a_smaller_chunk(share: float, chunk: int) -> None:
    made = jacjobs.plan(problem(), strategy="vjp/vmap").model_copy(update={"chunk": 96})
    assert worker.chunk_within(made, made.chunk, made.peak_bytes * share) == chunk


def test_memory_that_runs_out_is_in_the_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The result is what it would have been, and what happened can be read."""
    options = {"strategy": "vjp/vmap", "chunk": 70, "address": "inline", "compression": "none"}
    want = jacjobs.submit(problem(), tmp_path / "good", **options).result()
    assert want.manifest is not None
    assert want.manifest.memory["retreats"] == []
    device = Device(limit=35, after=2)
    device.install(monkeypatch)
    J = jacjobs.submit(problem(), tmp_path / "a", **options).result()
    np.testing.assert_allclose(J.to_numpy(), want.to_numpy(), rtol=1e-13)
    assert len(device.failed) == 1
    assert sum(device.sizes) == 60 * 7
    assert J.manifest is not None
    (said,) = J.manifest.memory["retreats"]
    assert "out of memory with vjp/vmap, chunk 70; went on with vjp/vmap, chunk 35" in said


def test_a_product_that_does_not_fit_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Device(limit=0).install(monkeypatch)
    with pytest.raises(
        DeviceMemoryError, match=r"one product of vjp/\w+ does not fit .* predicted .* budget"
    ) as caught:
        jacjobs.submit(problem(), tmp_path / "a", strategy="vjp/vmap", address="inline").wait()
    assert caught.value.exit_code == 1
    assert not list((tmp_path / "a").glob("part-*"))


@pytest.mark.parametrize("budget", ["512MiB", "2GiB"])
def test_predicted_and_measured_memory_stand_side_by_side(budget: str, tmp_path: Path) -> None:
    """The budget is kept, as the kernel measures it."""
    W = randn(4000, 1000, seed=1)
    big = jacjobs.Problem(lambda x: torch.tanh(torch.tanh(W * x).sum(1)), (randn(1000, seed=2),))
    run = jacjobs.submit(big, tmp_path / "a", memory=budget, address="inline", strategy="jvp/repeat")
    memory = run.wait().memory
    assert memory["predicted_bytes"] <= memory["budget_bytes"]
    assert 0 < memory["measured_bytes"] <= memory["budget_bytes"]

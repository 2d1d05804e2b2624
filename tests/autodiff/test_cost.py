"""Cost models: memory followed from storage to storage, predicted against what the allocator says; work
counted.
"""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch

from jacjobs import Problem
from jacjobs.autodiff import meter
from jacjobs.autodiff.catalogue import STRATEGIES
from jacjobs.autodiff.estimate import Estimator, allocated, faked, probe
from jacjobs.autodiff.meter import AllocatedPeak, Meter, ResidentPeak, available_memory_bytes
from jacjobs.autodiff.seeds import OneHot
from jacjobs.shape import Rectangle

WEIGHTS = [torch.randn(256, 128), torch.randn(256, 256), torch.randn(128, 256)]
BATCHED = [name for name in STRATEGIES if not name.endswith("/loop")]


def network(x: torch.Tensor) -> torch.Tensor:
    for weight in WEIGHTS:
        x = torch.tanh(weight @ x)
    return x


PROBLEM = Problem(network, (torch.randn(128),))


def test_the_tracker_counts_storages_once_and_their_end() -> None:
    with Meter() as tracker:
        x = torch.zeros(1000)
        y = x.view(10, 100)[2:]
        assert tracker.live == 4000
        z = x + 1
        assert tracker.live == tracker.peak == 8000
        del x, z
        gc.collect()
        assert tracker.live == 4000, "a view keeps the storage"
        del y
        gc.collect()
        assert tracker.live == 0
        assert tracker.peak == 8000


@pytest.mark.parametrize("strategy", BATCHED)
def test_the_peak_falls_as_the_chunk_falls(strategy: str) -> None:
    peaks = [allocated(PROBLEM, STRATEGIES[strategy], 1, chunk) for chunk in (4, 16, 64)]
    assert peaks[0] < peaks[1] < peaks[2]
    growth = (peaks[2] - peaks[1]) / (64 - 16)
    assert growth > 128 * 4, "at least the product itself"
    assert peaks[1] - peaks[0] == pytest.approx(12 * growth, rel=0.2), "linear in the chunk"


@pytest.mark.parametrize("correct", [True, False])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_prediction_is_what_the_allocator_says(strategy: str, correct: bool) -> None:
    """With a device at hand to within 1%; from fakes alone, as for a device elsewhere, to within a fifth."""
    model = Estimator(PROBLEM, 1 << 30, correct=correct).model(strategy)
    chunk = 1 if strategy.endswith("/loop") else 100
    measured = allocated(PROBLEM, STRATEGIES[strategy], 1, chunk)
    assert model.peak_bytes(chunk) == pytest.approx(measured, rel=0.01 if correct else 0.2)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_fakes_take_what_real_tensors_take(strategy: str) -> None:
    maker, chunk = STRATEGIES[strategy], 1 if strategy.endswith("/loop") else 16
    real = probe(PROBLEM, maker, 1, chunk)
    with faked(PROBLEM) as fake:
        made = probe(fake, maker, 1, chunk)
    assert made.peak_bytes == pytest.approx(real.peak_bytes, rel=0.01)
    assert made.work.flops == pytest.approx(real.work.flops)
    # Without a device, torch takes some operators apart that it has whole on a CPU.
    assert made.work.moved_bytes == pytest.approx(real.work.moved_bytes, rel=0.5)


def test_work_is_counted() -> None:
    A, B = torch.randn(20, 30), torch.randn(30, 40)
    with Meter() as meter:
        (A @ B).view(-1)[3:].t()
    assert meter.work.calls == 1, "views are free"
    assert meter.work.flops == 2 * 20 * 30 * 40
    assert meter.work.moved_bytes == 4 * (20 * 30 + 30 * 40 + 20 * 40)


@pytest.mark.parametrize("strategy", BATCHED)
def test_work_grows_with_the_chunk(strategy: str) -> None:
    """Matrix products in proportion, calls of operators not at all: that is what batching is for."""
    model = Estimator(PROBLEM, 1 << 30).model(strategy)
    assert model.work(64).flops == pytest.approx(2 * model.work(32).flops, rel=0.05)
    assert model.work(64).calls == pytest.approx(model.work(8).calls, abs=1)


def test_a_prediction_allocates_nothing() -> None:
    """A terabyte is predicted on any machine."""
    problem = Problem(lambda x: torch.outer(torch.sin(x), x).sum(1), (torch.randn(500_000),))
    with AllocatedPeak() as peak:
        model = Estimator(problem, 8 << 30).model("vjp/vmap")
    assert model.peak_bytes(1) > 500_000**2 * 4
    assert peak.nbytes < 100 << 20


def test_whole_points_are_a_model_of_their_own() -> None:
    problem = Problem(network, (torch.randn(50, 128),), in_dims=0)
    model = Estimator(problem, 1 << 30).model("vjp/repeat")
    assert (model.step, model.most) == (128, 50 * 128)
    assert (model.rounded(300), model.rounded(100)) == (256, 0)
    measured = allocated(problem, STRATEGIES["vjp/repeat"], 128, 1280)
    assert model.peak_bytes(1280) == pytest.approx(measured, rel=0.02)


@pytest.mark.parametrize("points", [2, 3, 5])
def test_few_points_are_not_underestimated(points: int) -> None:
    problem = Problem(network, (torch.randn(points, 128),), in_dims=0)
    model = Estimator(problem, 1 << 30).model("vjp/repeat")
    chunk = model.rounded(points * 128)
    assert model.peak_bytes(chunk) >= 0.95 * allocated(problem, STRATEGIES["vjp/repeat"], 128, chunk)


def test_a_point_that_does_not_fit_whole_has_chunks_of_its_own() -> None:
    problem = Problem(network, (torch.randn(50, 128),), in_dims=0)
    model = Estimator(problem, 1 << 30, whole_points_bytes=100_000).model("vjp/repeat")
    assert (model.step, model.most) == (1, 128)


def test_a_function_that_reads_values_is_measured_on_real_chunks() -> None:
    problem = Problem(lambda x: network(x) * x.sum().item(), (torch.randn(128),))
    model = Estimator(problem, 1 << 30).model("vjp/vmap")
    measured = allocated(problem, STRATEGIES["vjp/vmap"], 1, 64)
    assert model.peak_bytes(64) == pytest.approx(measured, rel=0.02)


def test_what_the_kernel_says_of_a_process() -> None:
    with ResidentPeak() as peak:
        block = torch.ones(100 << 18)
        del block
    assert peak.nbytes is not None
    assert 90 << 20 < peak.nbytes < 130 << 20
    assert 0 < available_memory_bytes() < 1 << 50


def test_a_containers_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit, used = tmp_path / "memory.max", tmp_path / "memory.current"
    monkeypatch.setattr(meter, "_CGROUP_FILES", [(str(limit), str(used))])
    without = available_memory_bytes()
    limit.write_text("max\n")
    used.write_text("1000\n")
    assert available_memory_bytes() == pytest.approx(without, rel=0.2)
    limit.write_text("5000000\n")
    assert available_memory_bytes() == 4_999_000


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_graphs_of_finished_products_are_gone(strategy: str) -> None:
    """However many chunks there are, what lives between two of them stays the same."""
    maker = STRATEGIES[strategy]
    extent = (0, 64, 0, 128) if maker.makes == "rows" else (0, 128, 0, 64)
    between = []
    with Meter() as tracker:
        for made in maker.chunks(PROBLEM, Rectangle(0, 1, *extent), OneHot(128), 8):
            del made
            between.append(tracker.live)
    assert len(between) == (64 if strategy.endswith("/loop") else 8)
    assert max(between[1:-1]) == min(between[1:-1])
    assert tracker.live == 0, "the last chunk frees the graph"


def test_keeping_every_chunks_graph_would_be_noticed() -> None:
    """The naive way, `create_graph` for all rows, grows: the test above can fail."""
    maker = STRATEGIES["vjp/loop"]
    kept, between = [], []
    with Meter() as tracker:
        block = Rectangle(0, 1, 0, 64, 0, 128)
        for made in maker.chunks(PROBLEM, block, OneHot(128), 1, create_graph=True):
            kept.append(made)
            between.append(tracker.live)
    assert between[-2] > 4 * between[1]

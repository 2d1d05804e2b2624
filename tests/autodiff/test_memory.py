"""Memory, followed from storage to storage: what is predicted, and that it falls with the chunk."""

from __future__ import annotations

import gc

import pytest
import torch

from jacjobs import Problem
from jacjobs.autodiff.catalogue import STRATEGIES
from jacjobs.autodiff.memory import StorageTracker, first_chunk_peak, memory_model
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
    with StorageTracker() as tracker:
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
    peaks = [first_chunk_peak(PROBLEM, strategy, chunk) for chunk in (4, 16, 64)]
    assert peaks[0] < peaks[1] < peaks[2]
    growth = (peaks[2] - peaks[1]) / (64 - 16)
    assert growth > 128 * 4, "at least the product itself"
    assert peaks[1] - peaks[0] == pytest.approx(12 * growth, rel=0.2), "linear in the chunk"


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_prediction_on_fake_tensors_is_what_real_ones_take(strategy: str) -> None:
    model = memory_model(PROBLEM, strategy, 128)
    chunk = 1 if strategy.endswith("/loop") else 64
    assert model.peak(chunk) == pytest.approx(first_chunk_peak(PROBLEM, strategy, chunk), rel=0.02)


def test_a_prediction_allocates_nothing() -> None:
    """A terabyte is predicted on any machine."""
    problem = Problem(lambda x: torch.outer(torch.sin(x), x).sum(1), (torch.randn(500_000),))
    assert memory_model(problem, "vjp/vmap", 500_000).peak(1) > 500_000**2 * 4


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_graphs_of_finished_products_are_gone(strategy: str) -> None:
    """However many chunks there are, what lives between two of them stays the same."""
    maker = STRATEGIES[strategy]
    extent = (0, 64, 0, 128) if maker.makes == "rows" else (0, 128, 0, 64)
    between = []
    with StorageTracker() as tracker:
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
    with StorageTracker() as tracker:
        block = Rectangle(0, 1, 0, 64, 0, 128)
        for made in maker.chunks(PROBLEM, block, OneHot(128), 1, create_graph=True):
            kept.append(made)
            between.append(tracker.live)
    assert between[-2] > 4 * between[1]

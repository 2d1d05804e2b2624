"""What only a GPU can show. Skipped where there is none; benchmarks/gpu.py measures the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import jacrev, vmap

import jacjobs
from jacjobs import Problem
from jacjobs.autodiff import block
from jacjobs.autodiff.block import Pace, compute_block
from jacjobs.autodiff.catalogue import COMPILED, STRATEGIES, strategy_named
from jacjobs.autodiff.device import side_stream, tf32_as_wished
from jacjobs.autodiff.legality import try_strategies
from jacjobs.autodiff.strategy import seeds_of
from jacjobs.run.unpacking import unpack
from jacjobs.shape import Rectangle
from tests.functions import randn

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
W = randn(20, 18, seed=1)
POINTS = 5


def problem_of(device: str = "cuda") -> Problem:
    weights = W.clone()

    def fn(x: Tensor, y: Tensor) -> Tensor:
        return torch.tanh(weights @ torch.cat([x, y.sin()]))

    made = Problem(fn, (randn(POINTS, 10, seed=2), randn(POINTS, 8, seed=3)), argnums=(0, 1), in_dims=0)
    return made if device == "cpu" else on_gpu(made)


def on_gpu(problem: Problem) -> Problem:
    """With what its function captured."""
    moved: Problem = unpack(cloudpickle.dumps(problem), "cuda", from_host=True)
    return moved


def exact() -> NDArray[Any]:
    problem = problem_of("cpu")
    both = vmap(jacrev(problem.fn, argnums=(0, 1)))(*problem.leaves)
    return torch.cat(both, dim=2).numpy()


@pytest.mark.parametrize("small_bytes", [0, block.SMALL_BYTES])
@pytest.mark.parametrize("chunk", [1, 3, 20, 47])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_blocks_on_their_way_to_the_host_arrive_whole(
    strategy: str, chunk: int, small_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one chunk is copied the next is made: none may be written over before it is there."""
    monkeypatch.setattr(block, "SMALL_BYTES", small_bytes)
    with torch.cuda.stream(side_stream(torch.device("cuda", 0))):
        torch.cuda._sleep(20_000_000)  # the first copy begins when further chunks are being made
    problem, want = problem_of(), exact()
    whole = compute_block(problem, Pace(strategy, chunk), Rectangle(0, POINTS, 0, 20, 0, 18))
    np.testing.assert_allclose(whole, want, atol=1e-12)
    if strategy_named(strategy).makes == "rows":
        part, some = Rectangle(1, 3, 4, 11, 0, 18), want[1:3, 4:11]
    else:
        part, some = Rectangle(1, 3, 0, 20, 4, 11), want[1:3, :, 4:11]
    np.testing.assert_allclose(compute_block(problem, Pace(strategy, chunk), part), some, atol=1e-12)


@pytest.mark.parametrize("strategy", ["jvp/vmap", "jvp/repeat", "jvp/loop", "double-vjp/vmap"])
def test_numbers_of_the_host_meet_tangents(strategy: str) -> None:
    """Tensors without an axis may be on the host."""
    one, many = torch.ones((), dtype=torch.float64), torch.arange(10, device="cuda")

    def fn(x: Tensor) -> Tensor:
        return torch.cat([one - x, x + one, many - x, x * many * 2, (x + 1) / (one + many)])

    x = randn(10).cuda()
    J = jacjobs.jacobian(fn, strategy=strategy)(x)
    assert J.is_cuda
    torch.testing.assert_close(J, jacrev(fn)(x))


def test_entries_are_stored_in_another_dtype() -> None:
    made = compute_block(problem_of(), Pace("vjp/vmap", 3), Rectangle(0, POINTS, 0, 20, 0, 18), "float32")
    assert made.dtype == np.float32
    np.testing.assert_allclose(made, exact(), atol=1e-6)


def test_memory_that_runs_out_halves_the_chunk() -> None:
    """The device's own error, of a limit on this process; without the retreat it ends the block."""
    x = torch.randn(1 << 20, dtype=torch.float64, device="cuda")
    problem = Problem(lambda scale: torch.tanh(scale[:, None] * x).mean(1), (torch.ones(64).cuda(),))
    where = Rectangle(0, 1, 0, 64, 0, 64)
    maker = STRATEGIES["vjp/vmap"]
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + (8 << 30)) / total)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            list(maker.chunks(problem, where, seeds_of(maker, problem), 64))
        torch.cuda.empty_cache()
        pace = Pace("vjp/vmap", 64)
        made = compute_block(problem, pace, where)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert pace.chunk < 64
    assert "out of memory" in pace.retreats[0]
    slope = (x / torch.cosh(x) ** 2).mean().item()
    np.testing.assert_allclose(made[0], slope * np.eye(64), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_jacobian_stays_as_it_is_when_the_next_is_made(compiled: bool) -> None:
    """A CUDA graph writes where it wrote before."""
    weights = W.cuda()

    def network(x: Tensor) -> Tensor:
        return torch.tanh(weights @ x)

    xs = [randn(18, seed=seed).cuda() for seed in range(4)]
    of = jacjobs.jacobian(network, compile=compiled)
    made = [of(x) for x in xs]
    for x, J in zip(xs, made, strict=True):
        torch.testing.assert_close(J, jacrev(network)(x))
        assert J.is_cuda


@pytest.mark.parametrize("strategy", COMPILED)
def test_compiled_chunks_become_graphs_and_reach_the_host(strategy: str) -> None:
    from torch._dynamo.utils import counters  # torch's compiler takes a second to import

    problem, every = problem_of(), Rectangle(0, POINTS, 0, 20, 0, 18)
    pace, skipped = Pace(strategy, 7), counters["inductor"]["cudagraph_skips"]
    for _ in range(3):
        np.testing.assert_allclose(compute_block(problem, pace, every), exact(), atol=1e-12)
    assert not pace.retreats
    assert counters["inductor"]["cudagraph_skips"] == skipped


def test_convolutions_are_not_rounded_unless_they_may_be() -> None:
    """By default torch rounds their factors to ten bits; strategies are then held to as many digits."""
    layers = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Tanh(), nn.Conv2d(16, 4, 3)).requires_grad_(False)
    image = torch.randn(3, 12, 12)
    problem = on_gpu(Problem(lambda image: layers(image[None])[0], (image,)))
    where = Rectangle(0, 1, 0, 256, 0, 432)
    layers.double()
    want = jacrev(lambda image: layers(image[None])[0])(image.double()).reshape(1, 256, 432).numpy()
    off = {}
    for allowed in (False, True):
        problem.tf32 = allowed
        with tf32_as_wished(problem):
            assert problem.precision is (torch.float16 if allowed else torch.float32)
            made = compute_block(problem, Pace("vjp/vmap", 64), where)
            assert all(verdict.reason is None for verdict in try_strategies(problem, STRATEGIES).values())
        off[allowed] = np.abs(made - want).max() / np.abs(want).max()
    assert off[False] < 1e-5 < off[True] < 1e-2


def test_a_job_in_this_process_computes_where_its_tensors_are(tmp_path: Path) -> None:
    run = jacjobs.submit(problem_of(), tmp_path / "run", address="inline", workers=1)
    manifest = run.wait()
    assert run.plan.resources.device.name == torch.cuda.get_device_name()
    np.testing.assert_allclose(run.result().to_numpy(), exact(), atol=1e-12)
    assert manifest.memory["measured_bytes"] > 0


@pytest.mark.ray
def test_a_job_takes_what_its_function_captured_to_the_gpu(tmp_path: Path) -> None:
    """The weights are on the host when the job is submitted."""
    pytest.importorskip("ray")
    run = jacjobs.submit(problem_of("cpu"), tmp_path / "run", workers=1)
    run.wait()
    assert run.plan.resources.device.name == torch.cuda.get_device_name()
    np.testing.assert_allclose(run.result().to_numpy(), exact(), atol=1e-12)

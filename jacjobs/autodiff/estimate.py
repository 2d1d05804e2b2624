"""What each strategy costs on a function: cost models, from running it on a few small chunks.

Two sources, and they correct each other. On fake tensors nothing is computed and any chunk can be looked at,
but what an operator allocates inside itself stays hidden, and in forward mode torch writes in place what it
copies under a dispatch mode. On real tensors a tiny chunk shows both. So memory is predicted as the fakes'
growth, corrected by the ratio of the two at tiny chunks. Fakes cost a millisecond an operator, whatever its
size: a function whose real chunks take no longer is metered on those alone, and one of few large operators is
never run before it is known to fit.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from jacjobs.autodiff.catalogue import COMPILED, STRATEGIES, eager_name
from jacjobs.autodiff.device import device_of
from jacjobs.autodiff.meter import AllocatedPeak, Meter
from jacjobs.autodiff.strategy import Strategy, corner, count_products, seeds_of
from jacjobs.cost import CostModel, Probe, Work
from jacjobs.problem import Problem

TINY, SMALL, LARGE = 2, 4, 256
"""Chunks that are looked at, in products (or whole points): the first two on real tensors too."""
CHEAP_BYTES, CHEAP_FLOPS = 64 << 20, 1e9
"""Real chunks of size `LARGE` are looked at where their forward passes take no more."""
FEW_CALLS = 200
"""A function of more operators than this is metered on real tensors anyway, of smaller chunks."""
MANY_CALLS, SMALL_CALL_BYTES, SMALL_CALL_FLOPS = 1000, 16 << 10, 1e5
"""An operator that moves and computes no more takes about as long as it takes to call it, on one core."""
LARGE_REAL = 32
SAFETY = 12
"""No strategy takes more memory a product than so many forward passes, with what goes in and what comes
out."""
WHOLE_POINTS = 1024
"""A point of more products than this has chunks of its own."""


@dataclass(frozen=True)
class Forward:
    """One call of the function: bytes at the peak, the graph included, and its work."""

    peak_bytes: int
    work: Work


class Estimator:
    """Makes cost models for one problem.

    budget_bytes:        no real chunk is run that might take more.
    whole_points_bytes:  a point whose products take more, all at once, has chunks of its own; default: the
                         budget.
    correct:             whether a device is at hand that the plan is for: else predictions stay those of
                         fakes.
    """

    def __init__(
        self,
        problem: Problem,
        budget_bytes: int,
        *,
        whole_points_bytes: int | None = None,
        correct: bool = True,
    ) -> None:
        self._problem = problem
        self._budget_bytes = budget_bytes
        self._whole_points_bytes = budget_bytes if whole_points_bytes is None else whole_points_bytes
        self._correct = correct

    @functools.cached_property
    def forward(self) -> Forward:
        return _forward(self._problem)

    def safe(self, products: int) -> bool:
        """May `products` real ones be made at once without a closer look?"""
        shape = self._problem.shape
        each = self.forward.peak_bytes + shape.row_bytes + shape.column_bytes
        return SAFETY * products * each <= self._budget_bytes

    @property
    def call_bound(self) -> bool:
        """Whether what costs is calling the function's operators: they are many, and each does little."""
        work = self.forward.work
        little = (
            work.moved_bytes <= SMALL_CALL_BYTES * work.calls and work.flops <= SMALL_CALL_FLOPS * work.calls
        )
        return work.calls > MANY_CALLS and little

    def _cheap(self, products: int) -> bool:
        few_calls = self.forward.work.calls <= FEW_CALLS
        small = self.forward.peak_bytes * products <= CHEAP_BYTES
        return few_calls and small and self.forward.work.flops * products <= CHEAP_FLOPS

    def model(self, strategy: str) -> CostModel:
        """Raises what the function raises under this strategy. A compiled one is taken for what it
        compiles; on a GPU the graph keeps what it returns, beside a copy.
        """
        if strategy in COMPILED:
            model = self.model(eager_name(strategy)).model_copy(update={"strategy": strategy})
            if device_of(self._problem).type != "cuda":
                return model
            by_rows = COMPILED[strategy].makes == "rows"
            kept = 2 * self._problem.shape.product_bytes(by_rows=by_rows)
            return model.model_copy(update={"product_bytes": model.product_bytes + kept})
        maker = STRATEGIES[strategy]
        shape = self._problem.shape
        products = count_products(maker, self._problem)
        if maker.batching == "loop":
            return self._through(maker, step=1, most=1)
        if shape.points > 1 and products <= WHOLE_POINTS:
            whole = self._through(maker, step=products, most=shape.points * products)
            if whole.step == 1 or whole.peak_bytes(products) <= self._whole_points_bytes:
                return whole
        return self._through(maker, step=1, most=products)

    def _through(self, maker: Strategy, step: int, most: int) -> CostModel:
        large = max(min(LARGE, most), SMALL * step)
        if self.safe(large) and self._cheap(large):
            return self._on_real(maker, step, most, large)
        if self.forward.work.calls > FEW_CALLS and self.safe(SMALL * step):
            return self._on_real(maker, step, most, LARGE_REAL)
        sizes = sorted({step * _within(size, most // step) for size in (TINY, SMALL, LARGE // step)})
        try:
            with faked(self._problem) as fake:
                probes = [probe(fake, maker, step, size) for size in sizes]
        except Exception:  # it reads values, or fakes do not have an operator: real data tells
            if step > 1 and not self.safe(step):
                return self._through(maker, 1, step)
            return self._on_real(maker, step, most, SMALL)
        model = CostModel.through(
            maker.name, step, most, probes[-2] if len(probes) > 1 else probes[0], probes[-1]
        )
        if self._correct and self.safe(sizes[min(1, len(sizes) - 1)]):
            return self._corrected(model, maker, probes[:2])
        return model

    def _on_real(self, maker: Strategy, step: int, most: int, large: int) -> CostModel:
        """The line through a tiny chunk and one of `large` products, or of as many as are safe."""
        while large > SMALL * step and not self.safe(large):
            large //= 2
        units = (TINY, max(SMALL, large // step)) if self.safe(SMALL * step) else (1,)
        sizes = sorted({step * _within(size, most // step) for size in units})
        probes = [probe(self._problem, maker, step, size) for size in sizes]
        if self._correct:
            probes = [
                p.model_copy(update={"peak_bytes": allocated(self._problem, maker, step, p.chunk)})
                for p in probes
            ]
        return CostModel.through(maker.name, step, most, probes[0], probes[-1])

    def _corrected(self, model: CostModel, maker: Strategy, tiny: list[Probe]) -> CostModel:
        """The fakes' line moved to go through what tiny real chunks allocate, and bent by their growth."""
        peaks = [allocated(self._problem, maker, model.step, p.chunk) for p in tiny]
        slope = model.product_bytes
        if len(tiny) == 1:
            slope = peaks[0] / tiny[0].chunk
        elif (growth := tiny[1].peak_bytes - tiny[0].peak_bytes) > 0 and peaks[1] > peaks[0]:
            slope *= (peaks[1] - peaks[0]) / growth
        return model.model_copy(
            update={
                "product_bytes": slope,
                "fixed_bytes": max(0, round(peaks[-1] - slope * tiny[-1].chunk)),
            }
        )


def probe(problem: Problem, maker: Strategy, step: int, chunk: int) -> Probe:
    """Make a chunk, or two that share a graph, and count what they take. Real tensors or fake ones."""
    fakes = any(isinstance(leaf, FakeTensor) for leaf in problem.leaves)
    marks = []
    with Meter(fakes=fakes) as meter:
        for _ in _chunks(problem, maker, step, chunk):
            marks.append(meter.work)
    one = marks[1] - marks[0] if len(marks) > 1 else marks[0]
    return Probe(chunk=chunk, peak_bytes=meter.peak, setup=marks[0] - one, work=one)


def allocated(problem: Problem, maker: Strategy, step: int, chunk: int) -> int:
    """Peak bytes of the allocator while real chunks are made: those of `probe`."""
    with AllocatedPeak(device_of(problem)) as peak:
        for _ in _chunks(problem, maker, step, chunk):
            pass
    return peak.nbytes


@contextmanager
def faked(problem: Problem) -> Iterator[Problem]:
    """The same problem on fake tensors."""
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        leaves = [mode.from_tensor(x.detach()) if isinstance(x, Tensor) else x for x in problem.leaves]
        yield problem.with_leaves(leaves)


def _chunks(problem: Problem, maker: Strategy, step: int, chunk: int) -> Iterator[None]:
    """The first chunk: of one point, or (`step` > 1 or single products) of whole points. And the second, if
    they share a graph: what is made once for both shows in the first alone. Nothing is kept.
    """
    products = count_products(maker, problem)
    share = step == 1 and maker.shares_graph
    some = (2 if share else 1) * chunk
    block = corner(maker, problem, some // products if chunk >= products else 1, some)
    for made in maker.chunks(problem, block, seeds_of(maker, problem), chunk):
        del made
        yield


def _within(size: int, available: int) -> int:
    """As many as can be had twice, so that a second chunk shows what is once and what is each time."""
    return max(1, min(size, available // 2))


def _forward(problem: Problem) -> Forward:
    def run(of: Problem) -> Forward:
        with Meter(fakes=of is not problem) as meter:
            leaves = of.at_point(0)
            for index in of.wanted:
                leaves[index] = leaves[index].detach().requires_grad_()
            outputs = of.call_one(leaves)
            del outputs
        return Forward(meter.peak, meter.work)

    try:
        with faked(problem) as fake:
            return run(fake)
    except Exception:
        return run(problem)

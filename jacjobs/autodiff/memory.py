"""Memory that a strategy takes: storages followed from birth to death, on real tensors or on fake ones.

Peak memory is modelled as `fixed + per_product · chunk`. Under `FakeTensorMode` nothing is allocated and no
device is needed. What an operator allocates and frees inside itself is not seen; nor is what the function
captured, which is there before the first product.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from jacjobs.autodiff.catalogue import STRATEGIES
from jacjobs.autodiff.seeds import OneHot
from jacjobs.problem import Problem
from jacjobs.shape import Rectangle


class StorageTracker(TorchDispatchMode):
    """Bytes of the storages made while it is active: `live` now, and the `peak`.

    It counts real storages, or, with `fakes`, those that fake tensors pretend to have.
    """

    def __init__(self, *, fakes: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._fakes = fakes
        self.live = 0
        self.peak = 0
        self._known: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        results = result if isinstance(result, tuple | list) else (result,)
        for value, returned in zip(results, func._schema.returns, strict=False):
            # A view is no birth, not even that of what was captured and only now became a fake tensor.
            if returned.alias_info is None:
                for leaf in pytree.tree_leaves(value):
                    if isinstance(leaf, Tensor):
                        self._born(leaf)
        return result

    def _born(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        pretended = storage.device.type == "meta"
        if key in self._known or pretended != self._fakes or tensor.is_meta:
            return
        size = storage.nbytes()
        self._known[key] = weakref.finalize(storage, self._died, key, size)
        self.live += size
        self.peak = max(self.peak, self.live)

    def _died(self, key: int, size: int) -> None:
        del self._known[key]
        self.live -= size


@dataclass(frozen=True)
class MemoryModel:
    """Peak bytes of a strategy: `fixed + per_product · chunk`."""

    fixed: int
    per_product: int

    def peak(self, chunk: int) -> int:
        return self.fixed + self.per_product * chunk

    def largest_chunk(self, budget: int) -> int:
        """The largest chunk whose peak is within `budget` bytes; 0 or less if not even one product is."""
        if self.per_product == 0:
            return int(self.fixed <= budget)
        return (budget - self.fixed) // self.per_product


def memory_model(problem: Problem, strategy: str, products: int) -> MemoryModel:
    """Predict a strategy's memory at one point from its peak at two chunks of at most `products`.

    Nothing is computed, unless the function does not run on fake tensors: then it is measured on two small
    chunks of real data. Raises what the function raises.
    """
    if products < 2 or strategy.endswith("/loop"):
        return MemoryModel(_predicted(problem, strategy, (1,))[0], 0)
    small, large = max(1, min(8, products // 2)), min(16, products)
    low, high = _predicted(problem, strategy, (small, large))
    growth = max(0, -(-(high - low) // (large - small)))
    return MemoryModel(max(0, low - growth * small), growth)


def _predicted(problem: Problem, strategy: str, chunks: tuple[int, ...]) -> list[int]:
    try:
        with _faked(problem) as fake:
            return [first_chunk_peak(fake, strategy, chunk) for chunk in chunks]
    except Exception:  # the function reads values; real data will do, or tell what is wrong
        return [first_chunk_peak(problem, strategy, chunk) for chunk in chunks]


@contextmanager
def _faked(problem: Problem) -> Iterator[Problem]:
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        leaves = [mode.from_tensor(x.detach()) if isinstance(x, Tensor) else x for x in problem.leaves]
        yield problem.with_leaves(leaves)


def first_chunk_peak(problem: Problem, strategy: str, chunk: int) -> int:
    """Peak bytes while the first chunk at the first point is made, and then the next in its place."""
    shape = problem.shape
    maker = STRATEGIES[strategy]
    count = min(2 * chunk, shape.rows if maker.makes == "rows" else shape.columns)
    extent = (0, count, 0, shape.columns) if maker.makes == "rows" else (0, shape.rows, 0, count)
    seeds = OneHot(shape.rows if maker.makes == "rows" else shape.columns)
    fakes = any(isinstance(leaf, FakeTensor) for leaf in problem.leaves)
    with StorageTracker(fakes=fakes) as tracker:
        for made in maker.chunks(problem, Rectangle(0, 1, *extent), seeds, chunk):
            del made
    peak: int = tracker.peak
    return peak

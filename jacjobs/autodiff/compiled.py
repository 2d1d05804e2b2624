"""Batched products whose chunks are compiled: one call of generated code a chunk, pointwise operators fused.

What vjp/vmap and jvp/vmap compute, by `torch.compile` (J. Ansel et al., "PyTorch 2: Faster machine learning
through dynamic Python bytecode transformation and graph compilation", ASPLOS 2024). A chunk is a function of
a point's leaves and of seeds: it makes the forward pass again, so that nothing but tensors of fixed sizes
goes in and comes out.

Compiling takes seconds to a minute for each size of a chunk, so all chunks have one size: where products are
left over, some are made twice. The first chunk of each size is also made by the plain strategy, and compared.
Where a function cannot be compiled, or values differ by more than rounding, all chunks are plain.
"""

from __future__ import annotations

import re
import threading
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

from jacjobs.autodiff.device import device_of
from jacjobs.autodiff.forward import JvpVmap
from jacjobs.autodiff.graph import of_wanted
from jacjobs.autodiff.reverse import VjpVmap
from jacjobs.autodiff.seeds import AllOneHot, OneHot, SeedMaker, make
from jacjobs.autodiff.strategy import (
    Chunk,
    Strategy,
    count_products,
    flat,
    point_groups,
    product_ranges,
    products_between,
    products_of,
)
from jacjobs.autodiff.words import explain, is_out_of_memory, tolerance
from jacjobs.problem import ALONE, Problem
from jacjobs.shape import Rectangle

Products = Callable[[Sequence[Any], list[Tensor] | None, bool], list[Tensor]]
"""Of leaves, with an axis of points or without, and seeds (k, …): (points, k, …) a leaf, or (k, …). Without
seeds they are all one-hot ones: code that knows is spared some of the work (`passes.py`)."""
WholeMaker = Callable[[Sequence[Any]], list[Tensor] | None]
"""Of leaves: (points, products, …) a leaf; None where the code turned out to be of no use."""
GRAPH_CALLS = 3
"""Of code that becomes a CUDA graph: the first call runs it, the second records it, the third is a replay."""
KERNEL_ARGUMENTS = 32
"""Of a kernel on a CPU, where a chunk is a long chain of them: docs/decisions/0038."""
_COMPILING = threading.RLock()
_DEFINED_ONCE = "__builtins_dict__", "__import_torch_dot_", "__import_jacjobs_dot_"
"""What the names of such modules begin with, where a guard names one."""


@dataclass
class Code:
    """What was compiled for a problem.

    products:  a chunk as it is written, to be compiled.
    reason:    why that is of no use; None while it is.
    told:      whether somebody was told the reason.
    sizes:     compiled for chunks of so many points and products, with seeds or without, and compared.
    """

    products: Products
    reason: str | None = None
    told: bool = False
    sizes: dict[tuple[int, int, bool], Products] = field(default_factory=dict)


class Compiled(Strategy):
    """Chunks of the strategy `eager`, compiled. Those with fewer points than the others, at the end, are
    not.
    """

    batching = "compiled"
    eager: ClassVar[Strategy]

    def chunks(
        self,
        problem: Problem,
        block: Rectangle,
        seeds: SeedMaker,
        chunk: int,
        *,
        create_graph: bool = False,
    ) -> Iterator[Chunk]:
        code = self.code(problem)
        if code.reason is not None or create_graph:  # in one piece, whose chunks may share a graph
            yield from self.eager.chunks(problem, block, seeds, chunk, create_graph=create_graph)
            return
        count = count_products(self, problem)
        begin, end = products_of(self, block)
        most_points = min(block.points, max(1, chunk // (end - begin)))
        for start, stop in point_groups(block, end - begin, chunk):
            for first, last in product_ranges(begin, end, chunk):
                size = min(chunk, end - begin)
                # The last products are made with some before them, for the size's sake.
                before = first - min(first, count - size)
                part = products_between(
                    self, problem.shape, (start, stop), (first - before, first - before + size)
                )
                made = None
                if stop - start == most_points:
                    made = self._made(problem, code, part, seeds)
                if made is None:
                    part = products_between(self, problem.shape, (start, stop), (first, last))
                    yield from self.eager.chunks(problem, part, seeds, chunk)
                    continue
                if last - first < size:
                    made = [leaf[:, before : before + last - first] for leaf in made]
                yield Chunk(slice(start, stop), slice(first, last), made)
                del made

    def all_at_once(self, problem: Problem) -> WholeMaker | None:
        """What makes all of J as its one chunk has it, where code for that is there and was compared; else
        None. What surrounds a call of small code takes as long as the code: docs/decisions/0033.
        """
        code, points = self.code(problem), problem.points
        compiled = code.sizes.get((points, count_products(self, problem), False))
        if compiled is None or (points == 1 and problem.in_dims is not None):
            return None

        def made(leaves: Sequence[Any]) -> list[Tensor] | None:
            if code.reason is not None:
                return None
            return self._called(code, compiled, leaves, None, several=points > 1)

        return made

    def code(self, problem: Problem) -> Code:
        """Of this problem, and of all that differ from it in the values of leaves alone."""
        if self.name not in problem.kept:
            _ = problem.shape  # found out while it has its leaves
            products = self._products(problem.with_leaves([]))
            reason = None if problem.seed is None else "random operations, with a seed of their own"
            problem.kept[self.name] = Code(products, reason)
        code: Code = problem.kept[self.name]
        return code

    def forget(self, problem: Problem, but: int = 0) -> None:
        """What was compiled, with the memory that its graphs hold on a GPU, `but` for chunks of so many
        products.
        """
        sizes = self.code(problem).sizes
        kept = max(
            (points * products for points, products, _ in sizes if points * products <= but), default=0
        )
        for size in [size for size in sizes if size[0] * size[1] != kept]:
            del sizes[size]

    def news(self, problem: Problem) -> str | None:
        """Why chunks are plain after all; once."""
        code = self.code(problem)
        if code.reason is None or code.told:
            return None
        code.told = True
        return f"{self.name} goes on as {self.eager.name}: {code.reason}"

    def _made(self, problem: Problem, code: Code, part: Rectangle, seeds: SeedMaker) -> list[Tensor] | None:
        """(points, products, *shape of leaf) a leaf; None where the code is of no use."""
        if code.reason is not None:
            return None
        several = part.points > 1
        between = part.point_start, part.point_stop
        leaves = problem.at_points(*between) if several else problem.at_point(part.point_start)
        first, last = products_of(self, part)
        drawn = None
        if not isinstance(seeds, OneHot) or last - first < seeds.size:
            drawn = make(seeds, first, last, self._like(problem, leaves, several))
        size = part.points, last - first, drawn is not None
        if size in code.sizes:
            return self._called(code, code.sizes[size], leaves, drawn, several)
        as_graph = device_of(problem).type == "cuda"
        compiled = _compile(code.products, forward=self.makes == "columns", as_graph=as_graph)
        made = None
        with warnings.catch_warnings(action="ignore"), _in_short_kernels():
            for _ in range(GRAPH_CALLS if as_graph else 1):
                made = self._called(code, compiled, leaves, drawn, several)
                if made is None:
                    break
        if made is not None:
            code.sizes[size] = compiled
            code.reason = self._difference(problem, made, part, seeds)
        return made if code.reason is None else None

    def _called(
        self, code: Code, compiled: Products, leaves: Sequence[Any], seeds: list[Tensor] | None, several: bool
    ) -> list[Tensor] | None:
        """What `compiled` returns, with an axis of points; None where it failed."""
        # Of their own, so that none is taken for a tensor that the function has captured.
        leaves = [leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        of_torch: Any = torch._C._autograd
        hooks = of_torch._saved_tensors_hooks_is_enabled()
        try:
            with torch.no_grad():
                made = compiled(leaves, seeds, several)
                if made[0].is_cuda:  # the next replay of the graph writes where this one did
                    made = [leaf.clone() for leaf in made]
        except Exception as error:
            if is_out_of_memory(error):
                raise
            code.reason = explain(error)
            if self.makes == "columns":
                _leave_dual_level()
            return None
        finally:
            # Where compiling a function with saved-tensor hooks fails, torch (2.13) leaves them disabled.
            if hooks and not of_torch._saved_tensors_hooks_is_enabled():
                of_torch._saved_tensors_hooks_enable()
        return made if several else [leaf.unsqueeze(0) for leaf in made]

    def _difference(
        self, problem: Problem, made: list[Tensor], part: Rectangle, seeds: SeedMaker
    ) -> str | None:
        """How far the compiled products are from the plain ones; None if that is rounding."""
        first, last = products_of(self, part)
        for plain in self.eager.chunks(problem, part, seeds, part.points * (last - first)):
            points = slice(plain.points.start - part.point_start, plain.points.stop - part.point_start)
            products = slice(plain.products.start - first, plain.products.stop - first)
            for leaf, want in zip(made, plain.leaves, strict=True):
                got, want = flat(leaf)[points, products], flat(want)
                finite = torch.isfinite(want)
                error = torch.where(finite, got - want, 0).abs().max()
                scale = torch.where(finite, want, 0).abs().max()
                if not bool(error <= tolerance(problem.precision) * scale):
                    return f"compiled, its products differ from those of {self.eager.name}"
        return None

    def _at_points(
        self, problem: Problem, at_point: Callable[[Sequence[Any], list[Tensor]], list[Tensor]]
    ) -> Products:
        in_dims = tuple(0 if carried else None for carried in problem.carried)
        count = count_products(self, problem)

        def products(leaves: Sequence[Any], seeds: list[Tensor] | None, several: bool) -> list[Tensor]:
            if seeds is None:
                seeds = make(AllOneHot(count), 0, count, self._like(problem, leaves, several))
            if not several:
                return at_point(leaves, seeds)
            made: list[Tensor] = torch.func.vmap(lambda *point: at_point(point, seeds), in_dims=in_dims)(
                *leaves
            )
            return made

        return products

    @abstractmethod
    def _like(self, problem: Problem, leaves: Sequence[Any], several: bool) -> list[Tensor]:
        """Tensors as a point's seeds are."""

    @abstractmethod
    def _products(self, problem: Problem) -> Products:
        """A chunk, as it is written."""


class VjpCompiled(Compiled):
    """Compiled chunks of rows. Cost: ⌈m/k⌉ forward and m backward passes a point, in fused code."""

    product = "vjp"
    eager = VjpVmap()

    def _like(self, problem: Problem, leaves: Sequence[Any], several: bool) -> list[Tensor]:
        segments = zip(problem.shape.outputs, problem.output_dtypes, strict=True)
        device = leaves[problem.wanted[0]].device
        return [torch.empty(s.shape, dtype=dtype, device=device) for s, dtype in segments]

    def _products(self, problem: Problem) -> Products:
        def at_point(leaves: Sequence[Any], seeds: list[Tensor]) -> list[Tensor]:
            outputs, inputs = of_wanted(problem, leaves)
            pull_back = torch.func.vjp(outputs, *inputs)[1]
            return list(torch.func.vmap(pull_back)(seeds))

        return self._at_points(problem, at_point)


class JvpCompiled(Compiled):
    """Compiled chunks of columns. Cost: ⌈n/k⌉ passes of values and n of tangents a point, in fused code."""

    product = "jvp"
    eager = JvpVmap()

    def _like(self, problem: Problem, leaves: Sequence[Any], several: bool) -> list[Tensor]:
        return [leaves[i][0] if several and problem.carried[i] else leaves[i] for i in problem.wanted]

    def _products(self, problem: Problem) -> Products:
        def at_point(leaves: Sequence[Any], seeds: list[Tensor]) -> list[Tensor]:
            outputs, primals = of_wanted(problem, leaves)

            def column(*tangents: Tensor) -> list[Tensor]:
                made: list[Tensor] = torch.func.jvp(outputs, primals, tangents)[1]
                return made

            return list(torch.func.vmap(column)(*seeds))

        return self._at_points(problem, at_point)


def _compile(products: Products, *, forward: bool, as_graph: bool) -> Products:
    """Under a code object of its own: torch keeps no more than eight variants of one.

    forward:   whether seeds are tangents.
    as_graph:  on a GPU, what the code asks for is recorded as a CUDA graph, and replayed: kernels of small
               chunks take less time than asking for each of them.
               https://docs.pytorch.org/docs/stable/user_guide/torch_compiler/torch.compiler_cudagraph_trees.html
    """
    from jacjobs.autodiff.passes import ChunkPass  # torch's compiler takes a second to import

    code = products.__code__.replace()
    own = FunctionType(code, products.__globals__, code.co_name, None, products.__closure__)
    options: dict[str, Any] = {
        "post_grad_custom_post_pass": ChunkPass(forward=forward),
        "keep_output_stride": False,
        "guard_filter_fn": _watched,
        "triton.cudagraphs": as_graph,
    }
    compiled: Products = torch.compile(own, fullgraph=True, dynamic=False, options=options)
    return compiled


@contextmanager
def _in_short_kernels() -> Iterator[None]:
    """What is compiled meanwhile for a CPU has no more than `KERNEL_ARGUMENTS` tensors a kernel.

    torch puts all loops between two matrix products into one kernel, of up to 500, and what they write is
    kept until it returns: 20 MB for 40 steps of a simulation, whose pages the system makes anew each time.
    """
    from torch._inductor.codegen.cpp import CppScheduling  # it takes a second to import

    with _COMPILING:
        before = CppScheduling.MAX_FUSED_KERNEL_ARGS_NUM
        CppScheduling.MAX_FUSED_KERNEL_ARGS_NUM = KERNEL_ARGUMENTS
        try:
            yield
        finally:
            CppScheduling.MAX_FUSED_KERNEL_ARGS_NUM = before


def _leave_dual_level() -> None:
    """Where compiling forward mode fails, torch (2.13) leaves its level of dual numbers entered, and no
    forward mode works any more.
    """
    of_torch: Any = torch._C
    with ALONE:
        if forward_ad._current_level < 0:  # else it is the caller's
            with suppress(RuntimeError):
                of_torch._enter_dual_level()
            of_torch._exit_dual_level(level=0)


def _watched(guards: Sequence[Any]) -> list[bool]:
    """Which of torch's guards are looked at before each call of what was compiled.

    A guard is of something that the code was made for: leaves, what the user's function reads, torch's modes.
    What torch and jacjobs define does not change, but looking at all of it takes a third of a millisecond.
    """
    return [_may_change(guard.orig_guard.name) for guard in guards]


def _may_change(source: str) -> bool:
    """May what code can read at `source` be something else at the next call?"""
    root = re.search(r"\b(L|G)\['(\w+)'\]", source)
    if root is None:  # a mode, which has no name, or torch itself
        return not source
    scope, name = root.groups()
    if scope == "L":  # of `Compiled._at_points`; the user's function is an attribute of the problem
        return name in ("leaves", "seeds") or re.search(r"\bfn\b", source) is not None
    return name not in _OURS and not name.startswith(_DEFINED_ONCE)


_OURS = frozenset(globals())  # torch will add the modules that it reads

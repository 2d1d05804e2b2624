"""`jacjobs.jacobian`: the whole Jacobian in this process, a drop-in for `torch.func.jacrev`.

The same nested result, by whichever of the nine strategies the function supports, in chunks that fit a
budget.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from jacjobs.autodiff.catalogue import STRATEGIES, in_order_of_preference
from jacjobs.autodiff.estimate import Estimator, device_of
from jacjobs.autodiff.legality import REFERENCE, explain, try_strategies
from jacjobs.autodiff.meter import available_memory_bytes
from jacjobs.autodiff.seeds import OneHot
from jacjobs.autodiff.strategy import Strategy, count_products
from jacjobs.cost import CostModel, parse_bytes
from jacjobs.errors import InputError
from jacjobs.functions import inside_transform
from jacjobs.problem import Problem, function_error
from jacjobs.shape import JacobianShape, Rectangle

LARGEST_CHUNK = 1024
"""An automatic chunk is no larger: throughput has stopped growing long before."""


def jacobian(
    fn: Callable[..., Any],
    argnums: int | Sequence[int] = 0,
    *,
    strategy: str = "auto",
    chunk: int | str = "auto",
    memory: float | int | str | None = None,
    create_graph: bool = False,
) -> Callable[..., Any]:
    """A function that returns the Jacobian of `fn`, with the structure that `torch.func.jacrev` returns.

    fn:            takes tensors or pytrees of them, returns a pytree of floating-point tensors.
    argnums:       which arguments are differentiated, as in jacrev.
    strategy:      one of the nine, or auto: the first, in the order of expected speed, that `fn` supports and
                   that fits the memory.
    chunk:         how many products are made at once, or auto: as many as fit, at most 1,024.
    memory:        what the products in the making may take beside the result: bytes, "8GiB", or a fraction
                   of what is free now. Default: half of a CPU's, 0.9 of a GPU's.
    create_graph:  the result can be differentiated again, with respect to arguments that require a
                   gradient and to what `fn` captured.

    The result holds one tensor for each pair of an output leaf and an input leaf, of shape
    (*output shape, *input shape), in the dtype of the input and on its device.

    The choice is made on the first call and kept for further ones with arguments of the same structure,
    shapes and dtypes. Inside a transform of torch.func (vmap, grad, …) it is `torch.func.jacrev` that runs.

    Raises InputError for arguments that do not fit, FunctionError where `fn` raises whatever the strategy,
    MemoryError where one product of the leanest strategy does not fit.
    """

    known: dict[Any, tuple[Problem, str, int]] = {}

    def of(*args: Any) -> Any:
        if inside_transform():
            numbers = argnums if isinstance(argnums, int) else tuple(argnums)
            return torch.func.jacrev(fn, numbers)(*args)
        args = pytree.tree_map(_ordinary, args)
        signature = _signature(args)
        if signature not in known:
            problem = Problem(fn, args, argnums)
            name, size = _choose(problem, strategy, chunk, memory)
            known[signature] = problem.with_leaves([]), name, size  # what the arguments hold is not kept
        of_this_kind, name, size = known[signature]
        problem = of_this_kind.with_leaves(pytree.tree_leaves(args))
        with torch.inference_mode(False):
            return _computed(problem, STRATEGIES[name], size, create_graph, argnums, args)

    return of


def _ordinary(leaf: Any) -> Any:
    """A tensor made in inference mode takes part in no graph; a copy does."""
    if isinstance(leaf, Tensor) and leaf.is_inference():
        with torch.inference_mode(False):
            return leaf.clone()
    return leaf


def _signature(args: tuple[Any, ...]) -> Any:
    """What the choice of a strategy may depend on, short of the values."""
    leaves, spec = pytree.tree_flatten(args)
    kinds = [(x.shape, x.dtype, x.device) if isinstance(x, Tensor) else repr(x) for x in leaves]
    return spec, tuple(kinds)


def _computed(
    problem: Problem, maker: Strategy, chunk: int, create_graph: bool, argnums: Any, args: Sequence[Any]
) -> Any:
    chunks = _chunks(problem, maker, chunk, create_graph)
    products = _assembled(problem, maker, chunks, create_graph)
    grid = _nested(products, by_rows=maker.makes == "rows", shape=problem.shape)
    return _as_jacrev(grid, problem, argnums, args)


def _choose(problem: Problem, strategy: str, chunk: int | str, memory: Any) -> tuple[str, int]:
    """A strategy that works and fits, and its chunk."""
    if strategy != "auto" and strategy not in STRATEGIES:
        raise InputError.about("strategy", got=repr(strategy), expected="auto or " + ", ".join(STRATEGIES))
    if chunk != "auto" and (not isinstance(chunk, int) or chunk < 1):
        raise InputError.about("chunk", got=repr(chunk), expected="auto or a positive number of products")
    budget = _budget(memory, problem)
    estimator = Estimator(problem, budget)
    names = in_order_of_preference(problem.shape) if strategy == "auto" else [strategy]
    too_large: list[str] = []
    unsupported: list[str] = []
    for name in names:
        try:
            model = estimator.model(name)
        except Exception as error:
            unsupported.append(explain(error))
            continue
        size = chunk if isinstance(chunk, int) else min(_largest_chunk(model, budget), LARGEST_CHUNK)
        if size < 1:
            too_large.append(f"{name} needs {model.peak_bytes(1):,} bytes")
            continue
        verdict = try_strategies(problem, [name], chunk=min(2, size))[name]
        if verdict.reason is None or (verdict.slow and strategy == name):
            return name, min(size, count_products(STRATEGIES[name], problem.shape))
        unsupported.append(verdict.reason)
    if too_large:
        raise MemoryError(
            f"one product of the Jacobian: {'; '.join(too_large)}; the budget is {budget:,} bytes; "
            "free some memory, or allow more with memory="
        )
    broken = try_strategies(problem, [REFERENCE], chunk=1)[REFERENCE].error
    if broken is not None:
        raise function_error(broken, f"when {REFERENCE} was tried") from broken
    raise InputError.about(
        "strategy",
        got=f"{strategy}, which this function does not support ({unsupported[-1]})",
        expected="one that it does",
        do="leave it at auto",
    )


def _largest_chunk(model: CostModel, budget: int) -> int:
    """The largest chunk whose peak is within `budget` bytes; 0 or less if not even one product is."""
    if model.product_bytes == 0:
        return model.most if model.fixed_bytes <= budget else 0
    return int((budget - model.fixed_bytes) // model.product_bytes)


def _budget(memory: Any, problem: Problem) -> int:
    """`memory` in bytes."""
    device = device_of(problem)
    if isinstance(memory, str):
        found = parse_bytes(memory)
        if found is not None:
            return found
    elif memory is None or (isinstance(memory, float) and 0 < memory <= 1):
        if device.type == "cuda":
            return int(torch.cuda.mem_get_info(device)[0] * (memory or 0.9))
        return int(available_memory_bytes() * (memory or 0.5))
    elif isinstance(memory, int) and memory > 0:
        return memory
    raise InputError.about("memory", got=repr(memory), expected='bytes, "8GiB", or a fraction up to 1.0')


def _chunks(
    problem: Problem, maker: Strategy, chunk: int, create_graph: bool
) -> Iterator[tuple[slice, list[Tensor]]]:
    """(which products, one tensor (products, size of leaf) a leaf), one chunk after another."""
    shape = problem.shape
    whole = Rectangle(0, 1, 0, shape.rows, 0, shape.columns)
    seeds = OneHot(count_products(maker, shape))
    for made in maker.chunks(problem, whole, seeds, chunk, create_graph=create_graph):
        products, leaves = made.products, [leaf.squeeze(0) for leaf in made.leaves]
        del made
        yield products, leaves
        del leaves


def _assembled(
    problem: Problem,
    maker: Strategy,
    chunks: Iterator[tuple[slice, list[Tensor]]],
    create_graph: bool,
) -> list[Tensor]:
    """All products, one tensor (products, size of leaf) a leaf."""
    if create_graph:
        return [torch.cat(parts) for parts in zip(*[leaves for _, leaves in chunks], strict=True)]
    made: list[Tensor] = []
    for products, leaves in chunks:
        if not made:
            count = count_products(maker, problem.shape)
            made = [leaf.new_empty(count, leaf.shape[1]) for leaf in leaves]
        for whole, part in zip(made, leaves, strict=True):
            whole[products] = part.detach()
        del leaves, part  # a chunk is let go of before the next is made
    return made


def _nested(products: list[Tensor], *, by_rows: bool, shape: JacobianShape) -> list[list[Tensor]]:
    """`[output][input]` → (*output shape, *input shape)."""
    across = shape.outputs if by_rows else shape.inputs
    pieces = [torch.split(leaf, [segment.size for segment in across]) for leaf in products]
    if by_rows:  # pieces[input][output]: (output size, input size)
        grid = [[column[o] for column in pieces] for o in range(len(shape.outputs))]
    else:  # pieces[output][input]: (input size, output size)
        grid = [[piece.T for piece in row] for row in pieces]
    return [
        [piece.reshape((*output.shape, *inp.shape)) for piece, inp in zip(row, shape.inputs, strict=True)]
        for row, output in zip(grid, shape.outputs, strict=True)
    ]


def _as_jacrev(grid: list[list[Tensor]], problem: Problem, argnums: Any, args: Sequence[Any]) -> Any:
    """The outputs' structure, each leaf replaced by the inputs' structure."""
    dtypes = [problem.leaves[index].dtype for index in problem.wanted]
    wanted = args[argnums] if isinstance(argnums, int) else tuple(args[number] for number in argnums)
    spec = pytree.tree_structure(wanted)
    rows = [
        pytree.tree_unflatten([piece.to(dtype) for piece, dtype in zip(row, dtypes, strict=True)], spec)
        for row in grid
    ]
    return pytree.tree_unflatten(rows, problem.output_spec)

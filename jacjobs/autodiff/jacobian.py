"""`jacjobs.jacobian`: the whole Jacobian in this process, a drop-in for `torch.func.jacrev`.

The same nested result, by whichever of the nine strategies is fastest for the function, in chunks that fit a
budget.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from jacjobs.arguments import InDims
from jacjobs.autodiff.catalogue import (
    COMPILED,
    STRATEGIES,
    eager_name,
    in_order_of_preference,
    strategy_named,
)
from jacjobs.autodiff.compiled import Compiled, WholeMaker
from jacjobs.autodiff.device import (
    GPU_SHARE,
    HOST_SHARE,
    available_bytes,
    device_of,
    give_back,
    keep_room,
    wait_for,
)
from jacjobs.autodiff.estimate import Estimator
from jacjobs.autodiff.legality import REFERENCE, Verdict, try_strategies
from jacjobs.autodiff.race import Choice, race, whole_of
from jacjobs.autodiff.seeds import OneHot
from jacjobs.autodiff.strategy import Strategy, count_lines
from jacjobs.autodiff.words import explain, is_out_of_memory
from jacjobs.cost import CostModel, parse_bytes
from jacjobs.errors import InputError
from jacjobs.functions import inside_transform
from jacjobs.problem import Problem, function_error
from jacjobs.shape import JacobianShape, Rectangle

LOPSIDED = 8
"""Where there are so many times fewer columns than rows, no strategy that makes rows is looked at first; and
the other way round."""
BATCHINGS = ("vmap", "repeat", "loop")
QUICK_SECONDS, QUICK_PRODUCTS = 0.01, 1024
"""Where J takes less, calling torch may take longer than computing. What has the fewest calls wins then, be
it by copies or by many times more products: all that is batched is looked at, if it has no more products.
"""
COMPILING_SECONDS = 45.0
"""No further chunk is compiled after about so long."""
COMPILED_START = 128
"""The chunk to be compiled first, unless the plain choice is larger: each makes the forward pass again."""


def jacobian(
    fn: Callable[..., Any],
    argnums: int | Sequence[int] = 0,
    *,
    in_dims: InDims = None,
    strategy: str = "auto",
    chunk: int | str = "auto",
    memory: float | int | str | None = None,
    create_graph: bool = False,
    compile: bool = False,
) -> JacobianFunction:
    """A function that returns the Jacobian of `fn`, with the structure that `torch.func.jacrev` returns.

    fn:            takes tensors or pytrees of them, returns a pytree of floating-point tensors.
    argnums:       which arguments are differentiated, as in jacrev.
    in_dims:       which axis of each argument holds points (samples), as in `torch.func.vmap`: the Jacobian
                   at every point, as from `vmap(jacrev(fn), in_dims)`. None: the arguments are one point.
    strategy:      one of the nine, or auto: the fastest, of those that `fn` supports and that fit the memory.
    chunk:         how many products are made at once, or auto: the fastest that fits.
    memory:        what the products in the making may take beside the result: bytes, "8GiB", or a fraction
                   of what is free now. Default: half of a host's; of a GPU's, 0.9 of what the result leaves.
    create_graph:  the result can be differentiated again, with respect to arguments that require a
                   gradient and to what `fn` captured.
    compile:       compare with code that `torch.compile` makes, too: on the first call that takes seconds to
                   minutes (and on a CPU a C++ compiler). Where `fn` cannot be compiled, or its values come
                   out otherwise than by rounding, nothing is.

    The result holds one tensor for each pair of an output leaf and an input leaf, of shape
    (*output shape, *input shape), with in_dims (points, *output shape, *input shape), in the dtype of the
    input and on its device.

    The choice is made on the first call, by timing some products for up to a tenth of what J takes or three
    seconds, and kept for further ones with arguments of the same structure, shapes and dtypes: so keep the
    function that this returns, where there are many. Its `choices` say what was chosen. Inside a transform of
    torch.func (vmap, grad, …) it is `torch.func.jacrev` that runs.

    On a host with glibc, what a call took in blocks of up to 8 MiB stays with the process for the next one,
    if J is no larger than 4 MiB.

    Raises InputError for arguments that do not fit, FunctionError where `fn` raises whatever the strategy,
    MemoryError where one product of the leanest strategy does not fit.
    """

    if create_graph and in_dims is not None:
        raise InputError.about(
            "jacobian",
            got="create_graph=True with in_dims",
            expected="one of them",
            do="for many points, put torch.func.vmap around jacjobs.jacobian",
        )
    if create_graph and compile:
        raise InputError.about(
            "jacobian",
            got="create_graph=True with compile=True",
            expected="one of them",
            do="compiled products cannot be differentiated again",
        )
    return JacobianFunction(fn, argnums, in_dims, Wishes(strategy, chunk, memory, compile), create_graph)


class Wishes(NamedTuple):
    """As `jacobian` was told."""

    strategy: str
    chunk: int | str
    memory: float | int | str | None
    compile: bool


class JacobianFunction:
    """What `jacobian` returns: a function, which knows how it computes."""

    def __init__(
        self,
        fn: Callable[..., Any],
        argnums: int | Sequence[int],
        in_dims: InDims,
        wishes: Wishes,
        create_graph: bool,
    ) -> None:
        self._fn = fn
        self._argnums = argnums if isinstance(argnums, int) else tuple(argnums)
        self._in_dims = in_dims
        self._wishes = wishes
        self._create_graph = create_graph
        self._ready: list[_Ready] = []

    @property
    def choices(self) -> list[Choice]:
        """One for each kind of arguments that it was called with, in order."""
        return [ready.choice for ready in self._ready]

    def __call__(self, *args: Any) -> Any:
        if inside_transform():
            plain = torch.func.jacrev(self._fn, self._argnums)
            dims: Any = self._in_dims
            lifted = plain if dims is None else torch.func.vmap(plain, dims)
            return lifted(*args)
        with torch.inference_mode(False):  # graphs and dual numbers, whatever the caller has switched off
            return self._called(args)

    def _called(self, args: tuple[Any, ...]) -> Any:
        leaves, spec = _flattened(args)
        # A tensor made in inference mode takes part in no graph; a copy does.
        leaves = [
            leaf.clone() if isinstance(leaf, Tensor) and leaf.is_inference() else leaf for leaf in leaves
        ]
        kinds = _kinds(leaves)
        for ready in self._ready:
            if ready.kinds == kinds and ready.spec == spec:
                return ready(leaves)
        args = tuple(leaves) if spec is None else pytree.tree_unflatten(leaves, spec)
        problem = Problem(self._fn, args, self._argnums, self._in_dims)
        numbers = self._argnums
        wanted = args[numbers] if isinstance(numbers, int) else tuple(args[number] for number in numbers)
        keep_room(problem.shape.total_bytes, device_of(problem))
        choice = _choose(problem, self._wishes)
        ready = _Ready(problem, choice, self._create_graph, kinds, spec, pytree.tree_structure(wanted))
        self._ready.append(ready)
        return ready(leaves)


def _flattened(args: tuple[Any, ...]) -> tuple[list[Any], pytree.TreeSpec | None]:
    """The leaves and their structure: None where the arguments are tensors, which is seen faster so."""
    if all(isinstance(arg, Tensor) for arg in args):
        return list(args), None
    return pytree.tree_flatten(args)


def _kinds(leaves: Sequence[Any]) -> list[Any]:
    """What the choice of a strategy may depend on, short of the values."""
    return [
        (leaf.shape, leaf.dtype, leaf.device) if isinstance(leaf, Tensor) else repr(leaf) for leaf in leaves
    ]


class _Ready:
    """What is known of all arguments of a kind: after the first call, no more is done than need be.

    kinds, spec:  of the leaves of the arguments, and their structure; None where they are tensors.
    wanted:       the structure of what is differentiated.
    """

    def __init__(
        self,
        problem: Problem,
        choice: Choice,
        create_graph: bool,
        kinds: list[Any],
        spec: pytree.TreeSpec | None,
        wanted: pytree.TreeSpec,
    ) -> None:
        self.choice, self.kinds, self.spec = choice, kinds, spec
        self._create_graph = create_graph
        self._problem = problem.with_leaves([])  # what the arguments hold is not kept
        self._maker = strategy_named(choice.strategy)
        self._nest = _Nest(problem, self._maker, wanted)
        self._in_one_piece = choice.chunk >= whole_of(choice.strategy, problem.shape) and not create_graph
        self._at_once: WholeMaker | None = None

    def __call__(self, leaves: Sequence[Any]) -> Any:
        """J, as jacrev returns it; of what `args` flatten to."""
        leaves = self._problem.with_points_first(leaves)
        if self._at_once is not None and (made := self._at_once(leaves)) is not None:
            return self._nest(_with_places_of_their_own(made))
        problem, maker = self._problem.with_leaves(leaves), self._maker
        made = _products(problem, maker, self.choice.chunk, self._create_graph)
        if isinstance(maker, Compiled) and self._in_one_piece:
            self._at_once = maker.all_at_once(problem)
        return self._nest(made)


class _Nest:
    """From products to the nested result, its shapes known beforehand.

    inputs:  the structure of what is differentiated.
    """

    def __init__(self, problem: Problem, maker: Strategy, inputs: pytree.TreeSpec) -> None:
        shape = problem.shape
        points = () if problem.in_dims is None else (shape.points,)
        self._by_rows = maker.makes == "rows"
        self._sizes = [segment.size for segment in (shape.outputs if self._by_rows else shape.inputs)]
        self._shapes = [
            [(*points, *output.shape, *inp.shape) for inp in shape.inputs] for output in shape.outputs
        ]
        self._dtypes = [problem.leaves[index].dtype for index in problem.wanted]
        self._inputs, self._outputs = inputs, problem.output_spec
        self._one_tensor = self._by_rows and self._outputs.is_leaf()

    def __call__(self, products: list[Tensor]) -> Any:
        """Of one tensor (points, products, …) a leaf."""
        if self._one_tensor and all(map(_is_done, products, self._shapes[0], self._dtypes)):
            return pytree.tree_unflatten(products, self._inputs)
        split = [
            torch.split(leaf, self._sizes, dim=1) if len(self._sizes) > 1 else (leaf,) for leaf in products
        ]
        if self._by_rows:  # split[input][output]: (points, output size, input)
            grid = [[pieces[output] for pieces in split] for output in range(len(self._sizes))]
        else:  # split[output][input]: (points, input size, output)
            grid = [[piece.movedim(1, -1) for piece in pieces] for pieces in split]
        rows = []
        for pieces, shapes in zip(grid, self._shapes, strict=True):
            leaves = [
                _as(piece.reshape(shape), dtype)
                for piece, shape, dtype in zip(pieces, shapes, self._dtypes, strict=True)
            ]
            rows.append(pytree.tree_unflatten(leaves, self._inputs))
        return pytree.tree_unflatten(rows, self._outputs)


def _is_done(leaf: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> bool:
    return leaf.shape == shape and leaf.dtype == dtype


def _as(leaf: Tensor, dtype: torch.dtype) -> Tensor:
    return leaf if leaf.dtype == dtype else leaf.to(dtype)


def _choose(problem: Problem, wishes: Wishes) -> Choice:
    """A strategy that works and fits, and its chunk."""
    strategy, chunk, memory, compiled = wishes
    if strategy != "auto" and strategy not in STRATEGIES:
        raise InputError.about("strategy", got=repr(strategy), expected="auto or " + ", ".join(STRATEGIES))
    if chunk != "auto" and (not isinstance(chunk, int) or chunk < 1):
        raise InputError.about("chunk", got=repr(chunk), expected="auto or a positive number of products")
    budget = _budget(memory, problem)
    room = _Room(problem, budget)
    candidates = _Candidates(problem, room, wishes)
    for names in _heats(problem.shape) if strategy == "auto" else [[strategy]]:
        works = candidates.that_work(names)
        if not works:
            continue
        if isinstance(chunk, int):
            plain = Choice(works[0], chunk)
        else:
            run = partial(race, problem, fits=room.fits, make_all=partial(_made, problem))
            plain = run(works)
            if strategy == "auto" and plain.seconds < QUICK_SECONDS:
                more = candidates.that_work(_quick_too(plain.strategy, problem.shape))
                if more:
                    plain = run([plain.strategy, *more])
                    works += more
        return _compiled(problem, works, room, plain, chunk) if compiled else plain
    if candidates.too_large:
        raise MemoryError(
            f"one product of the Jacobian: {'; '.join(candidates.too_large)}; the budget is {budget:,} "
            "bytes; free some memory, or allow more with memory="
        )
    broken = try_strategies(problem, [REFERENCE], chunk=1)[REFERENCE].error
    if broken is not None:
        raise function_error(broken, f"when {REFERENCE} was tried") from broken
    raise InputError.about(
        "strategy",
        got=f"{strategy}, which this function does not support ({candidates.unsupported[-1]})",
        expected="one that it does",
        do="leave it at auto",
    )


def _quick_too(strategy: str, shape: JacobianShape) -> list[str]:
    """What is batched and may take as few calls as a strategy that took no time."""
    makes = STRATEGIES[strategy].makes
    return [
        name
        for name in in_order_of_preference(shape)
        if not name.endswith("/loop")
        and (STRATEGIES[name].makes == makes or count_lines(STRATEGIES[name], shape) <= QUICK_PRODUCTS)
    ]


class _Candidates:
    """Which strategies work, at one product or the wished-for chunk; and what is known of the others."""

    def __init__(self, problem: Problem, room: _Room, wishes: Wishes) -> None:
        self._problem, self._room, self._wishes = problem, room, wishes
        self._asked: set[str] = set()
        self.too_large: list[str] = []
        self.unsupported: list[str] = []

    def that_work(self, names: Sequence[str]) -> list[str]:
        """Of those that it was not asked for before."""
        names = [name for name in names if name not in self._asked]
        self._asked.update(names)
        room, chunk = self._room, self._wishes.chunk
        trials: dict[int, list[str]] = {1: [], 2: []}
        for name in names:
            try:
                if isinstance(chunk, str) and not room.fits(name, 1):
                    self.too_large.append(f"{name} needs {room.peak_bytes(name, 1):,} bytes")
                    continue
                several = chunk > 1 if isinstance(chunk, int) else room.fits(name, 2)
            except Exception as error:
                self.unsupported.append(explain(error))
                continue
            trials[2 if several else 1].append(name)
        verdicts: dict[str, Verdict] = {}
        for size, some in trials.items():
            if some:  # with one reference for all of them
                verdicts |= try_strategies(self._problem, some, chunk=size)
        asked = self._wishes.strategy
        works = [n for n, v in verdicts.items() if v.reason is None or (v.slow and asked == n)]
        reasons = [v.reason for n, v in verdicts.items() if n not in works]
        self.unsupported += [reason for reason in reasons if reason is not None]
        return works


def _compiled(problem: Problem, works: list[str], room: _Room, plain: Choice, chunk: int | str) -> Choice:
    """A compiled strategy, if that is faster than the plain choice; or in any case, where the chunk is
    given.
    """
    names = [name for name in COMPILED if eager_name(name) in works]
    if isinstance(chunk, int):
        same = [name for name in names if STRATEGIES[plain.strategy].makes == COMPILED[name].makes]
        return Choice(same[0], chunk) if same else plain
    if not names:
        return plain
    start = max(COMPILED_START, plain.chunk)
    make_all = partial(_made, problem)
    found = race(
        problem, names, room.fits, make_all, least_seconds=COMPILING_SECONDS, start=start, near=plain.chunk
    )
    works_compiled = COMPILED[found.strategy].code(problem).reason is None
    chosen = found if works_compiled and found.seconds < plain.seconds else plain
    for name in names:
        COMPILED[name].forget(problem, but=chosen.chunk if name == chosen.strategy else 0)
    return chosen


def _made(problem: Problem, strategy: str, chunk: int) -> bool:
    """All of J, for the time that it takes; False where the memory does not suffice."""
    try:
        _products(problem, strategy_named(strategy), chunk, create_graph=False)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        give_back()
        return False
    wait_for(device_of(problem))
    return True


class _Room:
    """Which chunks of which strategies fit a budget. A model is made only where that is not plain."""

    def __init__(self, problem: Problem, budget_bytes: int) -> None:
        self._estimator = Estimator(problem, budget_bytes)
        self._budget_bytes = budget_bytes
        self._models: dict[str, CostModel] = {}

    def fits(self, strategy: str, chunk: int) -> bool:
        return self._estimator.safe(chunk) or self.peak_bytes(strategy, chunk) <= self._budget_bytes

    def peak_bytes(self, strategy: str, chunk: int) -> int:
        """Raises what the function raises under this strategy."""
        if strategy not in self._models:
            self._models[strategy] = self._estimator.model(strategy)
        return self._models[strategy].peak_bytes(chunk)


def _heats(shape: JacobianShape) -> Iterator[list[str]]:
    """The strategies that are compared with one another; those that come later only if none of them will do.

    Batched products before copies before loops. Where rows and columns are many times as many as the other,
    all ways to the fewer go before any to the more.
    """
    names = in_order_of_preference(shape)
    lopsided = max(shape.rows, shape.columns) >= LOPSIDED * min(shape.rows, shape.columns)
    sides = [[n for n in names if STRATEGIES[n].makes == makes] for makes in ("rows", "columns")]
    if shape.columns < shape.rows:
        sides.reverse()
    for side in sides if lopsided else [names]:
        for batching in BATCHINGS:
            yield [name for name in side if STRATEGIES[name].batching == batching]


def _budget(memory: Any, problem: Problem) -> int:
    """`memory` in bytes."""
    device = device_of(problem)
    if isinstance(memory, str):
        found = parse_bytes(memory)
        if found is not None:
            return found
    elif memory is None:
        there = available_bytes(device)
        if device.type == "cuda":
            return int(max(0, there - problem.shape.total_bytes) * GPU_SHARE)
        return int(there * HOST_SHARE)
    elif isinstance(memory, float) and 0 < memory <= 1:
        return int(available_bytes(device) * memory)
    elif isinstance(memory, int) and memory > 0:
        return memory
    raise InputError.about("memory", got=repr(memory), expected='bytes, "8GiB", or a fraction up to 1.0')


def _products(problem: Problem, maker: Strategy, chunk: int, create_graph: bool) -> list[Tensor]:
    """All products, one tensor (points, products, …) a leaf, as a chunk may have it."""
    shape = problem.shape
    count = count_lines(maker, shape)
    whole = Rectangle(0, shape.points, 0, shape.rows, 0, shape.columns)
    chunks = maker.chunks(problem, whole, OneHot(count), chunk, create_graph=create_graph)
    if create_graph:
        return [torch.cat(parts, 1) for parts in zip(*[made.leaves for made in chunks], strict=True)]
    result: list[Tensor] = []
    for made in chunks:
        leaves = [leaf.detach() if leaf.requires_grad else leaf for leaf in made.leaves]
        if (made.points, made.products) == (slice(0, shape.points), slice(0, count)):
            return _with_places_of_their_own(leaves)
        if not result:
            result = [leaf.new_empty(shape.points, count, leaf[0, 0].numel()) for leaf in leaves]
        for all_of_leaf, leaf in zip(result, leaves, strict=True):
            all_of_leaf[made.points, made.products].view(leaf.shape).copy_(leaf)
        del made, leaves, leaf  # a chunk is let go of before the next is made
    return result


def _with_places_of_their_own(leaves: list[Tensor]) -> list[Tensor]:
    """The leaves, those copied of which entries share a place with others, or with what is none of J."""
    storages: set[int] = set()
    result = []
    for leaf in leaves:
        storage = leaf.untyped_storage()
        place = storage.data_ptr()
        if place in storages or storage.nbytes() != leaf.nbytes or not _is_dense(leaf):
            leaf = leaf.clone(memory_format=torch.contiguous_format)
        storages.add(place)
        result.append(leaf)
    return result


def _is_dense(leaf: Tensor) -> bool:
    """Has each entry a place of its own, in whatever order, with none between?"""
    if leaf.is_contiguous():
        return True
    step = 1
    for stride, size in sorted(zip(leaf.stride(), leaf.shape, strict=True)):
        if size > 1 and stride != step:
            return False
        step *= size
    return True

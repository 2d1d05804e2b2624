"""Detects which entries of a Jacobian can be other than zero, from the operators that a function consists of.

The function is traced to a graph of ATen operators at one point, and each node of the graph is given a
pattern: which inputs each of its elements depends on (`pattern.py`), by a rule for its operator (`rules/`).
The pattern is a superset of what is other than zero at *any* point, with one exception, which is noticed: the
graph is that of one point. A function that branches on values cannot be traced; where indices depend on the
inputs, all elements that they might mean count.

Sources: A. Griewank and A. Walther, "Evaluating Derivatives" (SIAM, 2008), chapter 7 (propagation of index
domains); A. Hill and G. Dalle, "Sparser, Better, Faster, Stronger: Sparsity Detection for Efficient Automatic
Differentiation" (2025), for its use in machine learning.
"""

from __future__ import annotations

import operator
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from scipy.sparse import csr_array
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from jacjobs.structure.pattern import Pattern, TooDenseError
from jacjobs.structure.rules import CONSTANTS, Call, Seen, pattern_of
from jacjobs.structure.rules.call import dense

MOST_ENTRIES = 100_000_000
"""Of a pattern, at any node: 500 MB."""
MOST_SECONDS = 60.0


@dataclass(frozen=True)
class Detected:
    """pattern: (m, n), boolean; None where J counts as dense, with the reason."""

    pattern: csr_array | None
    reason: str | None = None


def detect(
    fn: Callable[..., Any],
    leaves: Sequence[Tensor],
    wanted: Sequence[int],
    *,
    varying: Collection[int] = (),
    most: int = MOST_ENTRIES,
    most_seconds: float = MOST_SECONDS,
) -> Detected:
    """The pattern of the Jacobian of `fn(*leaves)`: its outputs' elements, end to end, with respect to those
    of the leaves `wanted`, end to end.

    varying:       leaves whose values do not count, since they are others at other points.
    most:          entries that the pattern may have, and that of any value on the way.
    most_seconds:  after which what takes longer is given up.
    """
    began = time.monotonic()

    def check() -> None:
        if time.monotonic() - began > most_seconds:
            raise TooLongError

    too_long = Detected(None, f"its pattern was not found in {most_seconds:,.0f} s")
    try:
        with _Clock(check):
            graph = trace(fn, leaves)
    except TooLongError:
        return too_long
    except Exception as error:
        return Detected(None, f"it cannot be traced: {_first_line(error)}")
    try:
        return Detected(walk(graph, leaves, wanted, most, varying, check).matrix)
    except TooDenseError as error:
        return Detected(None, f"its pattern is too dense: {error}")
    except TooLongError:
        return too_long
    except Exception as error:  # a rule that does not know all that its operator takes
        return Detected(None, f"its pattern cannot be found: {_first_line(error)}")


class TooLongError(Exception):
    """Detection has taken its time."""


class _Clock(TorchDispatchMode):
    """Looks at the time at every operator."""

    def __init__(self, check: Callable[[], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._check = check

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._check()
        return func(*args, **(kwargs or {}))


def trace(fn: Callable[..., Any], leaves: Sequence[Tensor]) -> fx.GraphModule:
    """ATen operators, none of which changes its operands."""

    def flat(*args: Any) -> list[Tensor]:
        return [leaf for leaf in pytree.tree_leaves(fn(*args)) if isinstance(leaf, Tensor)]

    with torch.no_grad():
        pure = torch.func.functionalize(flat, remove="mutations")
        return make_fx(pure, tracing_mode="real")(*[leaf.detach() for leaf in leaves])


def walk(
    graph: fx.GraphModule,
    leaves: Sequence[Tensor],
    wanted: Sequence[int],
    most: int,
    varying: Collection[int] = (),
    check: Callable[[], None] = lambda: None,
) -> Pattern:
    """The pattern of all outputs. Raises TooDenseError, and what `check` raises, which is called often."""
    n = sum(leaves[index].numel() for index in wanted)
    arguments: list[Any] = [leaf.detach() for leaf in leaves]
    start = 0
    for index in wanted:
        leaf = leaves[index]
        part = Pattern.inputs(start, leaf.numel(), n, most)
        arguments[index] = Seen(tuple(leaf.shape), leaf.dtype, part)
        start += leaf.numel()

    def nothing(size: int) -> Pattern:
        return Pattern.empty(size, n, most)

    for index in varying:
        leaf = leaves[index]
        none = nothing(leaf.numel()) if _is_number(leaf) else None
        arguments[index] = Seen(tuple(leaf.shape), leaf.dtype, none)

    made: dict[fx.Node, Any] = {}
    users = {node: len(node.users) for node in graph.graph.nodes}
    given = iter(arguments)
    for node in graph.graph.nodes:
        check()
        if node.op == "placeholder":
            made[node] = next(given)
        elif node.op == "get_attr":
            made[node] = _attribute(graph, node.target)
        elif node.op == "output":
            return _end_to_end([made[out] for out in node.args[0]], nothing)
        else:
            made[node] = _result(node, made, nothing)
        for operand in node.all_input_nodes:  # what nobody needs any more is let go
            users[operand] -= 1
            if not users[operand]:
                del made[operand]
    raise AssertionError("a graph without an output")


Nothing = Callable[[int], Pattern]
"""Of so many elements that depend on no input."""


def _result(node: fx.Node, made: dict[fx.Node, Any], nothing: Nothing) -> Any:
    target: Any = node.target
    args, kwargs = pytree.tree_map(
        lambda leaf: made[leaf] if isinstance(leaf, fx.Node) else leaf, (node.args, node.kwargs)
    )
    if target is operator.getitem:
        return args[0][args[1]]
    operands = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Seen)]
    random = torch.Tag.nondeterministic_seeded in target.tags  # its values are others here than in a call
    if not operands and not random:
        return target(*args, **kwargs)
    if target.overloadpacket in CONSTANTS:
        return target(*_without_values(args, "cpu"), **kwargs)
    if "val" in node.meta:
        value = node.meta["val"]
    else:
        value = target(*_without_values(args, "meta"), **_without_values(kwargs, "meta"))
    results = list(value) if isinstance(value, tuple | list) else [value]
    if not any(isinstance(result, Tensor) for result in results):
        return None
    patterns: list[Pattern | None]
    if target is torch.ops.aten.detach.default or all(operand.pattern is None for operand in operands):
        patterns = [nothing(result.numel()) if _is_number(result) else None for result in results]
    else:
        patterns = _patterns(Call(target, args, kwargs, tuple(results[0].shape)), results)
    seen = [
        Seen(tuple(result.shape), result.dtype, pattern if _is_number(result) else None)
        if isinstance(result, Tensor)
        else result
        for result, pattern in zip(results, patterns, strict=True)
    ]
    return seen if isinstance(value, tuple | list) else seen[0]


def _is_number(result: Any) -> bool:
    """May it have a derivative?"""
    return isinstance(result, Tensor) and (result.is_floating_point() or result.is_complex())


def _without_values(tree: Any, device: str) -> Any:
    """Tensors that look like those that are there."""

    def bare(leaf: Any) -> Any:
        if isinstance(leaf, Seen | Tensor):
            return torch.empty(leaf.shape, dtype=leaf.dtype, device=device)
        return leaf

    return pytree.tree_map(bare, tree)


def _patterns(call: Call, results: Sequence[Any]) -> list[Pattern | None]:
    """Of all results. Where a rule speaks of the first alone, the others are dense."""
    found = pattern_of(call)
    if isinstance(found, list):
        return list(found)
    others = [
        dense(call._replace(shape=tuple(result.shape))) if _is_number(result) else None
        for result in results[1:]
    ]
    return [found, *others]


def _end_to_end(outputs: Sequence[Any], nothing: Nothing) -> Pattern:
    first, *others = [
        output.pattern
        if isinstance(output, Seen) and output.pattern is not None
        else nothing(torch.Size(output.shape).numel())
        for output in outputs
    ]
    for other in others:
        first = first.below(other)
    return first


def _attribute(graph: fx.GraphModule, name: Any) -> Any:
    value: Any = graph
    for part in str(name).split("."):
        value = getattr(value, part)
    return value.detach() if isinstance(value, Tensor) else value


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0] or type(error).__name__

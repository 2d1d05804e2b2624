"""Calls of operators, the register of rules, and what rules are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils import _pytree as pytree

from jacjobs.structure.pattern import Index, Pattern

aten: Any = torch.ops.aten


@dataclass(frozen=True)
class Seen:
    """A tensor whose values depend on the inputs.

    pattern:  None for what has no derivative (indices, comparisons); without entries where that is zero
              (what was detached).
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    pattern: Pattern | None


class Call(NamedTuple):
    """An operator with its operands. shape: of its (first) result."""

    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def operands(self) -> list[Seen]:
        leaves = pytree.tree_leaves((self.args, self.kwargs))
        return [leaf for leaf in leaves if isinstance(leaf, Seen)]

    @property
    def seen(self) -> list[Seen]:
        """Operands that are numbers."""
        return [operand for operand in self.operands if operand.pattern is not None]

    @property
    def indices(self) -> list[Seen]:
        """Operands whose value alone matters: which elements are meant depends on the inputs."""
        return [operand for operand in self.operands if operand.pattern is None]

    def argument(self, place: int, name: str, default: Any = None) -> Any:
        return self.args[place] if len(self.args) > place else self.kwargs.get(name, default)


Rule = Callable[[Call], "Pattern | list[Pattern]"]
RULES: dict[Any, Rule] = {}
"""By operator, whatever its overload."""


def rule(*operators: Any) -> Callable[[Rule], Rule]:
    def add(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(operators, function))
        return function

    return add


def dense(call: Call) -> Pattern:
    """All elements depend on all that the operands do."""
    every = [group_all(seen) for seen in call.seen]
    return union(every).rows(np.zeros(call.size, np.int64))


def pointwise(call: Call) -> Pattern:
    """Operands are broadcast to the result's shape."""
    return union([broadcast(seen, call.shape) for seen in call.seen])


# -- what rules are made of ----------------------------------------------------------------------------------


def known(seen: Seen) -> Pattern:
    assert seen.pattern is not None
    return seen.pattern


def union(parts: Sequence[Pattern]) -> Pattern:
    first, *others = parts
    for other in others:
        first = first | other
    return first


def group_all(seen: Seen) -> Pattern:
    return known(seen).grouped(np.zeros(len(known(seen)), np.int64), 1)


def spread(shape: Sequence[int], to: Sequence[int]) -> Index:
    """The number of the element that is broadcast to each place."""
    numbers = np.arange(int(np.prod(shape, dtype=np.int64))).reshape(tuple(shape))
    return np.broadcast_to(numbers, tuple(to)).reshape(-1)


def broadcast(seen: Seen, shape: Sequence[int]) -> Pattern:
    return known(seen).rows(spread(seen.shape, shape))


def dims_of(dim: Any, rank: int) -> list[int]:
    if dim is None or (isinstance(dim, list | tuple) and not dim):
        return list(range(rank))
    every = [dim] if isinstance(dim, int) else list(dim)
    return [d % rank if rank else 0 for d in every]


def groups_of(shape: Sequence[int], dims: Sequence[int]) -> tuple[Index, int]:
    """Of each element, the number of its group: those that differ along `dims` alone; how many there are."""
    return across(shape, shape, dims), int(np.prod(_without(dims, shape), dtype=np.int64))


def across(shape: Sequence[int], to: Sequence[int], dims: Sequence[int]) -> Index:
    """The group of each element of a result that has other lengths along `dims`, or lacks them."""
    kept = _without(dims, shape)
    return spread(kept, kept if len(to) < len(shape) else to)


def _without(dims: Sequence[int], shape: Sequence[int]) -> list[int]:
    return [1 if d in dims else length for d, length in enumerate(shape)]


def dense_in(call: Call, operand: Seen, axes: int) -> Pattern:
    """All elements of the last axes depend on all of theirs; those before are the same in both."""
    lead = int(np.prod(operand.shape[:-axes], dtype=np.int64))
    groups = np.arange(lead).repeat(len(known(operand)) // lead)
    return known(operand).grouped(groups, lead).rows(np.arange(lead).repeat(call.size // lead))

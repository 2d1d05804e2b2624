"""Arguments and results of a function that has a Jacobian: what they must be, what their leaves are called.

All that is refused here raises InputError.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from jacjobs.errors import InputError

InDims = int | None | Sequence[Any]


def checked_argnums(argnums: int | Sequence[int], count: int) -> tuple[int, ...]:
    """Positions among `count` arguments, from 0."""
    numbers = (argnums,) if isinstance(argnums, int) else tuple(argnums)
    whole = [number for number in numbers if isinstance(number, int) and -count <= number < count]
    normal = tuple(number % count for number in whole) if count else ()
    if not numbers or len(whole) != len(numbers) or len(set(normal)) != len(normal):
        raise InputError.about(
            "argnums", got=repr(argnums), expected=f"different positions among {count} arguments"
        )
    return normal


def leaf_dims(in_dims: InDims, spec: Any, leaves: list[Any], batched: bool) -> list[int | None]:
    """The axis of points of every leaf, None where it has none."""
    if in_dims is None:
        if batched:
            raise InputError.about(
                "batched=True",
                got="in_dims=None",
                expected="in_dims that say which arguments carry the leading axis",
                do="write in_dims=0, or one entry an argument",
            )
        return [None] * len(leaves)
    tree = tuple(in_dims) if isinstance(in_dims, list) else in_dims
    dims = pytree._broadcast_to_and_flatten(tree, spec)
    if dims is None or not all(dim is None or isinstance(dim, int) for dim in dims):
        raise InputError.about(
            "in_dims",
            got=repr(in_dims),
            expected="an axis, or one entry (an axis or None) for each argument, as in torch.func.vmap",
            do=f"give one entry for each of the {len(spec.children())} arguments",
        )
    if all(dim is None for dim in dims):
        raise InputError.about(
            "in_dims", got=repr(in_dims), expected="at least one axis", do="leave in_dims out for one point"
        )
    # One axis for everything skips what cannot have an axis, as a user of in_dims=0 means it.
    if isinstance(in_dims, int):
        dims = [dim if isinstance(leaf, Tensor) else None for dim, leaf in zip(dims, leaves, strict=True)]
    for dim, leaf in zip(dims, leaves, strict=True):
        if dim is None:
            continue
        if not isinstance(leaf, Tensor) or not -leaf.ndim <= dim < leaf.ndim:
            got = f"shape {tuple(leaf.shape)}" if isinstance(leaf, Tensor) else type(leaf).__name__
            raise InputError.about(
                f"in_dims={in_dims!r}", got=got, expected=f"a tensor with an axis {dim}", do="correct in_dims"
            )
        if batched and dim != 0:
            raise InputError.about(
                "batched=True", got=f"in_dims={in_dims!r}", expected="0 or None: a leading axis"
            )
    return dims


def count_points(leaves: list[Any], dims: list[int | None]) -> int:
    """P, which all leaves with an axis of points agree on; 1 without any."""
    sizes = {leaf.shape[dim] for leaf, dim in zip(leaves, dims, strict=True) if dim is not None}
    if len(sizes) > 1:
        raise InputError.about(
            "in_dims",
            got=f"axes of sizes {sorted(sizes)}",
            expected="the same number of points in each",
            do="correct in_dims or the arguments",
        )
    points: int = sizes.pop() if sizes else 1
    if points == 0:
        raise InputError.about("in_dims", got="an axis of size 0", expected="at least one point")
    return points


def differentiated(args: Sequence[Any], argnums: tuple[int, ...]) -> tuple[list[str], tuple[int, ...]]:
    """Names of the differentiated leaves, and their positions among all leaves of args."""
    counts = [len(pytree.tree_leaves(arg)) for arg in args]
    names: list[str] = []
    positions: list[int] = []
    for number in argnums:
        named = named_leaves(args[number], alone="input")
        prefix = f"{number}." if len(argnums) > 1 else ""
        names += [prefix + name for name, _ in named]
        first = sum(counts[:number])
        positions += range(first, first + counts[number])
    return names, tuple(positions)


def named_leaves(tree: Any, alone: str) -> list[tuple[str, Any]]:
    """Leaves by path, `layer1.weight`; a tree that is one leaf is called `alone`."""
    paths, _ = pytree.tree_flatten_with_path(tree)
    return [(".".join(_key_name(key) for key in path) or alone, leaf) for path, leaf in paths]


def _key_name(key: Any) -> str:
    for attribute in ("key", "idx", "name"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def check_differentiated(names: Sequence[str], leaves: Sequence[Any]) -> None:
    """All that is differentiated is real, floating-point tensors, with elements among them."""
    for name, leaf in zip(names, leaves, strict=True):
        where = f"differentiated input {name!r}"
        if not isinstance(leaf, Tensor):
            raise InputError.about(
                where,
                got=type(leaf).__name__,
                expected="a floating-point tensor",
                do="close over what is not differentiated, or pass it as another argument",
            )
        if not leaf.is_floating_point():
            raise InputError.about(
                where,
                got=str(leaf.dtype),
                expected="a floating-point tensor (real, not complex or integer)",
                do="convert it with .float(), or differentiate with respect to another argument",
            )
    if not any(leaf.numel() for leaf in leaves):
        raise InputError.about(
            "differentiated inputs", got="no elements (n = 0)", expected="at least one", do="check argnums"
        )


def check_outputs(named: list[tuple[str, Any]]) -> None:
    """All that is returned is real, floating-point tensors; some of it depends on what is differentiated."""
    for name, output in named:
        where = f"fn's output {name!r}"
        if not isinstance(output, Tensor):
            raise InputError.about(
                where, got=type(output).__name__, expected="a tensor", do="return tensors, or pytrees of them"
            )
        if not output.is_floating_point():
            raise InputError.about(
                where,
                got=str(output.dtype),
                expected="a floating-point tensor (real, not complex or integer)",
                do="return its real and imaginary parts, or leave it out",
            )
    if named and not any(output.requires_grad for _, output in named):
        raise InputError.about(
            "fn's outputs",
            got="none that depends differentiably on the differentiated inputs",
            expected="at least one",
            do="look for detach(), no_grad(), integer operations, or a wrong argnums",
        )

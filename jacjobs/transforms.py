"""`vmap` and `jvp` of torch.func, of lists of tensors: the same levels, without trees.

torch.func takes arguments and results of any structure, and looks at it several times in each call. What the
strategies call takes lists and returns lists. Of a small function, or on a GPU, which only waits to be told
what to do, this is a third of the time that J takes: docs/decisions/0037.

Source: what `torch.func.vmap` and `torch.func.jvp` do between flattening and unflattening (torch 2.11 to
2.13).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch._functorch import vmap as of_torch
from torch._functorch.eager_transforms import enter_jvp_nesting, exit_jvp_nesting
from torch.autograd import forward_ad

_levels: Any = torch._C._functorch


def vmap(
    fn: Callable[..., Sequence[Tensor]],
    args: Sequence[Any],
    carried: Sequence[bool] | None = None,
    randomness: Literal["error", "same", "different"] = "error",
) -> list[Tensor]:
    """What `torch.func.vmap(fn, …)(*args)` returns, for an `fn` that returns several tensors.

    carried:  which of `args` have the axis, as their first; None: all of them. At least one has.

    Each result has the axis as its first. Nothing is checked: saved-tensor hooks, say, are not refused.
    """
    _load_rules()
    carried = [True] * len(args) if carried is None else carried
    size = next(arg.shape[0] for arg, has in zip(args, carried, strict=True) if has)
    level = _levels._vmap_increment_nesting(size, randomness)
    try:
        made = fn(
            *[
                _levels._add_batch_dim(arg, 0, level) if has else arg
                for arg, has in zip(args, carried, strict=True)
            ]
        )
        return [_levels._remove_batch_dim(leaf, level, size, 0) for leaf in made]
    finally:
        _levels._vmap_decrement_nesting()


def jvp(
    fn: Callable[..., Sequence[Tensor]], primals: Sequence[Tensor], tangents: Sequence[Tensor]
) -> list[Tensor]:
    """The second of what `torch.func.jvp(fn, primals, tangents)` returns: the tangents of the results.

    Not inside another jvp. Zeros where a result does not depend on `primals`.
    """
    level = enter_jvp_nesting()
    try:
        with forward_ad._set_fwd_grad_enabled(True), forward_ad.dual_level():
            duals = map(forward_ad.make_dual, primals, tangents)
            return [_levels._unwrap_for_grad(_tangent(leaf), level) for leaf in fn(*duals)]
    finally:
        exit_jvp_nesting()


def _tangent(dual: Tensor) -> Tensor:
    primal, tangent = forward_ad.unpack_dual(dual)
    return torch.zeros_like(primal) if tangent is None else tangent


@functools.cache
def _load_rules() -> None:
    """Batching rules that torch has in Python, and leaves alone until the first vmap."""
    rules: Any = of_torch
    rules.lazy_load_decompositions()

"""Functions made from what users have: a module as a function of its parameters, the gradient of a scalar."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from jacjobs.errors import InputError


class OfParameters:
    """A module as a function of its parameters and buffers, which are called by name."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module

    def __call__(self, parameters: dict[str, Tensor], buffers: dict[str, Tensor], *inputs: Any) -> Any:
        # A module that counts its calls or averages its batches would write into the buffers.
        own = {name: buffer.clone() for name, buffer in buffers.items()}
        return torch.func.functional_call(self.module, (parameters, own), inputs)


class GradientOf:
    """The gradient of a scalar function with respect to `argnums`, itself differentiable in every mode."""

    def __init__(self, fn: Callable[..., Any], argnums: int | Sequence[int]) -> None:
        self.fn = fn
        self.argnums = argnums if isinstance(argnums, int) else tuple(argnums)

    def __call__(self, *args: Any) -> Any:
        if torch.compiler.is_compiling() or inside_transform():
            return torch.func.grad(self._scalar, self.argnums)(*args)
        # Plain autograd does what torch.func does not: saved-tensor hooks, functions without setup_context.
        numbers = (self.argnums,) if isinstance(self.argnums, int) else self.argnums
        args = tuple(
            # A view, since detach() would drop the tangent of a dual number.
            pytree.tree_map(lambda leaf: leaf.view_as(leaf), arg) if number in numbers else arg
            for number, arg in enumerate(args)
        )
        wanted = tuple(args[number] for number in numbers)
        leaves, spec = pytree.tree_flatten(wanted)
        for leaf in leaves:
            if not leaf.requires_grad:
                leaf.requires_grad_()
        with torch.enable_grad():
            value = self._scalar(*args)
            gradients = torch.autograd.grad(
                value, leaves, create_graph=True, allow_unused=True, materialize_grads=True
            )
        tree = pytree.tree_unflatten(list(gradients), spec)
        return tree[0] if isinstance(self.argnums, int) else tree

    def _scalar(self, *args: Any) -> Tensor:
        value = self.fn(*args)
        if not isinstance(value, Tensor) or value.numel() != 1:
            got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise InputError.about(
                "Problem.hessian fn", got=got, expected="one tensor of one element", do="return a scalar"
            )
        return value.reshape(())


def inside_transform() -> bool:
    """Is this code run by a transform of torch.func?"""
    return torch._C._functorch.peek_interpreter_stack() is not None

"""What one call of a function shows: its outputs, and what it computes with on the way."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

CUDNN = ("convolution", "rnn", "lstm", "gru")
"""What the names of operators contain that cuDNN computes on a GPU."""


class Output(NamedTuple):
    """An output leaf at one point."""

    name: str
    shape: torch.Size
    dtype: torch.dtype


class Trace(NamedTuple):
    """What one call of a function shows.

    outputs, spec:   its output leaves and their structure.
    precision:       the coarsest floating-point dtype in it.
    differentiates:  whether it calls autograd itself.
    convolves:       whether it has convolutions, or recurrent layers: what cuDNN computes on a GPU.
    """

    outputs: list[Output]
    spec: pytree.TreeSpec
    precision: torch.dtype
    differentiates: bool
    convolves: bool


class WatchOperators(TorchDispatchMode):
    """Notes the floating-point dtypes of all that is computed: autocast hides them from the outside. And
    whether there are convolutions.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dtypes: set[torch.dtype] = set()
        self.convolutions = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.convolutions = self.convolutions or any(word in str(func) for word in CUDNN)
        tensors = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
        self.dtypes.update(tensor.dtype for tensor in tensors if tensor.is_floating_point())
        return result


class WatchGradients(TorchFunctionMode):
    """Notes whether `autograd.grad` or `backward` is called: torch.func's own transforms call it, too."""

    seen = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen = self.seen or func in (torch.autograd.grad, torch.autograd.backward, Tensor.backward)
        return func(*args, **(kwargs or {}))

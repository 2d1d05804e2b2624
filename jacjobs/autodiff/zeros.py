"""Tangents of zeros, met without a detour: what surrounds forward mode.

Where one operand of `add`, `sub` or `mul` is a dual number and the other is not, torch gives the other
a tangent of zeros that takes no memory. What kernels do with these is next to nothing, but they learn the
shape and dtype of the result from the operator's meta function, and that is written in Python
(`torch._refs`): 0.2 ms in place of 0.01, in each such operator of each pass. The kernels here say the same
without asking (docs/decisions/0039). They are there while jacjobs makes products in forward mode, and not
otherwise.

Source: `add_zerotensor` and its neighbours in torch's aten/src/ATen/native/BinaryOps.cpp (2.11 to 2.13).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from jacjobs.problem import ALONE

# What torch.library.Library is made of. One of those each time would leave 136 bytes behind.
_library: Any = torch._C._dispatch_library("IMPL", "aten", "")
_there = False
_mentioned = False


@contextmanager
def forward_mode() -> Iterator[None]:
    """One thread at a time, since levels of dual numbers are the process's, with quick kernels for zeros."""
    global _there
    with ALONE:
        if _there:
            yield
            return
        try:
            _there = True
            _register()
            yield
        finally:
            _library.reset()
            _there = False


def _register() -> None:
    global _mentioned
    if not _mentioned:  # torch 2.11 mentions the first kernel of the process that is replaced
        _mentioned = True
        with warnings.catch_warnings(action="ignore"):
            _register()
        return
    for name, kernel in _KERNELS.items():
        _library.impl(name, "ZeroTensor", kernel, False)


Operand = Tensor | complex
"""A number of the function (`x + 1`) comes as a number, and so do zeros that stand for its tangent. In all of
the kernels one operand is zeros, and one is a tensor."""


def _add(a: Operand, b: Operand, *, alpha: complex = 1) -> Tensor:
    if not _is_zeros(a):
        return _like(a, a, b)
    if _is_zeros(b):
        return _zeros(a, b)
    made = _like(b, a, b)
    return made if alpha == 1 else made.mul_(alpha)


def _sub(a: Operand, b: Operand, *, alpha: complex = 1) -> Tensor:
    return _add(a, b, alpha=-alpha)


def _mul(a: Operand, b: Operand) -> Tensor:
    return _zeros(a, b)


def _is_zeros(operand: Operand) -> bool:
    return operand._is_zerotensor() if isinstance(operand, Tensor) else operand == 0


def _like(one: Operand, a: Operand, b: Operand) -> Tensor:
    """A copy of `one` that is what `a` and `b` make together."""
    shape, device, dtype = _shape(a, b), _device(a, b), torch.result_type(a, b)
    if not isinstance(one, Tensor):
        return torch.full(shape, one, dtype=dtype, device=device)
    return one.expand(shape).to(device=device, dtype=dtype, copy=True)


def _zeros(a: Operand, b: Operand) -> Tensor:
    return torch._efficientzerotensor(_shape(a, b), dtype=torch.result_type(a, b), device=_device(a, b))


def _shape(a: Operand, b: Operand) -> torch.Size:
    infer: Any = torch._C._infer_size  # torch.broadcast_shapes takes ten times as long
    shape: torch.Size = infer(*(each.shape if isinstance(each, Tensor) else _NUMBER for each in (a, b)))
    return shape


def _device(a: Operand, b: Operand) -> torch.device:
    """A number of the host goes where the other is."""
    there = [each.device for each in (a, b) if isinstance(each, Tensor)]
    return there[-1] if there[0].type == "cpu" else there[0]


_NUMBER = torch.Size()
_KERNELS = {"add.Tensor": _add, "sub.Tensor": _sub, "mul.Tensor": _mul}

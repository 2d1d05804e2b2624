"""The CPU's kernels for elementary functions, each resolved before threads can meet at its first call.

torch leaves `exp`, `sin`, `tanh` and a dozen more on contiguous CPU tensors to MKL, called
from every thread at once. MKL picks a kernel at a function's first call. Where threads meet there, one may
take a kernel with half the digits for its share of that one call: an error of 1e-5 in float32, which no later
call repeats (https://github.com/pytorch/pytorch/issues/188792; docs/decisions/0017). A call with one element
is made by one thread, and settles it for the process.
"""

from __future__ import annotations

import torch

RESOLVED_AT_FIRST_CALL = (
    *("acos", "asin", "atan", "cos", "erf", "erfc", "erfinv", "exp", "log", "log10", "log2"),
    *("sin", "sqrt", "tan", "tanh", "trunc"),
)
"""What `ATen/cpu/vml.h` hands to MKL, in torch 2.11 to 2.13."""


def resolve_kernels() -> None:
    """Call each function once, in each precision that MKL has. Takes about a millisecond."""
    for dtype in (torch.float32, torch.float64):
        one = torch.full((1,), 0.5, dtype=dtype, device="cpu")
        for name in RESOLVED_AT_FIRST_CALL:
            getattr(torch, name)(one)

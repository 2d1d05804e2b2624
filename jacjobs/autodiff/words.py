"""What is said of an error of torch, and how far two results may be apart."""

from __future__ import annotations

import math
import re

import torch


def tolerance(dtype: torch.dtype) -> float:
    """Relative: half the digits of the dtype. Rounding stays far below it, a wrong formula far above."""
    return math.sqrt(torch.finfo(dtype).eps)


def explain(error: Exception) -> str:
    """The reason in plain words, for the errors of torch that are known; else the error's first line."""
    text = str(error)
    for pattern, words in _PLAIN_WORDS:
        found = pattern.search(text)
        if found:
            return words.format(*found.groups())
    return f"{type(error).__name__}: {text.strip().partition(chr(10))[0]}"


_PLAIN_WORDS = [
    (re.compile(pattern), words)
    for pattern, words in (
        (r"Trying to use forward AD with (\S+) that does not support it", "no forward-mode rule for {}"),
        (r"[Bb]atching rule not implemented for ([\w:.]*\w)", "no batching rule for {}"),
        (r"tensor may have escaped", "a tensor escapes vmap, as in saved-tensor hooks (checkpointing)"),
        (r"flat_bdims must not be None", "a custom autograd.Function without a jvp rule"),
        (r"you're calling \.item\(\)", "reads a value (.item()), which vmap cannot batch"),
        (r"data-dependent control flow", "control flow that depends on values, which vmap cannot follow"),
        (r"[Tt]he derivative for '([^']+)' is not implemented", "no derivative rule for {}"),
        (r"derivative for (\S+) is not implemented", "no derivative rule for {}"),
        (r"saved tensor hooks", "saved-tensor hooks (activation checkpointing), which torch.func refuses"),
        (r"must override the setup_context", "a custom autograd.Function without setup_context"),
        (r"generate_vmap_rule", "a custom autograd.Function without a vmap rule"),
        (r"(?:vmap support|`vmap` staticmethod)", "a custom autograd.Function without a vmap rule"),
        (r"jvp.*custom autograd\.Function|custom autograd\.Function.*jvp", "a custom autograd.Function "
         "without a jvp rule"),
        (r"once_differentiable", "a custom autograd.Function that can be differentiated once only"),
        (r"vmap: inplace arithmetic", "writes in place into a tensor that all samples share"),
        (r"vmap: called random operation", "random operations, without a seed"),
        (r"dynamic shape|data-dependent output shape", "an output whose shape depends on values"),
        (r"modified by an inplace operation", "an in-place write destroys what a second derivative needs"),
    )
]  # fmt: skip


def is_out_of_memory(error: BaseException) -> bool:
    """Of the device, or of the host (torch's CPU allocator raises a RuntimeError)."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _ALLOCATORS_WORDS)


_ALLOCATORS_WORDS = (
    "can't allocate memory",  # the host's
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",  # libraries that allocate past torch, when it holds nearly everything
    "CUDNN_STATUS_ALLOC_FAILED",
)

"""How many digits numbers have."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch


def coarsest(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """The floating-point dtype with the fewest digits."""
    return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)


def may_use_tf32(*, convolves: bool) -> list[Any]:
    """torch's settings of those products on a GPU whose float32 factors it may round to TF32, ten bits.

    https://docs.pytorch.org/docs/stable/notes/cuda.html#tensorfloat-32-tf32-on-ampere-and-later-devices
    """
    backends: Any = torch.backends
    return [backends.cuda.matmul, *([backends.cudnn.conv, backends.cudnn.rnn] if convolves else [])]


def uses_tf32(*, convolves: bool) -> bool:
    """Does it? By default where it convolves."""
    return any(setting.fp32_precision == "tf32" for setting in may_use_tf32(convolves=convolves))

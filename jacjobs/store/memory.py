"""Memory for what is read: where there is not enough, one sentence says so."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jacjobs.errors import TooLargeError


def room(extent: tuple[int, ...], dtype: Any, make: Callable[..., NDArray[Any]] = np.zeros) -> NDArray[Any]:
    """An array of this extent. Raises TooLargeError where there is no memory for it."""
    try:
        return make(extent, dtype)
    except (MemoryError, ValueError):  # ValueError: more than an address could say
        raise TooLargeError.about(
            "memory",
            got=f"{math.prod(extent) * np.dtype(dtype).itemsize:,} bytes asked for, shape {extent}",
            expected="no more than is free",
            do="ask for a part of J (points, rows, columns), or for a product with it, which is streamed",
        ) from None

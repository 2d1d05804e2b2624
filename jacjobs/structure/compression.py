"""Seeds of groups of columns (or rows): the sum of their one-hot seeds.

So any strategy that makes columns makes sums of them, one product a group.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Grouped:
    """Seed c (size n, or m for rows) is one for all of colour c. A seed maker, as strategies know them."""

    def __init__(self, colours: NDArray[Any], groups: int) -> None:
        """colours: of each column (or row), 0 to groups - 1; another number means that no seed has it."""
        self._colours = torch.from_numpy(np.asarray(colours, np.int64))
        self.count = groups
        self._last: tuple[Any, Tensor] | None = None

    @classmethod
    def like(cls, size: int, groups: int) -> Grouped:
        """Of so many columns (or rows) in so many groups, whichever they are in: products take as long."""
        return cls(np.arange(size) % groups, groups)

    def __call__(self, start: int, stop: int, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Seeds start:stop, (stop - start, size). The last ones are kept: points ask for the same in turn."""
        wanted = start, stop, dtype, device
        if self._last is not None and self._last[0] == wanted:
            return self._last[1]
        colours = self._colours.to(device)
        if type(colours) is Tensor:  # no fake
            self._colours = colours
        made = (colours == torch.arange(start, stop, device=device)[:, None]).to(dtype)
        if type(made) is Tensor:
            self._last = wanted, made
        return made

"""Products of groups of columns (or rows), and the entries that they hold.

The seed of a group is the sum of its columns' one-hot seeds: so any strategy that makes columns makes sums
of them, one product a group. As no two columns of a group share a row, each entry of the pattern is one
element of one product.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor

from jacjobs.structure.colouring import Colouring, Grouping, rows_of


class Grouped:
    """Seed c (size n, or m for rows) is one for all of colour c. A seed maker, as strategies know them."""

    def __init__(self, colouring: Colouring) -> None:
        self._colours = torch.from_numpy(colouring.colours)
        self.count = colouring.groups

    def __call__(self, start: int, stop: int, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Seeds start:stop, (stop - start, size)."""
        wanted = torch.arange(start, stop, device=device)
        return (self._colours.to(device) == wanted[:, None]).to(dtype)


def decompress(
    pattern: csr_array, grouping: Grouping, of_columns: NDArray[Any] | None, of_rows: NDArray[Any] | None
) -> csr_array:
    """The Jacobian (m, n), with the entries of `pattern`.

    of_columns:  a product for each group of columns, (groups, m); None, if there are none.
    of_rows:     a product for each group of rows, (groups, n).
    """
    columns, by_rows = pattern.indices, grouping.by_rows
    rows = rows_of(pattern)
    given = [made for made in (of_columns, of_rows) if made is not None]
    values = np.empty(pattern.nnz, np.result_type(*given))
    if of_columns is not None and grouping.columns is not None:
        colours = grouping.columns.colours[columns[~by_rows]]
        values[~by_rows] = of_columns[colours, rows[~by_rows]]
    if of_rows is not None and grouping.rows is not None:
        colours = grouping.rows.colours[rows[by_rows]]
        values[by_rows] = of_rows[colours, columns[by_rows]]
    return csr_array((values, columns, pattern.indptr), shape=pattern.shape)

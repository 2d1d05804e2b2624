"""Matrix products, and what is solved by them."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from jacjobs.structure.pattern import Index, Pattern
from jacjobs.structure.rules.call import Call, Seen, aten, broadcast, dense, dense_in, known, rule, union


@rule(aten.mm, aten.bmm, aten.mv, aten.dot)
def _product(call: Call) -> Pattern:
    return _matmul(*call.args[:2])


@rule(aten.addmm, aten.baddbmm, aten.addmv)
def _added_product(call: Call) -> Pattern:
    bias, a, b = call.args[:3]
    parts = [broadcast(bias, call.shape)] if isinstance(bias, Seen) else []
    if isinstance(a, Seen) or isinstance(b, Seen):
        parts.append(_matmul(a, b))
    return union(parts)


def _matmul(a: Any, b: Any) -> Pattern:
    """Of (…, m, k) by (…, k, p), flat: element (i, j) depends on row i of a and column j of b, but for what
    is multiplied by a constant that is zero.
    """
    left = (1, *a.shape) if len(a.shape) == 1 else tuple(a.shape)
    right = (*b.shape, 1) if len(b.shape) == 1 else tuple(b.shape)
    batch = left[0] if len(left) == 3 else 1
    m, k, p = left[-2], left[-1], right[-1]
    parts = []
    if isinstance(a, Seen):
        other = b.reshape(batch, k, p) if isinstance(b, Tensor) else None
        parts.append(_factor(known(a), np.arange(batch * m * k).reshape(batch, m, k), other, p))
    if isinstance(b, Seen):
        other = a.reshape(batch, m, k).transpose(1, 2) if isinstance(a, Tensor) else None
        numbers = np.arange(batch * k * p).reshape(batch, k, p).transpose(0, 2, 1)
        swapped = _factor(known(b), numbers, other, m)  # (batch, p, m)
        order = np.arange(batch * p * m).reshape(batch, p, m).transpose(0, 2, 1).reshape(-1)
        parts.append(swapped.rows(order))
    return union(parts)


def _factor(pattern: Pattern, numbers: Index, other: Tensor | None, p: int) -> Pattern:
    """Of a product's elements (batch, m, p), on the left factor's, whose numbers are (batch, m, k); `other`
    is the right factor (batch, k, p), if it is constant.
    """
    batch, m, k = numbers.shape
    if other is not None:
        there = (other != 0).numpy()
        if there.mean() < 0.5:
            where, inner, column = np.nonzero(there)  # one triple an entry that is not zero
            rows = np.arange(m)
            to = (where * m * p + column)[:, None] + (rows * p)[None, :]
            source = numbers[where[:, None], rows[None, :], inner[:, None]]
            return pattern.mapped(to.reshape(-1), source.reshape(-1), batch * m * p)
    lines = np.arange(batch * m).repeat(k)
    together = pattern.mapped(lines, numbers.reshape(-1), batch * m)
    return together.rows(np.arange(batch * m).repeat(p))


@rule(aten._linalg_solve_ex, aten.linalg_inv_ex, aten.linalg_cholesky_ex, aten.linalg_solve_triangular)
def _solved(call: Call) -> Pattern:
    """Dense in each matrix of a batch."""
    shapes = [seen.shape for seen in call.seen]
    lead = call.shape[:-2]
    same = all(shape[:-2] == lead and len(shape) >= 2 for shape in shapes)
    if not same or len(call.shape) < 2:
        return dense(call)
    return union([dense_in(call, seen, 2) for seen in call.seen])

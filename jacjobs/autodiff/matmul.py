"""Matrix products of compiled chunks on a CPU, by the faster of the libraries that torch has.

`torch.mm` calls MKL, which keeps its best code for processors of one maker. On others (seen: Zen 4) oneDNN
makes float32 products a third faster, and MKL's own float64 products are up to six times slower where the
result is tall and lies row by row than where it lies column by column. So float32 goes to oneDNN, and tall
float64 is made transposed. On processors where MKL is at its best, neither is slower.

Where a matrix is multiplied by a vector, the value, and by a few more, its tangents, they are one product
that reads it once, made transposed: each tangent in one piece, as J has it. Not so on MKL's own processors:
there oneDNN is a fifth faster with the matrix first, which leaves more than enough for reading it again.

The choice follows from shapes, strides, dtypes and the processor's maker alone, so that each process makes
the same bits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from jacjobs.autodiff.nodes import call

LEAST_FLOPS = {torch.float32: 64_000_000, torch.float64: 16_000_000}
"""A smaller product is left to `torch.mm`: what surrounds one of ours takes 0.02 ms, and 0.1 where J has
emptied the caches, which is more than it saves."""
LEAST_OF_VECTOR = 2_000_000
"""Entries of a matrix that is multiplied by a vector: it is read from memory, by slower code of torch's."""

MOST_TANGENTS = 128
"""With more of them, reading the matrix once more is no matter."""

MKL_AT_HOME = torch.backends.mkl.is_available() and str(
    torch.cpu.get_capabilities().get("cpu_name", "")
).startswith("Intel")
"""Is MKL there, on a processor of its maker?"""

_library = torch.library.Library("jacjobs", "FRAGMENT")
_library.define("mm(Tensor a, Tensor b) -> Tensor")
_library.define("mv(Tensor a, Tensor x) -> Tensor")
_library.define("mm_mv(Tensor a, Tensor b, Tensor x) -> Tensor")


def _mm(a: Tensor, b: Tensor) -> Tensor:
    if _is_transposed(a, b):
        return _straight(b.t(), a.t()).t()
    return _straight(a, b)


def _straight(a: Tensor, b: Tensor) -> Tensor:
    # oneDNN takes a first operand that lies row by row, and a second in either order; for one that lies in a
    # larger matrix it has nothing but a reference, a thousand times slower.
    if a.dtype == torch.float32 and (b.is_contiguous() or b.t().is_contiguous()):
        made: Tensor = torch.ops.mkldnn._linear_pointwise(a.contiguous(), b.t(), None, "none", [], "")
        return made
    return torch.mm(a, b)


def _of_shape(a: Tensor, b: Tensor) -> Tensor:
    if _is_transposed(a, b):
        return a.new_empty(b.shape[1], a.shape[0]).t()
    return a.new_empty(a.shape[0], b.shape[1])


def _is_transposed(a: Tensor, b: Tensor) -> bool:
    """Is bᵀaᵀ made, in place of ab?"""
    if a.dtype == torch.float32:
        return not a.is_contiguous() and (b.t().is_contiguous() or b.numel() < a.numel())
    return a.shape[0] > b.shape[1]


def _mv(a: Tensor, x: Tensor) -> Tensor:
    """Of float32, row by row."""
    if MKL_AT_HOME:
        return torch.mv(a, x)
    made: Tensor = torch.ops.mkldnn._linear_pointwise(x[None], a, None, "none", [], "")
    return made[0]


def _mm_mv(a: Tensor, b: Tensor, x: Tensor) -> Tensor:
    """a @ x, and the columns of a @ b, as rows: of float32, a row by row.

    What is made of all of them but the first has a place of its own, and keeps no more alive than that.
    """
    return _straight(torch.cat([x[None], b.t()]), a.t())


_library.impl("mm", _mm, "CPU")
_library.impl("mm_mv", _mm_mv, "CPU")
_library.impl("mm_mv", lambda a, b, x: a.new_empty(b.shape[1] + 1, a.shape[0]), "Meta")
_library.impl("mv", _mv, "CPU")
_library.impl("mv", lambda a, x: x.new_empty(a.shape[0]), "Meta")
_library.impl("mm", _of_shape, "Meta")


def use_faster(graph: fx.Graph) -> None:
    """Replace matrix products in a graph that is being compiled."""
    aten = torch.ops.aten
    for node in graph.find_nodes(op="call_function", target=aten.addmm.default):
        if not node.kwargs:
            bias, *factors = node.args
            with graph.inserting_before(node):
                product = graph.call_function(aten.mm.default, tuple(factors))
                total = graph.call_function(aten.add.Tensor, (product, bias))
            product.meta["val"] = total.meta["val"] = node.meta["val"]
            node.replace_all_uses_with(total)
            graph.erase_node(node)
    for node in graph.find_nodes(op="call_function", target=aten.mm.default):
        a, b = (factor.meta["val"] for factor in node.args)
        if _is_faster(a, b):
            node.target = torch.ops.jacjobs.mm.default
            node.meta["val"] = node.target(a, b)
    for node in graph.find_nodes(op="call_function", target=aten.sum.dim_IntList):
        if (factors := _of_vector(node)) is not None:
            node.target, node.args = torch.ops.jacjobs.mv.default, factors
    if not MKL_AT_HOME:
        _read_once(graph)


def _read_once(graph: fx.Graph) -> None:
    """Join products of a matrix by a vector and by a few more, where neither needs the other."""
    aten, jacjobs = torch.ops.aten, torch.ops.jacjobs
    for mv in graph.find_nodes(op="call_function", target=jacjobs.mv.default):
        W, x = mv.args
        order = {node: number for number, node in enumerate(graph.nodes)}
        for mm in W.users:
            if mm.target is not jacjobs.mm.default or mm.args[0] is not W:
                continue
            tangents = mm.meta["val"].shape[1]
            user = min({*mm.users, *mv.users}, key=order.__getitem__)
            if tangents > MOST_TANGENTS or order[user] < max(order[a] for a in (*mm.args, x)):
                continue
            with graph.inserting_before(user):
                both = call(graph, jacjobs.mm_mv.default, W, mm.args[1], x)
                rows = call(graph, aten.slice.Tensor, both, 0, 1, tangents + 1)
                mm.replace_all_uses_with(call(graph, aten.permute.default, rows, [1, 0]))
                mv.replace_all_uses_with(call(graph, aten.select.int, both, 0, 0))
            graph.erase_node(mm)
            graph.erase_node(mv)
            break


def _of_vector(node: Any) -> tuple[fx.Node, fx.Node] | None:
    """W and x of a sum over W · x, as which torch's compiler writes W @ x to make code of its own for it."""
    product = node.args[0]
    if node.kwargs or list(node.args[1]) not in ([1], [-1]) or len(node.args) > 2:
        return None
    if product.target is not torch.ops.aten.mul.Tensor or len(product.users) > 1:
        return None
    factors = product.args
    if not all(isinstance(factor, fx.Node) for factor in factors):
        return None
    for W, x in (factors, factors[::-1]):
        w, v = W.meta["val"], x.meta["val"]
        if w.ndim == 2 and v.ndim == 1 and w.is_contiguous() and v.is_contiguous():
            large = w.numel() >= LEAST_OF_VECTOR
            return (W, x) if large and w.dtype == v.dtype == torch.float32 and _is_there(w) else None
    return None


def _is_faster(a: Tensor, b: Tensor) -> bool:
    return _is_there(a) and 2 * a.shape[0] * a.shape[1] * b.shape[1] >= LEAST_FLOPS[a.dtype]


def _is_there(a: Tensor) -> bool:
    """Is there other code for it than MKL's?"""
    known = a.dtype == torch.float64 or (a.dtype == torch.float32 and torch.backends.mkldnn.is_available())
    return known and a.device.type == "cpu"

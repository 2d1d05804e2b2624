"""Matrix products of compiled chunks on a CPU, by the faster of the libraries that torch has.

`torch.mm` calls MKL, which keeps its best code for processors of one maker. On others (seen: Zen 4) oneDNN
makes float32 products a third faster, and MKL's own float64 products are up to six times slower where the
result is tall and lies row by row than where it lies column by column. So float32 goes to oneDNN, and tall
float64 is made transposed. On processors where MKL is at its best, neither is slower.

The choice follows from shapes, strides and dtypes alone, so that each process makes the same bits.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files

LEAST_FLOPS = 4_000_000
"""A smaller product is left to `torch.mm`: what surrounds it takes longer than it does."""

_library = torch.library.Library("jacjobs", "DEF")
_library.define("mm(Tensor a, Tensor b) -> Tensor")


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


_library.impl("mm", _mm, "CPU")
_library.impl("mm", _of_shape, "Meta")


class FasterProducts(CustomGraphPass):
    """Replaces matrix products in a graph that is being compiled: an option of `torch.compile`."""

    def __call__(self, graph: fx.Graph) -> None:
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

    def uuid(self) -> bytes:
        """What torch's cache of compiled code tells this from other versions of itself by."""
        return get_hash_for_files((__file__,))


def _is_faster(a: Tensor, b: Tensor) -> bool:
    large = 2 * a.shape[0] * a.shape[1] * b.shape[1] >= LEAST_FLOPS
    known = a.dtype == torch.float64 or (a.dtype == torch.float32 and torch.backends.mkldnn.is_available())
    return large and known and a.device.type == "cpu"

"""What compiled chunks are spared: rewriting of the graph that torch's compiler makes of one.

It is rewritten after torch's own passes and before code is made of it, by what is known of a chunk of J and
not to a compiler of anything:

- Seeds that are all of the identity make the first product of a chunk a choice of rows: W, with its rows
  scaled, where W was to be multiplied by a diagonal matrix.
- A tangent of what is not differentiated is zero. Forward mode multiplies by it, at the cost of a product.
- A tangent is copied to be laid out as its primal is; generated code reads it however it lies.
- What is put together of the end and the beginning of one tensor is written and read again; it can be read
  where it lies.
- A small result that is expanded, one entry in many places, would be copied afterwards; it is written whole.
- `vmap` has the axis of tangents first, where loops along it would be faster: `innermost.py`.

Then large matrix products go to the faster of the libraries there are: `matmul.py`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files

from jacjobs.autodiff import innermost, matmul, nodes
from jacjobs.autodiff.innermost import put_tangents_innermost
from jacjobs.autodiff.nodes import call
from jacjobs.autodiff.seeds import identity

aten: Any = torch.ops.aten
prims: Any = torch.ops.prims

_MOVES = (
    aten.expand.default,
    aten.view.default,
    aten.reshape.default,
    aten.permute.default,
    aten.unsqueeze.default,
    aten.squeeze.dim,
    aten.clone.default,
    aten.sum.dim_IntList,
    aten.neg.default,
)
_PRODUCTS = (aten.mul.Tensor, aten.mm.default)
"""Of zeros they make zeros; these of zeros and anything."""


MOST_EXPANDED_BYTES = 1 << 20
"""Of a result. The memory that a chunk takes is predicted from plain ones, which leave it expanded."""


class ChunkPass(CustomGraphPass):
    """All of them: an option of `torch.compile`.

    forward:  whether seeds are tangents.
    """

    def __init__(self, *, forward: bool) -> None:
        self._forward = forward

    def __call__(self, graph: fx.Graph) -> None:
        drop_zeros(graph)
        drop_copies(graph)
        choose_rows(graph)
        rotate(graph)
        graph.eliminate_dead_code()
        if self._forward:
            put_tangents_innermost(graph)
            graph.eliminate_dead_code()
        write_identities_out(graph)
        write_results_whole(graph)
        graph.eliminate_dead_code()
        matmul.use_faster(graph)

    def uuid(self) -> bytes:
        """What torch's cache of compiled code tells this from other versions of itself by."""
        files = __file__, innermost.__file__, matmul.__file__, nodes.__file__
        return get_hash_for_files(files, extra=str((self._forward, matmul.MKL_AT_HOME)))


def drop_zeros(graph: fx.Graph) -> None:
    """Leave out what is added and is nothing but zeros."""
    zeros: set[Any] = set()
    for node in list(graph.nodes):
        if node.target is aten.add.Tensor and not node.kwargs:
            a, b = node.args
            other = b if a in zeros else a if b in zeros else None
            if isinstance(other, fx.Node) and _alike(other, node):
                node.replace_all_uses_with(other)
        elif (
            (node.target is aten.full.default and node.args[1] == 0)
            or (node.target in _MOVES and node.args[0] in zeros)
            or (node.target in _PRODUCTS and not zeros.isdisjoint(node.args))
        ):
            zeros.add(node)


def drop_copies(graph: fx.Graph) -> None:
    """Use what is copied, where only the order of its entries in memory would change."""
    for node in graph.find_nodes(op="call_function", target=aten.copy.default):
        source = node.args[1]
        given_back = any(user.op == "output" for user in node.users)  # a result of its own
        if isinstance(source, fx.Node) and _alike(source, node) and not given_back:
            node.replace_all_uses_with(source)


def choose_rows(graph: fx.Graph) -> None:
    """Write products with a diagonal matrix without a product."""
    for node in graph.find_nodes(op="call_function", target=aten.mm.default):
        a, b = node.args
        with graph.inserting_before(node):
            if (diagonal := _diagonal(graph, a)) is not None:
                made = _times(graph, b, diagonal, rows=True)
            elif (diagonal := _diagonal(graph, b)) is not None:
                made = _times(graph, a, diagonal, rows=False)
            else:
                continue
        node.replace_all_uses_with(made)
        graph.erase_node(node)


def rotate(graph: fx.Graph) -> None:
    """Read what is put together of its end and its beginning where it lies, as torch does for `roll`."""
    for node in graph.find_nodes(op="call_function", target=aten.cat.default):
        parts, dim = node.args[0], (*node.args[1:], 0)[0]
        turn = None if node.kwargs else _turn(parts, dim)
        if turn is None:
            continue
        source = parts[0].args[0]
        made = source.meta["val"]
        dim, size = dim % made.ndim, made.shape[dim]
        options = {"start": 0, "step": 1, "dtype": torch.int64, "device": made.device, "requires_grad": False}
        with made.fake_mode, graph.inserting_before(node):
            index = call(graph, prims.iota.default, size, **options)
            turned = call(graph, aten.fmod.Scalar, call(graph, aten.add.Tensor, index, turn), size)
            node.replace_all_uses_with(call(graph, aten.index.Tensor, source, [None] * dim + [turned]))
        graph.erase_node(node)


def _turn(parts: Any, dim: int) -> int | None:
    """Where the second of two parts of one tensor ends and the first begins, if they are all of it."""
    if len(parts) != 2 or any(part.target is not aten.slice.Tensor for part in parts):
        return None
    if any(part.kwargs or part.args[4:] not in ((), (1,)) for part in parts):  # steps
        return None
    (end, its_dim, begins, ends), (start, other_dim, first, last) = (_range(*part.args[:4]) for part in parts)
    dims = {its_dim, other_dim, dim % end.meta["val"].ndim}
    whole = first == 0 and last == begins and ends == end.meta["val"].shape[its_dim]
    return begins if start is end and len(dims) == 1 and whole else None


def _range(
    source: fx.Node, dim: int = 0, start: int | None = None, stop: int | None = None
) -> tuple[fx.Node, int, int, int]:
    """Of a slice: of what, along which dimension, from where to where."""
    made = source.meta["val"]
    dim %= made.ndim
    begin, end, _ = slice(start, stop).indices(made.shape[dim])
    return source, dim, begin, end


def write_identities_out(graph: fx.Graph) -> None:
    """As a comparison of indices, which joins the code around it."""
    for node in graph.find_nodes(op="call_function", target=identity):
        made = node.meta["val"]
        options = {"start": 0, "step": 1, "dtype": torch.int64, "device": made.device, "requires_grad": False}
        with made.fake_mode, graph.inserting_before(node):
            index = call(graph, prims.iota.default, node.args[1], **options)
            same = call(graph, aten.eq.Tensor, call(graph, aten.unsqueeze.default, index, 1), index)
            node.replace_all_uses_with(call(graph, prims.convert_element_type.default, same, made.dtype))
        graph.erase_node(node)


def write_results_whole(graph: fx.Graph) -> None:
    """Copy what is expanded: entries of J have places of their own."""
    (output,) = graph.find_nodes(op="output")
    for node in output.all_input_nodes:
        made = node.meta.get("val")
        if not isinstance(made, torch.Tensor) or made.nbytes > MOST_EXPANDED_BYTES:
            continue
        if any(stride == 0 and size > 1 for stride, size in zip(made.stride(), made.shape, strict=True)):
            with graph.inserting_before(output):
                whole = call(graph, aten.clone.default, node, memory_format=torch.contiguous_format)
            output.replace_input_with(node, whole)


def _diagonal(graph: fx.Graph, node: Any) -> Any:
    """The diagonal of a matrix that is known to have no other entries, from what makes it: (n,),
    or a number. None for any other matrix.
    """
    if not isinstance(node, fx.Node) or node.op != "call_function":
        return None
    args: Any = node.args
    if node.target is identity:
        return 1
    if node.target is aten.permute.default and list(args[1]) == [1, 0]:
        return _diagonal(graph, args[0])
    if node.target in (aten.view.default, aten.reshape.default, aten.clone.default):
        return _diagonal(graph, args[0]) if _alike(args[0], node) else None
    if node.target is aten.mul.Tensor:
        for factor, other in (args, args[::-1]):
            diagonal = _diagonal(graph, factor)
            if diagonal is not None and _alike(factor, node):
                return _scaled(graph, _diagonal_of_any(graph, other, node), diagonal)
    return None


def _diagonal_of_any(graph: fx.Graph, factor: Any, product: fx.Node) -> Any:
    """Of what is broadcast to a product's shape: (n,), or a number."""
    if not isinstance(factor, fx.Node) or factor.meta["val"].ndim == 1:
        return factor
    whole = call(graph, aten.expand.default, factor, list(product.meta["val"].shape))
    return call(graph, aten.diagonal.default, whole)


def _times(graph: fx.Graph, matrix: fx.Node, diagonal: Any, *, rows: bool) -> Any:
    """A matrix, its rows or its columns scaled. A new one in any case: it may be the user's."""
    if rows and isinstance(diagonal, fx.Node):
        diagonal = call(graph, aten.unsqueeze.default, diagonal, 1)
    return _scaled(graph, matrix, diagonal)


def _scaled(graph: fx.Graph, a: Any, b: Any) -> Any:
    """Of nodes and numbers."""
    if not isinstance(b, fx.Node):
        a, b = b, a
    return call(graph, aten.mul.Tensor, b, a) if isinstance(b, fx.Node) else a * b


def _alike(node: Any, other: Any) -> bool:
    """In shape and dtype."""
    a, b = node.meta["val"], other.meta["val"]
    return bool(a.shape == b.shape and a.dtype == b.dtype)

"""Nodes of a graph that torch's compiler makes, with what they make of fake tensors."""

from __future__ import annotations

from typing import Any

from torch import fx


def call(graph: fx.Graph, target: Any, *args: Any, **options: Any) -> fx.Node:
    """A new node, and what it makes of fake tensors."""
    node = graph.call_function(target, args, options)
    node.meta["val"] = target(*fx.node.map_arg(args, lambda arg: arg.meta["val"]), **options)
    return node

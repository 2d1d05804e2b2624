"""What a dataset says of itself must hold together before a reader computes with it, or takes memory for it.

Digests find accidents, and whoever forges a dataset writes the digests too. So numbers are looked at here
before anything is indexed by them, divided by them, or allocated.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetPydanticSchema,
    with_config,
)
from typing_extensions import TypedDict

from jacjobs.shape import ITEM_BYTES, Compression, JacobianShape, Segment, Structure, Tree

LARGEST = 2**63 - 1
"""Of what Arrow, NumPy and file systems can count."""
LEVELS = 200
"""How deep JSON may be nested: two levels for each of a pytree's."""

Count = Annotated[int, Field(ge=1, le=LARGEST)]


def is_shallow(content: Any) -> bool:
    """Is JSON nested at most `LEVELS` deep? What is deeper, Python reads but cannot write."""
    layer = [content]
    for _ in range(LEVELS):
        layer = [value for node in layer for value in _children(node)]
        if not layer:
            return True
    return False


def _children(node: Any) -> Iterator[Any]:
    if isinstance(node, dict):
        yield from node.values()
    elif isinstance(node, list):
        yield from node


# -- the shape of J ------------------------------------------------------------------------------------------


def _plausible(shape: JacobianShape) -> JacobianShape:
    if shape.dtype not in ITEM_BYTES:
        raise ValueError(f"dtype is {shape.dtype!r}, none of {', '.join(ITEM_BYTES)}")
    if min(shape.points, shape.rows, shape.columns) < 1 or shape.total_bytes > LARGEST:
        raise ValueError(f"{shape} is no shape that J can have")
    for name, segments, size in (
        ("outputs", shape.outputs, shape.rows),
        ("inputs", shape.inputs, shape.columns),
    ):
        if segments and not _covers(segments, size):
            raise ValueError(f"{name} do not lie end to end from 0 to {size:,}")
    if shape.structure is not None and not _is_of(shape.structure, shape):
        raise ValueError("structure is no tree of the segments")
    return shape


Shape = Annotated[JacobianShape, AfterValidator(_plausible)]
"""One that J can have, with segments that cover it."""


def _covers(segments: Sequence[Segment], size: int) -> bool:
    place = 0
    for segment in segments:
        if segment.start != place or segment.stop - place != _entries(segment.shape, size):
            return False
        place = segment.stop
    return place == size


def _entries(extent: Sequence[int], at_most: int) -> int | None:
    """Their product; None where it is negative or more than that, before it takes long to compute."""
    if min(extent, default=0) < 0:
        return None
    if 0 in extent:
        return 0
    product = 1
    for length in extent:
        product *= length
        if product > at_most:
            return None
    return product


def _is_of(structure: Structure, shape: JacobianShape) -> bool:
    return (structure.has_points or shape.points == 1) and all(
        _holds(tree, len(segments))
        for tree, segments in ((structure.outputs, shape.outputs), (structure.inputs, shape.inputs))
    )


def _holds(tree: Tree, leaves: int) -> bool:
    """Is every leaf one of so many, and every node of a kind that is known?"""
    waiting: list[Any] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, int):
            if not 0 <= node < leaves:
                return False
            continue
        match node:
            case {"list": list(children), **rest} if not rest:
                waiting += children
            case {"tuple": list(children), **rest} if not rest:
                waiting += children
            case {"dict": list(children), "keys": list(keys), **rest} if not rest:
                if len(keys) != len(children) or not all(isinstance(key, int | str) for key in keys):
                    return False
                waiting += children
            case _:
                return False
    return True


# -- sections that the store hands on ------------------------------------------------------------------------


def _checked_as(section: type) -> GetPydanticSchema:
    """A dictionary whose keys are those of a TypedDict, and others."""

    def schema(_: Any, handler: GetCoreSchemaHandler) -> Any:
        return handler.generate_schema(section)

    return GetPydanticSchema(schema)


@with_config(ConfigDict(extra="allow"))
class _Plan(TypedDict):
    strategy: str
    chunk: Count
    compression: Compression


@with_config(ConfigDict(extra="allow"))
class _Spec(TypedDict):
    output: dict[str, Any]
    cluster: dict[str, Any]


class _Job(TypedDict):
    spec: _Spec
    folder: str


class _Checks(TypedDict, total=False):
    by: str | None
    points: int
    worst_relative_error: float
    blocks_recomputed: list[str]


def _all_or_none(checks: dict[str, Any]) -> dict[str, Any]:
    if checks.get("by") and len(checks) < len(_Checks.__annotations__):
        raise ValueError("it lacks some of what a check found")
    return checks


Plan = Annotated[dict[str, Any], _checked_as(_Plan)]
"""A frozen plan: what readers show of it is there, and planning knows the rest."""
Job = Annotated[dict[str, Any], _checked_as(_Job)]
"""A job file, and the folder that it was in."""
Checks = Annotated[dict[str, Any], _checked_as(_Checks), AfterValidator(_all_or_none)]
"""What the check of J found; empty if there was none."""

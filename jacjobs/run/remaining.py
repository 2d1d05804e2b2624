"""What is left to do, from what is there: the listing of a run's folder is its log."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from jacjobs.planning.geometry import Cut


class Remaining(NamedTuple):
    """The bundles to make, how many blocks and entries those have, and, where bundles are spills, the parts
    to make of each point that lacks any.
    """

    bundles: list[int]
    blocks: int
    entries: int
    transposes: dict[int, list[int]]


def remaining(tiling: Cut, has_part: Callable[[int], bool], has_spill: Callable[[int], bool]) -> Remaining:
    bundles = [part for part in range(tiling.parts) if not has_part(part)]
    transposes: dict[int, list[int]] = {}
    if tiling.spills:
        for part in bundles:
            transposes.setdefault(tiling.part(part).point_start, []).append(part)
        bundles = [b for point in transposes for b in tiling.bundles_of(point) if not has_spill(b)]
    blocks = sum(tiling.blocks_in(bundle) for bundle in bundles)
    return Remaining(bundles, blocks, sum(tiling.bundle(b).entries for b in bundles), transposes)

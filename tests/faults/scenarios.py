"""What the simulator plays: how much there is to do, in which order, on what, and how much goes wrong."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

from jacjobs.planning.geometry import Tiling
from jacjobs.run.messages import BlockId
from jacjobs.run.roster import IN_FLIGHT


@dataclass(frozen=True)
class Scenario:
    """What there is to do, on what, and what goes wrong: probabilities are of each message or each block.

    killers:   blocks that take their worker along, each so many times (a large number: always).
    hangs:     blocks that never come, in the same way.
    raises:    a block at which the user's function raises.
    """

    tiling: Tiling
    workers: int = 1
    assemblers: int = 1
    nodes: int = 1
    block_seconds: float = 5.0
    most_in_flight: int = IN_FLIGHT
    crash: float = 0.0
    node_loss: float = 0.0
    slow: float = 0.0
    duplicate: float = 0.0
    lose: float = 0.0
    zombie: float = 0.0
    start_failure: float = 0.0
    jitter_seconds: float = 0.01
    extra_workers: int = 0
    room: float = 0.0
    """How often the room for workers changes: to none, to twice as many, or to anything between."""
    restarts: int = 0
    stops: int = 0
    disk_full: int = 0
    killers: dict[BlockId, int] = field(default_factory=dict)
    hangs: dict[BlockId, int] = field(default_factory=dict)
    raises: BlockId | None = None


def grid(parts: int, blocks: int) -> Tiling:
    """A block is a point, a part is a few of them."""
    return Tiling(
        points=parts * blocks,
        rows=1,
        columns=1,
        part_points=blocks,
        part_lines=1,
        block_points=1,
        block_rows=1,
        block_columns=1,
    )


def crossed(points: int, blocks: int) -> Tiling:
    """A part is a point, put together in memory from blocks of columns."""
    return Tiling(
        points=points,
        rows=2,
        columns=blocks,
        part_points=1,
        part_lines=2,
        block_points=1,
        block_rows=2,
        block_columns=1,
    )


def spilling(points: int, lines: int, blocks: int, spill_blocks: int = 2) -> Tiling:
    """Blocks are columns of all lines, a few in a spill; a part is a line."""
    return Tiling(
        points=points,
        rows=lines,
        columns=blocks,
        part_points=1,
        part_lines=1,
        block_points=1,
        block_rows=lines,
        block_columns=1,
        spill_blocks=spill_blocks,
    )


def any_scenario(seed: int, workers: int | None = None) -> Scenario:
    """What the seed says: mostly small and mean, sometimes large; `workers` asks for so many."""
    chance = random.Random(f"scenario {seed}")
    if workers is None:
        workers = chance.choice([1, 1, 2, 2, 3, 4, 6, 8, 12])
    size = max(1, workers // 6)
    tiling = chance.choice(
        [
            grid(chance.randint(1, 6) * size, chance.randint(1, 6)),
            grid(chance.randint(1, 3) * size, chance.randint(1, 12)),
            crossed(chance.randint(1, 5) * size, chance.randint(1, 6)),
            spilling(
                chance.randint(1, 4) * size, chance.randint(1, 4), chance.randint(1, 7), chance.randint(1, 3)
            ),
        ]
    )

    def sometimes(*rates: float) -> float:
        return chance.choice([0.0, 0.0, *rates])

    def some_blocks(times: list[int]) -> dict[BlockId, int]:
        found = {}
        for _ in range(chance.choice([0, 0, 0, 1, 1, 2])):
            bundle = chance.randrange(tiling.bundles)
            found[BlockId(bundle, chance.randrange(tiling.blocks_in(bundle)))] = chance.choice(times)
        return found

    scenario = Scenario(
        tiling=tiling,
        workers=workers,
        assemblers=chance.choice([1, 1, 2, 3]),
        nodes=chance.choice([1, 2, 4]) if workers < 100 else 50,
        block_seconds=chance.choice([0.002, 0.05, 1.0, 5.0, 60.0]),
        most_in_flight=chance.choice([IN_FLIGHT, IN_FLIGHT, 3, 16]),
        crash=sometimes(0.001, 0.005, 0.02),
        node_loss=sometimes(0.001, 0.02),
        slow=sometimes(0.05, 0.3),
        duplicate=sometimes(0.05, 0.3),
        lose=sometimes(0.001, 0.01),
        zombie=sometimes(0.3, 0.9),
        start_failure=sometimes(0.02, 0.2),
        jitter_seconds=chance.choice([0.001, 0.1, 3.0]),
        extra_workers=chance.choice([0, 0, 1, 3]),
        restarts=chance.choice([0, 0, 0, 1, 2, 5]),
        stops=chance.choice([0, 0, 0, 1, 2]),
        disk_full=chance.choice([0, 0, 0, 1]),
        killers=some_blocks([1, 2, 10**9]),
        hangs=some_blocks([1, 2]),
    )
    if chance.random() < 0.02:
        bundle = chance.randrange(tiling.bundles)
        scenario = replace(scenario, raises=BlockId(bundle, 0))
    if chance.random() < 0.1:  # and sometimes all is well
        scenario = Scenario(tiling=tiling, workers=workers, assemblers=scenario.assemblers)
    return replace(scenario, room=sometimes(0.02, 0.2))

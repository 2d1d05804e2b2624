"""Which strategy, and how many products at once: pure arithmetic over cost models, timings and a budget."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from jacjobs.cost import CostModel
from jacjobs.planning.devices import Device
from jacjobs.planning.geometry import BLOCK_BYTES, BLOCK_SECONDS, Tiling, is_crossed, tile
from jacjobs.shape import Compression, DenseLayout, JacobianShape

CLOSE = 1.03
"""A smaller chunk is taken if it is at most so much slower than the best."""
HOST_SHARE = 8
"""On a host, blocks take the same memory as products: at most one part in eight of the budget, or one
chunk.
"""
WRITE_BYTES_PER_SECOND = {"none": 500e6, "zstd": 300e6, "lz4": 300e6}
TRANSPOSE_BYTES_PER_SECOND = 1.0e9
SPILL_BYTES_PER_SECOND = 300e6


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class Resources(_Frozen):
    """What a plan may use.

    budget_bytes:     memory that products in the making may take, in each worker; on a host, with their
                      block.
    workers:          how many compute at once.
    sharing:          how many of them share the device's memory.
    disk_free_bytes:  where the dataset goes; None where nobody can say.
    """

    device: Device
    budget_bytes: int
    workers: int
    sharing: int = 1
    disk_free_bytes: int | None = None


class Timing(_Frozen):
    """What was measured on the device: seconds before the first chunk (a graph), and of one chunk."""

    strategy: str
    chunk: int
    setup_seconds: float
    chunk_seconds: float


class Estimate(_Frozen):
    """A strategy at one chunk: what it takes in memory and, for all of J, in time."""

    strategy: str
    chunk: int
    peak_bytes: int
    seconds: float
    product_seconds: float
    timed: bool = False


class Need(NamedTuple):
    chunk: int
    bytes: int


class Chooser:
    """Compares strategies for one J on given resources."""

    def __init__(
        self,
        shape: JacobianShape,
        resources: Resources,
        models: Iterable[CostModel],
        timings: Sequence[Timing] = (),
        compression: Compression = "none",
        chunk: int | None = None,
        layout: DenseLayout = "rows",
    ) -> None:
        """`models` in order of preference; `chunk` is asked for by hand, and taken if it fits."""
        self.layout: DenseLayout = layout
        self.models = {model.strategy: model for model in models}
        self._shape = shape
        self._resources = resources
        self._timings = {(t.strategy, t.chunk): t for t in timings}
        self._compression = compression
        self._asked = chunk

    def best(self, strategy: str) -> Estimate | None:
        """The strategy at its best chunk: timed ones if there are any; None if nothing fits the budget."""
        model = self.models[strategy]
        if self._asked is not None:
            chunk = self.least(model).chunk
            return self.at(strategy, chunk) if self.fits(model, chunk) else None
        chunks = [c for name, c in self._timings if name == strategy and self.fits(model, c)]
        estimates = [self.at(strategy, chunk) for chunk in chunks or self.grid(strategy)]
        if not estimates:
            return None
        fastest = min(estimate.seconds for estimate in estimates)
        return min((e for e in estimates if e.seconds <= CLOSE * fastest), key=lambda e: e.chunk)

    def ranked(self) -> list[Estimate]:
        """Every strategy that fits at its best chunk, the fastest first; ties in the order of preference."""
        found = [estimate for name in self.models if (estimate := self.best(name)) is not None]
        return sorted(found, key=lambda estimate: (not self._is_timed(estimate), estimate.seconds))

    def _is_timed(self, estimate: Estimate) -> bool:
        """What was timed goes before what is only predicted: the best of these were timed first."""
        return estimate.timed or not self._timings

    def grid(self, strategy: str) -> Iterator[int]:
        """The chunks that come into question: powers of two (of whole points), and the largest that fits."""
        model = self.models[strategy]
        chunk = model.step
        while chunk < model.most and self._sensible(model, chunk):
            yield chunk
            chunk *= 2
        largest = model.rounded(model.most)
        if chunk >= largest and self._sensible(model, largest):
            yield largest

    def fits(self, model: CostModel, chunk: int) -> bool:
        return self.needed_bytes(model, chunk) <= self._resources.budget_bytes

    def least(self, model: CostModel) -> Need:
        """What the strategy cannot do with less than: its smallest chunk, or the one asked for."""
        chunk = model.step
        if self._asked is not None:
            chunk = model.rounded(self._asked) or self._asked  # fewer than a point's products are asked for
        return Need(chunk, self.needed_bytes(model, chunk))

    def _sensible(self, model: CostModel, chunk: int) -> bool:
        """Fits, and is no more of J, and no more work, than a block is meant to be. One step always may
        be.
        """
        if not self.fits(model, chunk):
            return False
        short = self.predicted(model, chunk).chunk_seconds <= BLOCK_SECONDS
        return chunk == model.step or (short and chunk * self._product_bytes(model) <= BLOCK_BYTES)

    def needed_bytes(self, model: CostModel, chunk: int) -> int:
        """What a worker takes at this chunk: products, and on a host the block, with its transposed copy
        where products cross the lines of the layout; on a GPU the chunk before, on its way to the host.
        """
        device, peak = self._resources.device, model.peak_bytes(chunk)
        needed = peak + min(peak, device.kept_bytes) + device.process_bytes
        if device.host:
            return needed + self._block_bytes(model, chunk)
        return needed + chunk * self._product_bytes(model)

    def _product_bytes(self, model: CostModel) -> int:
        """Of J, in one product."""
        return self._shape.product_bytes(by_rows=is_by_rows(model.strategy))

    def _block_bytes(self, model: CostModel, chunk: int) -> int:
        """Of the largest block, on the host."""
        block = self.tiling(model, chunk).block(0, 0)
        return block.entries * self._shape.item_bytes * (2 if self._crosses(model) else 1)

    def tiling(self, model: CostModel, chunk: int, product_seconds: float = 0.0) -> Tiling:
        return tile(
            self._shape,
            chunk,
            by_columns=not is_by_rows(model.strategy),
            layout=self.layout,
            product_seconds=product_seconds,
            block_bytes=self._most_block_bytes,
        )

    @property
    def _most_block_bytes(self) -> int:
        if self._resources.device.host:
            return min(BLOCK_BYTES, self._resources.budget_bytes // HOST_SHARE)
        return BLOCK_BYTES

    def neighbours(self, strategy: str, chunk: int) -> list[int]:
        """Half and double the chunk, where there is such a one and it fits."""
        model = self.models[strategy]
        near = {model.rounded(chunk // 2), model.rounded(2 * chunk)} - {0, chunk}
        return sorted(c for c in near if self._sensible(model, c))

    def at(self, strategy: str, chunk: int, measured: Timing | None = None) -> Estimate:
        """All of J by this strategy in chunks of this size."""
        model = self.models[strategy]
        timing = measured or self._timings.get((strategy, chunk)) or self.predicted(model, chunk)
        product_seconds = timing.chunk_seconds / chunk
        products = self._products(model)
        setups = 0  # of whole points, the graph belongs to the chunk
        if model.step == 1 and products > 1:
            each = self._block_products(model, chunk, product_seconds)
            setups = self._shape.points * _ceil(products, each)
        compute = self._shape.points * products * product_seconds + setups * timing.setup_seconds
        return Estimate(
            strategy=strategy,
            chunk=chunk,
            peak_bytes=self.needed_bytes(model, chunk),
            seconds=self._wall_seconds(model, chunk, product_seconds, compute),
            product_seconds=product_seconds,
            timed=(strategy, chunk) in self._timings,
        )

    def predicted(self, model: CostModel, chunk: int) -> Timing:
        device, dtype = self._resources.device, self._shape.dtype
        if self._shape.origin in device.flops:
            dtype = self._shape.origin
        peak = model.peak_bytes(chunk)
        return Timing(
            strategy=model.strategy,
            chunk=chunk,
            setup_seconds=device.seconds(model.setup, dtype, peak),
            chunk_seconds=device.chunk_seconds + device.seconds(model.work(chunk), dtype, peak),
        )

    def _wall_seconds(self, model: CostModel, chunk: int, product_seconds: float, compute: float) -> float:
        """Writing shares the cores of a host with computing, and goes beside it on other devices."""
        io = self._shape.total_bytes / WRITE_BYTES_PER_SECOND[self._compression]
        if self._crosses(model):
            tiling = self.tiling(model, chunk, product_seconds)
            rate = SPILL_BYTES_PER_SECOND if tiling.spills else TRANSPOSE_BYTES_PER_SECOND
            io += self._shape.total_bytes / rate
        workers = self._resources.workers
        if self._resources.device.host:
            return (compute + io) / workers
        return max(compute / workers, io / 2)

    def _crosses(self, model: CostModel) -> bool:
        return is_crossed(self.layout, by_columns=not is_by_rows(model.strategy))

    def _products(self, model: CostModel) -> int:
        return self._shape.rows if is_by_rows(model.strategy) else self._shape.columns

    def _block_products(self, model: CostModel, chunk: int, product_seconds: float) -> int:
        """Products of one point in one block."""
        tiling = self.tiling(model, chunk, product_seconds)
        return tiling.block_rows if is_by_rows(model.strategy) else tiling.block_columns


def is_by_rows(strategy: str) -> bool:
    """A VJP is a row of J; the other products are columns."""
    return strategy.startswith("vjp/")


def _ceil(total: int, unit: int) -> int:
    return -(-total // unit)

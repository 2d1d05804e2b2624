"""The choice of strategy and chunk: within the budget, by cost, and by measurement where there is one."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jacjobs.cost import CostModel, Probe, Work
from jacjobs.planning.choice import CLOSE, Chooser, Resources, Timing
from jacjobs.planning.devices import KNOWN, Device, cpu
from jacjobs.planning.geometry import BLOCK_BYTES
from jacjobs.shape import JacobianShape

MIB = 1 << 20
H100 = KNOWN["H100 80GB"]
HOST = cpu(64 << 30)


def shape_of(rows: int = 4096, columns: int = 4096, points: int = 1) -> JacobianShape:
    return JacobianShape(points=points, rows=rows, columns=columns, dtype="float32", outputs=(), inputs=())


def model(strategy: str, **changes: Any) -> CostModel:
    """A matrix–vector product of 4096 × 4096 a product, three operators a chunk."""
    content = {
        "strategy": strategy,
        "step": 1,
        "most": 4096,
        "fixed_bytes": MIB,
        "product_bytes": 64 * 1024,
        "setup": Work(calls=10),
        "chunk_work": Work(calls=3, moved_bytes=64 * MIB),
        "product_work": Work(flops=2 * 4096**2, moved_bytes=32 * 1024),
    }
    return CostModel(**{**content, **changes})


def resources(device: Device = HOST, budget: int = 8 << 30, workers: int = 1) -> Resources:
    return Resources(device=device, budget_bytes=budget, workers=workers)


def test_a_line_through_two_probes() -> None:
    low = Probe(chunk=2, peak_bytes=300, setup=Work(calls=7), work=Work(calls=5, flops=20))
    high = Probe(chunk=10, peak_bytes=700, setup=Work(calls=9), work=Work(calls=5, flops=100))
    made = CostModel.through("vjp/vmap", 1, 50, low, high)
    assert (made.fixed_bytes, made.product_bytes, made.peak_bytes(20)) == (200, 50, 1200)
    assert made.work(20) == Work(calls=5, flops=200)
    assert made.setup == Work(calls=7)
    whole = CostModel.through("vjp/vmap", 5, 50, low, high)
    assert whole.setup == Work(), "whole points: the graph belongs to the chunk"
    assert [whole.rounded(c) for c in (4, 5, 14, 999)] == [0, 5, 10, 50]


def test_one_probe_counts_in_proportion() -> None:
    """Nothing says what is fixed: what is extrapolated must hold."""
    only = Probe(chunk=4, peak_bytes=400, setup=Work(), work=Work(calls=8))
    made = CostModel.through("vjp/repeat", 4, 12, only, only)
    assert made.peak_bytes(12) == 1200
    assert made.work(12) == Work(calls=24)


def test_points_of_one_row_pay_no_setup_each() -> None:
    gradients = shape_of(rows=1, columns=64, points=100_000)
    timing = Timing(strategy="vjp/vmap", chunk=1024, setup_seconds=0.001, chunk_seconds=0.001)
    chooser = Chooser(gradients, resources(), [model("vjp/vmap", most=100_000)], [timing])
    assert chooser.at("vjp/vmap", 1024).seconds < 0.5


def test_no_chunk_is_longer_work_than_a_block() -> None:
    slow = model("vjp/vmap", product_work=Work(flops=80e9))
    assert max(Chooser(shape_of(), resources(), [slow]).grid("vjp/vmap")) <= 30


@given(st.integers(0, 200), st.integers(1, 4000), st.sampled_from(["host", "gpu"]), st.integers(1, 2000))
def test_the_budget_is_kept(fixed_mib: int, product_kib: int, where: str, budget_mib: int) -> None:
    device = cpu(16 << 30) if where == "host" else H100
    made = [
        model(name, fixed_bytes=fixed_mib * MIB, product_bytes=product_kib * 1024.0)
        for name in ("vjp/vmap", "jvp/vmap")
    ]
    chooser = Chooser(shape_of(), resources(device, budget_mib * MIB), made)
    for estimate in chooser.ranked():
        one = chooser.models[estimate.strategy]
        block = chooser.tiling(one, estimate.chunk).block(0, 0).entries * 4
        peak = one.peak_bytes(estimate.chunk)
        on_its_way = estimate.chunk * 4096 * 4
        beside = block * (2 if estimate.strategy == "jvp/vmap" else 1) if where == "host" else on_its_way
        kept = device.process_bytes + min(peak, device.kept_bytes)
        assert peak + beside + kept == estimate.peak_bytes <= budget_mib * MIB
        assert estimate.chunk * 4096 * 4 <= BLOCK_BYTES
    if not chooser.ranked():
        assert chooser.needed_bytes(made[0], 1) > budget_mib * MIB


def test_the_smallest_chunk_that_is_nearly_as_fast() -> None:
    chooser = Chooser(shape_of(), resources(), [model("vjp/vmap")])
    best = chooser.best("vjp/vmap")
    assert best is not None
    times = {chunk: chooser.at("vjp/vmap", chunk).seconds for chunk in chooser.grid("vjp/vmap")}
    assert times[best.chunk] <= CLOSE * min(times.values())
    assert all(times[c] > CLOSE * min(times.values()) for c in times if c < best.chunk)
    assert 1 < best.chunk < 4096


def test_forward_or_reverse_follows_from_cost_not_from_shape() -> None:
    """A square J whose columns cost a third: forward mode; a wide one of cheap rows and dear columns:
    reverse.
    """
    cheap = model("jvp/vmap", product_work=Work(flops=1e7))
    dear = model("vjp/vmap", product_work=Work(flops=3e8))
    assert Chooser(shape_of(), resources(), [dear, cheap]).ranked()[0].strategy == "jvp/vmap"
    wide = shape_of(rows=2048, columns=4096)
    dear_columns = model("jvp/vmap", product_work=Work(flops=3e8))
    cheap_rows = model("vjp/vmap", product_work=Work(flops=1e8))
    assert Chooser(wide, resources(), [dear_columns, cheap_rows]).ranked()[0].strategy == "vjp/vmap"
    # Fewer columns than rows, and yet reverse mode: m < n alone decides nothing.
    tall = shape_of(rows=4096, columns=2048)
    very_dear = model("jvp/vmap", product_work=Work(flops=9e9))
    assert Chooser(tall, resources(), [very_dear, cheap_rows]).ranked()[0].strategy == "vjp/vmap"


def test_columns_pay_for_their_transposition() -> None:
    alike = [model("vjp/vmap"), model("jvp/vmap")]
    chooser = Chooser(shape_of(30_000, 30_000), resources(cpu(16 << 30), 8 << 30), alike)
    rows, columns = (chooser.at(m.strategy, 64).seconds for m in alike)
    assert columns > rows


def test_what_was_timed_counts() -> None:
    """Timings go before predictions, at the chunks that were timed."""
    timings = [
        Timing(strategy="vjp/repeat", chunk=16, setup_seconds=0, chunk_seconds=0.016),
        Timing(strategy="vjp/repeat", chunk=32, setup_seconds=0, chunk_seconds=0.040),
        Timing(strategy="vjp/vmap", chunk=64, setup_seconds=0, chunk_seconds=0.200),
    ]
    models = [model("vjp/vmap"), model("vjp/repeat"), model("vjp/loop", most=1)]
    ranked = Chooser(shape_of(), resources(), models, timings).ranked()
    assert [(e.strategy, e.chunk, e.timed) for e in ranked] == [
        ("vjp/repeat", 16, True),
        ("vjp/vmap", 64, True),
        ("vjp/loop", 1, False),
    ]
    assert ranked[0].seconds == pytest.approx(4096 * 0.001, rel=0.1)


def test_more_workers_share_the_work_but_not_the_setup_of_their_blocks() -> None:
    chooser = {n: Chooser(shape_of(), resources(workers=n), [model("vjp/vmap")]) for n in (1, 4)}
    one, four = (c.at("vjp/vmap", 8).seconds for c in chooser.values())
    assert four <= one


def test_a_chunk_asked_for_is_taken_if_it_fits() -> None:
    chosen = Chooser(shape_of(), resources(), [model("vjp/vmap")], chunk=100).best("vjp/vmap")
    assert chosen is not None
    assert chosen.chunk == 100
    tight = Chooser(shape_of(), resources(budget=2 * MIB), [model("vjp/vmap")], chunk=100)
    assert tight.best("vjp/vmap") is None
    points = model("vjp/vmap", step=10, most=500)
    for asked, taken in ((7, 7), (25, 20), (9999, 500)):
        best = Chooser(shape_of(10, 64, points=50), resources(), [points], chunk=asked).best("vjp/vmap")
        assert best is not None
        assert best.chunk == taken


def test_a_smaller_budget_never_has_a_larger_chunk() -> None:
    chunks = []
    for budget in (2, 4, 16, 64, 1024):
        best = Chooser(shape_of(), resources(budget=budget * MIB), [model("vjp/vmap")]).best("vjp/vmap")
        chunks.append(best.chunk if best else 0)
    assert all(a <= b for a, b in itertools.pairwise(chunks))
    assert chunks[0] < chunks[-1]


def test_blocks_of_slow_products_are_short() -> None:
    slow = Timing(strategy="vjp/vmap", chunk=2, setup_seconds=0, chunk_seconds=20.0)
    chooser = Chooser(shape_of(), resources(), [model("vjp/vmap")], [slow])
    estimate = chooser.best("vjp/vmap")
    assert estimate is not None
    tiling = chooser.tiling(chooser.models["vjp/vmap"], estimate.chunk, estimate.product_seconds)
    assert tiling.block_rows == 2
    assert tiling.part_lines == 30, "five minutes of one worker"

"""A plan refuses before anything starts, in one sentence, and is the same plan when made twice."""

from __future__ import annotations

from typing import Any

import pytest

from jacjobs.cost import parse_bytes
from jacjobs.errors import InputError
from jacjobs.planning.choice import Resources
from jacjobs.planning.devices import KNOWN, cpu, named, reported
from jacjobs.planning.options import ClusterOptions, ComputeOptions, OutputOptions
from jacjobs.planning.planner import Candidate, Facts, Plan, Planner
from jacjobs.shape import JacobianShape
from tests.planning.test_choice import model, shape_of

GIB = 1 << 30
NAMES = ("vjp/vmap", "vjp/loop", "jvp/vmap")


def facts(shape: JacobianShape | None = None, **reasons: str) -> Facts:
    models = [model("vjp/vmap"), model("vjp/loop", most=1, fixed_bytes=1000), model("jvp/vmap")]
    verdicts = [Candidate(strategy=n, reason=reasons.get(n.replace("/", "_"))) for n in NAMES]
    return Facts(shape=shape or shape_of(), verdicts=tuple(verdicts), models=tuple(models))


def planned(of: Facts | None = None, disk: int | None = None, budget: int = 4 * GIB, **compute: Any) -> Plan:
    return Planner(
        of or facts(),
        ComputeOptions(**compute),
        OutputOptions(path="runs/a"),
        ClusterOptions(),
        Resources(device=cpu(16 * GIB), budget_bytes=budget, workers=2, disk_free_bytes=disk),
        lambda name: ("jvp/vmap",) if name.startswith("vjp") else ("vjp/vmap",),
    ).plan()


def test_a_plan_made_twice_is_the_same_plan() -> None:
    assert planned() == planned()
    assert Plan.model_validate_json(planned().model_dump_json()) == planned()


def test_the_disk_must_suffice() -> None:
    terabytes = shape_of(10**6, 2_500_000)
    with pytest.raises(InputError, match=r"disk space at runs/a: got 1,000 bytes free, expected 1\d,\d{3},"):
        planned(facts(terabytes), disk=1000)
    assert planned(disk=None).disk_bytes > 4096**2 * 4


def test_the_memory_must_suffice() -> None:
    with pytest.raises(InputError, match=r"budget of 900 bytes a worker, expected at least [\d,]+, which"):
        planned(budget=900)


def test_strategies_that_do_not_work_or_fit_are_named_with_their_reason() -> None:
    made = planned(facts(vjp_vmap="no batching rule for aten::f"), budget=120 << 20)
    rows = {c.strategy: c for c in made.candidates}
    assert rows["vjp/vmap"].reason == "no batching rule for aten::f"
    assert rows["vjp/vmap"].chunk is None
    for name in ("vjp/loop", "jvp/vmap"):
        assert rows[name].seconds is not None
        assert rows[name].peak_bytes is not None


def test_a_chunk_that_does_not_fit_is_named() -> None:
    with pytest.raises(InputError, match=r"at least [\d,]+, which vjp/vmap takes in chunks of 4,000;"):
        planned(budget=200 << 20, strategy="vjp/vmap", chunk=4000)


def test_leaner_strategies_stand_by() -> None:
    assert planned(strategy="vjp/vmap").leaner == ("vjp/loop",)
    assert planned(strategy="vjp/loop").leaner == ()
    wrong = facts(vjp_loop="its products differ from those of vjp/loop")
    assert planned(wrong, strategy="vjp/vmap").leaner == (), "one that is wrong is no way out"


def test_only_the_strategy_asked_for_is_considered() -> None:
    made = planned(strategy="jvp/vmap", chunk=17)
    assert (made.strategy, made.chunk, made.by_columns) == ("jvp/vmap", 17, True)
    assert [c.strategy for c in made.candidates] == ["jvp/vmap"]
    assert made.checked_by == "vjp/vmap"


def test_gpus_by_name() -> None:
    assert named("h100").name == named("NVIDIA H100 80GB HBM3").name == "H100 80GB"
    assert named("A100 40GB").memory_bytes == 40 * GIB
    assert named("NVIDIA GeForce RTX 4090").name == "RTX 4090 24GB"
    with pytest.raises(InputError, match="device: got 'H1000 GTX', expected one of H200 141GB, "):
        named("H1000 GTX")
    assert reported("Unheard-of 9000", 7 * GIB).memory_bytes == 7 * GIB
    assert all(device.memory_bytes == parse_bytes(f"{n.split()[-1][:-2]}GiB") for n, device in KNOWN.items())


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("8GiB", 8 * GIB), ("1.5 MiB", 3 << 19), ("12B", 12), ("8GB", None), ("lots", None), ("-1GiB", None)],
)
def test_bytes(text: str, nbytes: int | None) -> None:
    assert parse_bytes(text) == nbytes

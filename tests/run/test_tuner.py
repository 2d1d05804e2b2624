"""Tuning finds the best of what it may look at, within its time; then the plan is frozen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import jacjobs
from jacjobs import api
from jacjobs.errors import InputError
from jacjobs.planning.choice import Chooser, Timing
from jacjobs.planning.planner import Plan
from jacjobs.run import tuner
from jacjobs.store.folder import RunFolder
from tests.functions import randn
from tests.planning.test_choice import model, resources, shape_of

PROBLEM: Any = None  # nothing is run: what would be timed is replaced


class Clock:
    """Timings of an imaginary device, which cost their own time: `rate` is in products a second."""

    def __init__(self, rates: dict[str, Any]) -> None:
        self.now = 0.0
        self.rates = rates
        self.asked: list[tuple[str, int]] = []

    def __call__(self) -> float:
        return self.now

    def time_one(self, problem: Any, of: Any, chunk: int) -> Timing | None:
        rate = self.rates[of.strategy]
        seconds = chunk / (rate(chunk) if callable(rate) else rate)
        self.now += 5 * seconds
        self.asked.append((of.strategy, chunk))
        return Timing(strategy=of.strategy, chunk=chunk, setup_seconds=0.0, chunk_seconds=seconds)


def tuned(
    monkeypatch: pytest.MonkeyPatch, rates: dict[str, Any], limit: float = 1e9
) -> tuple[Chooser, list[Timing], Clock]:
    clock = Clock(rates)
    monkeypatch.setattr(tuner, "time_one", clock.time_one)
    models = [model(name) for name in rates]
    timings = tuner.tune(PROBLEM, Chooser(shape_of(), resources(), models), limit, clock)
    return Chooser(shape_of(), resources(), models, timings), timings, clock


def test_it_finds_a_peak_away_from_the_prediction(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fastest at chunk 4, where the caches suffice: the model knows nothing of that."""

    def rate(chunk: int) -> float:
        return 1000 / (1 + abs(chunk.bit_length() - 3))

    chooser, timings, _ = tuned(monkeypatch, {"vjp/vmap": rate})
    assert chooser.ranked()[0].chunk == 4
    assert len(timings) < 13, "it climbs, it does not sweep"


def test_the_strategy_that_is_really_faster_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    chooser, _, _ = tuned(monkeypatch, {"vjp/vmap": 100, "vjp/repeat": 900, "double-vjp/vmap": 300})
    assert chooser.ranked()[0].strategy == "vjp/repeat"


def test_the_time_limit_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = dict.fromkeys(("vjp/vmap", "vjp/repeat", "jvp/vmap", "double-vjp/vmap"), 2.0)
    _, timings, clock = tuned(monkeypatch, slow, limit=100)
    assert len(timings) >= 1
    first = 5 * timings[0].chunk_seconds
    assert clock.now <= max(100, first) + 5 * max(t.chunk_seconds for t in timings)


def test_how_long_it_may_take() -> None:
    assert tuner.seconds_for(1.0) == 0.0, "a short job starts at once"
    assert tuner.seconds_for(100.0) == 5.0
    assert tuner.seconds_for(1e6) == 30.0


def test_a_real_timing() -> None:
    W = randn(64, 64).float()
    problem = jacjobs.Problem(lambda x: torch.tanh(W @ x), (randn(64).float(),))
    timing = tuner.time_one(problem, model("vjp/vmap", most=64), 16)
    assert timing is not None
    assert 0 < timing.chunk_seconds < 1


@pytest.fixture
def long_job(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every job counts as long enough to be tuned, for two seconds. Returns the count of tunings."""
    count: list[int] = []
    tune = tuner.tune

    def counted(*arguments: Any) -> list[Timing]:
        count.append(1)
        return tune(*arguments)

    monkeypatch.setattr(tuner, "tune", counted)
    monkeypatch.setattr(api, "seconds_for", lambda predicted: 2.0)
    return count


def problem() -> jacjobs.Problem:
    W = randn(300, 200, seed=1).float()
    return jacjobs.Problem(lambda x: torch.tanh(W @ x), (randn(200, seed=2).float(),))


def test_the_choice_is_frozen_and_resumed_with(tmp_path: Path, long_job: list[int]) -> None:
    run = jacjobs.submit(problem(), tmp_path / "a", address="inline")
    run.wait()
    assert run.plan.timings
    assert run.plan.chunk in {t.chunk for t in run.plan.timings if t.strategy == run.plan.strategy}
    assert len(long_job) == 1
    before = {p.name: p.read_bytes() for p in (tmp_path / "a").glob("part-*")}
    # Another chunk and strategy by hand: the frozen plan decides, whatever would be measured today.
    record = RunFolder(tmp_path / "a").record()
    frozen = {**record.plan, "strategy": "vjp/repeat", "chunk": 37}
    RunFolder(tmp_path / "a").create(record.model_copy(update={"plan": frozen}))
    (tmp_path / "a" / "_jacjobs" / "manifest.json").unlink()
    next((tmp_path / "a").glob("part-*")).unlink()
    again = jacjobs.submit(problem(), tmp_path / "a", address="inline")
    assert (again.plan.strategy, again.plan.chunk) == ("vjp/repeat", 37)
    again.wait()
    assert len(long_job) == 1, "no second tuning"
    assert {p.name for p in (tmp_path / "a").glob("part-*")} == set(before)


def test_a_plan_of_another_version_is_refused(tmp_path: Path) -> None:
    jacjobs.submit(problem(), tmp_path / "a", address="inline").wait()
    record = RunFolder(tmp_path / "a").record()
    old = {key: value for key, value in record.plan.items() if key != "resources"}
    RunFolder(tmp_path / "a").create(record.model_copy(update={"plan": old}))
    with pytest.raises(InputError, match=r"a run of jacjobs 0\.1\.0, whose plan has no resources"):
        jacjobs.submit(problem(), tmp_path / "a", address="inline")


def test_what_is_fixed_by_hand_is_not_tuned(tmp_path: Path, long_job: list[int]) -> None:
    run = jacjobs.submit(problem(), tmp_path / "a", address="inline", strategy="vjp/repeat", chunk=9)
    assert (run.plan.strategy, run.plan.chunk, run.plan.timings) == ("vjp/repeat", 9, ())
    half = jacjobs.submit(problem(), tmp_path / "b", address="inline", strategy="vjp/repeat")
    assert {t.strategy for t in half.plan.timings} == {"vjp/repeat"}
    assert len(long_job) == 1


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_a_worker_of_the_cluster_is_tuned_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "seconds_for", lambda predicted: 1.0)
    run = jacjobs.submit(problem(), tmp_path / "a", workers=1)
    assert run.plan.timings
    J = run.result()
    want = torch.func.jacrev(problem().fn)(problem().leaves[0])
    torch.testing.assert_close(J.to_torch()[0], want, rtol=1e-5, atol=1e-5)


def test_a_plan_made_twice_is_the_same_plan() -> None:
    first, second = (jacjobs.plan(problem(), memory="1GiB") for _ in range(2))
    differ = {name for name in Plan.model_fields if getattr(first, name) != getattr(second, name)}
    assert differ <= {"resources"}, "but for the free memory and disk of the moment"
    assert first.resources.budget_bytes == second.resources.budget_bytes


def test_ten_terabytes_are_refused_for_lack_of_disk_and_planned_without() -> None:
    """In seconds, and nothing of J's size is allocated."""
    from jacjobs.autodiff.meter import ResidentPeak

    n = 1_600_000
    huge = jacjobs.Problem(lambda x: torch.sin(x) * x.roll(1), (torch.linspace(0, 1, n),))
    with ResidentPeak() as peak, pytest.raises(InputError, match=r"disk space .* expected 10,2\d\d,"):
        jacjobs.plan(huge, compression="none", structure="dense")
    assert peak.nbytes is not None
    assert peak.nbytes < 1 << 30


def test_a_device_elsewhere_is_planned_for() -> None:
    made = jacjobs.plan(problem(), device="H100 80GB", workers=4)
    assert made.resources.device.name == "H100 80GB"
    assert made.resources.budget_bytes == int(0.9 * (80 << 30))
    assert made.resources.workers == 4
    with pytest.raises(InputError, match="device: got 'TPU'"):
        jacjobs.plan(problem(), device="TPU")


def test_a_budget_that_is_not_there_can_be_planned_with_but_not_run(tmp_path: Path) -> None:
    assert jacjobs.plan(problem(), memory="9TiB").resources.budget_bytes == 9 << 40
    with pytest.raises(InputError, match=r"compute.memory: got [\d,]+ bytes a worker, expected at most the"):
        jacjobs.submit(problem(), tmp_path / "a", memory="9TiB", address="inline")
    with pytest.raises(InputError, match="option memory"):
        jacjobs.plan(problem(), memory="9 lots")
    assert not (tmp_path / "a").exists()

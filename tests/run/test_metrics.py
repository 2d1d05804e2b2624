"""What runs export, what the dashboard shows, and the table of both. The runs are in scenario_metrics.py."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock, call

import promql_parser
import pytest
import torch

import jacjobs
from jacjobs import api
from jacjobs.job import job_from_options
from jacjobs.planning.planner import Plan
from jacjobs.record import new_record
from jacjobs.run.cluster.metrics import LABELS, METRICS, Metric, RunMetrics
from jacjobs.run.coordinator import Coordinator, part_metadata
from jacjobs.run.inline import InlineExecutor
from jacjobs.run.readings import Readings
from jacjobs.store.folder import Manifest, RunFolder
from tests.faults.job import ROOT
from tests.faults.troubled import COLUMNS, ROWS

EXPORTED = {metric.exported: metric for metric in METRICS}
DASHBOARD: dict[str, Any] = json.loads((ROOT / "dashboards" / "jacjobs.json").read_text(encoding="utf-8"))
POINTS = 12
WIDTH = 24


# -- a real run --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    command = [sys.executable, "-m", "tests.run.scenario_metrics", str(tmp_path_factory.mktemp("metrics"))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=540)
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


def values(families: dict[str, Any]) -> dict[str, float]:
    """By the names of `METRICS`, without what Ray adds; counters that are not there never happened."""
    return {
        metric.reading: families[metric.exported]["value"] if metric.exported in families else 0
        for metric in METRICS
    }


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_run_exports_what_it_made(seen: dict[str, dict[str, Any]]) -> None:
    run = seen["a_worker_dies"]
    ended = values(run["ended"])
    assert ended["blocks"] == POINTS
    assert ended["rows"] == POINTS * ROWS
    assert ended["bytes"] == POINTS * ROWS * COLUMNS * 8 == run["bytes_on_disk"]
    assert ended["blocks_waiting"] == ended["blocks_in_flight"] == 0
    assert ended["device_memory_peak_bytes"] == run["memory"]["measured_bytes"] > ROWS * COLUMNS * 8
    assert ended["device_memory_predicted_bytes"] == run["memory"]["predicted_bytes"]
    assert ended["device_memory_budget_bytes"] == run["memory"]["budget_bytes"]


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_while_it_goes_on_it_exports_how_far_it_is(seen: dict[str, dict[str, Any]]) -> None:
    """Held in block 8 of 12: block 9 is with the worker already, two wait."""
    held = values(seen["a_worker_dies"]["held"])
    assert held["workers"] == 1
    assert (held["blocks"], held["blocks_in_flight"], held["blocks_waiting"]) == (8, 2, 2)
    assert held["rows"] == 8 * ROWS


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_what_was_lost_is_counted(seen: dict[str, dict[str, Any]]) -> None:
    once, thrice = seen["a_worker_dies"], seen["a_block_is_quarantined"]
    assert values(once["ended"])["workers_lost"] == 1
    assert values(once["ended"])["blocks_repeated"] == once["blocks_repeated"] > 0
    assert values(once["ended"])["blocks_quarantined"] == 0
    assert thrice["code"] == 4
    ended = values(thrice["ended"])
    assert ended["workers_lost"] == thrice["failures"] >= 3
    assert ended["blocks_quarantined"] == 1
    assert ended["blocks"] == POINTS - 1


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_each_halving_is_counted(seen: dict[str, dict[str, Any]]) -> None:
    """From chunk 8 to 2."""
    run = seen["memory_runs_out"]
    assert values(run["ended"])["oom_halvings"] == len(run["retreats"]) == 2
    assert values(run["ended"])["rows"] == 64 * 4


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_what_is_exported_is_what_is_declared(seen: dict[str, dict[str, Any]]) -> None:
    """Names, kinds and help texts; every metric is exported by one run or another."""
    exported = {name: family for run in seen.values() for name, family in run["ended"].items()}
    assert set(exported) == set(EXPORTED)
    for name, family in exported.items():
        assert (family["kind"], family["help"]) == (EXPORTED[name].kind, EXPORTED[name].help)
    assert {family["job"] for family in seen["a_worker_dies"]["ended"].values()} == {"troubled"}


# -- the observer ------------------------------------------------------------------------------------------


def test_every_reading_is_a_metric() -> None:
    assert [metric.reading for metric in METRICS] == [field.name for field in dataclasses.fields(Readings)]


def carried_out(folder: Path, observer: Any) -> Manifest:
    problem = jacjobs.Problem(lambda x: x.sin() * x.sum(), (torch.randn(20, 3),), in_dims=0)
    job = job_from_options(problem, str(folder), {"address": "inline"})
    record = new_record(job, api.plan_job(job), {})
    RunFolder(folder).create(record)
    plan = Plan.model_validate(record.plan)
    return Coordinator(
        record,
        str(folder),
        lambda: InlineExecutor(problem, plan, str(folder), part_metadata(record)),
        workers=1,
        observer=observer,
    ).run()


def test_a_run_goes_on_without_an_observer_that_fails(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    called = []

    def fails(readings: Readings) -> None:
        called.append(readings)
        raise OSError("the agent is gone")

    assert carried_out(tmp_path / "run", fails).shape.points == 20
    assert len(called) == 1
    assert "the agent is gone" in caplog.text


def test_an_observer_is_told_how_it_ended(tmp_path: Path) -> None:
    told: list[Readings] = []
    carried_out(tmp_path / "run", told.append)
    assert (told[-1].rows, told[-1].bytes, told[-1].blocks_waiting) == (60, 60 * 3 * 4, 0)


class _Noted(RunMetrics):
    """Notes what Ray would be told."""

    def __init__(self) -> None:
        super().__init__("digest", "name")
        self.told: dict[str, Mock] = {}

    def _get(self, metric: Metric) -> Mock:
        return self.told.setdefault(metric.reading, Mock())


def test_what_is_made_again_is_counted_once() -> None:
    """Four blocks go with an assembler, and come again."""
    metrics = _Noted()
    for blocks in (10, 6, 6, 12):
        zero = dict.fromkeys((field.name for field in dataclasses.fields(Readings)), 0)
        metrics(Readings(**{**zero, "blocks": blocks, "workers": blocks}))
    assert metrics.told["blocks"].inc.mock_calls == [call(10), call(2)]
    assert metrics.told["workers"].set.mock_calls == [call(10), call(6), call(6), call(12)]


# -- the dashboard -----------------------------------------------------------------------------------------


def queries(panel: dict[str, Any]) -> list[str]:
    return [target["expr"] for target in panel["targets"]]


def selectors(query: str) -> list[promql_parser.VectorSelector]:
    """Of a query, with Grafana's variables filled in."""
    filled = query.replace("$__rate_interval", "1m").replace("$run", ".*").replace("$name", ".*")
    found = []

    def note(node: promql_parser.Expr) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            found.append(node)

    promql_parser.walk(promql_parser.parse(filled), note)
    return found


def labels(selector: promql_parser.VectorSelector) -> set[str]:
    return {matcher.name for matcher in selector.matchers.matchers}


def test_panels_show_declared_metrics_and_all_of_them() -> None:
    shown = [selector for panel in DASHBOARD["panels"] for q in queries(panel) for selector in selectors(q)]
    assert {selector.name for selector in shown} == set(EXPORTED)
    assert all(labels(selector) == {"run"} for selector in shown)
    named = re.findall(r"\bray_\w+", json.dumps(DASHBOARD))
    assert set(named) == set(EXPORTED)


def test_only_counters_are_asked_for_rates() -> None:
    for query in (query for panel in DASHBOARD["panels"] for query in queries(panel)):
        rated = re.findall(r"rate\((\w+)", query)
        assert {EXPORTED[name].kind for name in rated} <= {"counter"}


def test_variables_come_from_labels_that_metrics_have() -> None:
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert variables.keys() == {"datasource", *LABELS}
    assert variables["datasource"]["type"] == "datasource"
    for label in LABELS:
        asked = re.fullmatch(r"label_values\((.+), (\w+)\)", variables[label]["query"]["query"])
        assert asked is not None
        (selector,) = selectors(asked[1])
        assert asked[2] == label
        assert selector.name in EXPORTED
        assert labels(selector) <= set(LABELS)


def test_every_query_goes_to_the_chosen_data_source() -> None:
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    for panel in DASHBOARD["panels"]:
        assert panel["datasource"] == chosen
        assert all(target["datasource"] == chosen for target in panel["targets"])


def test_panels_have_places_and_numbers_of_their_own() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)
    places = [panel["gridPos"] for panel in panels]
    assert all(place["x"] >= 0 and place["x"] + place["w"] <= WIDTH for place in places)
    for a, b in itertools.combinations(places, 2):
        beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        above = a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
        assert beside or above

"""`jacjobs schedule` as a user sees it."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

import pytest
import yaml

from jacjobs.cli.app import main
from jacjobs.occurrences import following, latest, shown
from jacjobs.planning.options import ScheduleOptions

PROBLEM = """
import torch
from jacjobs import Problem
def build(): return Problem(torch.sin, (torch.ones(4, 3),), in_dims=0)
"""
PLAIN = "problem: p.py:build\ncluster: {address: inline}\n"
NIGHTLY = (
    f'name: nightly\n{PLAIN}output: {{path: "runs/nightly/{{scheduled:%Y-%m-%d}}"}}\n'
    'schedule: {cron: "0 2 * * *", timezone: Europe/Berlin}\n'
)
HOURLY = (
    f'name: hourly\n{PLAIN}output: {{path: "runs/hourly/{{scheduled:%Y-%m-%dT%H}}"}}\n'
    "schedule: {cron: '@hourly', overlap: allow}\n"
)
TARGETS = {
    "crontab": ["jacjobs.crontab"],
    "systemd": [f"jacjobs-{job}.{kind}" for job in ("hourly", "nightly") for kind in ("service", "timer")],
    "slurm": ["jacjobs-hourly.sbatch", "jacjobs-nightly.sbatch", "jacjobs.scrontab"],
    "k8s-cronjob": ["jacjobs-hourly.cronjob.yaml", "jacjobs-nightly.cronjob.yaml"],
    "raycronjob": ["jacjobs-hourly.raycronjob.yaml", "jacjobs-nightly.raycronjob.yaml"],
}


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "jobs"
    folder.mkdir()
    (folder / "p.py").write_text(PROBLEM)
    (folder / "nightly.yaml").write_text(NIGHTLY)
    (folder / "hourly.yml").write_text(HOURLY)
    (folder / "once.yaml").write_text(f"name: once\n{PLAIN}output: {{path: runs/once}}\n")
    return folder


def ended(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["jacjobs", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    printed = capsys.readouterr()
    assert isinstance(caught.value.code, int)
    return caught.value.code, printed.out, printed.err


def schedules() -> dict[str, ScheduleOptions]:
    return {
        "nightly": ScheduleOptions(cron="0 2 * * *", timezone="Europe/Berlin"),
        "hourly": ScheduleOptions(cron="@hourly"),
    }


def test_list_says_when_where_to_and_how_it_went(
    jobs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(monkeypatch, capsys, "submit", "jobs/hourly.yml", "--scheduled", "latest")[0] == 0
    code, out, _ = ended(monkeypatch, capsys, "schedule", "list", "jobs")
    lines = out.splitlines()
    assert code == 0
    assert lines[0].split()[:6] == ["job", "cron", "zone", "overlap", "latest", "next"]
    assert [line.split()[0] for line in lines[1:]] == ["hourly", "nightly"], "`once` has no schedule"
    code, out, _ = ended(monkeypatch, capsys, "schedule", "list", "jobs", "--json")
    hourly, nightly = json.loads(out)
    assert (hourly["latest_state"], nightly["latest_state"]) == ("complete", "none")
    assert (nightly["cron"], nightly["timezone"], hourly["overlap"]) == (
        "0 2 * * *",
        "Europe/Berlin",
        "allow",
    )
    now = datetime.now(UTC)
    assert nightly["latest"] == shown(schedules()["nightly"], latest(schedules()["nightly"], now))
    assert nightly["next"] == shown(schedules()["nightly"], next(following(schedules()["nightly"], now)))
    assert nightly["next_path"] == f"runs/nightly/{nightly['next'][:10]}"


def test_next_merges_the_jobs_in_the_order_of_time(
    jobs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = ended(monkeypatch, capsys, "schedule", "next", "jobs", "-n", "30", "--json")
    rows = json.loads(out)
    assert code == 0
    assert len(rows) == 30
    times = [datetime.fromisoformat(row["scheduled"]) for row in rows]
    assert times == sorted(times)
    for name, schedule in schedules().items():
        mine = [datetime.fromisoformat(row["scheduled"]) for row in rows if row["job"] == name]
        assert mine == list(islice(following(schedule, datetime.now(UTC)), len(mine)))
        assert mine
    one = ended(monkeypatch, capsys, "schedule", "next", "jobs/nightly.yaml")[1].splitlines()
    assert [line.split()[1] for line in one] == ["job"] + ["nightly"] * 5


def test_validate_names_every_file_that_is_wrong(
    jobs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = ended(monkeypatch, capsys, "schedule", "validate", "jobs")
    assert (code, out.splitlines()) == (
        0,
        [f"jobs/{n}: ok" for n in ("hourly.yml", "nightly.yaml", "once.yaml")],
    )
    (jobs / "bad.yaml").write_text(NIGHTLY.replace("0 2", "0 25"))
    (jobs / "worse.yaml").write_text("[")
    code, out, _ = ended(monkeypatch, capsys, "schedule", "validate", "jobs")
    wrong = [line for line in out.splitlines() if not line.endswith(": ok")]
    assert code == 2
    assert [line.split()[:2] for line in wrong] == [["WRONG", "jobs/bad.yaml:"], ["WRONG", "job"]]
    assert "schedule.cron: got '0 25 * * *', expected five fields of cron" in wrong[0]
    assert "jobs/worse.yaml is not YAML" in wrong[1]
    assert ended(monkeypatch, capsys, "schedule", "list", "jobs")[0] == 2


@pytest.mark.parametrize("command", ["list", "next"])
def test_a_wrong_file_does_not_hide_the_others(
    command: str, jobs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (jobs / "bad.yaml").write_text("name: bad\n")
    code, out, err = ended(monkeypatch, capsys, "schedule", command, "jobs", "--json")
    assert code == 2
    assert (
        {row["job"] for row in json.loads(out)} == {"hourly", "nightly"} if command == "list" else {"hourly"}
    )
    (line,) = err.splitlines()
    assert line.startswith("WRONG  jobs/bad.yaml: 'problem' is missing")


@pytest.mark.parametrize("target", TARGETS)
def test_render_prints_or_writes_the_same_each_time(
    target: str, jobs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["schedule", "render", "jobs", "--target", target, "--image", "x:1", "--claim", "runs"]
    assert ended(monkeypatch, capsys, *command, "--out", "out")[0] == 0
    files = {path.name: path.read_text() for path in Path("out").iterdir()}
    assert sorted(files) == TARGETS[target]
    assert ended(monkeypatch, capsys, *command, "--out", "out")[0] == 0
    assert files == {path.name: path.read_text() for path in Path("out").iterdir()}
    code, out, _ = ended(monkeypatch, capsys, *command)
    assert code == 0
    for text in files.values():
        assert f"Written by `jacjobs schedule render --target {target}`" in text
        assert "Install: " in text
        assert text.replace(f"{Path('out').absolute()}/", f"{Path.cwd()}/") in out
    if target not in ("crontab", "systemd", "slurm"):
        assert all(yaml.safe_load(text)["kind"] in ("CronJob", "RayCronJob") for text in files.values())


def test_what_is_rendered_is_where_relative_paths_lead_from_here(
    jobs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The very line of the crontab, run by sh elsewhere, writes the run where `submit` here would."""
    out = ended(monkeypatch, capsys, "schedule", "render", "jobs/hourly.yml", "--target", "crontab")[1]
    (line,) = [line for line in out.splitlines() if line.startswith("0 *")]
    package = Path(__file__).parent.parent.parent
    command = line.split(None, 5)[5]
    done = subprocess.run(
        ["/bin/sh", "-c", command], cwd="/", capture_output=True, text=True, check=False,
        env={"PYTHONPATH": str(package)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (run,) = Path("runs/hourly").iterdir()
    assert (run / "_jacjobs" / "manifest.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["list", "nowhere"], "nowhere: got nothing there, expected a job file, or a folder of them"),
        (["list", "empty"], "empty: got no *.yaml in it, expected a folder of job files"),
        (["list", "jobs/once.yaml"], "got no job with a schedule, expected one; add `schedule: {cron: …}`"),
        (["history", "nowhere"], "nowhere: got No such file or directory, expected the history that"),
        (
            ["render", "jobs", "--target", "k8s-cronjob"],
            "got no image, expected what the containers are made of",
        ),
        (["render", "jobs", "--target", "crontab", "--out", "jobs/p.py"], "--out jobs/p.py: got File exists"),
        (["render", "same", "--target", "systemd"], "expected a name of its own for every job"),
        (["render", "alike", "--target", "systemd"], "which becomes 'nightly' as 'nightly!' does"),
        (["serve", "jobs", "--history", "jobs/p.py/x"], "--history jobs/p.py/x: got"),
    ],
)
def test_wrong_arguments_are_one_sentence(
    arguments: list[str],
    sentence: str,
    jobs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for folder, other in (("empty", None), ("same", "nightly"), ("alike", "nightly!")):
        Path(folder).mkdir()
        if other is not None:
            (Path(folder) / "b.yaml").write_text(NIGHTLY)
            (Path(folder) / "a.yaml").write_text(NIGHTLY.replace("name: nightly", f"name: {other}"))
    code, _, err = ended(monkeypatch, capsys, "schedule", *arguments)
    assert code == 2
    assert sentence in err
    assert len(err.splitlines()) == 1

"""The page of `jacjobs report`: what is known of a run is on it, and no text of a run leaves its place."""

from __future__ import annotations

import base64
import json
import re
import sys
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import torch

import jacjobs
from jacjobs.cli import render
from jacjobs.cli.app import main
from jacjobs.cli.plots import timeline
from jacjobs.cli.plots.memory import memory
from jacjobs.cli.report import facts as facts_module
from jacjobs.cli.report import page as page_module
from jacjobs.cli.report.facts import facts_of
from jacjobs.cli.report.page import page, write_report
from jacjobs.errors import InputError, JacjobsError, StoreError
from jacjobs.planning.geometry import Tiling
from jacjobs.store.attempt import Attempt, Failure, Timeline, Work
from jacjobs.store.folder import RunFolder
from tests.autodiff.test_block import Device
from tests.browser import look_at, outside
from tests.faults.forging import check_sentence, forge
from tests.faults.job import TroubledJob, parts
from tests.store.datasets import make_run, plan_of
from tests.store.s3 import ENVIRONMENT, S3Server

HEADINGS = [
    "The job",
    "What J looks like",
    "The plan, and why",
    "How it went",
    "Workers",
    "Memory",
    "What was lost",
    "The check",
]
EVIL = (
    "</style></title><script>console.error('1')</script>"
    '<img src=x onerror="console.error(2)">\' " & \x1b[2J\u202e'
)
GOLDEN = Path(__file__).parent.parent / "golden"
TILING = Tiling(
    points=4, rows=3, columns=2, part_points=4, part_lines=3, block_points=1, block_rows=3, block_columns=2
)


def text_of(html: str) -> str:
    """As it is read: without what is drawn and how."""
    body = re.sub(r"<style>.*?</style>|data:[^\"]*", "", html, flags=re.DOTALL)
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]*>", " ", body)))


def headings(html: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", html)


def pictures(html: str) -> list[bytes]:
    return [base64.b64decode(found) for found in re.findall(r'src="data:image/[^;]*;base64,([^"]*)"', html)]


def attempt(number: int = 1, **changes: Any) -> Attempt:
    """One of two workers, of which the second is lost."""
    record = Timeline(
        seconds=1.0, computed=(0, 6, 12, 6), taken=(0, 0, 12, 12), busy=(0, 1.5, 2, 1), lane_seconds=1.0
    )
    works = (
        Work(
            name="worker-1", where="here", joined=0.5, blocks=3, seconds=3.0, peak_bytes=3 << 20, busy="4995"
        ),
        Work(
            name="worker-2", where="there", device="0", joined=1.0, left=2.5, blocks=1, seconds=0.5, busy="42"
        ),
    )
    failure = Failure(
        seconds=2.5, who="worker-2", where="there", cause="its node is gone", blocks=("points 3:4",)
    )
    content: dict[str, Any] = {
        **{"number": number, "started": "2026-01-02T03:04:05+00:00", "host": "node7", "pid": 17},
        **{"state": "failed", "cause": "no worker could start", "exit_code": 1, "seconds": 4.0},
        **{
            "blocks_done": 4,
            "blocks_total": 4,
            "entries_done": 24,
            "entries_total": 24,
            "blocks_repeated": 1,
        },
        **{"retreats": ("out of memory with vjp/vmap, chunk 8",), "workers": works, "timeline": record},
        **{"failures": (failure,), "failures_total": 1},
    }
    return Attempt(**{**content, **changes})


def run_with(path: Path, *attempts: Attempt, **plan: Any) -> Path:
    """A run without parts, that left these records."""
    folder = make_run(path, plan_of(TILING, **plan))
    for one in attempts:
        folder.write_attempt(one)
    return path


# -- what really happened ------------------------------------------------------------------------------------


@pytest.fixture
def resumed(job: TroubledJob) -> Path:
    """A run that failed, and was finished by a second attempt."""
    job.trouble(9, "fail")
    assert "no result at point 9" in str(job.failure("cluster.address=inline"))
    job.calm(9)
    jacjobs.api.resume(job.out, address="inline").wait()
    return job.out


def test_a_run_that_failed_and_was_resumed(resumed: Path) -> None:
    manifest = RunFolder(resumed).manifest()
    assert manifest is not None
    first, second = manifest.attempts
    facts = facts_of(str(resumed))
    html = page(facts)
    text = text_of(html)
    assert headings(html) == [*HEADINGS, "Versions"]
    assert "troubled complete" in text
    assert "J is 12 × 16 × 8,192 float64, 12.0 MiB, computed in " in text
    assert "It was not checked against another mode of differentiation." in text
    assert "problem troubled.py:build" in text
    assert '"points": 12' in text
    assert "vjp/loop, 1 product at once: asked for." in text
    assert "blocks 12 of up to 1.0 MiB" in text
    for one in (first, second):
        assert f"{one.blocks_done} of {one.blocks_total}" in text
        assert render.duration(one.seconds) in text
        assert f"{one.host},\u00a0{one.pid}" in unescape(html)
    assert "no result at point 9" in text
    assert "failed, exit 3" in text
    assert "Nothing was lost on the way." in text
    assert f"torch {torch.__version__}" in text
    assert f"{render.size(sum(map(len, parts(resumed).values())))} in rows" in text
    of_j, *charts = pictures(html)
    assert of_j.startswith(page_module.PNG)
    assert len(charts) == (3 if facts.measured_bytes else 2)
    assert all(picture.startswith(b"<?xml") for picture in charts)
    # and what the pictures show is what happened
    done = [timeline._done(stretch, 12 * 16 * 8192)[1] for stretch in timeline.stretches(facts.attempts)]
    assert (done[0][0], done[1][0], done[1][-1]) == (0.0, pytest.approx(8 / 12), 1.0)
    measured = max(work.peak_bytes for work in (*first.workers, *second.workers))
    assert facts.measured_bytes == (measured or None)
    assert (render.size(measured) if measured else "not measured") in text


def test_a_run_from_python_that_ran_out_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    W = torch.linspace(-1, 1, 70, dtype=torch.float64).reshape(7, 10)
    X = torch.linspace(-1, 1, 600, dtype=torch.float64).reshape(60, 10)
    problem = jacjobs.Problem(lambda x: torch.tanh(W @ x), (X,), in_dims=0)
    Device(limit=35, after=2).install(monkeypatch)
    run = jacjobs.submit(problem, tmp_path / "a", strategy="vjp/vmap", chunk=70, address="inline")
    checks = run.result().manifest.checks
    text = text_of(page(facts_of(str(tmp_path / "a"))))
    assert "from Python: there is no job file" in text
    assert "out of memory with vjp/vmap, chunk 70; went on with vjp/vmap, chunk 35" in text
    assert f"It was checked at {checks['points']} points against jvp/vmap" in text
    assert f"{checks['worst_relative_error']:.1e}" in text
    assert "worker inline" not in text
    assert "by 1 worker" in text


def test_a_run_that_is_not_finished_says_what_is_missing_and_what_to_do(job: TroubledJob) -> None:
    job.trouble(9, "fail")
    job.failure("cluster.address=inline")
    html = page(facts_of(str(job.out)))
    text = text_of(html)
    assert headings(html)[0] == "What is missing"
    assert "points 8:12, rows 0:16, columns 0:8192" in text
    assert "66.7% of it is there" in text
    assert "The last attempt ended with: the function raised ZeroDivisionError: no result at point 9" in text
    assert f"jacjobs resume {job.out} computes the rest." in text
    assert "What it found is written when the run is complete." in text


def test_a_run_that_nobody_began(tmp_path: Path) -> None:
    html = page(facts_of(str(run_with(tmp_path / "a"))))
    assert "No attempt has left a record" in text_of(html)
    assert pictures(html) == []


def test_a_run_in_an_object_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    server = S3Server()
    try:
        uri = server.uri("some/run")
        problem = jacjobs.Problem(torch.sin, (torch.ones(5, 3),), in_dims=0)
        jacjobs.submit(problem, uri, address="inline", strategy="vjp/vmap").wait()
        path = write_report(uri)
    finally:
        server.stop()
    assert "J is 5 × 3 × 3 float32" in text_of(path.read_text())
    assert path.parent == Path()
    assert path.name.startswith("report-run")


# -- what a record says --------------------------------------------------------------------------------------


def test_what_was_lost_and_who_worked(tmp_path: Path) -> None:
    path = run_with(tmp_path / "a", attempt(1), attempt(2, retreats=(), entries_total=12))
    facts = facts_of(str(path))
    text = text_of(page(facts))
    for said in (
        "2 failures on the way; 2 blocks were handed out again.",
        "worker-2 there its node is gone points 3:4",
        "attempt 1: out of memory with vjp/vmap, chunk 8",
        "worker-1 here 0.5 s 3 3.0 s 86% 3.0 MiB",
        "there, GPU 0 1.0 s 2.5 s 1 0.5 s 33% –",
        "The most that a block took is 3.0 MiB",
        "no worker could start",
    ):
        assert said in text
    assert facts.workers == 2


def test_what_the_pictures_show(tmp_path: Path) -> None:
    """Of rates, workers that are there, and progress: numbers, before they are drawn."""
    facts = facts_of(str(run_with(tmp_path / "a", attempt(1, seconds=3.75))))
    (stretch,) = timeline.stretches(facts.attempts)
    assert list(timeline._rates(stretch, 4)) == [(0, 1, 0), (1, 2, 24), (2, 3, 48), (3, 3.75, 32)]
    assert list(timeline._at_work(stretch))[1:3] == [(1, 2, 1.5), (2, 3, 2.0)]
    assert timeline._there(stretch) == ([0.0, 0.5, 1.0, 2.5, 3.75, 3.75], [0, 1, 2, 1, 1, 0])
    assert timeline._done(stretch, 24) == ([0, 1, 2, 3, 3.75, 3.75], [0, 0, 0, 0.5, 1, 1])
    first, second = timeline._rows([stretch])
    assert (first.start, first.stop, second.start, second.stop) == (0.5, 3.75, 1.0, 2.5)
    cells = list(first.cells())
    assert cells == [(0.5, 1.0, 8 / 9), (1.0, 3.0, 1.0), (3.0, 3.75, 7 / 9)], "of the time that it was there"


def test_a_short_rest_at_the_end_is_no_rate_of_its_own(tmp_path: Path) -> None:
    facts = facts_of(str(run_with(tmp_path / "a", attempt(1, seconds=3.01))))
    (stretch,) = timeline.stretches(facts.attempts)
    assert list(timeline._rates(stretch, 4))[-1] == (2, 3.01, pytest.approx(4 * 18 / 1.01))
    assert sum(entries for _, _, entries in timeline._buckets(stretch, stretch.timeline.computed)) == 24


@pytest.mark.parametrize("workers", [1, 31, 33, 200, 2000])
def test_names_on_pictures_do_not_overlap(workers: int) -> None:
    """However many there are. Measured where they are drawn."""
    works = tuple(
        Work(
            name=f"worker-{n}",
            where="h",
            joined=n / 1000,
            blocks=1,
            seconds=1,
            peak_bytes=(n + 1) << 20,
            busy="99",
        )
        for n in range(workers)
    )
    shown = timeline.stretches([attempt(n, workers=works) for n in (1, 2, 3)])
    for figure in (
        timeline.lanes(shown),
        memory([(work.name, work.peak_bytes) for work in works], 40 << 20, 64 << 20),
        memory([(work.name, work.peak_bytes) for work in works], 64 << 20, 64 << 20),
        memory([(work.name, work.peak_bytes) for work in works], 1 << 20, 64 << 30),
        timeline.speed(shown, 4, 24),
    ):
        assert overlapping(figure) == []
        assert figure.get_size_inches()[1] < 10


def overlapping(figure: Any) -> list[tuple[str, str]]:
    """Pairs of texts of which one is drawn on the other."""
    figure.draw_without_rendering()
    texts = []
    for axes in figure.axes:
        (left, right), (low, high) = sorted(axes.get_xlim()), sorted(axes.get_ylim())
        found = [label for label in axes.get_xticklabels() if left <= label.get_position()[0] <= right]
        found += [label for label in axes.get_yticklabels() if low <= label.get_position()[1] <= high]
        found += [*axes.texts, axes.xaxis.label, axes.yaxis.label, axes.title, axes._left_title]
        found += axes.get_legend().get_texts() if axes.get_legend() else []
        texts += [(text.get_text(), text.get_window_extent()) for text in found if text.get_text()]
    return [
        (a, b)
        for i, (a, one) in enumerate(texts)
        for b, other in texts[i + 1 :]
        if one.overlaps(other.padded(-1))
    ]


def test_the_test_finds_names_that_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeline, "NAMED_ROWS", 10**6)
    works = tuple(Work(name=f"worker-{n}", where="h", joined=0.0) for n in range(200))
    assert overlapping(timeline.lanes(timeline.stretches([attempt(1, workers=works)])))


def test_an_earlier_versions_records_lack_when_it_was(tmp_path: Path) -> None:
    old = attempt(
        1, workers=(Work(name="w", where="here", joined=0.5, blocks=3, seconds=3.0),), timeline=None
    )
    html = page(facts_of(str(run_with(tmp_path / "a", old))))
    assert "Nothing was recorded of when it computed what." in text_of(html)
    assert "What blocks took was not measured." in text_of(html)
    assert pictures(html) == []
    assert "w here 0.5 s 3 3.0 s 86% –" in text_of(html)


@pytest.mark.parametrize("name", ["rows", "columns"])
def test_a_plan_of_another_version(name: str) -> None:
    text = text_of(page(facts_of(str(GOLDEN / name))))
    assert "this version cannot read" in text
    assert f"{name} complete" in text


def test_an_attempt_that_was_killed_is_not_running(tmp_path: Path) -> None:
    text = text_of(page(facts_of(str(run_with(tmp_path / "a", attempt(1, state="running"))))))
    assert "a interrupted" not in text
    assert "test interrupted" in text
    assert " killed, exit 1" in text.replace("\u00a0", " ")


def test_pictures_of_the_jacobian_have_a_section(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = run_with(tmp_path / "a", attempt())
    assert "What J looks like" not in page(facts_of(str(path)), look=False)
    shown = [("Heat <b>map</b>", page_module.PNG + b"...")]
    monkeypatch.setattr(page_module, "portraits", lambda facts: shown)
    html = page(facts_of(str(path)))
    assert headings(html)[2] == "What J looks like"
    assert "data:image/png;base64,iVBORy4uLg==" in html
    assert "Heat &lt;b&gt;map&lt;/b&gt;" in html


def test_a_page_on_a_run_whose_part_is_damaged_says_so(resumed: Path) -> None:
    """The rest of the page is there: it comes from the run's records."""
    part = next(resumed.glob("part-*.parquet"))
    part.write_bytes(part.read_bytes()[:-100])
    html = page(facts_of(str(resumed)))
    assert headings(html) == [*HEADINGS, "Versions"]
    assert f"no picture: {part}" in text_of(html)


# -- a stranger's run ----------------------------------------------------------------------------------------


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A complete run in which every text says the same."""
    path = tmp_path / "hostile"
    problem = jacjobs.Problem(torch.sin, (torch.ones(5, 3),), in_dims=0)
    jacjobs.submit(problem, path, address="inline", strategy="vjp/vmap").wait()
    forge(path, make_hostile)
    return path


def make_hostile(plan: Any, manifest: Any) -> None:
    for content in (plan, manifest):
        content["name"] = EVIL
        for segment in (*content["shape"]["outputs"], *content["shape"]["inputs"]):
            segment["name"] = EVIL
        content["versions"] = {EVIL: EVIL}
    frozen = plan["plan"]
    frozen["shape"] = plan["shape"]
    frozen["candidates"] = [
        {"strategy": EVIL, "reason": EVIL},
        {"strategy": EVIL, "chunk": 1, "seconds": 1.0, "reason": EVIL, "slow": True},
    ]
    frozen["timings"] = [{"strategy": EVIL, "chunk": 1, "setup_seconds": 0.1, "chunk_seconds": 0.1}]
    frozen["resources"]["device"]["name"] = frozen["strategy"] = frozen["checked_by"] = EVIL
    frozen["leaner"] = [EVIL]
    plan["options"] = {EVIL: EVIL}
    plan["created"] = EVIL
    spec = {"problem": EVIL, "params": {EVIL: [EVIL]}, "output": {}, "cluster": {}}
    plan["job"] = {"spec": spec, "folder": EVIL}
    works = (
        Work(name=EVIL, where=EVIL, device=EVIL, joined=0.5, blocks=1, seconds=1, peak_bytes=5, busy="99"),
    )
    failures = (Failure(seconds=1, who=EVIL, where=EVIL, cause=EVIL, blocks=(EVIL, EVIL)),)
    texts = {"host": EVIL, "state": EVIL, "cause": EVIL, "retreats": (EVIL,), "started": EVIL}
    record = attempt(1, workers=works, failures=failures, **texts)
    manifest["attempts"] = [record.model_dump(mode="json")] * 2
    found = {"points": 3, "worst_relative_error": 0.5, "blocks_recomputed": [EVIL]}
    manifest["checks"] = {"by": EVIL, **found}


def escapes(html: str) -> list[str]:
    """What a text of the run has become part of the page."""
    tags = set(re.findall(r"<\s*(script|img [^>]*onerror|/style><)", html.lower()))
    return [*sorted(tags), *sorted(set(re.findall("[\x00-\x08\x1b\u202e\ud800-\udfff]", html)))]


def test_no_text_of_a_run_gets_out_of_its_place(hostile: Path) -> None:
    html = page(facts_of(str(hostile)))
    assert escapes(html) == []
    assert html.count("</style>") == html.count("</title>") == 1
    assert outside(html) == []
    shown = text_of(html)
    assert shown.count("</style></title><script>console.error('1')</script>") >= 35
    assert "\\x1b[2J\\u202e" in shown
    assert headings(html) == [*HEADINGS, "Versions"]
    look_at(written(hostile, html)).check()


def test_without_escaping_they_would(hostile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The naive page, and the tests see it."""
    environment = page_module.jinja2.Environment

    def naive(**options: Any) -> Any:
        return environment(**{**options, "autoescape": False})

    monkeypatch.setattr(page_module.jinja2, "Environment", naive)
    html = page(facts_of(str(hostile)))
    assert "script" in escapes(html)
    with pytest.raises(AssertionError):
        look_at(written(hostile, html)).check()


def written(beside: Path, html: str) -> Path:
    path = beside.parent / "page.html"
    path.write_text(html)
    return path


NUMBERS = [-1, 0, 10**400, -(10**400), 1e300, -1e300, float("nan"), float("inf"), 2**63]


@pytest.mark.parametrize("number", NUMBERS)
def test_any_number_in_a_record_gives_a_page_or_a_sentence(number: Any, tmp_path: Path) -> None:
    path = tmp_path / "a"
    problem = jacjobs.Problem(torch.sin, (torch.ones(5, 3),), in_dims=0)
    jacjobs.submit(problem, path, address="inline", strategy="vjp/vmap").wait()

    def everywhere(content: Any, *, deep: bool) -> None:
        """In place of every number, but where the dataset itself is described."""
        for key, value in content.items() if isinstance(content, dict) else enumerate(content):
            if key in ("shape", "parts", "format", "tiling", "stripe", "group_records"):
                continue
            if isinstance(value, dict | list) and deep:
                everywhere(value, deep=True)
            elif isinstance(value, int | float) and not isinstance(value, bool):
                content[key] = number

    def change(plan: Any, manifest: Any) -> None:
        manifest["attempts"] = [attempt().model_dump(mode="json")]
        for section in (manifest["checks"], manifest["memory"], manifest["timings"]):
            everywhere(section, deep=True)
        everywhere(manifest["attempts"][0], deep=False)
        for part in (*manifest["attempts"][0]["workers"], *manifest["attempts"][0]["failures"]):
            part.update(
                {key: number for key, v in part.items() if isinstance(v, int | float) and key != "peak_bytes"}
            )
        everywhere(plan["plan"], deep=True)

    forge(path, change)
    try:
        html = page(facts_of(str(path)))
    except JacjobsError as error:
        check_sentence(error)
    else:
        assert headings(html) == [*HEADINGS, "Versions"]
        assert "nan" not in text_of(html).split()


def test_numbers_that_nobody_bounds_would_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The naive page, again."""
    path = run_with(tmp_path / "a", attempt(1, seconds=float("inf")))
    page(facts_of(str(path)))
    monkeypatch.setattr(facts_module, "_bounded", lambda attempt: attempt)
    with pytest.raises((ValueError, ArithmeticError)):
        page(facts_of(str(path)))


def test_long_texts_are_cut(tmp_path: Path) -> None:
    failures = tuple(
        Failure(seconds=1, who="w", where="h", cause="x" * 10**5, blocks=("y" * 10**5,)) for _ in range(100)
    )
    path = run_with(
        tmp_path / "a", attempt(1, cause="z" * 10**6, failures=failures, retreats=("r" * 10**5,) * 100)
    )
    html = page(facts_of(str(path)))
    assert len(html) < 1 << 20
    assert "… (1,000,000 characters in all)" in html
    assert "… and 70 more" in html
    assert "100 × xxx" in html


# -- the browser ---------------------------------------------------------------------------------------------


def test_a_browser_shows_it_without_a_word(resumed: Path, tmp_path: Path) -> None:
    path = write_report(str(resumed), tmp_path / "page.html")
    look = look_at(path)
    look.check()
    assert headings(look.dom) == [*HEADINGS, "Versions"]
    assert len(look.widths) >= 2
    assert min(look.widths) >= 700


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ("data:image/svg+xml;base64,PD94", "data:image/svg+xml;base64,AAAA"),
        ("<footer>", "<footer><img src='http://127.0.0.1:9/a.png'>"),
        ("<footer>", "<footer><script>1</script>"),
        ("<footer>", "<footer><a href='https://example.org'>there</a>"),
    ],
)
def test_a_page_that_is_broken_is_seen(good: str, bad: str, tmp_path: Path) -> None:
    html = page(facts_of(str(run_with(tmp_path / "a", attempt()))))
    assert good in html
    with pytest.raises(AssertionError):
        look_at(written(tmp_path / "a", html.replace(good, bad, 1))).check()


# -- the command ---------------------------------------------------------------------------------------------


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., Any]:
    """Runs it in `tmp_path`; returns its exit code and what it said."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[Any, str]:
        monkeypatch.setattr(sys, "argv", ["jacjobs", "report", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        said = capsys.readouterr()
        return caught.value.code, (said.out + said.err).strip()

    return run


def test_the_command_writes_a_page_and_says_where(command: Callable[..., Any], tmp_path: Path) -> None:
    run_with(tmp_path / "runs" / "a b'", attempt())
    assert command("runs/a b'") == (0, "report-a-b.html")
    html = Path("report-a-b.html").read_text()
    assert command("runs/a b'", "--out", "new/folder/x.html") == (0, "new/folder/x.html")
    assert Path("new/folder/x.html").read_text() == html, "the same bytes every time"
    code, said = command("runs/a b'", "--json")
    assert (code, json.loads(said)) == (0, {"run": "runs/a b'", "report": "report-a-b.html"})


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nothing"], "nothing there, expected the folder of a run"),
        (["run", "--out", "."], "--out: got ., a folder, expected the path of a file"),
        (["run", "--out", "run/x.html"], "got run/x.html, in the folder of a run, expected a file beside it"),
        (["run", "--out", "file/x.html"], "file/x.html, which cannot be written: "),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(
    arguments: list[str], says: str, command: Callable[..., Any], tmp_path: Path
) -> None:
    run_with(tmp_path / "run", attempt())
    (tmp_path / "file").touch()
    code, said = command(*arguments)
    assert code == 2
    assert says in said
    assert "\n" not in said


def test_a_damaged_run_is_refused(command: Callable[..., Any], tmp_path: Path) -> None:
    plan = run_with(tmp_path / "run", attempt()) / "_jacjobs" / "plan.json"
    plan.write_text(plan.read_text().replace("test", "tset"))
    code, said = command("run")
    assert code == StoreError.exit_code
    assert "was changed since it was written" in said


def test_a_damaged_attempt_is_left_out(tmp_path: Path) -> None:
    path = run_with(tmp_path / "run", attempt(1), attempt(2))
    (path / "_jacjobs/attempts/0001.json").write_text("{")
    assert [one.number for one in facts_of(str(path)).attempts] == [2]


def test_without_matplotlib_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match=r"pip install 'jacjobs\[plot\]'"):
        write_report(str(run_with(tmp_path / "run", attempt())), tmp_path / "x.html")
    assert not (tmp_path / "x.html").exists()

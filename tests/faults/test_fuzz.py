"""A hundred thousand job files, plans and manifests that nobody would write: each is read, or refused in a
sentence, in bounded time. Never a traceback, a hang or a wrong number.

`JACJOBS_FUZZ=100000 pytest tests/faults/test_fuzz.py` reads so many in all; by default they are few, and the
same in every run. What is forged is signed again in most cases: whoever forges writes the digest too.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xxhash
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import jacjobs
from jacjobs import jobspec
from jacjobs.cli.report.facts import facts_of
from jacjobs.cli.report.page import Pictures, laid_out, page
from jacjobs.errors import InputError, JacjobsError, StoreError
from jacjobs.jobspec import parse_job, read_job
from jacjobs.shape import JacobianShape, Structure, segments_of
from jacjobs.store import plausible
from jacjobs.store.folder import MANIFEST, PLAN, RunFolder
from jacjobs.store.plausible import is_shallow
from jacjobs.store.verify import verify_run
from tests.faults.forging import check_sentence, signed
from tests.store.datasets import Form, write_dataset

INPUTS = int(os.environ.get("JACJOBS_FUZZ", "6000"))
DEADLINE = timedelta(seconds=5)
"""For one input, on a busy machine."""

pytestmark = pytest.mark.timeout(max(300, INPUTS // 20))


def fuzzed(share: float) -> Callable[[Any], Any]:
    """So much of all inputs."""
    return settings(
        max_examples=max(1, round(share * INPUTS)),
        deadline=DEADLINE,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


# -- values that nobody expects ------------------------------------------------------------------------------

PART = "part-p000000000-000000001-r000000000-000000004-c000000000-000000006.parquet"
# fmt: off
NUMBERS: list[Any] = [
    -1, 0, 1, 2, 3, 7, 255, 2**31, 2**63 - 1, 2**63, 2**64, 10**18, -(10**18), 10**400, 0.5, -0.0, 1e-320,
    1e308, float("nan"), float("inf"), float("-inf"), True, False, None,
]
TEXTS = [
    "", " ", "\0", "\n", "\x1b[2J", "\ud800", "\udc80", "\u202e", "٣", "é" * 300, "x" * 5000, "9" * 5000,
    "1", "-1", "true", "null", "nan", "1e999", "rows", "columns", "float64", "object", "zstd", "auto",
    "...", PART, f"../{PART}", f"/{PART}", PART.replace("0", "9"), PART.replace("000000001", "000000002"),
    "/dev/zero", "[red]", "{x}", "%s", "__class__", "shape", "parts", "a.b", "a: b", "- a", "# a", "'", '"',
    "&a", "*a",
]
# fmt: on
DEEP = [json.loads("[" * n + "]" * n) for n in (60, 300)] + [json.loads('{"a":' * 60 + "1" + "}" * 60)]
SIMPLE = st.one_of(
    st.sampled_from(NUMBERS),
    st.sampled_from(TEXTS),
    st.integers(-3, 20),
    st.text(max_size=8),
    st.sampled_from([[], {}, [[]], [1, "a"], {"a": 1}, {"": None}, *DEEP]),
)
VALUES = st.one_of(
    SIMPLE,
    SIMPLE,
    SIMPLE,
    st.lists(SIMPLE, max_size=3),
    st.dictionaries(
        st.sampled_from(["a", "name", "start", "stop", "shape", "list", "dict", "keys"]), SIMPLE, max_size=3
    ),
)


class Verbatim(str):
    """YAML that stands as it is where a value is expected."""


def copied(content: Any) -> Any:
    return content if isinstance(content, Verbatim) else json.loads(json.dumps(content))


Steps = tuple[str | int, ...]


def places(content: Any, here: Steps = ()) -> list[Steps]:
    """Where there is something in JSON, the whole of it left out."""
    found = [here] if here else []
    if isinstance(content, dict | list):
        for key in content if isinstance(content, dict) else range(len(content)):
            found += places(content[key], (*here, key))
    return found


@dataclass(frozen=True)
class Change:
    """One change of JSON: what is done at one place, with another place or a value."""

    how: str
    at: Steps
    other: Steps
    value: Any

    def apply(self, content: Any) -> None:
        """Where the place is gone by now, nothing."""
        try:
            parent, key = within(content, self.at)
            match self.how:
                case "set":
                    parent[key] = copied(self.value)
                case "delete":
                    del parent[key]
                case "rename":
                    parent[str(self.value)] = parent.pop(key)
                case "add" if isinstance(parent, dict):
                    parent[str(self.other[-1])] = copied(self.value)
                case "add":
                    parent.insert(key, copied(self.value))
                case "repeat":
                    parent[key] = [parent[key], copied(parent[key])]
                case "wrap":
                    parent[key] = {str(self.other[-1]): parent[key]}
                case "near":
                    parent[key] = parent[key] + (1 if self.value else -1)
                case "swap":
                    second, place = within(content, self.other)
                    parent[key], second[place] = copied(second[place]), copied(parent[key])
                case "copy":
                    second, place = within(content, self.other)
                    parent[key] = copied(second[place])
        except (LookupError, TypeError, AttributeError):
            return


def within(content: Any, at: Steps) -> tuple[Any, Any]:
    for key in at[:-1]:
        content = content[key]
    content[at[-1]]
    return content, at[-1]


HOW = [
    "set",
    "set",
    "set",
    "set",
    "delete",
    "rename",
    "add",
    "repeat",
    "wrap",
    "near",
    "near",
    "swap",
    "copy",
]


def changes(content: Any) -> st.SearchStrategy[list[Change]]:
    anywhere = st.sampled_from(places(content))
    one = st.builds(Change, st.sampled_from(HOW), anywhere, anywhere, VALUES)
    return st.lists(one, min_size=1, max_size=3)


# fmt: off
BYTES = [
    b"\0", b"\xff", b"\xef\xbb\xbf", b'"', b"{", b"}", b"[", b"]", b",", b":", b"-", b"0", b"9" * 30, b"e9",
    b"\n", b"\t", b"  ", b"\\ud800", b"null", b"NaN", b"Infinity", b"[" * 2000, b"{}", b"&a ", b"*a",
    b"!!int ",
]
# fmt: on
PIECES = st.one_of(st.binary(min_size=1, max_size=6), st.sampled_from(BYTES))


def spliced(raw: bytes) -> st.SearchStrategy[bytes]:
    """Some bytes cut out, others put in, once or more; or cut short."""
    cut = st.tuples(st.integers(0, len(raw)), st.integers(0, 8), st.one_of(st.just(b""), PIECES))

    def apply(cuts: list[tuple[int, int, bytes]], end: int | None) -> bytes:
        made = raw
        for at, length, piece in cuts:
            made = made[:at] + piece + made[at + length :]
        return made[:end]

    ends = st.one_of(st.none(), st.none(), st.none(), st.integers(0, len(raw)))
    return st.builds(apply, st.lists(cut, min_size=1, max_size=3), ends)


# -- job files -----------------------------------------------------------------------------------------------

JOB: dict[str, Any] = {
    "name": "digits",
    "problem": "p.py:build",
    "params": {"limit": 256, "names": ["a", "b"], "deep": {"er": None}},
    "compute": {
        "strategy": "vjp/vmap",
        "chunk": 4,
        "memory": "8GiB",
        "dtype": "float32",
        "seed": 3,
        "tf32": True,
        "check": "all",
        "nonfinite": "warn",
        "block_timeout": 30.0,
    },
    "output": {"path": "runs/a", "layout": "rows", "compression": "zstd", "dtype": None, "overwrite": False},
    "cluster": {"address": "local", "workers": 2, "cpus_per_worker": 1, "gpus_per_worker": "auto"},
}
JOB_TEXT = """\
name: digits
problem: p.py:build   # beside this file
params: {limit: 256, names: [a, "b"], deep: &deep {er: ~}, again: *deep}
compute:
  strategy: auto
  memory: 8GiB
  seed: 3
  block_timeout: 30.0
output:
  path: >-
    runs/a
"""


# fmt: off
YAML = [
    "", "~", "=", "<<", "!", "!!", "&a 1", "*a", "&a [*a]", "? a", "- 1", "- - - 1", "|\n x", ">\n x",
    "%TAG", "---", "...", "# a", "'", '"', '"\\x41"', '"\\UFFFFFFFF"', '"\\ud800"', "'it''s'", "@x", "`x`",
    "[", "}", "a: b: c", "0x1F", "0b1", "0b_", "0o7", "1_000", "1:30", "1:59:59.5", ".nan", "-.inf", "1e3",
    "1e+999", ".", "-", "+", "._", "2020-01-01", "2020-01-01 10:00:00", "yes", "NO", "Null", "!!int ''",
    "!!int x", "!!float x", "!!bool maybe", "!!binary aGk=", "!!set {a}", "!!omap [a: 1]", "!!timestamp x",
    "!!str 1", "!!map [1]", "!!seq {a: 1}", "1,2", "!!python/object/apply:os.system ['true']",
    "!!python/name:os.system", "!<tag:x> 1", "!e!x 1", "!!null {a: 1}", "{a: 1, a: 2}", "{1: 2}",
    "{[1]: 2}", "{<<: {a: 1}}", "{<<: 1}", "{<<: [1]}", "{? a}", "{a, b}", "[a: 1]", "!!merge x", "0x" * 9,
]
# fmt: on


def flow(content: Any) -> str:
    """As YAML in one line."""
    if isinstance(content, Verbatim):
        return str(content)
    if isinstance(content, dict):
        return "{" + ", ".join(f"{flow(key)}: {flow(value)}" for key, value in content.items()) + "}"
    if isinstance(content, list):
        return "[" + ", ".join(map(flow, content)) + "]"
    return json.dumps(content)


def reads_or_refuses(read: Callable[[], object]) -> None:
    """Anything else than an answer or a sentence is an error of ours."""
    try:
        read()
    except InputError as error:
        check_sentence(error)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job file to write over."""
    return tmp_path_factory.mktemp("fuzz") / "job.yaml"


def fuzz_content_of_jobs() -> Callable[[], None]:
    """As `resume` finds it in a plan.json."""

    @given(changes(JOB))
    def fuzz(some: list[Change]) -> None:
        content = copied(JOB)
        for change in some:
            change.apply(content)
        if is_shallow(content):
            reads_or_refuses(lambda: json.dumps(parse_job(content, "run").model_dump(mode="json"), indent=2))

    return fuzz


def fuzz_structure(job: Path) -> Callable[[], None]:
    anywhere = st.sampled_from(places(JOB))
    how = st.sampled_from(["set", "set", "add", "rename"])
    in_yaml = st.builds(Change, how, anywhere, anywhere, st.sampled_from(YAML).map(Verbatim))

    @given(st.lists(in_yaml, max_size=2), changes(JOB))
    def fuzz(some: list[Change], others: list[Change]) -> None:
        content = copied(JOB)
        for change in [*others, *some] if len(some) < 2 else some:
            change.apply(content)
        job.write_text(flow(content), encoding="utf-8", errors="surrogatepass")
        reads_or_refuses(lambda: json.dumps(read_job(job, []).model_dump(mode="json"), indent=2))

    return fuzz


def fuzz_bytes(job: Path) -> Callable[[], None]:
    raw = st.one_of(
        st.binary(max_size=200),
        st.text(max_size=100).map(lambda text: text.encode(errors="replace")),
        st.lists(st.sampled_from(YAML), max_size=8).map(
            lambda some: "\n".join(f"k{i}: {s}" for i, s in enumerate(some)).encode()
        ),
        spliced(JOB_TEXT.encode()),
        spliced(JOB_TEXT.encode()),
        spliced(json.dumps(JOB).encode()),
    )

    @given(raw)
    def fuzz(content: bytes) -> None:
        job.write_bytes(content)
        reads_or_refuses(lambda: read_job(job, []))

    return fuzz


def fuzz_overrides(job: Path) -> Callable[[], None]:
    known = [".".join(map(str, steps)) for steps in places(JOB)]
    keys = st.one_of(
        st.sampled_from(known),
        st.sampled_from(known),
        st.sampled_from(TEXTS),
        st.lists(
            st.sampled_from(["compute", "params", "chunk", "x", "", "intern", "literal['auto']"]), max_size=60
        ).map(".".join),
        st.text(max_size=10),
    )
    values = st.one_of(st.sampled_from(YAML), st.sampled_from(TEXTS), SIMPLE.map(flow), st.text(max_size=20))
    override = st.one_of(st.builds(lambda key, value: f"{key}={value}", keys, values), st.text(max_size=20))

    @given(st.lists(override, min_size=1, max_size=3))
    def fuzz(overrides: list[str]) -> None:
        reads_or_refuses(lambda: json.dumps(read_job(job, overrides).model_dump(mode="json")))

    return fuzz


def test_what_a_run_says_of_its_job_is_read_or_refused() -> None:
    fuzzed(0.20)(fuzz_content_of_jobs())()


def test_a_job_file_that_is_changed_anywhere_is_read_or_refused(job: Path) -> None:
    fuzzed(0.15)(fuzz_structure(job))()


def test_bytes_that_are_no_job_file_are_read_or_refused(job: Path) -> None:
    fuzzed(0.15)(fuzz_bytes(job))()


def test_overrides_of_any_text_are_read_or_refused(job: Path) -> None:
    job.write_text("name: a\nproblem: p.py:build\noutput: {path: x}\nparams: {a: 1, names: [1]}\n")
    fuzzed(0.10)(fuzz_overrides(job))()


# -- plans and manifests -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Base:
    """A dataset, with its two files as they are."""

    path: Path
    entries: np.ndarray
    plan: bytes
    manifest: bytes | None

    def put(self, plan: bytes, manifest: bytes | None) -> None:
        (self.path / PLAN).write_bytes(plan)
        if manifest is not None:
            (self.path / MANIFEST).write_bytes(manifest)

    def check(self) -> str:
        """The dataset is read, and what is read is right; or it is refused. Returns what `open` did."""
        verdict, manifest = self._verdict(), self._manifest()
        try:
            J = jacjobs.open(self.path)
            assert manifest is not False
            J.summary()
            entries = J.to_numpy()
            np.testing.assert_array_equal(J[0], entries[0])
            np.testing.assert_array_equal(J[-1:, :, -1], entries[-1:, :, -1])
            if J.record.shape.structure is not None:
                J.tree()
            repr(J), [J.segment(input=segment.name).shape for segment in J.inputs]
        except JacjobsError as error:
            check_sentence(error)
            assert verdict is None or not (verdict.sound and verdict.complete), "verify found it sound"
            return "refused"
        np.testing.assert_array_equal(entries, self.entries, strict=True)
        assert not verdict.sound or verdict.parts == len(J.part_names)
        return "read"

    def _verdict(self) -> Any:
        try:
            verdict = verify_run(str(self.path))
        except JacjobsError as error:
            check_sentence(error)
            return None
        for fault in verdict.faults:
            assert "\n" not in str(fault)
        return verdict

    def _manifest(self) -> Any:
        try:
            return RunFolder(self.path).manifest()
        except StoreError as error:
            check_sentence(error)
            return False


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> list[Base]:
    root = tmp_path_factory.mktemp("bases")
    shape = JacobianShape(
        points=2,
        rows=4,
        columns=6,
        dtype="float32",
        origin="bfloat16",
        outputs=segments_of([("y", (4,))]),
        inputs=segments_of([("a", (2,)), ("b", (2, 2))]),
        structure=Structure(
            outputs=0, inputs={"dict": [0, {"tuple": [1]}], "keys": ["a", "b"]}, has_points=True
        ),
    )
    forms = {
        "rows": Form(part_lines=2),
        "columns": Form(layout="columns", compression="zstd", stripe=3, part_points=2),
        "unfinished": Form(part_points=2),
    }
    made = []
    for name, form in forms.items():
        J = np.random.default_rng(0).standard_normal((2, 4, 6)).astype("float32")
        finished = name != "unfinished"
        write_dataset(root / name, shape, J, form, run="0123", finished=finished)
        for file in (PLAN, MANIFEST):
            if (root / name / file).exists():
                content = json.loads((root / name / file).read_bytes())
                (root / name / file).write_bytes(signed(fuller(content, file)))
        plan = (root / name / PLAN).read_bytes()
        manifest = (root / name / MANIFEST).read_bytes() if finished else None
        base = Base(root / name, J, plan, None if manifest is None else knowing(json.loads(manifest), plan))
        base.put(base.plan, base.manifest)
        assert base.check() == "read"
        made.append(base)
    return made


def fuller(content: dict[str, Any], file: str) -> dict[str, Any]:
    """With the sections that a job's run has."""
    if file == PLAN:
        return {
            **content,
            "job": {"spec": JOB, "folder": "/nowhere"},
            "options": {"strategy": "auto", "seed": 1},
        }
    work = {"name": "worker-0", "where": "here", "joined": 0.1, "left": 2.0, "blocks": 3, "seconds": 1.0}
    failure = {
        "seconds": 1.0,
        "who": "worker-0",
        "where": "here",
        "cause": "killed",
        "blocks": ["points 0:1"],
    }
    attempt = {
        **{
            "number": 1,
            "started": "",
            "host": "here",
            "pid": 1,
            "state": "complete",
            "cause": "",
            "seconds": 2.0,
        },
        **{
            "blocks_done": 3,
            "blocks_total": 3,
            "workers": [work],
            "failures": [failure],
            "failures_total": 1,
        },
    }
    checks = {
        "by": "jvp/vmap",
        "points": 2,
        "worst_relative_error": 1e-7,
        "blocks_recomputed": ["points 0:1"],
    }
    return {**content, "checks": checks, "attempts": [attempt], "memory": {"budget_bytes": 1, "retreats": []}}


def knowing(manifest: Any, plan: bytes) -> bytes:
    """Signed, with the digest of the plan as it is now."""
    if isinstance(manifest, dict):
        manifest = {**manifest, "plan": xxhash.xxh3_128_hexdigest(plan)}
    return signed(manifest)


def fuzz_content(bases: list[Base], *, again: bool) -> Callable[[], None]:
    """Changes of plan, manifest, or the shape in both. `again`: signed again."""
    plans = [changes(json.loads(base.plan)) for base in bases]
    manifests = [changes(json.loads(base.manifest)) if base.manifest else None for base in bases]
    shape = json.loads(bases[0].plan)["shape"]

    @st.composite
    def forgeries(draw: st.DrawFn) -> tuple[Base, list[Change], list[Change], list[Change]]:
        number = draw(st.integers(0, len(bases) - 1))
        which = draw(st.sampled_from(["plan", "manifest", "shape", "shape", "both"]))
        in_manifest = manifests[number]
        return (
            bases[number],
            draw(plans[number]) if which in ("plan", "both") or in_manifest is None else [],
            draw(in_manifest) if which in ("manifest", "both") and in_manifest is not None else [],
            draw(changes(shape)) if which == "shape" else [],
        )

    @given(forgeries())
    def fuzz(forged: tuple[Base, list[Change], list[Change], list[Change]]) -> None:
        base, in_plan, in_manifest, in_both = forged
        plan = json.loads(base.plan)
        manifest = None if base.manifest is None else json.loads(base.manifest)
        for change in in_plan:
            change.apply(plan)
        for change in in_manifest:
            change.apply(manifest)
        for change in in_both:
            change.apply(plan.get("shape"))
            change.apply((manifest or {}).get("shape"))
        if again:
            raw = signed(plan)
            base.put(raw, None if manifest is None else knowing(manifest, raw))
        else:
            base.put(
                *(None if c is None else (json.dumps(c, indent=2) + "\n").encode() for c in (plan, manifest))
            )
        base.check()

    return fuzz


def fuzz_raw(bases: list[Base]) -> Callable[[], None]:
    """Bytes of one of the two files; signed again where they are still JSON."""
    files = [(base, PLAN, base.plan) for base in bases]
    files += [(base, MANIFEST, base.manifest) for base in bases if base.manifest is not None]
    one = st.sampled_from(range(len(files))).flatmap(
        lambda number: st.tuples(st.just(number), spliced(files[number][2]), st.booleans())
    )

    @given(one)
    def fuzz(forged: tuple[int, bytes, bool]) -> None:
        number, raw, again = forged
        base, name, _ = files[number]
        if again:
            with contextlib.suppress(ValueError, RecursionError):
                raw = signed(json.loads(raw))
        plan, manifest = (raw, base.manifest) if name == PLAN else (base.plan, raw)
        if again and name == PLAN and manifest is not None:
            manifest = knowing(json.loads(manifest), plan)
        base.put(plan, manifest)
        base.check()

    return fuzz


def test_a_plan_and_a_manifest_that_are_forged_are_read_right_or_refused(bases: list[Base]) -> None:
    fuzzed(0.30)(fuzz_content(bases, again=True))()


def test_a_plan_and_a_manifest_that_are_edited_are_read_right_or_refused(bases: list[Base]) -> None:
    fuzzed(0.03)(fuzz_content(bases, again=False))()


def test_bytes_of_a_plan_and_a_manifest_are_read_right_or_refused(bases: list[Base]) -> None:
    fuzzed(0.07)(fuzz_raw(bases))()


# -- reports -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """A complete run with a plan, and an attempt that says all that there is to say."""
    path = tmp_path_factory.mktemp("reported") / "run"
    J = np.ones((2, 4, 6), "float32")
    problem = jacjobs.Problem(lambda x: x.repeat(4)[:4] * x.sum(), (torch.ones(2, 6),), in_dims=0)
    options = {"strategy": "auto", "address": "inline", "compression": "none"}
    jacjobs.submit(problem, path, **options).wait()
    plan, manifest = (json.loads((path / file).read_bytes()) for file in (PLAN, MANIFEST))
    plan["job"] = {"spec": JOB, "folder": "/nowhere"}
    told = fuller(manifest, MANIFEST)["attempts"][0]
    timeline = {"seconds": 0.5, "computed": [0, 30, 18], "taken": [0, 0, 48], "busy": [0, 0.4, 0.5]}
    told["timeline"] = {**timeline, "lane_seconds": 0.5}
    told["workers"] = [{**work, "busy": "0179", "peak_bytes": 1 << 20} for work in told["workers"]]
    manifest["attempts"] = [told, {**told, "number": 2, "retreats": ["out of memory"]}]
    base = Base(path, J, signed(plan), knowing(manifest, signed(plan)))
    base.put(base.plan, base.manifest)
    assert "What was lost" in page(facts_of(str(path)))
    return base


def fuzz_reports(base: Base) -> Callable[[], None]:
    """Every thirtieth with its pictures, which take long to draw."""
    assert base.manifest is not None
    in_plan, in_manifest = changes(json.loads(base.plan)), changes(json.loads(base.manifest))
    in_attempts = changes(json.loads(base.manifest)["attempts"])

    @given(
        in_plan,
        in_manifest,
        in_attempts,
        st.sampled_from(["plan", "manifest", "attempts"]),
        st.integers(0, 29),
    )
    def fuzz(a: list[Change], b: list[Change], c: list[Change], which: str, draws: int) -> None:
        plan, manifest = json.loads(base.plan), json.loads(base.manifest or b"")
        for change in a if which == "plan" else b if which == "manifest" else ():
            change.apply(plan if which == "plan" else manifest)
        for change in c if which == "attempts" else ():
            change.apply(manifest["attempts"])
        base.put(signed(plan), knowing(manifest, signed(plan)))
        try:
            facts = facts_of(str(base.path))
            html = page(facts) if not draws else laid_out(facts, Pictures([], None, None, None))
        except JacjobsError as error:
            check_sentence(error)
        else:
            assert html.encode().endswith(b"</html>")

    return fuzz


def test_a_report_of_a_forged_run_is_a_page_or_a_sentence(reported: Base) -> None:
    settings(fuzzed(0.03), deadline=timedelta(seconds=30))(fuzz_reports(reported))()


# -- and it finds what is wrong ------------------------------------------------------------------------------


def found(fuzz: Callable[[], None]) -> BaseException:
    """The first error within some thousand inputs that is none of ours."""
    searching = settings(fuzzed(0), max_examples=3000, phases=[Phase.generate], report_multiple_bugs=False)
    with pytest.raises(Exception) as caught:  # noqa: PT011
        searching(fuzz)()
    assert not isinstance(caught.value, JacjobsError)
    return caught.value


def test_it_finds_segments_that_nobody_checks(bases: list[Base], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plausible, "_covers", lambda segments, size: True)
    assert isinstance(found(fuzz_content(bases, again=True)), ValueError | AssertionError)


def test_it_finds_a_manifest_that_nobody_compares_with_its_plan(
    bases: list[Base], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plausible, "_holds", lambda tree, leaves: True)
    assert isinstance(found(fuzz_content(bases, again=True)), LookupError | TypeError | ValueError)


def test_it_finds_nesting_that_nobody_counts(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobspec._Loader, "_check", lambda *arguments: None)
    assert isinstance(found(fuzz_structure(job)), RecursionError | ValueError)


def test_it_finds_scalars_that_nobody_checks(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobspec._Loader, "_scalar", lambda self, node: self.construct_object(node))
    assert isinstance(found(fuzz_structure(job)), LookupError | TypeError | ValueError | AttributeError)

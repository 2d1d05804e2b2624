"""Job files as strangers may send them: they make no objects, and too much is refused soon."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from jacjobs.errors import InputError
from jacjobs.jobspec import read_job
from tests.faults.forging import bounded, check_sentence

BASE = "name: a\nproblem: p.py:f\noutput: {path: x}\n"


def test_a_job_file_makes_no_objects(tmp_path: Path) -> None:
    marker, job, good = tmp_path / "executed", tmp_path / "job.yaml", tmp_path / "good.yaml"
    evil = f"!!python/object/apply:os.mkdir ['{marker}']"
    job.write_text(f"{BASE}params:\n  x: {evil}\n")
    good.write_text(BASE)
    for path, overrides in ((job, []), (good, [f"params.x={evil}"])):
        with pytest.raises(InputError, match=r"got a value tagged 'python/object/apply:os\.mkdir'") as caught:
            read_job(path, overrides)
        check_sentence(caught.value)
    assert not marker.exists()
    yaml.unsafe_load(job.read_text())
    assert marker.exists()


def nested(levels: int, each: str, step: str) -> str:
    """`each` in an anchor, and on every level an anchor that names the one before nine times."""
    lines = [f"  a0: &a0 {each}"]
    lines += [f"  a{i}: &a{i} " + step.format(", ".join([f"*a{i - 1}"] * 9)) for i in range(1, levels)]
    return BASE + "params:\n" + "\n".join(lines) + "\n"


TOO_MUCH = {
    "billion laughs": nested(12, "[lol]", "[{}]"),
    "billion laughs in keys": nested(12, "{lol: 1}", "{{<<: [{}]}}"),
    "wide": BASE + "params: {x: [" + "1," * 100_000 + "]}",
    "deep lists": "[" * 100_000,
    "deep mappings": "{a: " * 50_000,
    "deep blocks": "- " * 100_000,
    "deep questions": "? " * 100_000,
    "anchor that holds itself": BASE + "params: &a {x: *a}",
    "list that holds itself": BASE + "params: {x: &a [*a]}",
    "50 MB": BASE + "#" * 50_000_000,
    "long number": BASE + f"params: {{x: {'1' * 500_000}}}",
    "long hexadecimal": BASE + f"params: {{x: 0x{'f' * 500_000}}}",
    "long sexagesimal": BASE + f"params: {{x: 1{':59' * 300_000}}}",
    "number of 70 bits": BASE + f"params: {{x: {2**70}}}",
    "version of 6,000 digits": "%YAML 1." + "9" * 6000 + "\n---\n" + BASE,
    "long key": BASE + "x" * 500_000 + ": 1",
    "long value": BASE + "compute: {chunk: " + "x" * 500_000 + "}",
}


@pytest.mark.parametrize("case", TOO_MUCH)
def test_a_job_file_that_is_too_much_is_refused_soon(case: str, tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(TOO_MUCH[case])
    with bounded(), pytest.raises(InputError) as caught:
        read_job(job, [])
    check_sentence(caught.value)


def test_what_pyyaml_makes_of_billion_laughs_is_small_until_somebody_writes_it(tmp_path: Path) -> None:
    """What `plan.json` would have held: nine times as much a level."""
    made = [len(json.dumps(yaml.safe_load(nested(levels, "[lol]", "[{}]")))) for levels in (4, 5, 6)]
    assert made[2] > 8 * made[1] > 64 * made[0]


UNFIT: dict[str, tuple[bytes | str, str]] = {
    "key twice": (BASE + "name: b\n", "line 4: got 'name' once more, expected each key once"),
    "key twice below": (BASE + "compute: {chunk: 1, chunk: 2}\n", "got 'chunk' once more"),
    "a number as a key": (BASE + "params: {1: x}\n", "got the key '1', expected text as a key"),
    "a list as a key": (BASE + "params: {[1]: x}\n", "expected text as a key"),
    "a date": (BASE + "params: {day: 2020-01-01}\n", "got '2020-01-01', a value tagged 'timestamp'"),
    "bytes": (BASE + "params: {x: !!binary aGk=}\n", "a value tagged 'binary'"),
    "a set": (BASE + "params: {x: !!set {a, b}}\n", "a value tagged 'set'"),
    "a tag of nobody": (BASE + "params: {x: !thing 1}\n", "a value tagged '!thing'"),
    "a truth of no kind": (BASE + "params: {x: !!bool perhaps}\n", "got 'perhaps', expected true or false"),
    "a number of nothing": (BASE + 'params: {x: !!int ""}\n', "expected a number"),
    "half a character": (BASE + 'params: {x: "\\ud800"}\n', "expected text that UTF-8 can hold"),
    "no character": (BASE + 'params: {x: "\\UFFFFFFFF"}\n', "is not YAML"),
    "Latin-1": (BASE.encode() + "# café".encode("latin-1"), "is not YAML: 'utf-8' codec can't decode"),
    "UTF-16": (BASE.encode("utf-16"), "is not YAML: 'utf-8' codec can't decode"),
    "a tab": (BASE + "params:\n\tx: 1\n", "is not YAML"),
    "a NUL": (BASE + "params: {x: \0}\n", "is not YAML: unacceptable character #x0000"),
    "nothing": ("", "got NoneType, expected a mapping"),
    "a comment": ("# nothing", "got NoneType, expected a mapping"),
    "a list": ("- 1", "got list, expected a mapping"),
    "two documents": (BASE + "---\n" + BASE, "expected a single document"),
    "unknown key like a type": (BASE + "interval: 3\n", "unknown key 'interval'; did you mean"),
    "unknown key like a function": (BASE + "function-x: 3\n", "unknown key 'function-x'"),
    "memory beyond numbers": (BASE + f"compute: {{memory: {'9' * 310}B}}\n", "compute.memory: got '999"),
    "seed of 64 bits": (BASE + f"compute: {{seed: {2**63}}}\n", "compute.seed: got 9223372036854775808"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_a_job_file_that_says_something_else_is_refused_in_a_sentence(case: str, tmp_path: Path) -> None:
    content, sentence = UNFIT[case]
    job = tmp_path / "job.yaml"
    job.write_bytes(content if isinstance(content, bytes) else content.encode())
    with bounded(), pytest.raises(InputError) as caught:
        read_job(job, [])
    assert sentence in check_sentence(caught.value)


def test_pyyaml_alone_takes_the_last_of_two_keys_and_makes_dates() -> None:
    assert yaml.safe_load("{chunk: 1, chunk: 2}") == {"chunk": 2}
    assert type(yaml.safe_load("2020-01-01")).__name__ == "date"


def test_byte_order_marks_anchors_and_merges_are_read_and_an_override_changes_one_place(
    tmp_path: Path,
) -> None:
    job = tmp_path / "job.yaml"
    job.write_text("\ufeff" + BASE + "params: {a: &a {x: 1, y: 2}, b: *a, c: {<<: *a, y: 3}}\n")
    assert read_job(job, ["params.b.x=4"]).params == {
        "a": {"x": 1, "y": 2},
        "b": {"x": 4, "y": 2},
        "c": {"x": 1, "y": 3},
    }


def test_params_come_back_from_a_run_as_they_were(tmp_path: Path) -> None:
    """Whatever a job file may hold, plan.json holds too."""
    job = tmp_path / "job.yaml"
    deep = "{a: " * 45 + "1" + "}" * 45
    job.write_text(
        BASE + f"params: {{x: {deep}, y: [1, 2.5, null, true, text, {2**64 - 1}], z: '2020-01-01'}}\n"
    )
    spec = read_job(job, [])
    assert json.loads(json.dumps(spec.model_dump(mode="json"), indent=2))["params"] == spec.params

"""Every code block and every command in README and docs is run, or is in a list here that says what else is
checked of it.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from jacjobs.cli.app import app, main
from jacjobs.errors import InputError
from jacjobs.jobspec import parse_job
from tests.conftest import JOBS
from tests.docs.pages import LANGUAGES, PAGES, ROOT, Block, blocks
from tests.remote.head import Head, head

HERE_LOCALLY = "http://127.0.0.1:8265"
"""What the pages say of a cluster on one machine: a head that the tests start."""
PARSED = {
    "http://localhost:8265": "a cluster on AWS, through a tunnel",
    "s3://": "a bucket; tests/store/test_s3.py has one",
}
"""A command of ours with one of these in it is only parsed."""
ELSEWHERE = {
    ("make",): lambda words: _make_knows(words[1]),
    ("ray", "up"): lambda words: _is_a_file(words[2]),
    ("ray", "down"): lambda words: _is_a_file(words[2]),
    ("ray", "dashboard"): lambda words: _is_a_file(words[2]),
    ("ray", "start"): lambda words: _ray_knows(words),
    ("ray", "stop"): lambda words: _ray_knows(words),
    ("docker",): lambda words: None,
}
"""Commands of others, by how they begin, and what is checked of them. What `ray up` is given is looked at in
tests/test_cluster_file.py."""
PREAMBLES = {
    "README.md": "import numpy as np, torch, scipy.sparse.linalg, pandas as pd, polars as pl, duckdb\n"
    "import jacjobs\n"
    "from jacjobs import Problem\n"
    "fn, argnums, in_dims, args = torch.sin, 0, 0, (torch.randn(2, 3),)\n"
    "x, mask = torch.randn(3), np.arange(64) % 3 == 0\n",
}
"""What a page's blocks take for granted."""
SMALL = {
    "jobs/digits.yaml": "params.limit=20",
    "job.yaml": "params.limit=20",
    "jobs/digits-parameters.yaml": "params.limit=4",
    "jobs/nightly.yaml": "params.limit=20 schedule.start_deadline=null",
    "jobs/brusselator.yaml": "params.grid=6",
    "jobs/orbit.yaml": "params.steps=8",
}
"""Jobs are as large as this; those of other names as large as the page says.
(And nightly is never too late.)"""


def _make_knows(target: str) -> None:
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _is_a_file(name: str) -> None:
    assert (ROOT / name).is_file()


def _ray_knows(words: list[str]) -> None:
    from ray.scripts.scripts import cli

    options = {name for parameter in cli.commands[words[1]].params for name in parameter.opts}
    assert {word.partition("=")[0] for word in words[2:] if word.startswith("--")} <= options


@pytest.mark.parametrize("page", PAGES)
def test_every_block_says_what_it_is(page: str) -> None:
    """So that none is overlooked: the others here run those that are code."""
    for block in blocks(page):
        assert block.language in LANGUAGES, f"{block}: {block.language!r} is none of {LANGUAGES}"
        if block.language == "text":
            assert not re.search(r"(?m)^\s*(\$|jacjobs|python|pip|make|ray) ", block.content), f"{block}"


@pytest.fixture(scope="module")
def far() -> Iterator[Head]:
    with head("docs") as started:
        yield started


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the pages' commands are typed: what a clone has, and a job of one's own."""
    shutil.copytree(JOBS, tmp_path / "jobs", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("digits.py", "digits.yaml"):
        shutil.copy(JOBS / name, tmp_path / name.replace("digits.yaml", "job.yaml"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PWD", str(tmp_path))
    monkeypatch.setattr(sys, "path", [str(tmp_path / "jobs"), *sys.path])
    return tmp_path


@pytest.mark.ray
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("cluster", "folder")
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)])
def test_what_a_page_says_to_type_works(
    page: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(PREAMBLES.get(page, ""), names)
    for block in blocks(page):
        if block.file is not None:
            Path(block.file).write_text(block.content)
        elif block.language == "python":
            run_python(block, names)
        elif block.language == "yaml":
            look_at_job(block)
        elif block.language == "sh":
            for words in block.commands:
                run_command(block, words, lambda: request.getfixturevalue("far"), monkeypatch)


def run_python(block: Block, names: dict[str, Any]) -> None:
    """A line that a function of the jobs is quoted in must be that function."""
    tree = ast.parse(block.content)
    code = compile(tree, str(block), "exec")
    try:
        exec(code, names)
    except Exception as error:
        raise AssertionError(f"{block}: {error!r}") from error


def look_at_job(block: Block) -> None:
    """A job file; … stands for what is one's own."""
    content = yaml.safe_load(block.content.replace("…", "own.py:own"))
    parse_job(content, str(block))


def run_command(
    block: Block, words: list[str], far: Callable[[], Head], monkeypatch: pytest.MonkeyPatch
) -> None:
    check = next((check for begin, check in ELSEWHERE.items() if tuple(words[: len(begin)]) == begin), None)
    if check is not None:
        check(words)
        return
    assert words[0] == "jacjobs", f"{block}: nobody says what is checked of {words}"
    words = [os.path.expandvars(word) for word in words]
    if any(mark in word for word in words for mark in PARSED):
        parse(block, words)
        return
    for word in words[2:] if words[1] in ("plan", "submit", "tune", "verify") else []:
        for setting in SMALL.get(word, "").split():
            if not any(setting.partition("=")[0] in other for other in words):
                words = [*words, "--set", setting]
    if words[1] == "tune":
        words = [
            ("2" if before == "--seconds" else word)
            for before, word in zip(["", *words], words, strict=False)
        ]
    if HERE_LOCALLY in words:
        elsewhere = far()
        words = [elsewhere.address if word == HERE_LOCALLY else word for word in words]
        done = subprocess.run(
            [sys.executable, "-m", *words],
            env=elsewhere.environment,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert done.returncode == 0, f"{block}: {words}\n{done.stdout}{done.stderr}"
        return
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 0, f"{block}: {words}"


def parse(block: Block, words: list[str]) -> None:
    """Commands, arguments and options are there; nothing is run."""
    group = typer.main.get_command(app)
    for depth, word in enumerate(words[1:], 2):
        assert hasattr(group, "commands"), f"{block}: {words}"
        group = group.commands[word]
        if not hasattr(group, "commands"):
            group.make_context(word, words[depth:])
            return


def test_the_keys_and_defaults_of_the_readme_are_those_of_job_files() -> None:
    (block,) = [b for b in blocks("README.md") if b.language == "yaml" and "block_timeout" in b.content]
    content = yaml.safe_load(block.content.replace("…", "own.py:own"))
    said = parse_job(content, "README.md").model_dump()
    bare = {"name": "own.py:own", "problem": "own.py:own", "output": {"path": "own.py:own"}}
    assert said == parse_job(bare, "bare").model_dump()
    for section, keys in said.items():
        if isinstance(keys, dict) and keys:
            assert set(content[section]) == set(keys), f"README.md: {section}"


def test_what_does_not_work_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def far() -> Head:
        raise AssertionError

    block = Block("page", 1, "sh", "")
    wrong = {
        "jacjobs shwo run": "shwo",
        "jacjobs show nowhere": "nowhere",
        "rm -r folder": "nobody says",
        "jacjobs plan s3://x --bad": "No such option: --bad",
        "jacjobs shwo s3://x": "shwo",
        "make nothing-like-it": "nothing-like-it",
        "ray start --had": "--had",
    }
    for line, words in wrong.items():
        with pytest.raises(Exception, match=words):
            run_command(block, line.split(), far, monkeypatch)
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        run_python(Block("page", 1, "python", "1 / 0"), {})
    with pytest.raises(InputError, match="'name' is missing"):
        look_at_job(Block("page", 1, "yaml", "nmae: x\nproblem: x.py:y\noutput: {path: z}\n"))

"""Generated pages say what the code says, and what the pages say to type works as they say."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pytest
import scipy

import jacjobs
from jacjobs.api import submit_job
from jacjobs.job import job_from_spec
from jacjobs.jobspec import read_job
from tests.conftest import JOBS
from tests.docs.pages import ROOT

DOCS = ROOT / "docs"


@pytest.mark.parametrize("name", ["strategies", "metrics"])
def test_a_generated_page_is_up_to_date(name: str) -> None:
    spec = importlib.util.spec_from_file_location(f"make_{name}", DOCS / f"make_{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (DOCS / f"{name}.md").read_text(encoding="utf-8") == module.page(), (
        f"run `python docs/make_{name}.py`"
    )


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs/digits in it: 20 images."""
    folder = tmp_path_factory.mktemp("readme")
    settings = ["params.limit=20", f"output.path={folder}/runs/digits", "cluster.address=inline"]
    submit_job(job_from_spec(read_job(JOBS / "digits.yaml", settings), JOBS)).wait()
    return folder


def typed(page: Path, heading: str) -> list[str]:
    """The statements of the code blocks under a heading."""
    section = page.read_text(encoding="utf-8").partition(f"## {heading}\n")[2].partition("\n## ")[0]
    code = "\n".join(block.partition("```")[0] for block in section.split("```python\n")[1:])
    return [ast.unparse(statement) for statement in ast.parse(code).body]


def test_the_lines_of_the_readme_about_datasets_do_what_they_say(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(here)
    names: dict[str, Any] = {
        "jacjobs": jacjobs,
        "np": np,
        "scipy": scipy,
        "pd": pd,
        "pl": pl,
        "duckdb": duckdb,
        "mask": np.arange(64) % 3 == 0,
    }
    exec("import scipy.sparse.linalg", names)
    values: dict[str, Any] = {}
    for line in typed(ROOT / "README.md", "The dataset"):
        if isinstance(ast.parse(line).body[0], ast.Expr):
            values[line] = eval(line, names)
        else:
            exec(line, names)
    J = names["J"].to_numpy()
    assert values["J.shape"] == J.shape == (20, 10, 64)
    np.testing.assert_array_equal(values["J[7]"], J[7])
    np.testing.assert_array_equal(values["J[7, :, 'input']"], J[7])
    np.testing.assert_array_equal(values["J.segment(input='input')"].to_numpy(), J)
    np.testing.assert_allclose(values["J @ v"], J.sum(2), rtol=1e-4, atol=1e-5)
    rows = J.reshape(200, 64)
    np.testing.assert_allclose(values["J.gram()"], rows @ rows.T, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(values["J.normal()"], rows.T @ rows, rtol=1e-4, atol=1e-5)
    largest = values["scipy.sparse.linalg.svds(J.linear_operator(), k=2)"][1].max()
    np.testing.assert_allclose(largest, np.linalg.norm(rows, 2), rtol=1e-4)
    pandas, polars, duck = (next(v for k, v in values.items() if k.startswith(n)) for n in ("pd", "pl", "du"))
    assert list(pandas.columns) == polars.columns == ["point", "row", "start", "values"]
    assert polars.schema["values"] == pl.Array(pl.Float32, 64)
    np.testing.assert_array_equal(np.stack(pandas["values"]), J[7])
    np.testing.assert_array_equal(polars["values"].to_numpy(), J[7])
    np.testing.assert_array_equal(duck.fetchall(), [(row, J[7, row, 0]) for row in range(10)])


def test_the_reader_in_the_format_reads(here: Path) -> None:
    names: dict[str, Any] = {}
    exec("\n".join(typed(DOCS / "format.md", "A reader in twenty lines")), names)
    np.testing.assert_array_equal(
        names["read"](here / "runs/digits"), jacjobs.open(here / "runs/digits").to_numpy()
    )

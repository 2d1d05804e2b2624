"""Imports point one way: errors → shape → problem → autodiff | structure | planning | store → run | jobspec →
job → record → api | scheduling | remote → cli.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "jacjobs"
MAY_IMPORT = {
    "errors": set(),
    "shape": {"errors"},
    "cost": {"errors", "shape"},
    "functions": {"errors"},
    "arguments": {"errors"},
    "precision": set(),
    "trace": set(),
    "transforms": set(),
    "problem": {"errors", "shape", "functions", "arguments", "precision", "trace", "transforms"},
    "fingerprint": {"errors", "shape", "problem"},
    "autodiff": {"errors", "shape", "cost", "functions", "arguments", "precision", "problem", "transforms"},
    "structure": {"errors", "shape", "problem"},
    "planning": {"errors", "shape", "cost", "problem"},
    "store": {"errors", "shape"},
    "run": {"errors", "shape", "cost", "problem", "autodiff", "structure", "planning", "store"},
    "occurrences": {"errors", "planning"},
    "jobspec": {"errors", "shape", "problem", "planning", "occurrences"},
}
MAY_IMPORT["job"] = {"errors", "problem", "planning", "jobspec"}
MAY_IMPORT["record"] = {"errors", "fingerprint", "planning", "store", "job"}
MAY_IMPORT["remote"] = {"errors", "jobspec", "store"}
MAY_IMPORT["api"] = set(MAY_IMPORT) | {"jobspec"}
MAY_IMPORT["scheduling"] = {"errors", "planning", "occurrences", "jobspec", "store"}
MAY_IMPORT["cli"] = MAY_IMPORT["api"] | {"api", "remote", "scheduling"}
MAY_IMPORT["__main__"] = {"cli"}
FILES = [path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.stem != "__init__"]


def imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    layer = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    used = {name.split(".")[1] for name in imports(path) if name.startswith("jacjobs.")}
    assert used - {layer} <= MAY_IMPORT[layer]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_one_folder_runs_on_ray_one_file_asks_its_jobs_api_and_one_hands_a_dataset_to_it(path: Path) -> None:
    ray = any(name.split(".")[0] == "ray" for name in imports(path))
    files = (PACKAGE / "remote" / "cluster.py", PACKAGE / "store" / "exports.py")
    assert path.parent == PACKAGE / "run" / "cluster" or path in files or not ray


def test_reading_a_dataset_needs_no_torch_and_no_ray() -> None:
    code = (
        "import sys, jacjobs.store.reader, jacjobs.cli.app\n"
        "sys.exit(bool({'torch', 'ray'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_coordinator_and_an_assembler_start_without_torch() -> None:
    """It takes them 300 MiB and more than a second: docs/decisions/0027."""
    code = (
        "import sys, jacjobs.run.cluster.watched, jacjobs.run.cluster.actors\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("told", [None, "0"])
def test_torch_is_told_of_huge_pages_unless_the_user_has_told_it_something(told: str | None) -> None:
    name = "THP_MEM_ALLOC_ENABLE"
    environment = {key: value for key, value in os.environ.items() if key != name}
    if told is not None:
        environment[name] = told
    code = f"import os, jacjobs; print(os.environ[{name!r}])"
    said = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True)
    assert said.stdout.decode().strip() == (told or "1")

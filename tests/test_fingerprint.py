"""The fingerprint sees what changes J, and nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

from jacjobs import Problem
from jacjobs.fingerprint import digest, fingerprint

X = torch.ones(3)


def scaled(factor: float):  # type: ignore[no-untyped-def]
    return lambda x: factor * x


def test_sees_a_closure() -> None:
    assert digest(scaled(2.0)) == digest(scaled(2.0))
    assert digest(scaled(2.0)) != digest(scaled(3.0))


def test_sees_captured_weights_and_mode() -> None:
    net = torch.nn.Linear(3, 3)
    before = digest(lambda x: net(x))
    net.eval()
    evaluated = digest(lambda x: net(x))
    with torch.no_grad():
        net.weight[0, 0] += 1e-6
    assert len({before, evaluated, digest(lambda x: net(x))}) == 3


def test_names_the_argument_that_differs() -> None:
    def marks(y: torch.Tensor) -> dict[str, str]:
        return fingerprint(Problem(torch.mul, (X, y)))

    one, other = marks(X), marks(X + 1)
    assert [key for key in one if one[key] != other[key]] == ["argument 1"]


def test_ignores_comments_and_survives_the_process(tmp_path: Path) -> None:
    body = "import torch\nOFFSET = {offset}\n{comment}\ndef f(x):\n    return helper(x) + OFFSET\n"
    helper = "def helper(x):\n    return {power}\n"
    tail = "from jacjobs.fingerprint import digest\nprint(digest(f))\n"

    def run(name: str, **values: str) -> str:
        path = tmp_path / f"{name}.py"
        path.write_text((helper + body + tail).format(**values))
        return subprocess.run(
            [sys.executable, str(path)], check=True, capture_output=True, text=True
        ).stdout.strip()

    first = run("a", offset="1", comment="", power="x**2")
    assert run("b", offset="1", comment="# words", power="x  ** 2") == first
    assert run("c", offset="2", comment="", power="x**2") != first
    assert run("d", offset="1", comment="", power="x**3") != first

"""The fingerprint sees what changes J, and nothing else."""

from __future__ import annotations

import copy
import functools
import importlib.util
import linecache
import subprocess
import sys
from collections import deque
from decimal import Decimal
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from jacjobs import Problem
from jacjobs import fingerprint as fingerprints
from jacjobs.errors import InputError
from jacjobs.fingerprint import digest, fingerprint
from jacjobs.functions import GradientOf

X, W = torch.ones(3), torch.zeros(3)


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
    assert digest(load(tmp_path / "a.py").f) == first, "run, or imported"
    assert run("b", offset="1", comment="# words", power="x  ** 2") == first
    assert run("c", offset="2", comment="", power="x**2") != first
    assert run("d", offset="1", comment="", power="x**3") != first


MODULE = """
import dataclasses, functools, torch
from pathlib import Path

@functools.cache
def constant():
    return {0}

class Scale:
    def __call__(self, x):
        return self.power(x) * {1}
    def power(self, x):
        return x ** helper()

def helper():
    return {2}

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Inner()
        self.weight = torch.nn.Parameter(torch.zeros(2))
        self.temperature = {3}
    def forward(self, x):
        return self.inner(x) / self.temperature

class Inner(torch.nn.Module):
    def forward(self, x):
        return x + {4}

class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * x * {5}

@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    factor: int = {6}

def decorated(fn):
    @functools.wraps(fn)
    def wrapper(x):
        return fn(x) * {7}
    return wrapper

OPTIONS, FOLDER = Options(), Path("folder-{8}")

@decorated
def everything(x):
    return Square.apply(x) * constant() * OPTIONS.factor + len(FOLDER.name)

net = Net()
batched = torch.func.vmap(lambda x: Scale()(x) + net(x) + everything(x))
"""


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)  # classes ask for it there
    spec.loader.exec_module(module)
    return module


def digests(folder: Path, values: list[int]) -> dict[str, str]:
    """Of what `MODULE` defines with these values."""
    folder.mkdir()
    (folder / "module_to_digest.py").write_text(MODULE.format(*values))
    module = load(folder / "module_to_digest.py")
    return {
        "callable": digest(module.Scale()),
        "net": fingerprint(Problem.parameters(module.net, torch.zeros(1, 2)))["function"],
        "transformed": digest(module.batched),
        "gradient": digest(GradientOf(module.everything, 0)),
    }


def test_sees_all_that_the_function_reaches(tmp_path: Path) -> None:
    reached_by = {
        "callable": {1, 2},
        "net": {3, 4},
        "gradient": {0, 5, 6, 7, 8},
        "transformed": set(range(9)),
    }
    values = list(range(1, 10))
    first = digests(tmp_path / "first", values)
    assert digests(tmp_path / "again", values) == first
    for place in range(9):
        other = digests(tmp_path / str(place), [v + 100 * (i == place) for i, v in enumerate(values)])
        assert {key for key in first if other[key] != first[key]} == {
            key for key, places in reached_by.items() if place in places
        }, f"place {place}"


def wrapped(fn, how):  # type: ignore[no-untyped-def]
    return functools.wraps(fn)(lambda x: how(fn, x))


class Wrapper:
    """A decorator that is a class."""

    def __init__(self, fn, factor: int) -> None:  # type: ignore[no-untyped-def]
        functools.update_wrapper(self, fn)
        self.factor = factor


class Weights(dict[str, int]):
    def __init__(self, factor: int, **weights: int) -> None:
        super().__init__(**weights)
        self.factor = factor


def lambda_named(name: str):  # type: ignore[no-untyped-def]
    return {"sin": lambda x: torch.sin(x), "cos": lambda x: torch.cos(x)}[name]


def with_attribute(value: int):  # type: ignore[no-untyped-def]
    def fn(x: torch.Tensor) -> torch.Tensor:
        return x

    fn.value = value  # type: ignore[attr-defined]
    return fn


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (np.float32(1), np.float32(2)),
        (torch.device("cuda", 0), torch.device("cuda", 1)),
        (Decimal("1"), Decimal("2")),
        (deque([1]), deque([2])),
        (range(3), range(4)),
        (np.array([None, 1]), np.array([None, 2])),
        (torch.eye(3).to_sparse(), (2 * torch.eye(3)).to_sparse()),
        (torch.tensor(1j), torch.tensor(1j).conj()),
        ("ab".join, "cd".join),
        (lambda x: x + 1, lambda x: x + 2),
        (eval("lambda x: x + 1"), eval("lambda x: x + 2")),
        (eval("lambda x: x + 1"), eval("lambda x: x - 1")),
        ([torch.relu, torch.tanh, torch.relu], [torch.relu, torch.tanh, torch.tanh]),
        ([X, W, X], [X, W, W]),
        ({"a": {"b": 1}, "c": 2}, {"a": {"b": 1, "c": 2}}),
        (((0, 1), 2), ((0, 1, 2),)),
        (wrapped(torch.sin, lambda fn, x: 2 * fn(x)), wrapped(torch.sin, lambda fn, x: 3 * fn(x))),
        (
            wrapped(torch.nn.functional.relu, lambda fn, x: fn(x)),
            wrapped(torch.nn.functional.relu, lambda fn, x: 1),
        ),
        (Wrapper(torch.sin, 2), Wrapper(torch.sin, 3)),
        (Weights(1, w=2), Weights(1, w=3)),
        (lambda_named("sin"), lambda_named("cos")),
        (with_attribute(1), with_attribute(2)),
        (torch.empty(2, device="meta"), torch.empty(3, device="meta")),
    ],
    ids=lambda value: type(value).__name__,
)
def test_sees_the_content_of_objects(one: object, other: object) -> None:
    assert digest(one) == digest(copy.deepcopy(one))
    assert digest(one) != digest(other)


def test_an_installed_package_counts_by_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def marked(body: str) -> str:
        (tmp_path / "theirs.py").write_text(body)
        fingerprints._file_digest.cache_clear()
        return digest(load(tmp_path / "theirs.py").f)

    body = "def f(x): return x\n"
    own = marked(body)
    assert marked(body + "# more\n") == own
    monkeypatch.setattr(fingerprints, "_PACKAGES", (str(tmp_path),))
    monkeypatch.setattr(fingerprints, "_INSTALLED", (str(tmp_path),))
    assert marked(body) != marked(body + "# more\n")


def test_sees_what_is_reached_through_a_module_of_the_users(tmp_path: Path) -> None:
    def marked(body: str) -> str:
        (tmp_path / "their_helpers.py").write_text(f"def unused(x): return 1\ndef f(x): return {body}\n")
        module = load(tmp_path / "their_helpers.py")
        names = {"their_helpers": module, "__name__": "job"}
        exec("def fn(x): return their_helpers.f(x)", names)
        return digest(names["fn"])

    assert marked("x") == marked("x")
    linecache.clearcache()
    assert marked("x") != marked("x + 1")


def test_a_subclass_of_a_container_counts_with_its_methods(tmp_path: Path) -> None:
    def marked(body: str) -> str:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.py"
        path.write_text(
            "from typing import NamedTuple\nclass Fn(NamedTuple):\n    w: int = 1\n"
            f"    def __call__(self, x): return {body}\n"
        )
        return digest(load(path).Fn())

    assert marked("x * self.w") == marked("x * self.w")
    assert marked("x * self.w") != marked("x + self.w")


def test_hooks_count_by_what_they_do() -> None:
    """Not by the number that torch gives them, which counts all hooks of the process."""

    def net(factor: float) -> torch.nn.Module:
        made = torch.nn.Linear(2, 2)
        torch.nn.init.zeros_(made.weight)
        torch.nn.init.zeros_(made.bias)
        made.register_forward_hook(lambda module, inputs, output: factor * output)
        return made

    assert digest(net(1.0)) == digest(net(1.0))
    assert digest(net(1.0)) != digest(net(2.0))


def test_what_has_no_end_is_refused_in_a_sentence() -> None:
    class Node:
        pass

    one, other = Node(), Node()
    one.others, other.others = {other}, {one}  # type: ignore[attr-defined]
    problem = Problem(lambda x: x * len(one.others), (X,))  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="nested too deeply"):
        fingerprint(problem)

"""What makes two problems the same: digests of the function and of every argument.

A run is resumed only with the problem that began it. The function's digest follows its source as a syntax
tree (a comment or a line break changes nothing), its defaults, what it closes over, and the functions,
classes and values of its own package that it refers to. Code of other packages counts by name only.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import textwrap
import types
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from jacjobs.problem import Problem


def fingerprint(problem: Problem) -> dict[str, str]:
    """A digest for each part of the problem, by the name that a user would look for."""
    marks = {
        "function": digest(problem.fn),
        "argnums": repr(problem.argnums),
        "in_dims": repr(problem.in_dims),
        "batched": repr(problem.batched),
    }
    start = 0
    for number, child in enumerate(problem.argument_specs):
        stop = start + child.num_leaves
        marks[f"argument {number}"] = digest((str(child), problem.leaves[start:stop]))
        start = stop
    return marks


def digest(value: Any) -> str:
    """SHA-256 over the meaning of `value`, stable between processes; 16 hexadecimal digits are kept."""
    walk = _Walk()
    walk.add(value)
    return walk.hash.hexdigest()[:16]


class _Walk:
    def __init__(self) -> None:
        self.hash = hashlib.sha256()
        self._seen: set[int] = set()
        self._alive: list[Any] = []  # an id is only unique while its object lives
        self._package: str | None = None

    def add(self, value: Any) -> None:
        """Feed `value` into the hash; an object met again counts by its type only (cycles end there)."""
        self._mark(type(value).__qualname__)
        if value is None or isinstance(value, bool | int | float | complex | str | bytes | torch.dtype):
            self._mark(repr(value))
            return
        if id(value) in self._seen:
            return
        self._seen.add(id(value))
        self._alive.append(value)
        if isinstance(value, torch.Tensor):
            self._add_tensor(value)
        elif isinstance(value, np.ndarray):
            self._mark(f"{value.dtype} {value.shape}")
            self.hash.update(np.ascontiguousarray(value).tobytes())
        elif isinstance(value, Mapping):
            for key in value:
                self.add(key)
                self.add(value[key])
        elif isinstance(value, list | tuple):
            for item in value:
                self.add(item)
        elif isinstance(value, set | frozenset):
            for item in sorted(map(digest, value)):
                self._mark(item)
        elif isinstance(value, functools.partial):
            self.add((value.func, value.args, value.keywords))
        elif isinstance(value, types.MethodType):
            self.add((value.__func__, value.__self__))
        elif isinstance(value, types.FunctionType):
            self._add_function(value)
        elif isinstance(value, type):
            self._add_class(value)
        elif isinstance(value, types.ModuleType):
            self._mark(value.__name__)
        elif isinstance(value, torch.nn.Module):
            self.add((type(value), repr(value), value.training, dict(value.state_dict())))
        elif hasattr(value, "__dict__"):
            self.add((type(value), vars(value)))
        else:
            self._mark(getattr(value, "__qualname__", ""))

    def _mark(self, text: str) -> None:
        self.hash.update(f"{len(text)}:{text}".encode())

    def _add_tensor(self, tensor: torch.Tensor) -> None:
        self._mark(f"{tensor.dtype} {tuple(tensor.shape)}")
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        self.hash.update(flat.view(torch.uint8).numpy().data)

    def _add_function(self, function: types.FunctionType) -> None:
        self._mark(function.__qualname__)
        package = (function.__module__ or "").partition(".")[0]
        if self._package is None:
            self._package = package
        elif package != self._package:
            return
        self._mark(_source(function))
        self.add((function.__defaults__, function.__kwdefaults__))
        for cell in function.__closure__ or ():
            self._add_cell(cell)
        for name in sorted(_global_names(function.__code__)):
            if name in function.__globals__:
                self._mark(name)
                self.add(function.__globals__[name])

    def _add_cell(self, cell: Any) -> None:
        try:
            self.add(cell.cell_contents)
        except ValueError:  # not filled yet
            self._mark("empty")

    def _add_class(self, cls: type) -> None:
        self._mark(f"{cls.__module__}.{cls.__qualname__}")
        if cls.__module__.partition(".")[0] == self._package:
            self._mark(_source(cls))
            self.add(cls.__bases__)


def _source(thing: Any) -> str:
    try:
        text = textwrap.dedent(inspect.getsource(thing))
    except (OSError, TypeError):
        code = getattr(thing, "__code__", None)
        return repr((code.co_code, code.co_names)) if code else ""
    try:
        return ast.dump(ast.parse(text))
    except SyntaxError:  # a lambda in the middle of an expression
        return text


def _global_names(code: types.CodeType) -> set[str]:
    """Names that the code may look up among the globals, nested functions included."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _global_names(constant)
    return names

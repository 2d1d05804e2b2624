"""What makes two problems the same: digests of the function and of every argument.

A run is resumed only with the problem that began it. A digest follows all that the function reaches: what it
closes over, the attributes of objects and modules, defaults, and the functions and classes it refers to. The
user's own code counts by its source, as a syntax tree (a comment or a line break changes nothing); that of
an installed package by the file it stands in; Python, torch and this package by name, since their versions
stand in the run's record.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import site
import sys
import sysconfig
import textwrap
import types
from collections import OrderedDict, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jacjobs.errors import InputError
from jacjobs.problem import Problem


def fingerprint(problem: Problem) -> dict[str, str]:
    """A digest for each part of the problem, by the name that a user would look for.

    Raises InputError for what cannot be followed to its end.
    """
    try:
        return _marks(problem)
    except RecursionError:
        raise InputError.about(
            "fn",
            got="one that reaches objects nested too deeply to compare them with those of another run",
            expected="less between the function and its data",
            do="pass data as arguments, or keep linked structures in arrays",
        ) from None


def _marks(problem: Problem) -> dict[str, str]:
    marks = {
        "function": digest(problem.fn),
        "argnums": repr(problem.argnums),
        "in_dims": repr(problem.in_dims),
        "batched": repr(problem.batched),
    }
    if problem.pattern is not None:
        marks["pattern"] = digest(_entries(problem.pattern))
    start = 0
    for number, child in enumerate(problem.argument_specs):
        stop = start + child.num_leaves
        marks[f"argument {number}"] = digest((str(child), problem.leaves[start:stop]))
        start = stop
    return marks


def _entries(pattern: Any) -> Any:
    """Which a pattern has, if it is a matrix."""
    if not hasattr(pattern, "indptr"):
        return pattern
    return pattern.shape, [np.asarray(part, np.int64) for part in (pattern.indptr, pattern.indices)]


def digest(value: Any) -> str:
    """SHA-256 over the meaning of `value`, stable between processes; 16 hexadecimal digits are kept."""
    walk = _Walk()
    walk.add(value)
    return walk.hash.hexdigest()[:16]


class _Walk:
    def __init__(self) -> None:
        self.hash = hashlib.sha256()
        self._seen: dict[int, int] = {}
        self._alive: list[Any] = []  # an id is only unique while its object lives

    def add(self, value: Any) -> None:
        """Feed `value` into the hash. What is met again counts by when it was met first: cycles end there.

        Not so a tuple, which Python shares or copies as it likes.
        """
        self._mark(type(value).__qualname__)
        if value is None or isinstance(value, bool | int | float | complex | str | bytes | torch.dtype):
            self._mark(repr(value))
            return
        if id(value) in self._seen:
            self._mark(f"again {self._seen[id(value)]}")
            return
        if not isinstance(value, tuple):
            self._seen[id(value)] = len(self._seen)
            self._alive.append(value)
        if isinstance(value, torch.Tensor) and value.layout is torch.strided and not value.is_nested:
            self._add_tensor(value)
        elif isinstance(value, np.ndarray) and not value.dtype.hasobject:
            self._mark(f"{value.dtype} {value.shape}")
            self.hash.update(np.ascontiguousarray(value).tobytes())
        elif isinstance(value, Mapping):
            self._add_all([item for pair in value.items() for item in pair])
        elif isinstance(value, list | tuple):
            self._add_all(value)
        elif isinstance(value, set | frozenset):
            self._add_all(sorted(map(digest, value)))
        elif isinstance(value, functools.partial):
            self._add_all((value.func, value.args, value.keywords))
        elif isinstance(value, types.MethodType | types.BuiltinMethodType):
            self._mark(value.__name__)
            self._add_all((getattr(value, "__func__", None), value.__self__))
        elif isinstance(value, types.FunctionType):
            self._add_function(value)
        elif isinstance(value, type):
            self._add_class(value)
        elif isinstance(value, types.ModuleType):
            self._mark(value.__name__)
        else:
            self._add_object(value)
            return
        if type(value) not in _PLAIN and not isinstance(
            value, type
        ):  # a subclass has methods of its own, and perhaps attributes
            self._add_all((type(value), getattr(value, "__dict__", None)))

    def _mark(self, text: str) -> None:
        self.hash.update(f"{len(text)}:{text}".encode())

    def _add_all(self, values: Sequence[Any]) -> None:
        self._mark(str(len(values)))
        for value in values:
            self.add(value)

    def _add_tensor(self, tensor: torch.Tensor) -> None:
        self._mark(f"{tensor.dtype} {tuple(tensor.shape)}")
        if tensor.is_meta:
            return
        flat = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
        self.hash.update(flat.view(torch.uint8).numpy().data)

    def _add_function(self, function: types.FunctionType) -> None:
        self._mark(function.__qualname__)
        attributes = {name: value for name, value in vars(function).items() if name != "__wrapped__"}
        self._add_all((function.__defaults__, function.__kwdefaults__, attributes))
        for cell in function.__closure__ or ():
            self._add_cell(cell)
        # Not by __module__, which a decorator copies from what it wraps.
        module = function.__globals__.get("__name__", "")
        if self._add_installed(module, function.__code__.co_filename):
            return
        self._add_code(function.__code__)
        self._add_named(_global_names(function.__code__), function.__globals__)

    def _add_named(self, names: set[str], where: dict[str, Any]) -> None:
        """What code with these names may find there, and in the user's modules that it finds there."""
        for name in sorted(names & set(where)):
            value = where[name]
            self._mark(name)
            met = id(value) in self._seen
            self.add(value)
            if isinstance(value, types.ModuleType) and not met and not _is_installed(value):
                self._add_named(names, vars(value))

    def _add_cell(self, cell: Any) -> None:
        try:
            self.add(cell.cell_contents)
        except ValueError:  # not filled yet
            self._mark("empty")

    def _add_installed(self, module: str, file: str | None) -> bool:
        """Is this Python's, torch's, this package's, or of another that was installed?

        The name of a user's module does not count: it is `__main__` where the module is run.
        """
        if not _comes_with(module, file):
            return False
        self._mark(module)
        if file is not None and file.startswith(_PACKAGES) and not module.startswith(_LIBRARIES):
            self._mark(_file_digest(file))
        return True

    def _add_code(self, code: types.CodeType) -> None:
        """By its source, where there is one."""
        source = _source(code)
        self._mark(source or f"{code.co_code!r} {code.co_names}")
        if source and code.co_name == "<lambda>":  # others may stand on the same line
            self._mark(f"{code.co_code!r} {code.co_names}")
        if not source or code.co_name == "<lambda>":
            for constant in code.co_consts:
                if isinstance(constant, types.CodeType):
                    self._add_code(constant)
                else:
                    self.add(constant)

    def _add_class(self, cls: type) -> None:
        self._mark(cls.__qualname__)
        if self._add_installed(cls.__module__, getattr(sys.modules.get(cls.__module__), "__file__", None)):
            return
        self._add_all(cls.__bases__)
        for name, value in sorted(vars(cls).items()):
            if inspect.isroutine(value) or isinstance(value, property) or not _is_dunder(name):
                self._mark(name)
                self.add(value)

    def _add_object(self, value: Any) -> None:
        """By what pickle would carry: most objects have nothing else to tell them apart."""
        self.add(type(value))
        if isinstance(value, property):
            return self._add_all((value.fget, value.fset, value.fdel))
        if isinstance(value, staticmethod | classmethod):
            return self.add(value.__func__)
        if isinstance(value, functools._lru_cache_wrapper):
            return self.add(value.__wrapped__)
        try:
            reduced = value.__reduce_ex__(4)
        except Exception:  # a lock or an open file: what no pickle carries, or refuses to
            return self.add(getattr(value, "__dict__", None))
        if isinstance(reduced, str):  # it is found by its name
            return self._mark(f"{getattr(value, '__module__', '')}.{reduced}")
        make, arguments, state, items, pairs = (*reduced, None, None, None)[:5]
        if isinstance(value, torch.nn.Module) and isinstance(state, dict):
            # Hooks have numbers as keys, which count all hooks of the process.
            hooks = {name for name, v in state.items() if "hooks" in name and isinstance(v, Mapping)}
            state = {name: list(v.values()) if name in hooks else v for name, v in state.items()}
        self._mark(getattr(make, "__qualname__", ""))
        self._add_all((arguments, state, list(items or ()), list(pairs or ())))
        return None


_PACKAGES = tuple(
    {sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), site.getusersitepackages()}
    | set(site.getsitepackages())
)
_INSTALLED = (sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), *_PACKAGES)


_LIBRARIES = ("jacjobs", "torch")
_PLAIN = {
    *(dict, OrderedDict, defaultdict, types.MappingProxyType, list, tuple, set, frozenset, functools.partial),
    *(torch.Tensor, torch.nn.Parameter, np.ndarray, types.MethodType, types.BuiltinMethodType),
    *(types.FunctionType, types.ModuleType),
}


def _comes_with(module: str, file: str | None) -> bool:
    """Does a module come with Python or a package, rather than from the user?"""
    if module.partition(".")[0] in ("builtins", *_LIBRARIES):
        return True
    return file is not None and file.startswith(("<frozen", *_INSTALLED))


def _is_installed(module: types.ModuleType) -> bool:
    file = getattr(module, "__file__", None)
    if file is None:  # compiled into Python, or a folder of modules
        return not hasattr(module, "__path__")
    return _comes_with(module.__name__, file)


@functools.cache
def _file_digest(file: str) -> str:
    try:
        return hashlib.sha256(Path(file).read_bytes()).hexdigest()
    except OSError:  # in an archive, or made up
        return ""


def _is_dunder(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")


def _source(code: types.CodeType) -> str:
    """Empty if it was made without a file, as by `exec`."""
    try:
        text = textwrap.dedent(inspect.getsource(code))
    except (OSError, TypeError):
        return ""
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

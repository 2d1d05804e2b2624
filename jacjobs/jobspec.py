"""The job file: YAML, validated, every unknown key refused with the nearest known one."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from jacjobs.errors import InputError, JacjobsError
from jacjobs.planning.options import ClusterOptions, ComputeOptions, OutputOptions
from jacjobs.problem import Problem, function_error


class JobSpec(BaseModel):
    """One job.

    problem:  `file.py:callable`, the file beside the job file, or `package.module:callable`.
    params:   keyword arguments for the callable, which returns a `jacjobs.Problem`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(min_length=1)]
    problem: Annotated[str, Field(pattern=r"^[^:]+:[A-Za-z_]\w*$")]
    params: dict[str, Any] = {}
    compute: ComputeOptions = ComputeOptions()
    output: OutputOptions
    cluster: ClusterOptions = ClusterOptions()


def read_job(path: Path, overrides: list[str]) -> JobSpec:
    """The job file at `path`, with `key.key=value` overrides (the value in YAML)."""
    if not path.is_file():
        raise InputError.about(
            f"job file {path}",
            got="a folder" if path.is_dir() else "no such file",
            expected="a YAML file",
            do="check the path",
        )
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"job file {path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise InputError.about(
            f"job file {path}", got=type(content).__name__, expected="a mapping with name, problem, output"
        )
    for override in overrides:
        _override(content, override)
    return parse_job(content, str(path))


def parse_job(content: dict[str, Any], source: str) -> JobSpec:
    """`source` names the file in errors."""
    try:
        return JobSpec.model_validate(content)
    except ValidationError as error:
        raise InputError(f"{source}: {_sentence(error)}") from None


def _override(content: dict[str, Any], override: str) -> None:
    keys, equals, text = override.partition("=")
    if not equals or not keys:
        raise InputError.about("--set", got=repr(override), expected="key=value, such as compute.chunk=64")
    *path, last = keys.split(".")
    place = content
    for key in path:
        place = place.setdefault(key, {})
        if not isinstance(place, dict):
            raise InputError.about(f"--set {override}", got=f"{key}, which is a value", expected="a section")
    try:
        place[last] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise InputError.about("--set", got=repr(override), expected="a value in YAML") from None


def _sentence(error: ValidationError) -> str:
    """The first of pydantic's complaints, as got / expected / what to do."""
    first = error.errors()[0]
    place = [str(key) for key in first["loc"] if not _is_type_tag(str(key))]
    where = ".".join(place)
    if first["type"] == "extra_forbidden":
        known = _known_keys(place[:-1])
        near = difflib.get_close_matches(place[-1], known, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        return f"unknown key {where!r}; {hint}"
    if first["type"] == "missing":
        return f"{where!r} is missing; add it"
    # A union complains once a member; together they say what would do.
    wanted = dict.fromkeys(
        e["msg"].removeprefix("Input should be ") for e in error.errors() if _same_place(e["loc"], place)
    )
    return f"{where}: got {first['input']!r}, expected {' or '.join(wanted)}"


def _same_place(location: tuple[int | str, ...], place: list[str]) -> bool:
    return [str(key) for key in location if not _is_type_tag(str(key))] == place


def _is_type_tag(key: str) -> bool:
    """pydantic puts the members of a union into the path: literal['auto'], constrained-int, function-…"""
    return key.startswith(("literal[", "constrained-", "int", "function-"))


def _known_keys(path: list[str]) -> list[str]:
    model: type[BaseModel] = JobSpec
    for key in path:
        annotation = model.model_fields[key].annotation
        assert isinstance(annotation, type)
        assert issubclass(annotation, BaseModel)
        model = annotation
    return list(model.model_fields)


# -- the problem that a job names --------------------------------------------------------------------------


def load_problem(spec: JobSpec, folder: Path) -> tuple[Problem, list[ModuleType]]:
    """Build the job's problem. Also returns the modules that only this process knows (files in `folder`).

    Raises InputError where the reference leads nowhere, FunctionError where the user's code raises.
    """
    reference, _, name = spec.problem.rpartition(":")
    module, own = _import(reference, folder)
    build = getattr(module, name, None)
    if not callable(build):
        names = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
        raise InputError.about(
            f"problem {spec.problem!r}",
            got=f"no callable {name!r} in {reference}",
            expected="a function that returns a jacjobs.Problem",
            do=f"did you mean {near[0]!r}?" if near else "define it there",
        )
    try:
        problem = build(**spec.params)
    except JacjobsError:
        raise
    except Exception as error:
        raise function_error(error, f"while {spec.problem} built the problem") from None
    if not isinstance(problem, Problem):
        raise InputError.about(
            f"problem {spec.problem!r}", got=f"a {type(problem).__name__}", expected="a jacjobs.Problem"
        )
    return problem, own


def _import(reference: str, folder: Path) -> tuple[ModuleType, list[ModuleType]]:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))  # helpers beside the file
    try:
        if not reference.endswith(".py"):
            return importlib.import_module(reference), []
        path = folder / reference
        if not path.is_file():
            raise InputError.about(
                "problem", got=f"{path}, which does not exist", expected="a Python file beside the job file"
            )
        # A name of its own: a job's digits.py must not shadow, or be shadowed by, a package.
        name = f"jacjobs_job_{path.stem}"
        description = importlib.util.spec_from_file_location(name, path)
        assert description is not None
        assert description.loader is not None
        module = importlib.util.module_from_spec(description)
        sys.modules[name] = module
        description.loader.exec_module(module)
        return module, [module]
    except JacjobsError:
        raise
    except ModuleNotFoundError as error:
        raise InputError.about(
            f"problem {reference!r}",
            got=f"no module named {error.name!r}",
            expected="a module that can be imported here",
            do="install it, or correct the name",
        ) from None
    except Exception as error:
        raise function_error(error, f"while {reference} was imported") from None

"""The job file: plain YAML, validated, every unknown key refused with the nearest known one.

Plain: mappings, lists, text, numbers, true, false and null. A tag that would make anything else is refused:
no job file makes Python objects, and what it holds comes back from the run's plan.json as it was.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import sys
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from jacjobs.errors import InputError, JacjobsError
from jacjobs.occurrences import check_path, check_texts, filled, is_template
from jacjobs.planning.options import ClusterOptions, ComputeOptions, OutputOptions, ScheduleOptions
from jacjobs.problem import Problem, function_error

JOB_BYTES = 1 << 20
VALUES, LEVELS = 10_000, 50
"""Of a job file, at most: its size; how many values it has, those of an anchor counted wherever it is named;
how deep they are nested. More is data, which belongs into a file that the problem reads.
"""
PLAIN = {
    "str": "text that UTF-8 can hold",
    "int": "a number of at most 64 bits",
    "float": "a number",
    "bool": "true or false",
    "null": "null",
}
"""Scalars by YAML's names for them, and what they must be."""
NUMBER_DIGITS = 400
SHOWN = 200
"""Characters of a wrong value, in an error."""


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
    schedule: ScheduleOptions | None = None

    def at(self, occurrence: datetime) -> JobSpec:
        """The job of one occurrence: `{scheduled:…}` filled in, and no schedule any more."""
        if self.schedule is None:
            return self
        local = occurrence.astimezone(self.schedule.zone)
        return self.model_copy(
            update={
                "params": filled(self.params, local),
                "output": self.output.model_copy(update={"path": filled(self.output.path, local)}),
                "schedule": None,
            }
        )


def read_job(path: Path, overrides: list[str]) -> JobSpec:
    """The job file at `path`, with `key.key=value` overrides (the value in YAML)."""
    where = f"job file {path}"
    content = _parsed(_text(path, where), where)
    if not isinstance(content, dict):
        raise InputError.about(
            where, got=type(content).__name__, expected="a mapping with name, problem, output"
        )
    for override in overrides:
        _override(content, override)
    return parse_job(content, str(path))


def parse_job(content: dict[str, Any], source: str) -> JobSpec:
    """`source` names the file in errors."""
    try:
        spec = JobSpec.model_validate(content)
    except ValidationError as error:
        raise InputError(f"{source}: {_sentence(error)}") from None
    if spec.schedule is not None:
        check_path(spec.output.path, spec.schedule, f"{source}: output.path")
        check_texts(spec.params, f"{source}: params")
    elif is_template(spec.output.path):
        raise InputError.about(
            f"{source}: output.path",
            got=f"{_shown(spec.output.path)}, and no schedule",
            expected="{scheduled:…} in a job that has a schedule",
            do="add `schedule: {cron: …}`, or a path without it",
        )
    return spec


def _text(path: Path, where: str) -> str:
    try:
        if not path.is_file():
            raise InputError.about(
                where,
                got="a folder" if path.is_dir() else "no such file",
                expected="a YAML file",
                do="check the path",
            )
        with path.open("rb") as file:
            raw = file.read(JOB_BYTES + 1)
    except OSError as error:
        raise InputError.about(where, got=error.strerror, expected="a file that can be read") from None
    if len(raw) > JOB_BYTES:
        raise InputError.about(
            where,
            got=f"more than {JOB_BYTES:,} bytes",
            expected="less",
            do="keep data in a file that the problem reads",
        )
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is not YAML: {error}") from None


def _override(content: dict[str, Any], override: str) -> None:
    keys, equals, text = override.partition("=")
    if not equals or not keys:
        raise InputError.about("--set", got=_shown(override), expected="key=value, such as compute.chunk=64")
    *path, last = keys.split(".")
    if len(path) >= LEVELS or not _encodes(keys):
        raise InputError.about("--set", got=_shown(keys), expected=f"at most {LEVELS} keys, in UTF-8")
    place = content
    for key in path:
        place = place.setdefault(key, {})
        if not isinstance(place, dict):
            raise InputError.about(
                f"--set {_shown(override)}", got=f"{key!r}, which is a value", expected="a section"
            )
    place[last] = _parsed(text, f"--set {_shown(override)}")


def _sentence(error: ValidationError) -> str:
    """The first of pydantic's complaints, as got / expected / what to do."""
    complaints = error.errors(include_url=False)
    first = complaints[0]
    place, known = _place(first["loc"])
    where = ".".join(place)
    if first["type"] == "extra_forbidden":
        near = _sections_with(place[-1]) if len(place) == 1 else []
        near = near or difflib.get_close_matches(place[-1], known, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        return f"unknown key {_shown(where)}; {hint}"
    if first["type"] == "missing":
        return f"{where!r} is missing; add it"
    # A union complains once a member; together they say what would do.
    wanted = dict.fromkeys(
        e["msg"].removeprefix("Input should be ") for e in complaints if _place(e["loc"])[0] == place
    )
    return f"{where}: got {_shown(first['input'])}, expected {' or '.join(wanted)}"


def _place(location: tuple[int | str, ...]) -> tuple[list[str], list[str]]:
    """The keys down to the one that is complained about, and the keys that there are beside it.

    pydantic adds, behind a key, which member of a union complains, or where in the value.
    """
    place: list[str] = []
    model: type[BaseModel] = JobSpec
    for key in location:
        place.append(str(key))
        field = model.model_fields.get(place[-1])
        section = None if field is None else _section(field.annotation)
        if section is None:
            break
        model = section
    return place, list(model.model_fields)


def _sections_with(key: str) -> list[str]:
    """`compute.chunk` for `chunk`."""
    sections = {name: _section(field.annotation) for name, field in JobSpec.model_fields.items()}
    return [f"{name}.{key}" for name, section in sections.items() if section and key in section.model_fields]


def _section(annotation: Any) -> type[BaseModel] | None:
    """The section that a key is declared as; it may be one that can be left out."""
    for each in (annotation, *get_args(annotation)):
        if isinstance(each, type) and issubclass(each, BaseModel):
            return each
    return None


def _shown(value: object) -> str:
    """A value, as an error says it: not all of it, if it is long."""
    said = repr(value)
    return said if len(said) <= SHOWN else f"{said[:SHOWN]}…"


def _encodes(text: str) -> bool:
    """Is there no half of a surrogate pair in it, which no file could hold?"""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


# -- YAML ----------------------------------------------------------------------------------------------------


def _parsed(text: str, where: str) -> Any:
    """What the text says. Raises InputError where it is not YAML, not plain, or more than a job file's."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return None if node is None else loader.plain(node)
    except _UnfitError as unfit:
        line = unfit.node.start_mark.line + 1
        raise InputError.about(
            f"{where}, line {line}", got=unfit.got, expected=unfit.expected, do=unfit.do
        ) from None
    # The last two: PyYAML lets escapes of no character, and numbers in directives, through to Python.
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise InputError(f"{where} is not YAML: {' '.join(str(error).split())}") from None


class _UnfitError(Exception):
    """Correct YAML, and nothing for a job file."""

    def __init__(self, node: yaml.Node, got: str, expected: str, do: str | None = None) -> None:
        super().__init__(got)
        self.node, self.got, self.expected, self.do = node, got, expected, do


class _Loader(yaml.SafeLoader):
    """`plain` makes what a node says. What an anchor names is made anew wherever it is named, so that an
    override of one changes no other; `VALUES` and `LEVELS` bound what anchors can be made to do.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._composed, self._level, self._made = 0, 0, 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._composed += 1
        self._level += 1
        if parent is not None:
            self._check(parent, self._composed, self._level)
        node = super().compose_node(parent, index)
        self._level -= 1
        return node

    def plain(self, node: yaml.Node, level: int = 1) -> Any:
        self._made += 1
        self._check(node, self._made, level)
        match node:
            case yaml.ScalarNode():
                return self._scalar(node)
            case yaml.SequenceNode(tag="tag:yaml.org,2002:seq"):
                return [self.plain(child, level + 1) for child in node.value]
            case yaml.MappingNode(tag="tag:yaml.org,2002:map"):
                return self._mapping(node, level)
        raise _tagged(node)

    def _check(self, node: yaml.Node, values: int, level: int) -> None:
        if values > VALUES:
            got, expected = f"more than {VALUES:,} values", "fewer, anchors counted in full"
        elif level > LEVELS:
            got, expected = f"values nested more than {LEVELS} deep", "fewer levels"
        else:
            return
        raise _UnfitError(node, got, expected, "keep data in a file that the problem reads")

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        kind = node.tag.removeprefix("tag:yaml.org,2002:")
        if kind not in PLAIN:
            raise _tagged(node)
        wrong = _UnfitError(node, _shown(node.value), PLAIN[kind], "quote it if it is text")
        if kind in ("int", "float") and len(node.value) > NUMBER_DIGITS:
            raise wrong  # before Python takes its time for it
        try:
            value = self.construct_object(node)
        except (ValueError, LookupError, OverflowError):
            raise wrong from None
        if (kind == "str" and not _encodes(value)) or (kind == "int" and not -(2**63) <= value < 2**64):
            raise wrong
        return value

    def _mapping(self, node: yaml.MappingNode, level: int) -> dict[str, Any]:
        made: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key, value in node.value:
            if key.tag == "tag:yaml.org,2002:merge" and not merged:
                merged = self._merged(value, level)
                continue
            if key.tag != "tag:yaml.org,2002:str":
                raise _UnfitError(key, f"the key {_shown(key.value)}", "text as a key", "quote it")
            name = self._scalar(key)
            if name in made:
                raise _UnfitError(key, f"{_shown(name)} once more", "each key once", "remove one of them")
            made[name] = self.plain(value, level + 1)
        return {**merged, **made}

    def _merged(self, node: yaml.Node, level: int) -> dict[str, Any]:
        """`<<: *anchor`, or a list of anchors, of which the first that has a key gives it."""
        made: dict[str, Any] = {}
        for source in reversed(node.value) if isinstance(node, yaml.SequenceNode) else [node]:
            if not isinstance(source, yaml.MappingNode):
                raise _UnfitError(source, "<< with something else", "<< with a mapping")
            made |= self.plain(source, level + 1)
        return made


def _tagged(node: yaml.Node) -> _UnfitError:
    got = f"a value tagged {_shown(node.tag.removeprefix('tag:yaml.org,2002:'))}"
    if isinstance(node, yaml.ScalarNode):
        got = f"{_shown(node.value)}, {got}"
    return _UnfitError(node, got, "plain text, numbers, lists and mappings", "quote it, or drop the tag")


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
        inspect.signature(build).bind(**spec.params)
    except TypeError as error:
        raise InputError.about(
            "params",
            got=f"{', '.join(spec.params) or 'none'} ({error})",
            expected=f"what {spec.problem} takes: {name}{inspect.signature(build)}",
        ) from None
    except ValueError:  # what has no signature is called, and will tell
        pass
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

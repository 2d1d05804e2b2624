"""A job: a problem, and what is asked for; from a job file, or from keyword options."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from pydantic import BaseModel, ValidationError

from jacjobs.errors import InputError
from jacjobs.jobspec import JobSpec, load_problem
from jacjobs.planning.options import ClusterOptions, ComputeOptions, OutputOptions
from jacjobs.problem import Problem


@dataclass(frozen=True)
class Job:
    """A problem and what is asked for; `spec` and `folder` are set if it came from a job file."""

    problem: Problem
    name: str
    output: OutputOptions
    compute: ComputeOptions = field(default_factory=ComputeOptions)
    cluster: ClusterOptions = field(default_factory=ClusterOptions)
    spec: JobSpec | None = None
    folder: Path | None = None
    modules: tuple[ModuleType, ...] = ()


def job_from_spec(spec: JobSpec, folder: Path) -> Job:
    """Build the problem that a job file names; `folder` is where the file is."""
    if spec.schedule is not None:
        raise InputError.about(
            f"job {spec.name!r}",
            got="a job with a schedule",
            expected="that of one occurrence",
            do="make it by `spec.at(occurrence)`",
        )
    problem, modules = load_problem(spec, folder)
    return _job(problem, spec.name, spec.output, spec.compute, spec.cluster, spec, folder, tuple(modules))


def job_from_options(problem: Problem, path: str, options: dict[str, Any]) -> Job:
    """Sort keyword options into the sections of a job file; refuse those that none knows."""
    sections: dict[type[BaseModel], dict[str, Any]] = {
        ComputeOptions: {},
        OutputOptions: {"path": path},
        ClusterOptions: {},
    }
    for key, value in options.items():
        if key == "output_dtype":
            sections[OutputOptions]["dtype"] = value
            continue
        owner = next((section for section in sections if key in section.model_fields), None)
        if owner is None or key == "path":
            known = sorted(
                {k for section in sections for k in section.model_fields} - {"path"} | {"output_dtype"}
            )
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
            raise InputError.about(
                f"option {key!r}",
                got=repr(value),
                expected="one of " + ", ".join(known),
                do=f"did you mean {near[0]!r}?" if near else None,
            )
        sections[owner][key] = value
    try:
        compute = ComputeOptions(**sections[ComputeOptions])
        output = OutputOptions(**sections[OutputOptions])
        cluster = ClusterOptions(**sections[ClusterOptions])
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError.about(
            f"option {first['loc'][0]}", got=repr(first["input"]), expected=first["msg"]
        ) from None
    return _job(problem, path.rstrip("/").rpartition("/")[2], output, compute, cluster)


def _job(
    problem: Problem,
    name: str,
    output: OutputOptions,
    compute: ComputeOptions,
    cluster: ClusterOptions,
    spec: JobSpec | None = None,
    folder: Path | None = None,
    modules: tuple[ModuleType, ...] = (),
) -> Job:
    problem = prepared(problem, compute)
    return Job(problem, name, output, compute, cluster, spec, folder, modules)


def prepared(problem: Problem, compute: ComputeOptions) -> Problem:
    """The problem as a job's options want it."""
    if compute.dtype is not None:
        problem = problem.to(dtype=getattr(torch, compute.dtype))
    problem = problem.with_leaves(problem.leaves) if compute.seed is None else problem.seeded(compute.seed)
    problem.tf32 = compute.tf32
    return problem

"""jacjobs: large Jacobians as batch jobs. These are the public names, imported when first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jacjobs.api import Run, open, plan, resume, submit
    from jacjobs.autodiff.jacobian import jacobian
    from jacjobs.errors import JacjobsError
    from jacjobs.problem import Problem
    from jacjobs.store.reader import JacobianDataset

__all__ = [
    "JacjobsError",
    "JacobianDataset",
    "Problem",
    "Run",
    "jacobian",
    "open",
    "plan",
    "resume",
    "submit",
]

_HOMES = {
    "JacjobsError": "jacjobs.errors",
    "JacobianDataset": "jacjobs.store.reader",
    "Problem": "jacjobs.problem",
    "Run": "jacjobs.api",
    "jacobian": "jacjobs.autodiff.jacobian",
    "open": "jacjobs.api",
    "plan": "jacjobs.api",
    "resume": "jacjobs.api",
    "submit": "jacjobs.api",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'jacjobs' has no attribute {name!r}")

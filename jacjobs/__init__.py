"""jacjobs: large Jacobians as batch jobs. These are the public names, imported when first used."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jacjobs.api import attach, plan, resume, submit, verify
    from jacjobs.autodiff.jacobian import jacobian
    from jacjobs.errors import JacjobsError
    from jacjobs.problem import Problem
    from jacjobs.run.handle import Run
    from jacjobs.store.reader import JacobianDataset
    from jacjobs.store.reader import open_run as open
    from jacjobs.store.sparse import SparseDataset

# Tensors of 2 MiB and more lie in huge pages: making a large J takes a third of the time on a CPU
# (docs/decisions/0030). torch reads this once, when it first allocates; what the user has set stays.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

__all__ = [
    "JacjobsError",
    "JacobianDataset",
    "Problem",
    "Run",
    "SparseDataset",
    "attach",
    "jacobian",
    "open",
    "plan",
    "resume",
    "submit",
    "verify",
]

_HOMES = {
    "JacjobsError": "jacjobs.errors",
    "JacobianDataset": "jacjobs.store.reader",
    "Problem": "jacjobs.problem",
    "Run": "jacjobs.run.handle",
    "SparseDataset": "jacjobs.store.sparse",
    "attach": "jacjobs.api",
    "jacobian": "jacjobs.autodiff.jacobian",
    "open": "jacjobs.store.reader:open_run",
    "plan": "jacjobs.api",
    "resume": "jacjobs.api",
    "submit": "jacjobs.api",
    "verify": "jacjobs.api",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        module, _, attribute = _HOMES[name].partition(":")
        return getattr(importlib.import_module(module), attribute or name)
    raise AttributeError(f"module 'jacjobs' has no attribute {name!r}")

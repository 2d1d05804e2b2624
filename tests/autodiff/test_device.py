"""What torch is told about a device; tests/gpu has what only a GPU can show."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from jacjobs import Problem

AS_USERS_LEAVE_IT = (
    "pass",
    "backends.cuda.matmul.allow_tf32 = True",
    "backends.cudnn.allow_tf32 = False",
    "torch.set_float32_matmul_precision('high')",
    "torch.set_float32_matmul_precision('medium')",
    "backends.cuda.matmul.fp32_precision = 'tf32'",
    "backends.cudnn.conv.fp32_precision = 'ieee'",
    "backends.fp32_precision = 'tf32'",
)
CODE = """
import torch
from torch import backends
from jacjobs import Problem
from jacjobs.autodiff import device

def state():
    made = [kind.fp32_precision for kind in (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn)]
    for ask in (torch.get_float32_matmul_precision, lambda: backends.cudnn.allow_tf32):
        try:
            made.append(ask())
        except RuntimeError:
            made.append(None)
    return made

device.device_of = lambda problem: torch.device({where!r})
problem = Problem(torch.sin, (torch.ones(2),))
{before}
was = state()
for allowed in (False, True, None):
    problem.tf32 = allowed
    try:
        with device.tf32_as_wished(problem):
            inside = state()
            raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    if {where!r} == "cpu" or allowed is None:
        assert inside == was, (inside, was)
    else:
        assert inside[:3] == ["tf32" if allowed else "ieee"] * 3, inside
        # torch's compiler asks for the older setting; where it could before, it can now
        assert was[3] is None or inside[3] is not None, inside
    assert state() == was, (allowed, state(), was)
"""


@pytest.mark.parametrize("where", ["cuda", "cpu"])
@pytest.mark.parametrize("before", AS_USERS_LEAVE_IT)
def test_tf32_is_as_it_is_wished_and_then_as_it_was(before: str, where: str) -> None:
    """In a process of its own: torch keeps some of it for good. On a host, nothing is touched."""
    code = CODE.format(before=before, where=where)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_may_be_rounded_to_tf32_is_held_to_as_many_digits() -> None:
    """Wherever it is looked at: a dataset that a GPU made may be verified on a host."""
    problem = Problem(torch.sin, (torch.ones(2),))
    for allowed, precision in ((None, torch.float32), (False, torch.float32), (True, torch.float16)):
        problem.tf32 = allowed
        assert problem.precision is precision
    double = Problem(torch.sin, (torch.ones(2, dtype=torch.float64),))
    double.tf32 = True
    assert double.precision is torch.float64

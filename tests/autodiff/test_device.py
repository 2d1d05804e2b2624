"""What torch is told about a device; tests/gpu has what only a GPU can show."""

from __future__ import annotations

import os
import platform
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


FAULTS = """
import resource
import torch, jacjobs

W, x = torch.randn(8192, 64), torch.randn(64)
J = jacjobs.jacobian(lambda x: torch.tanh(W @ x), strategy="jvp/vmap", chunk=64)
for _ in range(3):
    J(x)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    J(x)
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 20)
"""


needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="what glibc keeps")


def printed_by(code: str) -> float:
    """In a process of its own, which has been told nothing of how to keep memory."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "THP_"))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, env=env)
    return float(done.stdout)


@needs_glibc
def test_memory_that_a_j_took_is_there_for_the_next_one() -> None:
    """2 MiB, 512 pages. As glibc is by itself, a call of this has 2,565 made anew."""
    assert printed_by(FAULTS) < 256


RESIDENT = """
import psutil, torch, jacjobs

W, x = torch.randn(65536, 64) / 8, torch.randn(64)

def fn(x):
    layers = [torch.tanh((number + 1) * (W @ x)) for number in range(20)]
    return torch.stack([layer.sum() for layer in layers]).sum() * layers[-1]

resident = psutil.Process().memory_info
before = resident().rss
J = jacjobs.jacobian(fn, strategy="jvp/vmap", chunk=64)
for _ in range(3):
    J(x)
print((resident().rss - before) >> 20)
"""


@needs_glibc
def test_a_large_j_leaves_little_behind() -> None:
    """20 intermediates of 16 MiB, and a J of the same. With room for such blocks, 520 to 650 MiB stayed."""
    assert printed_by(RESIDENT) < 300

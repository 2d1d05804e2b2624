"""No process meets a function of MKL for the first time from several threads."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from jacjobs.autodiff.kernels import RESOLVED_AT_FIRST_CALL

PROCESSES = int(os.environ.get("JACJOBS_STORM", "4"))
HEADER = Path(torch.__file__).parent / "include" / "ATen" / "cpu" / "vml.h"
FIRST_CALL = """
import torch
{first}
x = torch.linspace(0.1, 0.9, 8 * 4096).reshape(8, 4096)[0].reshape(-1, 1024)
print(int(torch.equal(torch.tanh(x), torch.tanh(x))))
"""


def test_all_that_torch_leaves_to_mkl_is_resolved() -> None:
    handed_over = re.findall(r"^IMPLEMENT_VML_MKL\((\w+),", HEADER.read_text(), re.MULTILINE)
    assert handed_over
    assert set(handed_over) == set(RESOLVED_AT_FIRST_CALL)


def test_the_first_call_is_as_good_as_the_second() -> None:
    assert wrong("import jacjobs.autodiff") == 0


@pytest.mark.skipif(PROCESSES < 50, reason="it takes JACJOBS_STORM=60 processes to see")
def test_the_naive_first_call_is_not() -> None:
    assert wrong("") > 0, "none was wrong: does this machine's torch have the fault no more?"


def wrong(first: str) -> int:
    """Of so many processes, those whose first call of a function differs from the second."""
    command = [sys.executable, "-c", FIRST_CALL.format(first=first)]
    said = [
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
        for _ in range(PROCESSES)
    ]
    return sum(answer.strip() != "1" for answer in said)

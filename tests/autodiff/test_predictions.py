"""Predicted memory against the allocator's, on functions of the size that users have: a part of
docs/memory.md.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from benchmarks.functions import FUNCTIONS

PAGE = Path(__file__).parent.parent.parent / "docs" / "make_memory.py"


@pytest.fixture(scope="module")
def make_memory() -> Any:
    import sys

    spec = importlib.util.spec_from_file_location("make_memory", PAGE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_memory"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "name", ["MLP, tall", "CNN", "samples of a CNN", "transformer block", "kernel residual", "linear solve"]
)
def test_within_a_tenth_or_16_mib(name: str, make_memory: Any) -> None:
    readings = list(make_memory.rows(FUNCTIONS[name](), chunks=(1, 100), most_bytes=150 << 20))
    assert len(readings) >= 12
    wrong = [row for row in readings if not row.within]
    assert not wrong

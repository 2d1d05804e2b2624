"""Generated pages say what the code says."""

from __future__ import annotations

import importlib.util
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"


def test_the_page_of_strategies_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("make_strategies", DOCS / "make_strategies.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (DOCS / "strategies.md").read_text(encoding="utf-8") == module.page(), (
        "run `python docs/make_strategies.py`"
    )

"""Writes docs/strategies.md from the code: `python docs/make_strategies.py`. A test compares the two."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from jacjobs.autodiff.catalogue import STRATEGIES  # noqa: E402
from jacjobs.autodiff.legality import try_strategies  # noqa: E402
from tests.functions import CASES  # noqa: E402

INTRODUCTION = """\
# The nine strategies

Made by `python docs/make_strategies.py` from the code's docstrings and from trying every strategy on every
function of `tests/functions.py`; a test compares this page with the code. Figures are for one point with m
rows and n columns, k products at a time.
"""
SUPPORT = """\
## What works on which function

✓: equals the reference (`torch.func.jacrev` or `jacfwd` in float64, of the same or of an equivalent function)
in float64 and float32, for chunks of 1, 3 and all. A number: not chosen, for the reason below the table.
(number): works, but slowly; not chosen unless asked for by name.
"""


def page() -> str:
    return "\n".join([INTRODUCTION, *_ladder(), SUPPORT, *_support()])


def _ladder() -> list[str]:
    lines = []
    for name, strategy in STRATEGIES.items():
        text = inspect.getdoc(type(strategy))
        assert text is not None
        lines += [f"## {name}", "", text, ""]
    return lines


def _support() -> list[str]:
    reasons: dict[str, int] = {}
    lines = [f"| | {' | '.join(STRATEGIES)} |", "| --- |" + " --- |" * len(STRATEGIES)]
    for function, case in CASES.items():
        cells = []
        for verdict in try_strategies(case.problem(), STRATEGIES).values():
            if verdict.reason is None:
                cells.append("✓")
                continue
            number = reasons.setdefault(verdict.reason, len(reasons) + 1)
            cells.append(f"({number})" if verdict.slow else str(number))
        lines.append(f"| {function} | {' | '.join(cells)} |")
    return [*lines, "", *(f"{number}. {reason}" for reason, number in reasons.items()), ""]


if __name__ == "__main__":
    (ROOT / "docs" / "strategies.md").write_text(page(), encoding="utf-8")

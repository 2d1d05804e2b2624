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
HISTORY = """\
## Where they come from

torch's autograd gives vector–Jacobian products, one at a time: `backward()` with a cotangent v makes vᵀJ. A
whole Jacobian was a **loop** over rows (`vjp/loop`), and slow: each row calls every operator of the
backward pass again.

**The repeat trick** (S. Barratt, 2018) asks for no loop: copy the input m times, call the function once on
that batch, and differentiate with an identity as the cotangent. Row i of the batch sees only cotangent i,
so one backward pass makes all rows (`vjp/repeat`). It needs a function whose samples do not see each other,
and the memory of m graphs.

Columns were out of reach, for want of forward mode. **The double-VJP trick** (J. Townsend, 2017) makes them
from reverse mode alone: vᵀJ is linear in v, so the derivative of it *with respect to v*, against a tangent
u, is Ju. One doubled graph, and a backward pass through it for each column (`double-vjp/loop`); with the
repeat trick applied twice, all columns at once (`double-vjp/repeat`).

Then torch got **dual numbers** (`jvp/loop`), which need no doubled graph, and **`vmap`**, which batches
what autograd does rather than what the function takes: one graph, k cotangents (`vjp/vmap`, as in
`torch.func.jacrev`) or k tangents (`jvp/vmap`, as in `jacfwd`; `double-vjp/vmap`). Where `vmap` has a rule
for every operator it is usually the fastest. Where it has none, where forward mode has none, or where
memory is what counts, one of the others is; so there are nine.

In all of them the faster take more memory: k products at once hold k times what one holds. That k is the
chunk.
"""
SUPPORT = """\
## What works on which function

✓: equals the reference (`torch.func.jacrev` or `jacfwd` in float64, of the same or of an equivalent function)
in float64 and float32, for chunks of 1, 3 and all. A number: not chosen, for the reason below the table.
(number): works, but slowly; not chosen unless asked for by name.
"""


def page() -> str:
    return "\n".join([INTRODUCTION, HISTORY, *_ladder(), SUPPORT, *_support()])


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

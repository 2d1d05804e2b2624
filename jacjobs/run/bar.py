"""A bar for notebooks and scripts. The command line has its own."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from jacjobs.planning.planner import Plan
from jacjobs.run.coordinator import Progress
from jacjobs.run.polling import polled

REFRESH_SECONDS = 0.5


def in_notebook() -> bool:
    """Is this process the kernel of one?"""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and hasattr(shell, "kernel")


def _tqdm() -> Any:
    """The bar of notebooks where they can draw it; else the one of characters, without a warning."""
    if in_notebook() and importlib.util.find_spec("ipywidgets") is not None:
        from tqdm.notebook import tqdm
    else:
        from tqdm import tqdm
    return tqdm


@contextmanager
def watching(progress: Callable[[], Progress | None], plan: Plan) -> Iterator[None]:
    """Rows of J, as a tqdm bar, until the block ends."""
    tqdm = _tqdm()
    with tqdm(total=None, unit=" rows", desc=plan.strategy, mininterval=REFRESH_SECONDS) as shown:

        def show(now: Progress) -> None:
            if now.blocks_total:
                shown.total = now.entries_total // plan.shape.columns
                shown.set_postfix_str(f"{now.workers} workers", refresh=False)
                shown.update(now.entries_done // plan.shape.columns - shown.n)

        with polled(progress, REFRESH_SECONDS, show):
            yield
        if shown.total:
            shown.update(shown.total - shown.n)

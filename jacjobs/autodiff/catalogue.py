"""Every strategy by name."""

from __future__ import annotations

from jacjobs.autodiff.compiled import Compiled, JvpCompiled, VjpCompiled
from jacjobs.autodiff.double import DoubleVjpLoop, DoubleVjpRepeat, DoubleVjpVmap
from jacjobs.autodiff.forward import JvpLoop, JvpRepeat, JvpVmap
from jacjobs.autodiff.reverse import VjpLoop, VjpRepeat, VjpVmap
from jacjobs.autodiff.strategy import Strategy
from jacjobs.shape import JacobianShape

STRATEGIES: dict[str, Strategy] = {
    strategy.name: strategy
    for strategy in (
        VjpVmap(),
        VjpRepeat(),
        VjpLoop(),
        JvpVmap(),
        JvpRepeat(),
        JvpLoop(),
        DoubleVjpVmap(),
        DoubleVjpRepeat(),
        DoubleVjpLoop(),
    )
}

COMPILED: dict[str, Compiled] = {strategy.name: strategy for strategy in (VjpCompiled(), JvpCompiled())}
"""Chosen only by who asks for them: compiling takes longer than many a J."""


def strategy_named(name: str) -> Strategy:
    """One of the nine, or a compiled one."""
    return COMPILED[name] if name in COMPILED else STRATEGIES[name]


def eager_name(name: str) -> str:
    """Of a compiled strategy, the one that it compiles; any other is that itself."""
    return COMPILED[name].eager.name if name in COMPILED else name


_BY_ROWS = ("vjp/vmap", "vjp/repeat", "vjp/loop")
_BY_COLUMNS = (
    "jvp/vmap",
    "double-vjp/vmap",
    "jvp/repeat",
    "double-vjp/repeat",
    "double-vjp/loop",
    "jvp/loop",
)
FORWARD_PAYS = 2
"""Without a measurement, columns are preferred where there are this many times fewer of them than rows."""


def in_order_of_preference(shape: JacobianShape) -> list[str]:
    """All strategies, those first that are likely to be fast for a Jacobian of this shape."""
    batched_first = sorted((*_BY_ROWS, *_BY_COLUMNS), key=lambda name: name.endswith("/loop"))
    forward = FORWARD_PAYS * shape.columns <= shape.rows
    return sorted(batched_first, key=lambda name: (name in _BY_ROWS) == forward)

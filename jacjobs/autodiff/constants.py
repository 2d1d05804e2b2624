"""Dual numbers that meet constants: what surrounds a call of the function in forward mode.

Where one operand of +, -, × or ÷ is a dual number and the other is not, torch gives the other a tangent of
zeros, and asks the operator's meta function for the shape and dtype of what becomes of them. That function is
written in Python: 0.3 ms an operator, where value and tangent take 0.02. Here these two are made by
themselves, by the formulas that torch has, without the terms that are zeros (docs/decisions/0040).

Source: `add`, `sub`, `mul` and `div` in torch's tools/autograd/derivatives.yaml (2.11 to 2.13).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from jacjobs.problem import Problem

CALLS_AN_OPERATOR = 30
"""What the mode takes in so many calls of torch, it saves in one operator that meets a constant."""
_PAYS = "forward mode meets constants"
"""In `kept`: whether it does so often enough, once a call has shown it."""

_levels: Any = torch._C._functorch
_torch: Any = torch
"""What `forward_ad.make_dual` and `unpack_dual` call, at the one level of dual numbers that torch has; what
they look at first takes as long."""
_PLAIN = (), (Tensor,)
"""What torch says the types of operands are that have no way of their own."""
Rule = Callable[[Tensor, Tensor, Any, bool], tuple[Tensor, Tensor] | None]
"""Of a value, its tangent, a constant, and whether the constant comes second: the result and its tangent."""


@contextmanager
def without_zeros(problem: Problem) -> Iterator[None]:
    """Around a call of the problem's function on dual numbers, unless it records a graph. What the function
    is lifted with, on the way, is not looked into.
    """
    pays: bool | None = problem.kept.get(_PAYS)
    if problem.records or pays is False:
        yield
        return
    mode = WithoutZeros()
    with mode:
        yield
    if pays is None and mode.calls:
        problem.kept[_PAYS] = CALLS_AN_OPERATOR * mode.met > mode.calls


class WithoutZeros(TorchFunctionMode):
    """`calls` of torch, and how many `met` a constant and were made here.

    Left to torch: what records a graph, what is inside of other levels of torch.func than where this was
    entered, and operands that have a way of their own.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls = self.met = 0
        self._level: int | None = _levels.maybe_current_level()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if _levels.maybe_current_level() == self._level:
            self.calls += 1
            rule = _RULES.get(func)
            if rule is not None and len(args) == 2 and not kwargs and types in _PLAIN:
                made = self._made(rule, *args)
                if made is not None:
                    self.met += 1
                    return made
        return func(*args, **(kwargs or {}))

    def _made(self, rule: Rule, a: Any, b: Any) -> Tensor | None:
        """None of what is left to torch."""
        if torch.is_grad_enabled():
            return None
        (first, of_first), (second, of_second) = self._parts(a), self._parts(b)
        try:
            if of_first is not None and of_second is None:
                made = rule(first, of_first, second, True)
            elif of_first is None and of_second is not None:
                made = rule(second, of_second, first, False)
            else:
                return None
            dual: Tensor | None = None if made is None else _torch._make_dual(*made, level=0)
        except (RuntimeError, TypeError):  # torch raises it, if it cannot do it either
            return None
        return dual

    def _parts(self, operand: Any) -> tuple[Any, Tensor | None]:
        """Value and tangent."""
        if not isinstance(operand, Tensor):
            return operand, None
        if self._level is not None and not _levels.is_gradtrackingtensor(operand):
            return operand, None
        parts: tuple[Tensor, Tensor | None] = _torch._unpack_dual(operand, level=0)
        return parts


def _sum(value: Tensor, tangent: Tensor, constant: Any, second: bool) -> tuple[Tensor, Tensor]:
    made = torch.add(value, constant)
    return made, _like(made, tangent)


def _difference(value: Tensor, tangent: Tensor, constant: Any, second: bool) -> tuple[Tensor, Tensor]:
    if second:
        made = torch.sub(value, constant)
        return made, _like(made, tangent)
    made = torch.sub(constant, value)
    return made, _like(made, tangent).neg_()


def _product(value: Tensor, tangent: Tensor, constant: Any, second: bool) -> tuple[Tensor, Tensor]:
    return torch.mul(value, constant), torch.mul(tangent, constant)


def _quotient(value: Tensor, tangent: Tensor, constant: Any, second: bool) -> tuple[Tensor, Tensor]:
    if second:
        return torch.div(value, constant), torch.div(tangent, constant)
    made = torch.div(constant, value)
    return made, -(tangent * made) / value


def _inverse(value: Tensor, tangent: Tensor, constant: Any, second: bool) -> tuple[Tensor, Tensor] | None:
    """A number by a dual number: times the reciprocal, as torch does it."""
    if not second:  # nobody writes it
        return None
    inverse = value.reciprocal()
    return inverse * constant, -tangent * (inverse * inverse) * constant


def _like(made: Tensor, tangent: Tensor) -> Tensor:
    """The tangent in memory of its own: what is written into the result later is written into it, too."""
    return tangent.expand(made.shape).to(made.dtype, copy=True)


_RULES: dict[Any, Rule] = {
    operator: rule
    for rule, operators in {
        _sum: (torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__),
        _difference: (torch.sub, torch.subtract, Tensor.sub, Tensor.subtract, Tensor.__sub__),
        _product: (torch.mul, torch.multiply, Tensor.mul, Tensor.multiply, Tensor.__mul__, Tensor.__rmul__),
        _quotient: (
            torch.div,
            torch.divide,
            torch.true_divide,
            Tensor.div,
            Tensor.divide,
            Tensor.true_divide,
            Tensor.__truediv__,
            Tensor.__div__,
        ),
        _inverse: (Tensor.__rdiv__, Tensor.__rtruediv__),
    }.items()
    for operator in operators
}

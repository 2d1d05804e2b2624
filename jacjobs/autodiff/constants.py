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
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils._device import DeviceContext

from jacjobs.problem import Problem

CALLS_AN_OPERATOR = 30
"""What the mode takes in so many calls of torch, it saves in one operator that meets a constant."""
_PAYS = "forward mode meets constants"
"""In `kept`: whether it does so often enough, once a call has shown it."""

_levels: Any = torch._C._functorch
_torch: Any = torch
"""What `forward_ad.make_dual` and `unpack_dual` call, at the one level of dual numbers that torch has; what
they look at first takes as long."""
_PLAIN_TYPES = (), (Tensor,)
"""What torch says the types of operands are that have no way of their own."""
_PLAIN = Tensor, torch.nn.Parameter, FakeTensor
"""Of a class that torch says nothing of there, what may be taken apart: fakes as what they stand for."""


@contextmanager
def without_zeros(problem: Problem) -> Iterator[None]:
    """Around a call of the problem's function on dual numbers, which does not lift it, unless it records a
    graph. Not where a mode of the caller's would take value and tangent for two products.
    """
    pays: bool | None = problem.kept.get(_PAYS)
    if problem.records or pays is False or not _alone():
        yield
        return
    mode = WithoutZeros()
    with mode:
        yield
    if pays is None:
        problem.kept[_PAYS] = CALLS_AN_OPERATOR * mode.met > mode.calls


def _alone() -> bool:
    """A default device is a mode, too, and does not mind."""
    return all(isinstance(mode, DeviceContext) for mode in _get_current_function_mode_stack())


class WithoutZeros(TorchFunctionMode):
    """`calls` of torch, and how many `met` a constant and were made here.

    Left to torch: what records a graph, what is inside of other levels of torch.func than where this was
    entered, what torch.compile looks at, and operands that have a way of their own.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls = self.met = 0
        self._level: int | None = _levels.maybe_current_level()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # First of all: the compiler traces this, too, and nothing below is to become part of its code.
        if torch.compiler.is_dynamo_compiling():
            return func(*args, **(kwargs or {}))
        if _levels.maybe_current_level() == self._level:
            self.calls += 1
            made = None if kwargs or len(args) != 2 or types not in _PLAIN_TYPES else self._made(func, *args)
            if made is not None:
                self.met += 1
                return made
        return func(*args, **(kwargs or {}))

    def _made(self, func: Any, first: Any, second: Any) -> Tensor | None:
        """None of what is left to torch."""
        try:
            rules = _RULES.get(func)
            if rules is None or torch.is_grad_enabled():
                return None
            (a, tangent_a), (b, tangent_b) = self._parts(first), self._parts(second)
            if tangent_a is not None and tangent_b is None:
                made = rules.second(a, tangent_a, b)
            elif tangent_a is None and tangent_b is not None and rules.first is not None:
                made = rules.first(b, tangent_b, a)
            else:
                return None
            dual: Tensor = _torch._make_dual(*made, level=0)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError):  # torch raises it, if it cannot do it either
            return None
        return dual

    def _parts(self, operand: Any) -> tuple[Any, Tensor | None]:
        """Value and tangent."""
        if type(operand) not in _PLAIN:
            return operand, None
        if self._level is not None and not _levels.is_gradtrackingtensor(operand):
            return operand, None
        parts: tuple[Tensor, Tensor | None] = _torch._unpack_dual(operand, level=0)
        return parts


def _hide(method: Any) -> None:
    """From torch.compile in the user's function: while code of that runs, and its compiler is not at work, it
    would compile each Python function that is called, this one too; and take one operator for another.
    """
    frames: Any = torch._C._dynamo.eval_frame
    skip = frames._FrameAction.SKIP
    frames.set_code_exec_strategy(method.__code__, frames._FrameExecStrategy(skip, skip))


_hide(WithoutZeros.__torch_function__)


# -- value and tangent, and a constant -----------------------------------------------------------------------

Rule = Callable[[Tensor, Tensor, Any], tuple[Tensor, Tensor]]
"""Of a value, its tangent and a constant: the result and its tangent."""


class _Rules(NamedTuple):
    """For a constant that is the second operand, and for one that is the first."""

    second: Rule
    first: Rule | None


def _sum(value: Tensor, tangent: Tensor, constant: Any) -> tuple[Tensor, Tensor]:
    made = torch.add(value, constant)
    return made, _like(made, tangent)


def _difference(value: Tensor, tangent: Tensor, constant: Any) -> tuple[Tensor, Tensor]:
    made = torch.sub(value, constant)
    return made, _like(made, tangent)


def _difference_from(value: Tensor, tangent: Tensor, constant: Any) -> tuple[Tensor, Tensor]:
    made = torch.sub(constant, value)
    return made, tangent.expand(made.shape).to(made.dtype).neg()


def _product(value: Tensor, tangent: Tensor, constant: Any) -> tuple[Tensor, Tensor]:
    return torch.mul(value, constant), torch.mul(tangent, constant)


def _quotient(value: Tensor, tangent: Tensor, constant: Any) -> tuple[Tensor, Tensor]:
    return torch.div(value, constant), torch.div(tangent, constant)


def _quotient_of(value: Tensor, tangent: Tensor, constant: Any) -> tuple[Tensor, Tensor]:
    made = torch.div(constant, value)
    return made, -(tangent * made) / value


def _number_by(value: Tensor, tangent: Tensor, number: Any) -> tuple[Tensor, Tensor]:
    """`2 / x`: `x.__rtruediv__(2)`, which is the reciprocal times the number."""
    inverse = value.reciprocal()
    return inverse * number, -tangent * (inverse * inverse) * number


def _like(made: Tensor, tangent: Tensor) -> Tensor:
    """The tangent in memory of its own: what is written into the result later is written into it, too."""
    return tangent.expand(made.shape).to(made.dtype, copy=True)


_RULES: dict[Any, _Rules] = {
    operator: rules
    for rules, operators in {
        _Rules(_sum, _sum): (torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__),
        _Rules(_difference, _difference_from): (
            torch.sub,
            torch.subtract,
            Tensor.sub,
            Tensor.subtract,
            Tensor.__sub__,
        ),
        _Rules(_product, _product): (
            torch.mul,
            torch.multiply,
            Tensor.mul,
            Tensor.multiply,
            Tensor.__mul__,
            Tensor.__rmul__,
        ),
        _Rules(_quotient, _quotient_of): (
            torch.div,
            torch.divide,
            torch.true_divide,
            Tensor.div,
            Tensor.divide,
            Tensor.true_divide,
            Tensor.__truediv__,
            Tensor.__div__,
        ),
        _Rules(_number_by, None): (Tensor.__rdiv__, Tensor.__rtruediv__),
    }.items()
    for operator in operators
}

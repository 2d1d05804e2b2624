"""What the elements of an operator's result depend on, operator by operator.

A rule gets a call whose tensors are either constants (torch tensors, with their values) or `Seen`: what they
depend on is known, and their values are not to be used. It returns the pattern of the result's elements, or
of the elements of each of several results. To teach one more operator:

- It moves elements about (a view, a gather, a roll, …): add it to MOVES in `moves.py`. It is run on the
  numbers of elements in place of their values, so no rule has to say what it does.
- It works element by element: torch tags it `pointwise`, and there is nothing to do.
- Each element of its result depends on a group of elements (a reduction, a softmax, …): add it to REDUCES in
  `groups.py`, or to MIXES where all elements of a group depend on all of it.
- Anything else: a function with `@rule(aten.name)`, a few lines made of what `call.py` has. Matrices are in
  `products.py`, windows in `windows.py`.

Then give it a line in OPERATORS of tests/structure/functions.py: it is tested alone and with the others.

What has no rule depends on all of what its operands do. So a pattern may have entries too many, never too
few.
"""

from __future__ import annotations

import torch

from jacjobs.structure.pattern import Pattern
from jacjobs.structure.rules import groups, moves, products, windows
from jacjobs.structure.rules.call import RULES, Call, Seen, dense, pointwise
from jacjobs.structure.rules.moves import CONSTANTS

__all__ = ["CONSTANTS", "Call", "Seen", "groups", "moves", "pattern_of", "products", "windows"]


def pattern_of(call: Call) -> Pattern | list[Pattern]:
    """Of the first result of a call, one of whose operands has a derivative; or of all its results."""
    rule = RULES.get(call.target.overloadpacket)
    if rule is not None:
        return rule(call)
    return pointwise(call) if torch.Tag.pointwise in call.target.tags else dense(call)

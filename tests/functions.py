"""Functions with a Jacobian: what users differentiate, and what trips up one mode or another.

Each case is a function of float64 inputs, an independent reference (`torch.func.jacrev` or `jacfwd` of the
same function, or of an equivalent one that torch.func can follow), and the strategies that do not work for
it, with the reason that the user is told.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.func import functional_call, jacfwd, jacrev
from torch.utils.checkpoint import checkpoint

from jacjobs import Problem

F64 = torch.float64
REPEAT = ("vjp/repeat", "jvp/repeat", "double-vjp/repeat")
JVP = ("jvp/loop", "jvp/repeat", "jvp/vmap")
DOUBLE = ("double-vjp/loop", "double-vjp/repeat", "double-vjp/vmap")


@dataclass(frozen=True)
class Case:
    """fn(*args), differentiated with respect to the first argument.

    plain:        an equivalent function for the reference; None: `fn` itself.
    by:           what computes the reference.
    unsupported:  reason, as a user reads it, by strategy.
    """

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    plain: Callable[..., Any] | None = None
    by: Callable[..., Any] = jacrev
    unsupported: dict[str, str] = field(default_factory=dict)

    def problem(self, dtype: torch.dtype = F64) -> Problem:
        return Problem(self.fn, self.args).to(dtype=dtype)

    def reference(self) -> Tensor:
        """J in float64: (m, n)."""
        tree = self.by(self.plain or self.fn)(*self.args)
        shape = self.problem().shape
        leaves = iter(torch.utils._pytree.tree_leaves(tree))
        rows = [
            torch.cat([next(leaves).reshape(o.size, i.size) for i in shape.inputs], 1) for o in shape.outputs
        ]
        return torch.cat(rows)


def without(reason: str, *strategies: str) -> dict[str, str]:
    return dict.fromkeys(strategies, reason)


def slow(operator: str) -> str:
    return f"no batching rule for {operator}: torch would loop over the samples"


def randn(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, dtype=F64, generator=torch.Generator().manual_seed(seed))


def same(x: Tensor, value: Tensor) -> Tensor:
    """A constant in the dtype of x: cases run in several."""
    return value.to(x.dtype)


W1, W2, B1 = randn(8, 5, seed=1), randn(4, 8, seed=2), randn(8, seed=3)
KERNEL = randn(3, 2, 3, 3, seed=4)
QKV = randn(3, 4, 4, seed=5)
MATRIX = randn(5, 5, seed=6) + 5 * torch.eye(5, dtype=F64)


IMAGE = randn(1, 1, 5, 5, seed=7)


def dense(x: Tensor) -> Tensor:
    return same(x, W2) @ torch.tanh(same(x, W1) @ x + same(x, B1))


def convolution(x: Tensor) -> Tensor:
    return F.avg_pool2d(F.gelu(F.conv2d(x[None], same(x, KERNEL), padding=1)), 2)[0]


def attention(x: Tensor) -> Tensor:
    q, k, v = (x @ same(x, w) for w in QKV)
    return torch.softmax(q @ k.T / 2, dim=-1) @ v


def flash_attention(x: Tensor) -> Tensor:
    q, k, v = (x @ same(x, w) for w in QKV)
    return F.scaled_dot_product_attention(q[None, None], k[None, None], v[None, None])[0, 0]


def recurrent(x: Tensor) -> Tensor:
    state = x.new_zeros(4)
    for step in x:
        state = torch.tanh(same(x, W1[:4, :3]) @ step + same(x, W2[:, :4]) @ state)
    return state


def ode(x: Tensor) -> Tensor:
    """Lotka–Volterra by Runge–Kutta: initial state and parameters in, the path out."""

    def slope(y: Tensor) -> Tensor:
        return torch.stack([y[0] * (x[2] - y[1]), y[1] * (y[0] - x[3])])

    y, path, h = x[:2], [], 0.05
    for _ in range(6):
        k1 = slope(y)
        k2 = slope(y + h / 2 * k1)
        k3 = slope(y + h / 2 * k2)
        k4 = slope(y + h * k3)
        y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        path.append(y)
    return torch.stack(path)


INDEX = torch.tensor([0, 2, 2, 1, 4, 0])


def scatter_gather(x: Tensor) -> Tensor:
    taken = x[INDEX] * torch.sin(x[INDEX.flip(0)])
    return x.new_zeros(5).scatter_add(0, INDEX, taken)


def banded(x: Tensor) -> Tensor:
    return (torch.roll(x, 1) - 2 * x + torch.roll(x, -1)) * x


def in_place(x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y[1:] = x[1:] * x[:-1]
    y.mul_(2).add_(x.square())
    return y


def shared_buffer(x: Tensor) -> Tensor:
    y = torch.zeros(6, dtype=x.dtype)
    for i in range(6):
        y[i] = x[i] * x.sum()
    return y


def reads_values(x: Tensor) -> Tensor:
    return x * x.sum().item() if x[0].item() < 100 else -x


def control_flow(x: Tensor) -> Tensor:
    while x.norm() < 10:
        x = 2 * x
    return torch.sin(x)


def data_dependent_take(x: Tensor) -> Tensor:
    return torch.take(x * x, torch.argsort(x)[:3])


def checkpointed(x: Tensor) -> Tensor:
    return checkpoint(dense, x, use_reentrant=False) * x.sum()


class _Cube(torch.autograd.Function):
    """As written before torch.func: ctx in forward, nothing else."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * grad


class _ModernCube(torch.autograd.Function):
    """With setup_context and a vmap rule, and without a jvp rule."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x**3

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * grad


class _WrongJvp(torch.autograd.Function):
    """Its backward is right, its forward-mode rule is not."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x**3

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * grad

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x**2 * tangent


def cube_times_sum(x: Tensor) -> Tensor:
    return x**3 * x.sum()


def structured(tree: dict[str, Any]) -> dict[str, Any]:
    a, (b, c) = tree["a"], tree["bc"]
    return {"first": (a * b.sum(), c), "second": torch.outer(a, b) @ b}


TREE = {"a": randn(3), "bc": (randn(2, seed=1), torch.tensor(0.7, dtype=F64))}
NETWORK = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
for _index, _weight in enumerate(NETWORK.parameters()):
    _weight.data = randn(*_weight.shape, seed=10 + _index) / 2
WEIGHTS = {name: weight.detach() for name, weight in NETWORK.named_parameters()}


def parameters(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    return functional_call(NETWORK, weights, (x,))


CASES: dict[str, Case] = {
    "dense": Case(dense, (randn(5),)),
    "convolution": Case(convolution, (randn(2, 4, 4),)),
    "attention": Case(attention, (randn(3, 4),)),
    "fused attention": Case(
        flash_attention,
        (randn(3, 4),),
        plain=attention,
        unsupported={
            **without("no forward-mode rule for _scaled_dot_product_flash_attention_for_cpu", *JVP),
            **without(
                "no derivative rule for aten::_scaled_dot_product_flash_attention_for_cpu_backward", *DOUBLE
            ),
            "vjp/repeat": slow("aten::_scaled_dot_product_flash_attention_for_cpu"),
            "vjp/vmap": slow("aten::_scaled_dot_product_flash_attention_for_cpu_backward"),
        },
    ),
    "recurrent": Case(recurrent, (randn(4, 3),)),
    "ODE solve": Case(ode, (torch.tensor([1.0, 0.5, 0.9, 1.1], dtype=F64),), by=jacfwd),
    "scatter, gather": Case(scatter_gather, (randn(5),)),
    "sort": Case(lambda x: torch.sort(x).values * x, (randn(6),)),
    "linear solve": Case(lambda b: torch.linalg.solve(same(b, MATRIX) + torch.outer(b, b), b), (randn(5),)),
    "FFT magnitude": Case(lambda x: torch.fft.rfft(x).abs(), (randn(8),)),
    "matrix_exp": Case(lambda x: torch.matrix_exp(x), (randn(3, 3) / 2,)),
    "softmax": Case(lambda x: torch.softmax(x, 0), (randn(6),)),
    "logsumexp": Case(lambda x: torch.logsumexp(x, 1), (randn(3, 4),)),
    "piecewise": Case(lambda x: torch.where(x > 0, x**2, torch.exp(x)), (randn(7),)),
    "ReLU, max pool": Case(lambda x: F.max_pool1d(F.relu(x)[None], 2)[0], (randn(2, 6),)),
    "sparse banded": Case(banded, (randn(7),)),
    "cumulative product": Case(lambda x: torch.cumprod(x, 0), (randn(6),)),
    "Cholesky": Case(lambda x: torch.linalg.cholesky(x @ x.T + torch.eye(3, dtype=x.dtype)), (randn(3, 3),)),
    "eigenvalues": Case(lambda x: torch.linalg.eigvalsh(x + x.T), (randn(4, 4),)),
    "singular values": Case(lambda x: torch.linalg.svdvals(x), (randn(3, 4),)),
    # The reference is not jacrev of cdist, which torch 2.13 gets wrong: so is the batching rule it uses.
    "distances": Case(
        lambda x: torch.cdist(x, 2 * x + 1),
        (randn(4, 3),),
        plain=lambda x: (x[:, None] - (2 * x + 1)[None]).square().sum(-1).sqrt(),
        unsupported={
            **without("no forward-mode rule for _cdist_forward", *JVP),
            **without("no derivative rule for _cdist_backward", *DOUBLE),
            "vjp/vmap": "its products differ from those of vjp/loop (by 5.3e-01, relative)",
        },
    ),
    "layer norm": Case(lambda x: F.layer_norm(x, (4,)), (randn(3, 4),)),
    "einsum": Case(lambda x: torch.einsum("ij,jk,kl->il", x, x, x), (randn(3, 3),)),
    "interpolation": Case(
        lambda x: F.grid_sample(same(x, IMAGE), torch.tanh(x)[None], align_corners=True, mode="bilinear")[0],
        (randn(3, 2, 2),),
        unsupported={
            **without("no forward-mode rule for grid_sampler_2d", *JVP),
            "double-vjp/vmap": slow("aten::addcmul_"),
        },
    ),
    "parameters of a module": Case(parameters, (WEIGHTS, randn(5))),
    "nested structure": Case(structured, (TREE,)),
    "0-dimensional": Case(lambda x: torch.sin(x) * math.pi, (torch.tensor(0.3, dtype=F64),)),
    "m = 1": Case(lambda x: x.square().sum(), (randn(6),)),
    "n = 1": Case(lambda x: torch.cat([x, x**2, x**3]), (randn(1),)),
    "non-contiguous": Case(lambda x: x.T.reshape(-1).flip(0) * x[0, 0], (randn(4, 3).T,)),
    "in-place writes": Case(in_place, (randn(6),)),
    "in-place into a new tensor": Case(
        shared_buffer,
        (randn(6),),
        unsupported=without("writes in place into a tensor that all samples share", *REPEAT),
    ),
    ".item()": Case(
        reads_values,
        (randn(4),),
        plain=lambda x: x * x.sum().detach(),
        unsupported=without("reads a value (.item()), which vmap cannot batch", *REPEAT),
    ),
    "control flow on values": Case(
        control_flow,
        (randn(4),),
        unsupported=without("control flow that depends on values, which vmap cannot follow", *REPEAT),
    ),
    "data-dependent take": Case(
        data_dependent_take,
        (randn(6),),
        unsupported={
            **without(slow("aten::take"), *REPEAT, "jvp/vmap", "double-vjp/vmap"),
            "vjp/vmap": slow("aten::put"),
        },
    ),
    "activation checkpointing": Case(
        checkpointed,
        (randn(5),),
        plain=lambda x: dense(x) * x.sum(),
        unsupported=without(
            "a tensor escapes vmap, as in saved-tensor hooks (checkpointing)",
            "vjp/repeat",
            "double-vjp/repeat",
        ),
    ),
    "old custom Function": Case(
        lambda x: _Cube.apply(x) * x.sum(),
        (randn(4),),
        plain=cube_times_sum,
        unsupported={
            **without("a custom autograd.Function without setup_context", *REPEAT, "jvp/vmap"),
            "jvp/loop": "a custom autograd.Function without a jvp rule",
        },
    ),
    "custom Function without jvp": Case(
        lambda x: _ModernCube.apply(x) * x.sum(),
        (randn(4),),
        plain=cube_times_sum,
        unsupported=without("a custom autograd.Function without a jvp rule", *JVP),
    ),
    "custom Function, wrong jvp": Case(
        lambda x: _WrongJvp.apply(x) * x.sum(),
        (randn(4),),
        plain=cube_times_sum,
        unsupported=without("its products differ from those of vjp/loop (by 6.1e-02, relative)", *JVP),
    ),
}

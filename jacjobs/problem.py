"""The problem: a function, its arguments, which is differentiated, which carry an axis of points.

Everything below flattens pytrees once, here: the strategies see a list of leaves going in and a list of
leaves coming out, and never a user's structure.
"""

from __future__ import annotations

import copy
import functools
import itertools
import threading
import traceback
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from jacjobs.arguments import (
    InDims,
    check_differentiated,
    check_outputs,
    checked_argnums,
    count_points,
    differentiated,
    leaf_dims,
    named_leaves,
)
from jacjobs.errors import FunctionError, InputError
from jacjobs.functions import GradientOf, OfParameters
from jacjobs.precision import coarsest, uses_tf32
from jacjobs.shape import JacobianShape, Structure, Tree, segments_of
from jacjobs.trace import Output, Trace, WatchGradients, WatchOperators
from jacjobs.transforms import vmap

ALONE = threading.RLock()
"""For what torch has one of in a process, and threads must take turns at: the level of dual numbers, and the
generators. Two runs that go on in threads of one process would else get wrong tangents, or each other's
random numbers.
"""

RECORDED = "calls need a graph"
"""In `kept`, where a function fails without one."""


class Problem:
    """The Jacobian of `fn` at `args`: what `vmap(jacrev(fn, argnums), in_dims)(*args)` would return.

    fn:       takes `*args`, returns a pytree of floating-point tensors. Deterministic.
    args:     the positional arguments, a tuple of pytrees. Leaves that are no tensors pass through.
    argnums:  which of them is differentiated: an index or several. All its leaves are floating-point tensors.
    in_dims:  as in `torch.func.vmap`: which axis of which argument counts the points. None: one point.
    batched:  `fn` takes a leading axis of independent samples by itself, on every argument that carries
              points, and returns one on every output. `in_dims` must then say 0 or None.
    seed:     for a random `fn` (dropout): every call of it begins with this seed, so that J is the one
              Jacobian of one function. Points, and the copies that a strategy makes, share the randomness.

    pattern:  which entries of J may be other than zero, at any point: a SciPy sparse matrix (m, n), whatever
              its values, or a function of no arguments that returns one. None: it is found where it pays.

    With P points, m output elements and n input elements a point, J has P × m × n entries.

    Raises InputError where the arguments do not fit together, and, on first use of `shape`, where the
    outputs are of a kind that has no Jacobian; FunctionError where `fn` itself raises.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        argnums: int | Sequence[int] = 0,
        in_dims: InDims = None,
        batched: bool = False,
        seed: int | None = None,
        pattern: Any = None,
    ) -> None:
        if not callable(fn):
            raise InputError.about(
                "Problem fn", got=type(fn).__name__, expected="a function", do="pass the function itself"
            )
        if not isinstance(args, tuple | list):
            raise InputError.about(
                "Problem args", got=type(args).__name__, expected="a tuple of arguments", do="write args=(x,)"
            )
        self.fn = fn
        self.argnums = checked_argnums(argnums, len(args))
        self._one_argnum = isinstance(argnums, int)
        self.batched = batched
        self.in_dims = in_dims
        self.seed = seed
        self.pattern = pattern if pattern is None or callable(pattern) else canonical(pattern)
        self.seeds: dict[str, Any] = {}
        """What strategies that make rows, or columns, multiply J by, where not by one-hot seeds: a seed maker
        with as many products as its `count` says."""
        self.tf32: bool | None = None
        """Whether torch may round the factors of float32 products on a GPU to TF32, or may have where J was
        made; None: as torch is set."""
        self.records = True
        """Whether calls of `fn` record a graph; where False, only if `fn` fails without one."""
        self.kept: dict[str, Any] = {}
        """What strategies keep, such as code that was compiled; shared with problems of other values."""

        leaves, self._spec = pytree.tree_flatten(tuple(args))
        self._are_args = all(spec.is_leaf() for spec in self.argument_specs)
        """Is each leaf an argument?"""
        self._dims = dims = leaf_dims(in_dims, self._spec, leaves, batched)
        self.carried = tuple(dim is not None for dim in dims)
        """For every leaf: does it carry the axis of points?"""
        self.points = count_points(leaves, dims)
        """P; 1 without in_dims."""
        self.leaves = self.with_points_first(leaves)
        """Every leaf of args, the axis of points (if any) moved to the front."""
        self._input_names, self.wanted = differentiated(args, self.argnums)
        """Indices into `leaves` of those differentiated, in the order of the columns of J."""
        check_differentiated(self._input_names, [self.leaves[index] for index in self.wanted])

    @classmethod
    def parameters(
        cls,
        module: torch.nn.Module,
        inputs: Any,
        *,
        seed: int | None = None,
        points: bool = True,
        pattern: Any = None,
    ) -> Problem:
        """The Jacobian of a module's outputs with respect to all its parameters, one point an input.

        inputs:  what the module is called with: a tensor, or a tuple of arguments, all with a leading axis of
                 samples. The module must treat samples independently (`eval()` where it normalises batches).
        points:  False differentiates the outputs of the whole batch as one point.

        Columns are named as in `module.named_parameters()`; parameters that are tied count once. Buffers are
        used as they are, and stay as they are.
        """
        copy_of = copy.deepcopy(module)
        parameters = {name: leaf.detach() for name, leaf in copy_of.named_parameters()}
        buffers = {name: leaf.detach() for name, leaf in copy_of.named_buffers()}
        arguments = inputs if isinstance(inputs, tuple) else (inputs,)
        in_dims = (None, None, *(0 for _ in arguments)) if points else None
        args = (parameters, buffers, *arguments)
        return cls(OfParameters(copy_of), args, 0, in_dims, batched=points, seed=seed, pattern=pattern)

    @classmethod
    def hessian(
        cls,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        argnums: int | Sequence[int] = 0,
        in_dims: InDims = None,
        seed: int | None = None,
        pattern: Any = None,
    ) -> Problem:
        """The Hessian of a scalar function: the Jacobian of its gradient, n × n, symmetric to rounding.

        A column of it is forward-over-reverse (strategies jvp/…) or reverse-over-reverse (vjp/…); the
        double-VJP ones differentiate three times. What `fn` returns is one tensor of one element.

        Source: B. Pearlmutter, "Fast exact multiplication by the Hessian", Neural Computation 6 (1994).
        """
        return cls(GradientOf(fn, argnums), args, argnums, in_dims, seed=seed, pattern=pattern)

    # -- what J looks like ---------------------------------------------------------------------------------

    @functools.cached_property
    def shape(self) -> JacobianShape:
        """P, m, n, the dtype and the segments, from running `fn` once on fake tensors (no data, no memory).

        A function that reads values (`.item()`, control flow) cannot run on fakes: it runs once for real,
        on one point.
        """
        outputs = self.trace.outputs
        dtype = functools.reduce(torch.promote_types, [o.dtype for o in outputs] + self._wanted_dtypes())
        return JacobianShape(
            points=self.points,
            rows=sum(o.shape.numel() for o in outputs),
            columns=sum(size for size in self.input_sizes),
            dtype=_storage_dtype(dtype),
            outputs=segments_of([(o.name, tuple(o.shape)) for o in outputs]),
            inputs=segments_of(
                [
                    (name, tuple(self._point_shape(index)))
                    for name, index in zip(self._input_names, self.wanted, strict=True)
                ]
            ),
            origin=str(dtype).removeprefix("torch."),
            structure=self._structure(),
        )

    def _structure(self) -> Structure:
        numbers = itertools.count()
        inputs = [_tree(self.argument_specs[number], numbers) for number in self.argnums]
        return Structure(
            outputs=_tree(self.output_spec, itertools.count()),
            inputs=inputs[0] if self._one_argnum else {"tuple": inputs},
            has_points=any(self.carried),
        )

    @property
    def output_spec(self) -> pytree.TreeSpec:
        """The structure that `fn` returns; its leaves are the segments `shape.outputs`, in order."""
        return self.trace.spec

    @property
    def output_dtypes(self) -> list[torch.dtype]:
        """The dtype of each output leaf."""
        return [output.dtype for output in self.trace.outputs]

    @property
    def precision(self) -> torch.dtype:
        """The coarsest floating-point dtype that `fn` computes in, its arguments and outputs included.

        Where torch may use TF32 for it, float16, which has as many digits.
        """
        trace, tf32 = self.trace, self.tf32
        if tf32 is None:
            tf32 = self.leaves[self.wanted[0]].is_cuda and uses_tf32(convolves=trace.convolves)
        return torch.float16 if tf32 and trace.precision is torch.float32 else trace.precision

    @property
    def differentiates(self) -> bool:
        """Does `fn` call autograd itself, as a gradient does whose Jacobian is a Hessian?"""
        return self.trace.differentiates

    @property
    def randomness(self) -> Literal["error", "same"]:
        """What `torch.func.vmap` is told: with a seed, all copies share the randomness of a single call."""
        return "error" if self.seed is None else "same"

    @property
    def argument_specs(self) -> list[pytree.TreeSpec]:
        """The structure of each argument; together they hold all of `leaves`, in order."""
        return list(self._spec.children())

    @property
    def input_sizes(self) -> list[int]:
        """Elements of each differentiated leaf at one point; they add up to n."""
        return [self._point_shape(index).numel() for index in self.wanted]

    def _point_shape(self, index: int) -> torch.Size:
        shape: torch.Size = self.leaves[index].shape
        return shape[1:] if self.carried[index] else shape

    def _wanted_dtypes(self) -> list[torch.dtype]:
        return [self.leaves[index].dtype for index in self.wanted]

    # -- running fn ----------------------------------------------------------------------------------------

    def at_point(self, point: int) -> list[Any]:
        """The leaves at one point, without the axis of points."""
        return [
            leaf[point] if carried else leaf for leaf, carried in zip(self.leaves, self.carried, strict=True)
        ]

    def at_points(self, start: int, stop: int) -> list[Any]:
        """The leaves with points `start:stop` of those that carry points, the others whole."""
        if (start, stop) == (0, self.points):
            return list(self.leaves)
        return [
            leaf[start:stop] if carried else leaf
            for leaf, carried in zip(self.leaves, self.carried, strict=True)
        ]

    def call_one(self, leaves: Sequence[Any]) -> list[Tensor]:
        """`fn` at one point; no leaf has an axis of points. Returns the flat outputs, likewise."""
        if not self.batched:
            return self._call(leaves)
        lifted = [
            leaf.unsqueeze(0) if carried else leaf for leaf, carried in zip(leaves, self.carried, strict=True)
        ]
        return [output.squeeze(0) for output in self._call(lifted)]

    def call_batch(self, leaves: Sequence[Any], carried: Sequence[bool]) -> list[Tensor]:
        """`fn` at k points in one call. `carried` says which leaves have the leading axis; all outputs do.

        A function of single samples is lifted with `vmap`. So is a batched one that is asked for a leading
        axis where it takes none (parameters repeated once a sample, say), or that would give each sample a
        randomness of its own.
        """
        if self.lifts(carried):
            return vmap(lambda *point: self.call_one(point), leaves, carried, self.randomness)
        return self._call(leaves)

    def lifts(self, carried: Sequence[bool]) -> bool:
        """Does `call_batch` lift the function?"""
        return not self.batched or self.seed is not None or tuple(carried) != self.carried

    def _call(self, leaves: Sequence[Any]) -> list[Tensor]:
        if torch.compiler.is_compiling() or self._is_prepared():  # whoever compiles it has prepared
            return self._outputs(leaves)
        if not self.records and not self.kept.get(RECORDED):
            try:
                with self._prepared(leaves, records=False):
                    return self._outputs(leaves)
            except (MemoryError, torch.OutOfMemoryError):
                raise
            except Exception:  # what fails with a graph, too, is raised below
                pass
        with self._prepared(leaves):
            made = self._outputs(leaves)
        if not self.records:
            self.kept[RECORDED] = True
        return made

    def _is_prepared(self) -> bool:
        """Are gradients recorded, as they are to be, and is there no seed?"""
        recorded = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        return recorded and self.records and self.seed is None

    def _outputs(self, leaves: Sequence[Any]) -> list[Tensor]:
        # Where there is no tree, looking for one takes longer than a small function.
        made = self.fn(*(leaves if self._are_args else pytree.tree_unflatten(list(leaves), self._spec)))
        return [made] if isinstance(made, Tensor) else pytree.tree_leaves(made)

    @contextmanager
    def _prepared(self, leaves: Sequence[Any], *, records: bool = True) -> Iterator[None]:
        """What surrounds every call of `fn`: gradients are recorded or not, whatever the caller's mode, and
        the generators begin with the seed, and are left outside as they were.
        """
        with torch.inference_mode(False), torch.set_grad_enabled(records):
            if self.seed is None:
                yield
                return
            devices = {leaf.device for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_cuda}
            with ALONE, torch.random.fork_rng(devices=[device.index or 0 for device in devices]):
                torch.manual_seed(self.seed)
                yield

    # -- moving --------------------------------------------------------------------------------------------

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Problem:
        """The same problem with its tensors on `device`, and its floating-point ones as `dtype`.

        What `fn` captured (a closure's weights) stays as it is.
        """

        def move(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            return leaf.to(device=device, dtype=dtype if leaf.is_floating_point() else None)

        moved = self.with_leaves([move(leaf) for leaf in self.leaves])
        moved.kept = {}
        if dtype is not None:
            moved.__dict__.pop("shape", None)
            moved.__dict__.pop("trace", None)
        return moved

    def seeded(self, seed: int) -> Problem:
        """The same problem, every call of whose function begins with `seed`."""
        other = self.with_leaves(self.leaves)
        other.kept = {}
        other.seed = seed
        return other

    def unrecorded(self) -> Problem:
        """The same problem, calls of whose function record no graph: of weights that it captured and that
        require gradients, say. Itself, where the function needs one.

        Some need one that do not call autograd here: modules that take a way of their own without gradients
        (attention in `eval()`), or branches. These are called again, with a graph, from then on.
        """
        if self.differentiates:
            return self
        other = self.with_leaves(self.leaves)
        other.records = False
        return other

    def times(self, seeds: dict[str, Any]) -> Problem:
        """The same problem, whose products are those of these seeds: the J of a few sums of columns, say."""
        other = self.with_leaves(self.leaves)
        other.kept = {}
        other.seeds = seeds
        return other

    def with_points_first(self, leaves: Sequence[Any]) -> list[Any]:
        """Leaves as `args` flatten to them, as the problem holds them."""
        return [
            leaf.movedim(dim, 0) if dim else leaf  # neither None nor 0
            for leaf, dim in zip(leaves, self._dims, strict=True)
        ]

    def with_leaves(self, leaves: Sequence[Any]) -> Problem:
        """The same problem with other tensors of the same shapes and dtypes."""
        other = object.__new__(Problem)
        other.__dict__.update(self.__dict__)
        other.leaves = list(leaves)
        return other

    def __getstate__(self) -> dict[str, Any]:
        # A view pickles its whole storage, and a result of autograd does not pickle at all.
        return {**self.__dict__, "leaves": [_compact(leaf) for leaf in self.leaves], "kept": {}}

    # -- looking at fn once --------------------------------------------------------------------------------

    @functools.cached_property
    def trace(self) -> Trace:
        """What one call shows, its outputs checked to have a Jacobian. Whoever knows it may set it."""
        try:
            with FakeTensorMode(allow_non_fake_inputs=True) as fake:
                return self._run_once([self._as_fake(leaf, fake) for leaf in self.leaves])
        except InputError:
            raise
        except Exception:
            # Not every function runs on fakes; only one that fails on real data has failed.
            try:
                return self._run_once(self.leaves)
            except InputError:
                raise
            except Exception as error:
                raise function_error(error, "when it was called once, on the first point") from None

    def _as_fake(self, leaf: Any, fake: FakeTensorMode) -> Any:
        return fake.from_tensor(leaf.detach()) if isinstance(leaf, Tensor) else leaf

    def _run_once(self, leaves: Sequence[Any]) -> Trace:
        # Two samples tell a leading axis from an output that merely has size 1.
        samples = 2
        point = []
        for index, (leaf, carried) in enumerate(zip(leaves, self.carried, strict=True)):
            if carried:
                leaf = torch.cat([leaf[:1]] * samples) if self.batched else leaf[0]
            if index in self.wanted:
                leaf = leaf.detach().requires_grad_()
            point.append(leaf)
        with self._prepared(leaves), WatchOperators() as operators, WatchGradients() as gradients:
            result = self.fn(*pytree.tree_unflatten(point, self._spec))
        named = named_leaves(result, alone="output")
        check_outputs(named)
        if self.batched:
            for name, output in named:
                if output.ndim == 0 or output.shape[0] != samples:
                    raise InputError.about(
                        f"batched=True, output {name!r} for {samples} samples",
                        got=f"shape {tuple(output.shape)}",
                        expected=f"a leading axis of {samples}",
                        do="leave batched out if fn takes one sample",
                    )
            named = [(name, output[0]) for name, output in named]
        if sum(output.numel() for _, output in named) == 0:
            raise InputError.about("fn's output", got="no elements (m = 0)", expected="at least one")
        seen = {*operators.dtypes, *self._wanted_dtypes(), *(output.dtype for _, output in named)}
        return Trace(
            outputs=[Output(name, output.shape, output.dtype) for name, output in named],
            spec=pytree.tree_structure(result),
            precision=coarsest(seen),
            differentiates=gradients.seen,
            convolves=operators.convolutions,
        )


def canonical(pattern: Any) -> Any:
    """A pattern as a csr_array of its own: boolean, rows sorted, each entry once. Its values do not matter.
    What is no sparse matrix stays as it is.
    """
    from scipy.sparse import csr_array, issparse  # it takes a while, and few problems have one

    if not issparse(pattern):
        return pattern
    own = csr_array(pattern, copy=True)
    own.sum_duplicates()
    return csr_array((np.ones(own.nnz, bool), own.indices, own.indptr), shape=own.shape)


def function_error(error: BaseException, when: str) -> FunctionError:
    """What the user sees of an exception that their function raised, `when` it happened."""
    head = "".join(traceback.format_exception_only(error)).strip()
    return FunctionError(f"the function raised {head} ({when})", _user_traceback(error))


def _user_traceback(error: BaseException) -> str:
    """The traceback from the first frame that is neither ours nor torch's; all of it if there is none."""
    ours = str(Path(__file__).parent)
    theirs = str(Path(torch.__file__).parent)
    frames = traceback.extract_tb(error.__traceback__)
    first = next((i for i, f in enumerate(frames) if not f.filename.startswith((ours, theirs))), 0)
    lines = ["Traceback (most recent call last):\n", *traceback.format_list(frames[first:])]
    return "".join(lines + traceback.format_exception_only(error)).rstrip()


def _tree(spec: pytree.TreeSpec, numbers: Iterator[int]) -> Tree:
    """The structure as JSON; leaves are numbered as they come."""
    if spec.is_leaf():
        return next(numbers)
    children = [_tree(child, numbers) for child in spec.children()]
    if spec.type in (dict, OrderedDict, defaultdict):
        keys = spec.context if spec.type is not defaultdict else spec.context[1]
        return {"dict": children, "keys": [key if isinstance(key, int | str) else str(key) for key in keys]}
    return {"list" if spec.type is list else "tuple": children}


def _storage_dtype(dtype: torch.dtype) -> str:
    return str(torch.float32 if dtype is torch.bfloat16 else dtype).removeprefix("torch.")


def _compact(leaf: Any) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    plain = leaf.detach()
    if plain.untyped_storage().nbytes() > plain.numel() * plain.element_size():
        return plain.clone(memory_format=torch.contiguous_format)
    return plain

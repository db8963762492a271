"""JAX's primitives as nodes of ONNX.

`translate` goes through a jaxpr and writes each of its equations by the entry of `PRIMITIVES` under
its primitive's name: a function `(graph, equation, *inputs) -> output` of names, or a list of
outputs for a primitive with several. What has no entry is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from onnx import TensorProto, helper

from jaxrnn.convert.onnx.graph import Graph

# The dtypes for which ONNX Runtime has all the operators below.
DTYPES = ("float32", "int32", "int64", "bool")
# Primitives that call a jaxpr, under one of these parameters.
CALLS = ("jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call", "checkpoint", "remat2")
JAXPRS = ("jaxpr", "call_jaxpr", "fun_jaxpr")


class Unsupported(ValueError):
    """A primitive that ONNX cannot express; the message is its name and what is wrong."""


class Value(NamedTuple):
    """A value of a jaxpr.

    Attributes:
        name: Its name in the graph.
        outer: Whether it is a value of the graph around the `Scan`, the same at every step.
    """

    name: str
    outer: bool


def translate(jaxpr: Jaxpr, values: Sequence[Value], body: Graph, batch: str) -> list[Value]:
    """Writes a jaxpr into the body of a `Scan`.

    What depends on the parameters alone goes into the graph around it.

    Args:
        jaxpr: The jaxpr, with a symbolic batch size.
        values: Its constants and arguments.
        body: The body.
        batch: The name of the batch size, a vector of one int64.

    Returns:
        The results.

    Raises:
        Unsupported: If a primitive is not in the table, or not with these parameters.
    """
    known: dict[Any, Value] = dict(zip([*jaxpr.constvars, *jaxpr.invars], values, strict=True))
    write = Writer(body, batch)

    def value(atom: Any) -> Value:
        if isinstance(atom, Literal):
            kind: Any = atom.aval
            return Value(body.constant(atom.val, kind.dtype), True)
        return known[atom]

    for equation in jaxpr.eqns:
        given, name = [value(atom) for atom in equation.invars], equation.primitive.name
        made: list[Any] = [each.aval for each in equation.outvars]
        if other := [each.dtype for each in made if str(each.dtype) not in DTYPES]:
            raise Unsupported(f"{name} of {other[0]}")
        if name in CALLS:
            inner = next(equation.params[key] for key in JAXPRS if key in equation.params)
            constants = []
            if isinstance(inner, ClosedJaxpr):
                constants = [Value(body.constant(np.asarray(x)), True) for x in inner.consts]
                inner = inner.jaxpr
            found = translate(inner, [*constants, *given], body, batch)
        elif name in PRIMITIVES:
            outer = all(each.outer for each in given)
            write.graph = body.root if outer else body
            names = PRIMITIVES[name](write, equation, *(each.name for each in given))
            found = [Value(each, outer) for each in ([names] if isinstance(names, str) else names)]
        else:
            raise Unsupported(name)
        known |= dict(zip(equation.outvars, found, strict=True))
    return [value(atom) for atom in jaxpr.outvars]


class Writer:
    """What the entries of the table write with.

    Attributes:
        graph: The graph that takes the nodes of the equation.
        batch: The name of the batch size.
    """

    def __init__(self, graph: Graph, batch: str):
        self.graph = graph
        self.batch = batch

    def __call__(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        """Adds a node; see `Graph.op`."""
        return self.graph.op(op_type, *inputs, **attributes)

    def number(self, value: Any, dtype: Any = np.float32) -> str:
        """A constant."""
        return self.graph.constant(value, dtype)

    def integers(self, *values: int | np.integer) -> str:
        """A vector of int64."""
        return self.graph.integers(*values)

    def shape(self, shape: Sequence[Any]) -> str:
        """The name of a shape, some of whose sizes may be the batch's."""
        parts = []
        for size in shape:
            if _known(size):
                parts.append(self.integers(size))
            elif str(size) == "batch":
                parts.append(self.batch)
            else:
                raise Unsupported(f"a size of {size}")
        if self.batch not in parts:
            return self.integers(*map(int, shape))
        return self("Concat", *parts, axis=0) if len(parts) > 1 else self.batch


def _known(size: Any) -> bool:
    """Whether a size is a number rather than one of the batch's."""
    return isinstance(size, int | np.integer)


def _same(op_type: str) -> Callable[..., str]:
    """The entry of a primitive that an operator computes, without attributes."""
    return lambda write, equation, *inputs: write(op_type, *inputs)


def _numeric(op_type: str) -> Callable[..., str]:
    """The entry of a primitive that an operator computes for numbers but not for booleans."""

    def entry(write, equation, *inputs):
        if equation.outvars[0].aval.dtype == bool:
            raise Unsupported(f"{equation.primitive.name} of bool")
        return write(op_type, *inputs)

    return entry


def _boolean(op_type: str) -> Callable[..., str]:
    """The entry of a logical primitive, which works bit by bit on integers."""

    def entry(write, equation, *inputs):
        if equation.invars[0].aval.dtype != bool:
            raise Unsupported(f"{equation.primitive.name} of {equation.invars[0].aval.dtype}")
        return write(op_type, *inputs)

    return entry


def _floating(entry: Callable[..., str]) -> Callable[..., str]:
    """The entry for floating-point numbers only."""

    def checked(write, equation, *inputs):
        if equation.outvars[0].aval.dtype != np.float32:
            raise Unsupported(f"{equation.primitive.name} of {equation.outvars[0].aval.dtype}")
        return entry(write, equation, *inputs)

    return checked


def _expm1(write, equation, x):
    # Near 0, exp(x) - 1 cancels; far from it, the other does.
    tanh = write("Tanh", write("Mul", x, write.number(0.5)))
    near = write("Div", write("Mul", tanh, write.number(2)), write("Sub", write.number(1), tanh))
    far = write("Sub", write("Exp", x), write.number(1))
    return write("Where", _is_small(write, x), near, far)


def _log1p(write, equation, x):
    half = write("Atanh", write("Div", x, write("Add", x, write.number(2))))
    far = write("Log", write("Add", x, write.number(1)))
    return write("Where", _is_small(write, x), write("Mul", half, write.number(2)), far)


def _is_small(write, x):
    return write("Less", write("Abs", x), write.number(0.5))


def _integer_pow(write, equation, x):
    return write("Pow", x, write.number(equation.params["y"]))


def _round(write, equation, x):
    if equation.params["rounding_method"] != jax.lax.RoundingMethod.TO_NEAREST_EVEN:
        raise Unsupported("round away from zero")
    return write("Round", x)


def _select_n(write, equation, which, *cases):
    if equation.invars[0].aval.dtype != bool or len(cases) != 2:
        raise Unsupported(f"select_n of {len(cases)} cases by integers")
    if equation.outvars[0].aval.dtype != bool:
        return write("Where", which, cases[1], cases[0])
    # ONNX Runtime's Where has no booleans.
    no, yes = write("And", write("Not", which), cases[0]), write("And", which, cases[1])
    return write("Or", no, yes)


def _clamp(write, equation, low, x, high):
    return write("Min", write("Max", x, low), high)


def _cast(write, equation, x):
    return write("Cast", x, to=helper.np_dtype_to_tensor_dtype(equation.outvars[0].aval.dtype))


def _broadcast_in_dim(write, equation, x, *sizes):
    shape, axes = equation.params["shape"], equation.params["broadcast_dimensions"]
    given = equation.invars[0].aval.shape
    if tuple(axes) != tuple(range(len(shape)))[len(shape) - len(axes) :]:
        new = [axis for axis in range(len(shape)) if axis not in axes]
        x = write("Unsqueeze", x, write.integers(*new))
    return x if given == shape else write("Expand", x, write.shape(shape))


def _reshape(write, equation, x, *sizes):
    if equation.params["dimensions"] is not None:
        raise Unsupported("reshape with dimensions")
    sizes = [size if _known(size) else -1 for size in equation.params["new_sizes"]]
    if sizes.count(-1) > 1:
        raise Unsupported(f"reshape to {equation.params['new_sizes']}")
    return write("Reshape", x, write.integers(*sizes))


def _squeeze(write, equation, x):
    return write("Squeeze", x, write.integers(*equation.params["dimensions"]))


def _transpose(write, equation, x):
    return write("Transpose", x, perm=list(equation.params["permutation"]))


def _slice(write, equation, x):
    params, shape = equation.params, equation.invars[0].aval.shape
    steps = params["strides"] or (1,) * len(shape)
    whole = [
        (start, stop, step) == (0, size, 1)
        for start, stop, step, size in zip(
            params["start_indices"], params["limit_indices"], steps, shape, strict=True
        )
    ]
    axes = [axis for axis, all_of_it in enumerate(whole) if not all_of_it]
    chosen = [
        [each[axis] for axis in axes]
        for each in (
            params["start_indices"],
            params["limit_indices"],
            axes and range(len(shape)),
            steps,
        )
    ]
    if not all(_known(number) for each in chosen for number in each):
        raise Unsupported("slice of the batch")
    return write("Slice", x, *(write.integers(*each) for each in chosen)) if axes else x


def _split(write, equation, x):
    sizes, axis = equation.params["sizes"], equation.params["axis"]
    parts = write.integers(*map(int, sizes))
    return write.graph.ops("Split", [x, parts], len(sizes), axis=int(axis))


def _unstack(write, equation, x):
    axis, count = equation.params["axis"], len(equation.outvars)
    parts = write.graph.ops("Split", [x, write.integers(*[1] * count)], count, axis=axis)
    return [write("Squeeze", part, write.integers(axis)) for part in parts]


def _stack(write, equation, *parts):
    axis = equation.params["axis"]
    parts = [write("Unsqueeze", part, write.integers(axis)) for part in parts]
    return write("Concat", *parts, axis=axis)


def _concatenate(write, equation, *parts):
    return write("Concat", *parts, axis=equation.params["dimension"])


def _gather(write, equation, x, index):
    """The gather of `x[..., 1:3]`, `x[..., 1]` and `x[..., [2, 0]]`: along one axis, all of it."""
    params, shape = equation.params, equation.invars[0].aval.shape
    numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
    out, indices = equation.outvars[0].aval.shape, equation.invars[1].aval.shape
    if len(numbers.start_index_map) != 1 or numbers.operand_batching_dims:
        raise Unsupported("gather along several axes")
    (axis,) = numbers.start_index_map
    others = tuple(each for each in range(len(out)) if each != axis)
    whole = all(sizes[each] == shape[each] for each in range(len(shape)) if each != axis)
    if not whole or params["mode"] != jax.lax.GatherScatterMode.PROMISE_IN_BOUNDS:
        raise Unsupported("gather of parts of other axes or beyond bounds")
    collapsed = numbers.collapsed_slice_dims == (axis,)
    if indices == (1,) and collapsed:
        index = write("Squeeze", index, write.integers(0))
    elif indices == (1,) and not numbers.collapsed_slice_dims:
        index = write(
            "Add", index, write.number(np.arange(sizes[axis]), equation.invars[1].aval.dtype)
        )
    elif len(indices) == 2 and collapsed and numbers.offset_dims == others:
        index = write("Squeeze", index, write.integers(1))
    else:
        raise Unsupported("gather of several slices")
    return write("Gather", x, index, axis=axis)


def _rev(write, equation, x):
    axes = equation.params["dimensions"]
    ends = [-1] * len(axes), [np.iinfo(np.int64).min] * len(axes), axes, [-1] * len(axes)
    return write("Slice", x, *(write.integers(*each) for each in ends))


def _pad(write, equation, x, value):
    config = equation.params["padding_config"]
    if any(low < 0 or high < 0 or interior for low, high, interior in config):
        raise Unsupported("pad by less than nothing or inside")
    pads = [low for low, _, _ in config] + [high for _, high, _ in config]
    return write("Pad", x, write.integers(*pads), value)


def _iota(write, equation):
    shape, axis = equation.params["shape"], equation.params["dimension"]
    if not all(_known(size) for size in shape):
        raise Unsupported("iota over the batch")
    numbers = np.arange(shape[axis]).reshape([-1 if n == axis else 1 for n in range(len(shape))])
    return write.number(np.broadcast_to(numbers, shape), equation.params["dtype"])


def _dot_general(write, equation, x, y):
    (x_sum, y_sum), (x_batch, y_batch) = equation.params["dimension_numbers"]
    ranks = [len(atom.aval.shape) for atom in equation.invars]
    if not x_batch and tuple(x_sum) == (ranks[0] - 1,) and ranks[1] == 2 and tuple(y_sum) == (0,):
        return write("MatMul", x, y)
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    x_axes, y_axes = ([next(letters) for _ in range(rank)] for rank in ranks)
    for one, other in zip((*x_sum, *x_batch), (*y_sum, *y_batch), strict=True):
        y_axes[other] = x_axes[one]
    kept = [
        *(x_axes[axis] for axis in x_batch),
        *(letter for axis, letter in enumerate(x_axes) if axis not in (*x_sum, *x_batch)),
        *(letter for axis, letter in enumerate(y_axes) if axis not in (*y_sum, *y_batch)),
    ]
    sums = f"{''.join(x_axes)},{''.join(y_axes)}->{''.join(kept)}"
    return write("Einsum", x, y, equation=sums)


def _reduce_sum(write, equation, x):
    axes = equation.params["axes"]  # none are all of them in ONNX
    return write("ReduceSum", x, write.integers(*axes), keepdims=0) if axes else x


def _reduce(op_type: str) -> Callable[..., str]:
    def entry(write, equation, x):
        axes = list(equation.params["axes"])
        return write(op_type, x, axes=axes, keepdims=0) if axes else x

    return entry


def _reduce_boolean(op_type: str) -> Callable[..., str]:
    def entry(write, equation, x):
        if equation.invars[0].aval.dtype != bool:
            raise Unsupported(f"{equation.primitive.name} of {equation.invars[0].aval.dtype}")
        reduced = _reduce(op_type)(write, equation, write("Cast", x, to=TensorProto.INT32))
        return write("Cast", reduced, to=TensorProto.BOOL)

    return entry


def _cumsum(write, equation, x):
    axis = write.number(equation.params["axis"], np.int64)
    return write("CumSum", x, axis, reverse=int(equation.params["reverse"]))


PRIMITIVES: dict[str, Callable[..., Any]] = {
    "add": _numeric("Add"),
    "sub": _numeric("Sub"),
    "mul": _numeric("Mul"),
    "div": _floating(_same("Div")),
    "neg": _numeric("Neg"),
    "max": _numeric("Max"),
    "min": _numeric("Min"),
    "abs": _numeric("Abs"),
    "sign": _numeric("Sign"),
    "floor": _floating(_same("Floor")),
    "ceil": _floating(_same("Ceil")),
    "round": _floating(_round),
    "exp": _floating(_same("Exp")),
    "expm1": _floating(_expm1),
    "log": _floating(_same("Log")),
    "log1p": _floating(_log1p),
    "sqrt": _floating(_same("Sqrt")),
    "rsqrt": _floating(lambda write, _, x: write("Reciprocal", write("Sqrt", x))),
    "square": _floating(lambda write, _, x: write("Mul", x, x)),
    "pow": _floating(_same("Pow")),
    "integer_pow": _floating(_integer_pow),
    "logistic": _floating(_same("Sigmoid")),
    "tanh": _floating(_same("Tanh")),
    "sin": _floating(_same("Sin")),
    "cos": _floating(_same("Cos")),
    "tan": _floating(_same("Tan")),
    "asin": _floating(_same("Asin")),
    "acos": _floating(_same("Acos")),
    "atan": _floating(_same("Atan")),
    "sinh": _floating(_same("Sinh")),
    "cosh": _floating(_same("Cosh")),
    "asinh": _floating(_same("Asinh")),
    "acosh": _floating(_same("Acosh")),
    "atanh": _floating(_same("Atanh")),
    "erf": _floating(_same("Erf")),
    "erfc": _floating(lambda write, _, x: write("Sub", write.number(1), write("Erf", x))),
    "eq": _same("Equal"),
    "ne": lambda write, _, x, y: write("Not", write("Equal", x, y)),
    "lt": _same("Less"),
    "le": _same("LessOrEqual"),
    "gt": _same("Greater"),
    "ge": _same("GreaterOrEqual"),
    "and": _boolean("And"),
    "or": _boolean("Or"),
    "xor": _boolean("Xor"),
    "not": _boolean("Not"),
    "select_n": _select_n,
    "clamp": _clamp,
    "convert_element_type": _cast,
    "copy": lambda write, _, x: x,
    "copy_p": lambda write, _, x: x,
    "stop_gradient": lambda write, _, x: x,
    "optimization_barrier": lambda write, _, *xs: list(xs),
    "broadcast_in_dim": _broadcast_in_dim,
    "reshape": _reshape,
    "squeeze": _squeeze,
    "transpose": _transpose,
    "slice": _slice,
    "split": _split,
    "unstack": _unstack,
    "stack": _stack,
    "concatenate": _concatenate,
    "gather": _gather,
    "rev": _rev,
    "pad": _pad,
    "iota": _iota,
    "dot_general": _dot_general,
    "reduce_sum": _reduce_sum,
    "reduce_max": _reduce("ReduceMax"),
    "reduce_min": _reduce("ReduceMin"),
    "reduce_prod": _reduce("ReduceProd"),
    "reduce_or": _reduce_boolean("ReduceMax"),
    "reduce_and": _reduce_boolean("ReduceMin"),
    "cumsum": _cumsum,
}

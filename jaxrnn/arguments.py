"""Checks and conversions of the arguments of `unroll` and of the layers built on it.

The functions raise a ValueError that names the argument, what was received and what was expected.
"""

from __future__ import annotations

import functools
import numbers
import operator
import weakref
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxrnn.cell import Cell

MEMORY = ("save", "recompute", "offload")


def describe(tree: Any) -> str:
    """Returns the repr of the tree with each array replaced by its dtype and shape."""

    def one(leaf):
        if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
            return _Plain(type(leaf).__name__)
        return _Plain(f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]")

    return repr(jax.tree.map(one, tree))


class _Plain(str):
    """A string whose repr has no quotes."""

    __slots__ = ()
    __repr__ = str.__str__


def in_line(value: Any) -> str:
    """Returns the repr of a value in one line, without the numbers of an array."""
    return describe(value) if getattr(value, "shape", ()) else " ".join(repr(value).split())


def require_cell(value: Any) -> None:
    """Checks that `value` is a cell."""
    if not isinstance(value, Cell):
        raise ValueError(
            f"cell must be a jaxrnn.Cell, such as jaxrnn.lstm(64), got {type(value).__name__}"
        )


def size(name: str, value: Any) -> int:
    """Converts a positive integer, possibly of NumPy, to an int."""
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if number < 1 or isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{name} must be a positive integer, got {in_line(value)}")
    return number


def blocks(hidden_size: Any, heads: Any) -> tuple[int, int]:
    """Checks that the units can be divided into heads, and returns both numbers as ints."""
    hidden_size, heads = size("hidden_size", hidden_size), size("heads", heads)
    if hidden_size % heads:
        raise ValueError(f"heads must divide hidden_size, got {heads} and {hidden_size}")
    return hidden_size, heads


def flag(name: str, value: Any) -> bool:
    """Converts a boolean, possibly of NumPy, to a bool."""
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{name} must be True or False, got {in_line(value)}")
    return bool(value)


def choice(name: str, value: Any, options: tuple[str, ...]) -> None:
    """Checks that `value` is None or one of the options."""
    if value is not None and not (isinstance(value, str) and value in options):
        raise ValueError(f"{name} must be None or one of {options}, got {in_line(value)}")


def rate(name: str, value: Any) -> None:
    """Checks that `value` is a number in [0, 1), unless it is traced."""
    if isinstance(value, Tracer):
        return
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    is_array = isinstance(value, (np.ndarray, jax.Array)) and value.shape == ()
    # The negated comparison rejects NaN.
    if not (is_number or is_array) or not 0 <= float(value) < 1:
        raise ValueError(f"{name} must be a number in [0, 1), got {in_line(value)}")


def array(name: str, value: Any) -> jax.Array:
    """Converts an array, a NumPy array, a list or a number to a JAX array."""
    if isinstance(value, jax.Array):
        return value
    try:
        found = np.asarray(value)
        if found.dtype.kind not in "biufcV":  # V: the dtypes of JAX that NumPy lacks, as bfloat16
            raise TypeError
        return jnp.asarray(found)
    except (TypeError, ValueError, OverflowError):
        kind = repr(value) if isinstance(value, str) else f"a {type(value).__name__}"
        raise ValueError(f"{name} must be an array, got {kind}") from None


def floating(name: str, value: Any) -> jax.Array:
    """Converts `value` to a JAX array and checks that it is real and floating-point."""
    found = array(name, value)
    if not jnp.issubdtype(found.dtype, jnp.floating):
        raise ValueError(f"{name} must be floating-point, got {found.dtype}")
    return found


def check_inputs(inputs: Any, time_major: bool) -> jax.Array:
    """Converts the inputs `[*B, T, I]`, or `[T, *B, I]` with `time_major`, to a floating array."""
    inputs = floating("inputs", inputs)
    if inputs.ndim < 2:
        layout = "[T, ..., I]" if time_major else "[..., T, I]"
        raise ValueError(f"inputs must be {layout} with at least 2 axes, got shape {inputs.shape}")
    if isinstance(inputs.shape[-1], int) and not inputs.shape[-1]:
        raise ValueError(f"inputs must have at least one feature, got shape {inputs.shape}")
    return inputs


def check_layer_inputs(inputs: Any, time_major: bool, param_dtype: Any) -> jax.Array:
    """Converts the inputs of a Flax layer as `check_inputs` does, and casts integers."""
    inputs = array("inputs", inputs)
    if jnp.issubdtype(inputs.dtype, jnp.integer):
        inputs = inputs.astype(param_dtype)
    return check_inputs(inputs, time_major)


def check_dtype(dtype: Any) -> Any:
    """Converts the dtype of the operands of the matrix products, which may be None."""
    if dtype is None:
        return None
    try:
        found = jnp.dtype(dtype)
    except TypeError:
        found = None
    if found is None or not jnp.issubdtype(found, jnp.floating):
        raise ValueError(f"dtype must be None or a floating-point dtype, got {in_line(dtype)}")
    return found


def check_key(key: Any) -> None:
    """Checks that `key` is a single random key, typed or raw, or None."""
    if key is None:
        return
    typed = isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    try:
        one = (key if typed else jax.random.wrap_key_data(key)).shape == ()
    except (TypeError, ValueError, AttributeError):
        one = False
    if not one:
        raise ValueError(f"key must be one key, as from jax.random.key, got {describe(key)}")


def check_lengths(lengths: Any, batch_shape: tuple, time: Any, name: str = "lengths"):
    """Converts the lengths to int32 in 0..T; None stays None.

    Concrete lengths outside of 0..T are an error. Traced lengths cannot be checked and are clipped.
    """
    if lengths is None:
        return None
    try:
        # The check must precede the conversion to int32, in which 2**32 + 3 would become 3.
        found = lengths if isinstance(lengths, jax.Array) else np.asarray(lengths)
    except ValueError:
        raise ValueError(f"{name} must be an array, got {in_line(lengths)}") from None
    if isinstance(lengths, (list, tuple)) and not found.size:
        found = found.astype(np.int32)  # NumPy makes an empty list floating-point
    if not jnp.issubdtype(found.dtype, jnp.integer):
        raise ValueError(f"{name} must be integers, got {found.dtype}")
    if found.shape != batch_shape:
        raise ValueError(f"{name} must have the batch's shape {batch_shape}, got {found.shape}")
    if not isinstance(found, Tracer):
        values = np.asarray(found)
        if isinstance(time, int) and values.size and not 0 <= values.min() <= values.max() <= time:
            raise ValueError(
                f"{name} must lie in 0..{time}, got values from {values.min()} to {values.max()}"
            )
        return jnp.asarray(values.astype(np.int32))  # int8 could not count to T
    last = jnp.asarray(time, jnp.int32)
    wide = found if found.dtype.itemsize > 4 else found.astype(jnp.int32)
    if found.dtype == jnp.uint32:  # large values would become negative in int32
        wide = jnp.minimum(found, last.astype(jnp.uint32))
    return jnp.clip(wide, 0, last.astype(wide.dtype)).astype(jnp.int32)


def check_resets(resets: Any, shape: tuple) -> jax.Array | None:
    """Converts the resets to a boolean array and checks its shape; None stays None."""
    if resets is None:
        return None
    found = array("resets", resets)
    if found.dtype != jnp.bool_:
        raise ValueError(f"resets must be boolean, got {found.dtype}")
    if found.shape != shape:
        raise ValueError(f"resets must have shape {shape}, got {found.shape}")
    return found


def check_state(name: str, state: Any, expected: Any) -> Any:
    """Converts the leaves of a state to arrays and compares it with the expected state.

    Args:
        name: The name of the argument, for the error message.
        state: The state, or None.
        expected: A state of the expected structure, shapes and dtypes.

    Returns:
        The state, or `expected` if `state` is None.

    Raises:
        ValueError: If the structure, a shape or a dtype differs.
    """
    if state is None:
        return expected
    structure = jax.tree.structure(expected)

    def wrong():
        return ValueError(f"{name} must be {describe(expected)}, got {describe(state)}")

    try:
        # The type of a named tuple is compared too, because the carry (c, h) of TF1 or Flax must
        # not be taken for an LSTMState (h, c).
        leaves = structure.flatten_up_to(state)
        leaves = [array(name, leaf) for leaf in leaves]
    except (TypeError, ValueError):
        raise wrong() from None
    for leaf, like in zip(leaves, structure.flatten_up_to(expected), strict=True):
        if leaf.shape != like.shape or leaf.dtype != like.dtype:
            raise wrong()
    return structure.unflatten(leaves)


# The shapes of initial parameters, by `init` and the number of input features. The keys are weak,
# because an `init` may refer to a traced number, which must not be kept alive.
_FRESH: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def fresh_shapes(init: Any, input_size: int) -> Any:
    """Returns the shapes and dtypes of the parameters that `init` returns for `input_size`."""
    try:
        known = _FRESH.setdefault(init, {})
    except TypeError:  # neither hashable nor weakly referenceable
        known = {}
    if input_size not in known:
        known[input_size] = jax.eval_shape(lambda key: init(key, input_size), jax.random.key(0))
    return known[input_size]


def check_params(init: Any, params: Any, input_size: Any) -> Any:
    """Converts the parameters to the structure that `init` returns.

    Args:
        init: The cell's `init`, or None for a cell that has none.
        params: The parameters, in this structure or with mappings instead of named tuples, as in
            the `params` of a Flax module. A mapping may omit fields that are None.
        input_size: The number of input features.

    Returns:
        The parameters, with arrays as leaves.

    Raises:
        ValueError: If the structure or a shape differs, or a leaf is not a floating-point array.
    """
    if init is None or not isinstance(input_size, int):
        return params
    expected = fresh_shapes(init, input_size)
    structure = jax.tree.structure(expected)

    def wrong():
        return ValueError(
            f"params must be {describe(expected)}, as returned by the cell's init for inputs of "
            f"{input_size} features, got {describe(params)}"
        )

    try:
        leaves = structure.flatten_up_to(as_named(expected, params))
        leaves = [array("params", leaf) for leaf in leaves]
    except (TypeError, ValueError):
        raise wrong() from None
    for leaf, like in zip(leaves, structure.flatten_up_to(expected), strict=True):
        same = jnp.complexfloating if jnp.iscomplexobj(like) else jnp.floating
        if leaf.shape != like.shape or not jnp.issubdtype(leaf.dtype, same):
            raise wrong()
    return structure.unflatten(leaves)


def check_layer_arguments(
    cell: Cell, params: Any, inputs: jax.Array, time_major: bool, carry: Any, lengths: Any
) -> tuple[Any, jax.Array | None]:
    """Converts the initial carry and the lengths of a Flax layer; None stays None.

    `unroll` checks all arguments of a layer, but knows these two by other names.

    Args:
        cell: The cell.
        params: The parameters of the cell.
        inputs: The inputs `[*B, T, I]`, or `[T, *B, I]` with `time_major`.
        time_major: Whether time is the first axis of the inputs.
        carry: The argument `initial_carry`.
        lengths: The argument `seq_lengths`.

    Returns:
        The carry and the lengths.

    Raises:
        ValueError: If one of them is wrong. The message has Flax's name of the argument.
    """
    *batch, time = inputs.shape[1:-1] + inputs.shape[:1] if time_major else inputs.shape[:-1]
    lengths = check_lengths(lengths, tuple(batch), time, "seq_lengths")
    if carry is not None:
        params = check_params(cell.init, params, inputs.shape[-1])
        expected = jax.eval_shape(lambda: cell.initial_state(params, tuple(batch)))
        carry = check_state("initial_carry", carry, expected)
    return carry, lengths


def as_named(expected: Any, found: Any) -> Any:
    """Converts mappings to the named tuples in `expected`; the inverse of `as_dict`."""
    if not isinstance(found, Mapping):
        return found
    if hasattr(expected, "_fields"):
        if found.keys() - set(expected._fields):
            raise ValueError
        fields = {
            name: as_named(getattr(expected, name), found.get(name)) for name in expected._fields
        }
        return type(expected)(**fields)
    if isinstance(expected, Mapping) and found.keys() == expected.keys():
        return {name: as_named(expected[name], found[name]) for name in expected}
    return found


def as_dict(params: Any) -> Any:
    """Converts the parameters or the state of a cell to nested dicts, as in a Flax module.

    Args:
        params: The parameters, such as `LSTMParams`, or a state, such as `LSTMState`.

    Returns:
        Nested dicts with the names of the fields as keys. Fields that are None are omitted.

    Examples:
        Parameters of a cell as the variables of a layer:

        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jaxrnn
        >>> from jaxrnn.linen import RNN, as_dict
        >>> cell = jaxrnn.lstm(64)
        >>> params = cell.init(jax.random.key(0), 28)
        >>> variables = {"params": {"cell": as_dict(params)}}
        >>> RNN(cell).apply(variables, jnp.ones((8, 20, 28))).shape
        (8, 20, 64)
    """
    if hasattr(params, "_fields"):
        params = params._asdict()
    if not isinstance(params, Mapping):
        return params
    return {name: as_dict(value) for name, value in params.items() if value is not None}


def check_cell(cell: Any, params: Any, state: Any, inputs: jax.Array) -> jax.ShapeDtypeStruct:
    """Checks the structures and shapes that a cell's functions return.

    The check traces one step; its result is cached.

    Args:
        cell: The cell.
        params: The parameters of the cell.
        state: A state of the cell, leaves `[*B, ...]`.
        inputs: The inputs `[T, *B, I]`.

    Returns:
        The shape and dtype of the output of one step.

    Raises:
        ValueError: If a function fails or returns a wrong structure, shape or dtype.
    """
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (params, state)
    )
    x = jax.ShapeDtypeStruct(inputs.shape[1:], inputs.dtype)
    leaves, structure = jax.tree.flatten((*shapes, x))
    try:
        hash((cell, structure))
    except TypeError:
        return _check_cell.__wrapped__(cell, structure, tuple(leaves))
    return _check_cell(cell, structure, tuple(leaves))


def _check_gated(gate, params, state, x):
    """Checks the shapes of the kernels and the bias of a gated cell."""
    hidden = jax.tree.leaves(state[0])[0].shape[-1]
    width = len(gate.names) * hidden
    expected = {"kernel": (x.shape[-1], width), "bias": (width,)}
    if getattr(params, "recurrent_kernel", None) is not None:
        expected["recurrent_kernel"] = (hidden, width)
    elif gate.separate:
        raise ValueError(
            "init of a cell with separate gates must return a recurrent_kernel, got None"
        )
    for name, shape in expected.items():
        found = getattr(params, name, None)
        if found is None:
            raise ValueError(f"init of a gated cell must return a {name}, got {describe(params)}")
        if found.shape != shape:
            raise ValueError(
                f"the {name} of a cell with the gates {' '.join(gate.names)} and {hidden} units "
                f"must have shape {shape}, got {found.shape}"
            )


@functools.lru_cache(maxsize=256)
def _check_cell(cell, structure, leaves):
    """Implements `check_cell` with hashable arguments."""
    params, state, x = jax.tree.unflatten(structure, leaves)
    if cell.gate is not None:
        if not hasattr(state, "_fields"):
            raise ValueError(
                f"initial_state of a gated cell must return a named tuple, got {describe(state)}"
            )
        if not hasattr(params, "_fields"):
            raise ValueError(
                f"init of a gated cell must return a named tuple, got {describe(params)}"
            )
        _check_gated(cell.gate, params, state, x)
    function = called = "step"
    if cell.gate is not None:
        separate = "product, " if cell.gate.separate else ""
        function = "gate"
        called = f"gate(params, z, {separate}state) with z of {', '.join(cell.gate.names)}"
    try:
        found = jax.eval_shape(cell.step, params, state, x)
        after, output = found
    except Exception as error:
        raise ValueError(
            f"the cell's {called} fails on params {describe(params)}, state {describe(state)} "
            f"and x {describe(x)}: {type(error).__name__}: {error}"
        ) from error
    if describe(after) != describe(state):
        raise ValueError(
            f"the cell's {function} must return a state like that of initial_state, "
            f"{describe(state)}, got {describe(after)}"
        )
    batch = x.shape[:-1]
    if not hasattr(output, "shape") or output.shape[: len(batch)] != batch:
        raise ValueError(
            f"the cell's step must return an output of shape [{','.join(map(str, batch))},…], "
            f"got {describe(output)}"
        )
    return output

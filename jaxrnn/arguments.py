"""Checks and conversions of the arguments of `unroll` and of the layers built on it.

Every function here raises a ValueError that names the argument, what came and what was expected.
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

MEMORY = ("save", "recompute", "offload")


def describe(tree: Any) -> str:
    """The tree with the dtype and shape of its arrays in place of the arrays."""

    def one(leaf):
        if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
            return _Plain(type(leaf).__name__)
        return _Plain(f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]")

    return repr(jax.tree.map(one, tree))


class _Plain(str):
    """A string that prints without quotes."""

    __slots__ = ()
    __repr__ = str.__str__


def size(name: str, value: Any) -> int:
    """The positive integer `value`, also one of NumPy's, as an int."""
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if number < 1 or isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{name} must be a positive integer, got {value!r}")
    return number


def flag(name: str, value: Any) -> bool:
    """The boolean `value` as a bool."""
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def choice(name: str, value: Any, options: tuple[str, ...]) -> None:
    """Checks that `value` is None or one of the options."""
    if value is not None and not (isinstance(value, str) and value in options):
        raise ValueError(f"{name} must be None or one of {options}, got {value!r}")


def rate(name: str, value: Any) -> None:
    """Checks that `value` is a probability in [0, 1), if it is not traced."""
    if isinstance(value, Tracer):
        return
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    is_array = isinstance(value, (np.ndarray, jax.Array)) and value.shape == ()
    # NaN compares as neither.
    if not (is_number or is_array) or not 0 <= float(value) < 1:
        raise ValueError(f"{name} must be a number in [0, 1), got {value!r}")


def array(name: str, value: Any) -> jax.Array:
    """`value` as a JAX array; lists and NumPy arrays are taken too."""
    if isinstance(value, jax.Array):
        return value
    try:
        found = np.asarray(value)
        if found.dtype.kind not in "biufcV":  # V: JAX's own, as bfloat16
            raise TypeError
        return jnp.asarray(found)
    except (TypeError, ValueError, OverflowError):
        kind = repr(value) if isinstance(value, str) else f"a {type(value).__name__}"
        raise ValueError(f"{name} must be an array, got {kind}") from None


def floating(name: str, value: Any) -> jax.Array:
    """`value` as a real floating-point JAX array."""
    found = array(name, value)
    if not jnp.issubdtype(found.dtype, jnp.floating):
        raise ValueError(f"{name} must be floating-point, got {found.dtype}")
    return found


def check_inputs(inputs: Any, time_major: bool) -> jax.Array:
    """The inputs `[*B, T, I]`, or `[T, *B, I]` with `time_major`, as a floating-point array."""
    inputs = floating("inputs", inputs)
    if inputs.ndim < 2:
        layout = "[T, ..., I]" if time_major else "[..., T, I]"
        raise ValueError(f"inputs must be {layout}, at least 2 axes, got shape {inputs.shape}")
    if isinstance(inputs.shape[-1], int) and not inputs.shape[-1]:
        raise ValueError(f"inputs must have at least one feature, got shape {inputs.shape}")
    return inputs


def check_dtype(dtype: Any) -> Any:
    """The dtype of the products, or None."""
    if dtype is None:
        return None
    try:
        found = jnp.dtype(dtype)
    except TypeError:
        found = None
    if found is None or not jnp.issubdtype(found, jnp.floating):
        raise ValueError(f"dtype must be None or a floating-point dtype, got {dtype!r}")
    return found


def check_key(key: Any) -> None:
    """Checks that `key` is a random key of JAX, typed or raw, or None."""
    if key is None:
        return
    typed = isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    try:
        one = (key if typed else jax.random.wrap_key_data(key)).shape == ()
    except (TypeError, ValueError, AttributeError):
        one = False
    if not one:
        raise ValueError(f"key must be one key as jax.random.key makes it, got {describe(key)}")


def check_lengths(lengths: Any, batch_shape: tuple, time: Any):
    """The lengths as int32 in 0..T, or None.

    Concrete lengths outside of 0..T are an error. Traced ones cannot be checked and are clamped.
    """
    if lengths is None:
        return None
    try:
        # Before JAX narrows the integers: 2**32 + 3 would pass for 3.
        found = lengths if isinstance(lengths, jax.Array) else np.asarray(lengths)
    except ValueError:
        raise ValueError(f"lengths must be an array, got {lengths!r}") from None
    if isinstance(lengths, (list, tuple)) and not found.size:
        found = found.astype(np.int32)  # an empty list has no integers to tell by
    if not jnp.issubdtype(found.dtype, jnp.integer):
        raise ValueError(f"lengths must be integers, got {found.dtype}")
    if found.shape != batch_shape:
        raise ValueError(f"lengths must have the batch's shape {batch_shape}, got {found.shape}")
    if not isinstance(found, Tracer):
        values = np.asarray(found)
        if isinstance(time, int) and values.size and not 0 <= values.min() <= values.max() <= time:
            raise ValueError(
                f"lengths must lie in 0..{time}, got values from {values.min()} to {values.max()}"
            )
        return jnp.asarray(values.astype(np.int32))  # a narrow type could not count the steps
    last = jnp.asarray(time, jnp.int32)
    wide = found if found.dtype.itemsize > 4 else found.astype(jnp.int32)
    if found.dtype == jnp.uint32:  # beyond int32 it would turn negative
        wide = jnp.minimum(found, last.astype(jnp.uint32))
    return jnp.clip(wide, 0, last.astype(wide.dtype)).astype(jnp.int32)


def check_resets(resets: Any, shape: tuple) -> jax.Array | None:
    """The resets as a boolean array of the given shape, or None."""
    if resets is None:
        return None
    found = array("resets", resets)
    if found.dtype != jnp.bool_:
        raise ValueError(f"resets must be boolean, got {found.dtype}")
    if found.shape != shape:
        raise ValueError(f"resets must have shape {shape}, got {found.shape}")
    return found


def check_state(name: str, state: Any, expected: Any) -> Any:
    """The state as arrays of the expected structure, shapes and dtypes; None is the expected."""
    if state is None:
        return expected
    structure = jax.tree.structure(expected)

    def wrong():
        return ValueError(f"{name} must be {describe(expected)}, got {describe(state)}")

    try:
        # As tuples a TF1 or Flax carry (c, h) would pass for an LSTMState.
        leaves = structure.flatten_up_to(state)
        leaves = [array(name, leaf) for leaf in leaves]
    except (TypeError, ValueError):
        raise wrong() from None
    for leaf, like in zip(leaves, structure.flatten_up_to(expected), strict=True):
        if leaf.shape != like.shape or leaf.dtype != like.dtype:
            raise wrong()
    return structure.unflatten(leaves)


# Shapes of fresh parameters by `init` and number of input features. The keys are weak, since an
# `init` may hold a traced number that must not be kept.
_FRESH: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def fresh_shapes(init: Any, input_size: int) -> Any:
    """The shapes of what `init` returns for inputs of so many features."""
    try:
        known = _FRESH.setdefault(init, {})
    except TypeError:  # neither hashable nor weakly referable
        known = {}
    if input_size not in known:
        known[input_size] = jax.eval_shape(lambda key: init(key, input_size), jax.random.key(0))
    return known[input_size]


def check_params(init: Any, params: Any, input_size: Any) -> Any:
    """The parameters in the structure that `init` gives.

    Args:
        init: The cell's `init`, or None for a cell that has none.
        params: Parameters of that structure, or with mappings in place of its named tuples, where
            a field that is None may be absent: as in the `params` of a Flax module.
        input_size: The number of input features.

    Returns:
        The parameters as arrays.
    """
    if init is None or not isinstance(input_size, int):
        return params
    expected = fresh_shapes(init, input_size)
    structure = jax.tree.structure(expected)

    def wrong():
        return ValueError(
            f"params must be {describe(expected)}, as the cell's init gives for inputs of "
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


def as_named(expected: Any, found: Any) -> Any:
    """`found` with the named tuples of `expected` for its mappings; the inverse of `as_dict`."""
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
    """The parameters as nested dicts of arrays, as Flax modules hold them; None is left out."""
    if hasattr(params, "_fields"):
        params = params._asdict()
    if not isinstance(params, Mapping):
        return params
    return {name: as_dict(value) for name, value in params.items() if value is not None}


def check_cell(cell: Any, params: Any, state: Any, inputs: jax.Array) -> jax.ShapeDtypeStruct:
    """Checks once what a cell's functions return, and gives the shape of one step's output."""
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


@functools.lru_cache(maxsize=256)
def _check_cell(cell, structure, leaves):
    params, state, x = jax.tree.unflatten(structure, leaves)
    if cell.gate is not None:
        if not hasattr(state, "_fields"):
            raise ValueError(
                f"initial_state of a gated cell must return a named tuple, got {describe(state)}"
            )
        for name in ("kernel", "bias"):
            if getattr(params, name, None) is None:
                raise ValueError(
                    f"init of a gated cell must return a {name}, got {describe(params)}"
                )
    function = "step" if cell.gate is None else "gate"
    try:
        found = jax.eval_shape(cell.step, params, state, x)
        after, output = found
    except Exception as error:
        raise ValueError(
            f"the cell's {function} fails on params {describe(params)}, state {describe(state)} "
            f"and x {describe(x)}: {type(error).__name__}: {error}"
        ) from error
    if describe(after) != describe(state):
        raise ValueError(
            f"the cell's {function} must return a state as initial_state does, {describe(state)}, "
            f"got {describe(after)}"
        )
    batch = x.shape[:-1]
    if not hasattr(output, "shape") or output.shape[: len(batch)] != batch:
        raise ValueError(
            f"the cell's step must return an output [{','.join(map(str, batch))},…], "
            f"got {describe(output)}"
        )
    return output

"""The elementwise part of a step and of its gradient, on tiles, for "states" and its kernels.

A tile is an array of a block of examples and a block of units. In a kernel, the parameters of the
gate and the masks are tiles too. An elementwise gate therefore works in kernels with tiles `[N, H]`
and in kernels with transposed tiles `[H, N]`.

Shapes: N examples, T time, H hidden units, G gates, S separate gates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import export
from jax.extend.core import Jaxpr, JaxprEqn
from jaxtyping import Array

from jaxrnn.backends.steps import Steps, begin, finish, recurrent_input
from jaxrnn.cell import Gate, Params, State, _named

UNITS, EXAMPLES = 128, 16  # the smallest tile that all kernels support
MASKED, RESET = 1, 2  # bits of `Masks.flags`


class Masks(NamedTuple):
    """The masks of all steps, or their tiles at one step.

    Attributes:
        flags: Integers `[T, N, 1]` with the bits `MASKED` and `RESET`, or None.
        dropout: The recurrent-dropout mask `[T, N, H]`, or None.
        zoneout: The leaves of the zoneout mask `[T, N, H]`, empty without zoneout.
    """

    flags: Array | None
    dropout: Array | None
    zoneout: Sequence[Array]

    @classmethod
    def from_steps(cls, steps: Steps) -> Masks:
        """Collects the masks of `steps`, whose inputs have one batch axis."""
        flags = None
        if steps.mask is not None or steps.resets is not None:
            flags = jnp.zeros((*steps.inputs.shape[:2], 1), jnp.int32)
            if steps.mask is not None:
                flags += jnp.where(steps.mask, 0, MASKED)[..., None]
            if steps.resets is not None:
                flags += jnp.where(steps.resets, RESET, 0)[..., None]
        return cls(flags, steps.dropout_mask, jax.tree.leaves(steps.zoneout_mask))


class ForwardInputs(NamedTuple):
    """The inputs of the forward loop over time.

    Attributes:
        kernel: The recurrent kernel `[H, G·H]` in the dtype of the operands of the products, or
            None.
        weights: The leaves of the parameters of the gate, `[H]`.
        drive: The drives `[T, N, G·H]`.
        start: The leaves of the state before the first step, `[N, H]`.
        reset: The leaves of the state after a reset, `[N, H]`, empty without resets.
        masks: The masks of all steps.
    """

    kernel: Array | None
    weights: Sequence[Array]
    drive: Array
    start: Sequence[Array]
    reset: Sequence[Array]
    masks: Masks


class BackwardInputs(NamedTuple):
    """The inputs of the backward loop over time.

    Attributes:
        kernel: The transposed recurrent kernel `[G·H, H]`, or None.
        weights: As in `ForwardInputs`.
        arguments: The pre-activations `[T, N, G·H]` and, if some gates are separate, their products
            `[T, N, S·H]`.
        before: The leaves of the state before each step, after any reset, `[T, N, H]`.
        d_outputs: The gradients of the outputs, `[T, N, H]`.
        d_state: The gradients of the leaves of the last state, `[N, H]`.
        masks: The masks of all steps.
    """

    kernel: Array | None
    weights: Sequence[Array]
    arguments: Sequence[Array]
    before: Sequence[Array]
    d_outputs: Array
    d_state: Sequence[Array]
    masks: Masks


class Step(NamedTuple):
    """One step of a gated cell on tiles, forward and backward, without the matrix products.

    Attributes:
        gate: The gate of the cell.
        state: The tree structure of the state.
        weights: The tree structure of the parameters of the gate.
        simplify: Rewrites a function of tiles to use fewer primitives, for compilers that do not
            support all primitives that autodiff produces.
    """

    gate: Gate
    state: Any
    weights: Any
    simplify: Callable[[Callable], Callable] = lambda function: function

    def now(self, masks: Masks, shape: tuple[int, int], resets: bool) -> Steps:
        """Returns the masks of one step as tiles of the given shape."""
        mask = reset = zoneout = None
        if masks.flags is not None:
            flags = jnp.broadcast_to(masks.flags, shape)
            mask = flags & MASKED == 0
            reset = flags & RESET != 0 if resets else None
        if masks.zoneout:
            zoneout = self.state.unflatten(masks.zoneout)
        nothing: Any = None
        return Steps(nothing, mask, reset, masks.dropout, zoneout)

    def split(self, arguments: Sequence[Array]) -> list[list[Array]]:
        """Splits the arguments of the gate `[…, G·H]` and `[…, S·H]` into one array per gate."""
        names = self.gate.names, self.gate.separate
        return [split(each, len(n)) for n, each in zip(names, arguments, strict=False)]

    def named(self, arguments: Sequence[Sequence[Array]]) -> tuple:
        """Returns the arguments of the gate as named tuples."""
        names = self.gate.names, self.gate.separate
        return tuple(_named(n)(*tiles) for n, tiles in zip(names, arguments, strict=False))

    def before(
        self, state: Sequence[Array], reset: Sequence[Array], now: Steps
    ) -> tuple[list[Array], Array]:
        """Applies resets to the state before a step.

        Args:
            state: The leaves of the state before the step.
            reset: The leaves of the state after a reset, empty without resets.
            now: The masks of the step.

        Returns:
            The leaves of the state after any reset, and the operand of the recurrent product.
        """
        again = self.state.unflatten(reset) if reset else None
        before = begin(now, again, self.state.unflatten(state))
        return jax.tree.leaves(before), recurrent_input(now, before)

    def after(
        self,
        weights: Sequence[Array],
        drives: Sequence[Array],
        products: Sequence[Array] | None,
        before: Sequence[Array],
        now: Steps,
    ) -> list[Array]:
        """Returns the leaves of the state after the step.

        Args:
            weights: The leaves of the parameters of the gate.
            drives: The drive of each gate.
            products: The product of each gate, or None.
            before: The leaves of the state before the step, after any reset.
            now: The masks of the step.
        """
        arguments = self.gate.named(drives, products)
        return self.simplify(partial(_after, self, now))(weights, arguments, before)

    def gradient(
        self,
        weights: Sequence[Array],
        arguments: Sequence[Sequence[Array]],
        before: Sequence[Array],
        d_after: Sequence[Array],
        now: Steps,
    ) -> tuple[list[Array], list[list[Array]], list[Array]]:
        """Computes the gradients of the weights, the arguments of the gate and the state before.

        The gradient of the state excludes the path through the recurrent product, which
        `before_reset` adds.

        Args:
            weights: The leaves of the parameters of the gate.
            arguments: The arguments of the gate in this step.
            before: The leaves of the state before the step, after any reset.
            d_after: The gradients of the leaves of the state after the step.
            now: The masks of the step.
        """

        def gradient(weights, arguments, before, d_after):
            _, pullback = jax.vjp(partial(_after, self, now), weights, arguments, before)
            return pullback(d_after)

        d_weights, d_arguments, d_before = self.simplify(gradient)(
            weights, self.named(arguments), before, d_after
        )
        return d_weights, [list(each) for each in d_arguments], d_before

    def of_products(self, d_arguments: Sequence[Sequence[Array]]) -> list[Array]:
        """Returns the gradient of each gate's product, given those of the arguments of the gate."""
        z, *product = self.named(d_arguments)
        return list(z._replace(**product[0]._asdict()) if product else z)

    def before_reset(
        self, d_before: Sequence[Array], d_hidden: Array | None, now: Steps
    ) -> tuple[list[Array], list[Array]]:
        """Computes the gradients of the state before a reset and of the reset state.

        Args:
            d_before: The gradients of the leaves of the state after the reset, excluding the path
                through the recurrent product.
            d_hidden: The gradient of the operand of the recurrent product, or None.
            now: The masks of the step.

        Returns:
            The gradients of the leaves of the state before the reset and of the reset state. The
            latter are empty without resets.
        """
        first, *others = d_before
        if d_hidden is not None:
            mask = now.dropout_mask
            first = first + (d_hidden if mask is None else d_hidden * mask)
        d_before = [first, *others]
        if now.resets is None:
            return d_before, []
        zeros = jnp.zeros_like(first)
        d_reset = [jnp.where(now.resets, leaf, zeros) for leaf in d_before]
        return [jnp.where(now.resets, zeros, leaf) for leaf in d_before], d_reset


def _after(step, now, weights, arguments, before):
    """Applies the gate, zoneout and the mask, and returns the leaves of the new state."""
    state = step.state.unflatten(before)
    after = step.gate(step.weights.unflatten(weights), arguments, state)
    return jax.tree.leaves(finish(now, after, state))


def split(x: Array, count: int) -> list[Array]:
    """Splits an array `[…, count·H]` into `count` arrays `[…, H]`."""
    return jnp.split(x, count, axis=-1)


def tiles(weights: Sequence[Array], like: Array) -> list[Array]:
    """Broadcasts parameters `[H]` or `[1, H]` to tiles `[N, H]`."""
    return [jnp.broadcast_to(leaf, like.shape) for leaf in weights]


# Elementwise primitives that the compilers of kernels support.
_ELEMENTWISE = {
    *("add", "sub", "mul", "div", "neg", "abs", "sign", "max", "min", "square", "integer_pow"),
    "one_minus_square",
    *("exp", "exp2", "log", "tanh", "logistic", "rsqrt", "sin", "cos"),
    *("eq", "ne", "lt", "le", "gt", "ge", "and", "or", "select_n", "clamp"),
    *("convert_element_type", "stop_gradient", "add_any", "broadcast_in_dim"),
}
# Elementwise primitives that only XLA supports.
_ELEMENTWISE_IN_XLA = {
    *("log1p", "expm1", "pow", "sqrt", "cbrt", "tan", "asin", "acos", "atan", "atan2"),
    *("sinh", "cosh", "asinh", "acosh", "atanh", "erf", "erfc", "erf_inv", "lgamma", "digamma"),
    *("floor", "ceil", "round", "rem", "is_finite", "not", "xor"),
}
# Primitives that return their operand if its shape does not change.
IDENTITY_PRIMITIVES = {"copy", "reshape", "reshard", "stop_gradient"}
# Primitives that call another jaxpr.
CALL_PRIMITIVES = {"jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call"}


def refusal(gate: Gate, weights: Params, state: State, *, in_kernels: bool) -> str | None:
    """Returns the reason why a gate cannot run on tiles, or None.

    Args:
        gate: The gate.
        weights: The parameters of the gate.
        state: A state, leaves `[..., H]`.
        in_kernels: Whether the gate must run in a kernel rather than only in XLA.
    """
    hidden = jax.tree.leaves(state)[0]
    size = hidden.shape[-1]
    weights = as_parts(weights)
    for leaf in jax.tree.leaves(weights):
        if leaf.shape not in ((), (size,)):
            return f"the last axis of the gate's parameters must be {size}, got shape {leaf.shape}"
    structures = jax.tree.structure(weights), jax.tree.structure(state)
    try:
        hash(gate)
    except TypeError:  # a user's function that is an unhashable callable
        found = _operations.__wrapped__(gate, *structures, hidden.dtype)
    else:
        found = _operations(gate, *structures, hidden.dtype)
    if isinstance(found, str):
        return found
    known = _ELEMENTWISE if in_kernels else _ELEMENTWISE | _ELEMENTWISE_IN_XLA
    for name, on_tiles, same_shape in found:
        if not (on_tiles and (name in known or (name in IDENTITY_PRIMITIVES and same_shape))):
            return f"the gate must consist of known elementwise operations, got {name}"
    return None


@lru_cache(maxsize=256)
def _operations(gate, weights, state, dtype):
    """Returns the operations of a gate and its gradient, or why they cannot be traced on tiles.

    Each operation is a tuple of its name, whether all its operands and results are tiles or
    scalars, and whether they all have the same shape.
    """
    # The size of a tile is symbolic, so that a gate that uses a shape is traced to a primitive that
    # is not elementwise.
    tile = jax.ShapeDtypeStruct(export.symbolic_shape("examples, units"), dtype)

    def gradient(weights, z, state, d_after):
        run = lambda w, z, s: gate(w, gate.named(z, z), s)  # noqa: E731
        after, pullback = jax.vjp(run, weights, z, state)
        return after, pullback(d_after)

    def tiles(structure):
        return structure.unflatten([tile] * structure.num_leaves)

    given = tiles(weights), [tile] * len(gate.names), tiles(state), tiles(state)
    try:
        jaxpr = jax.make_jaxpr(gradient)(*given)
    except Exception as error:  # a gate that uses other arrays may raise any type
        reason, *_ = str(error).splitlines() or [type(error).__name__]
        return f"the gate fails on arrays [examples, units]: {reason}"
    if jaxpr.consts:
        return "the gate must not close over an array"
    found = []
    for equation in _equations(jaxpr.jaxpr):
        avals: list[Any] = [each.aval for each in (*equation.invars, *equation.outvars)]
        shapes = {aval.shape for aval in avals}
        found.append((equation.primitive.name, shapes <= {(), tile.shape}, len(shapes) == 1))
    return found


@jax.tree_util.register_pytree_node_class
class Parts:
    """The slices of a parameter along its first axis, which a gate may index or unpack.

    This is not a tuple, because `+` and `*` of a tuple differ from those of an array.
    """

    def __init__(self, parts: Iterable[Any]):
        self.parts = tuple(parts)

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, index: Any) -> Any:
        found = self.parts[index]
        return Parts(found) if isinstance(index, slice) else found

    def tree_flatten(self) -> tuple[tuple, None]:
        """Implements the interface of `jax.tree_util.register_pytree_node_class`."""
        return self.parts, None

    @classmethod
    def tree_unflatten(cls, _: None, parts: Iterable[Any]) -> Parts:
        """Implements the interface of `jax.tree_util.register_pytree_node_class`."""
        return cls(parts)


def as_parts(weights: Params) -> Params:
    """Converts parameters with more than one axis, such as peepholes `[3, H]`, to `Parts`.

    A kernel cannot slice an array.
    """

    def parts(leaf):
        return leaf if leaf.ndim < 2 else Parts(map(parts, leaf))

    return jax.tree.map(parts, weights)


def _equations(jaxpr: Jaxpr) -> Iterator[JaxprEqn]:
    """Yields the equations of a jaxpr and of the jaxprs that it calls."""
    for equation in jaxpr.eqns:
        if equation.primitive.name not in CALL_PRIMITIVES:
            yield equation
            continue
        for name in ("jaxpr", "call_jaxpr"):
            if name in equation.params:
                inner = equation.params[name]
                yield from _equations(getattr(inner, "jaxpr", inner))

"""What the kernels do in a step besides the product: a gate between masks, on tiles.

A tile is a block of examples by units. In a kernel every array is one, also the parameters that a
gate sees and the masks, so an elementwise gate serves both kinds of tile, `[N, H]` and `[H, N]`.
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

UNITS, EXAMPLES = 128, 16  # of the smallest tile of all kernels
MASKED, RESET = 1, 2  # bits of the flags of a step


class Masks(NamedTuple):
    """The masks of all steps, or their tiles at one.

    Attributes:
        flags: `[T, N, 1]` integers of the bits `MASKED` and `RESET`, or None.
        dropout: The recurrent-dropout mask `[T, N, H]`, or None.
        zoneout: The leaves of the zoneout mask `[T, N, H]`; none without zoneout.
    """

    flags: Array | None
    dropout: Array | None
    zoneout: Sequence[Array]

    @classmethod
    def of(cls, steps: Steps) -> Masks:
        """The masks of `steps`, whose batch has one axis."""
        flags = None
        if steps.mask is not None or steps.resets is not None:
            flags = jnp.zeros((*steps.inputs.shape[:2], 1), jnp.int32)
            if steps.mask is not None:
                flags += jnp.where(steps.mask, 0, MASKED)[..., None]
            if steps.resets is not None:
                flags += jnp.where(steps.resets, RESET, 0)[..., None]
        return cls(flags, steps.dropout_mask, jax.tree.leaves(steps.zoneout_mask))


class ForwardInputs(NamedTuple):
    """What the forward kernel reads.

    Attributes:
        kernel: The recurrent kernel `[H, G·H]` in the dtype of the products' operands, or None.
        weights: The leaves of the parameters that the gate sees, `[H]`.
        drive: `[T, N, G·H]`.
        start: The leaves of the state before the first step, `[N, H]`.
        reset: Those of the state that a reset puts in place; none without resets.
        masks: The masks.
    """

    kernel: Array | None
    weights: Sequence[Array]
    drive: Array
    start: Sequence[Array]
    reset: Sequence[Array]
    masks: Masks


class BackwardInputs(NamedTuple):
    """What the backward kernel reads.

    Attributes:
        kernel: The transposed recurrent kernel `[G·H, H]`, or None.
        weights: As in `ForwardInputs`.
        arguments: The gate's arguments `[T, N, G·H]` and, if some gates are separate, their
            products `[T, N, S·H]`.
        before: The leaves of the state before each step, and after a reset, `[T, N, H]`.
        d_outputs: The gradients of the outputs, `[T, N, H]`.
        d_state: Those of the leaves of the last state, `[N, H]`.
        masks: The masks.
    """

    kernel: Array | None
    weights: Sequence[Array]
    arguments: Sequence[Array]
    before: Sequence[Array]
    d_outputs: Array
    d_state: Sequence[Array]
    masks: Masks


class Step(NamedTuple):
    """A cell's step on tiles, forward and backward, but for the products.

    Attributes:
        gate: The cell's gate.
        state: The structure of its state.
        weights: The structure of the parameters that the gate sees.
        simplify: Given a function of tiles, the same function with fewer kinds of operations, for
            compilers that do not know all that autodiff makes.
    """

    gate: Gate
    state: Any
    weights: Any
    simplify: Callable[[Callable], Callable] = lambda function: function

    def now(self, masks: Masks, shape: tuple[int, int], resets: bool) -> Steps:
        """The masks of one step as tiles of this shape."""
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
        """The gate's arguments `[…, G·H]` and `[…, S·H]` as one array for each gate."""
        names = self.gate.names, self.gate.separate
        return [split(each, len(n)) for n, each in zip(names, arguments, strict=False)]

    def named(self, arguments: Sequence[Sequence[Array]]) -> tuple:
        """The gate's arguments by name."""
        names = self.gate.names, self.gate.separate
        return tuple(_named(n)(*tiles) for n, tiles in zip(names, arguments, strict=False))

    def before(
        self, state: Sequence[Array], reset: Sequence[Array], now: Steps
    ) -> tuple[list[Array], Array]:
        """The leaves of the state after a reset, and what the recurrent kernel sees.

        Args:
            state: The leaves of the state before the step.
            reset: Those of the state that a reset puts in place; none without resets.
            now: The masks.
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
        """The leaves of the state after the step.

        Args:
            weights: The leaves of the parameters that the gate sees.
            drives: The drive of each gate.
            products: The product of each gate, or None.
            before: The leaves of the state before, and after a reset.
            now: The masks.
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
        """The gradients of the weights, the gate's arguments and the state before.

        That of the state lacks what comes through the product; see `before_reset`.

        Args:
            weights: The leaves of the parameters that the gate sees.
            arguments: What the gate got in this step.
            before: The leaves of the state before, and after a reset.
            d_after: The gradients of the leaves of the state after the step.
            now: The masks.
        """

        def gradient(weights, arguments, before, d_after):
            _, pullback = jax.vjp(partial(_after, self, now), weights, arguments, before)
            return pullback(d_after)

        d_weights, d_arguments, d_before = self.simplify(gradient)(
            weights, self.named(arguments), before, d_after
        )
        return d_weights, [list(each) for each in d_arguments], d_before

    def of_products(self, d_arguments: Sequence[Sequence[Array]]) -> list[Array]:
        """The gradient of each gate's product, from those of the gate's arguments."""
        z, *product = self.named(d_arguments)
        return list(z._replace(**product[0]._asdict()) if product else z)

    def before_reset(
        self, d_before: Sequence[Array], d_hidden: Array | None, now: Steps
    ) -> tuple[list[Array], list[Array]]:
        """The gradients of the state before a reset and of the reset state, none without resets.

        Args:
            d_before: Those of the leaves of the state after it, without the product.
            d_hidden: That of what the recurrent kernel saw, or None.
            now: The masks.
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
    """The leaves of the state after the gate, zoneout and the mask."""
    state = step.state.unflatten(before)
    after = step.gate(step.weights.unflatten(weights), arguments, state)
    return jax.tree.leaves(finish(now, after, state))


def split(x: Array, count: int) -> list[Array]:
    """`[…, count·H]` as `count` arrays `[…, H]`."""
    return jnp.split(x, count, axis=-1)


def tiles(weights: Sequence[Array], like: Array) -> list[Array]:
    """Parameters `[H]` or `[1, H]`, for every example of a tile `[N, H]`."""
    return [jnp.broadcast_to(leaf, like.shape) for leaf in weights]


# Primitives that treat each unit of each example alone, and that the compilers of kernels know.
_ELEMENTWISE = {
    *("add", "sub", "mul", "div", "neg", "abs", "sign", "max", "min", "square", "integer_pow"),
    "one_minus_square",
    *("exp", "exp2", "log", "tanh", "logistic", "rsqrt", "sin", "cos"),
    *("eq", "ne", "lt", "le", "gt", "ge", "and", "or", "select_n", "clamp"),
    *("convert_element_type", "stop_gradient", "add_any", "broadcast_in_dim"),
}
# Those of them besides that XLA computes.
_IN_A_LOOP = {
    *("log1p", "expm1", "pow", "sqrt", "cbrt", "tan", "asin", "acos", "atan", "atan2"),
    *("sinh", "cosh", "asinh", "acosh", "atanh", "erf", "erfc", "erf_inv", "lgamma", "digamma"),
    *("floor", "ceil", "round", "rem", "is_finite", "not", "xor"),
}
SAME = {"copy", "reshape", "reshard", "stop_gradient"}  # if the shape stays
CALLS = {"jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call"}


def refusal(gate: Gate, weights: Params, state: State, *, in_kernels: bool) -> str | None:
    """Why a gate cannot run on tiles, or None.

    Args:
        gate: The gate.
        weights: The parameters that it sees.
        state: A state, leaves `[..., H]`.
        in_kernels: Whether the compilers of kernels must know all of it, or XLA alone.
    """
    hidden = jax.tree.leaves(state)[0]
    size = hidden.shape[-1]
    weights = each_alone(weights)
    for leaf in jax.tree.leaves(weights):
        if leaf.shape not in ((), (size,)):
            return f"its gate sees a parameter of shape {leaf.shape}, which does not end in {size}"
    structures = jax.tree.structure(weights), jax.tree.structure(state)
    try:
        hash(gate)
    except TypeError:  # a user's function that is no plain one
        found = _operations.__wrapped__(gate, *structures, hidden.dtype)
    else:
        found = _operations(gate, *structures, hidden.dtype)
    if isinstance(found, str):
        return found
    known = _ELEMENTWISE if in_kernels else _ELEMENTWISE | _IN_A_LOOP
    for name, on_tiles, same_shape in found:
        if not (on_tiles and (name in known or (name in SAME and same_shape))):
            return f"{name} in its gate is not known to be elementwise"
    return None


@lru_cache(maxsize=256)
def _operations(gate, weights, state, dtype):
    """What a gate and its gradient are made of, or why they cannot be traced on tiles.

    For each operation its name, whether it sees tiles and scalars alone, and whether it sees but
    one shape.
    """
    # A tile is of no certain size, so what a gate takes from a shape is none of these primitives.
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
    except Exception as error:  # whatever a gate raises that computes with more than tiles
        reason, *_ = str(error).splitlines() or [type(error).__name__]
        return f"its gate does not run on single tiles: {reason}"
    if jaxpr.consts:
        return "its gate closes over an array"
    found = []
    for equation in _equations(jaxpr.jaxpr):
        avals: list[Any] = [each.aval for each in (*equation.invars, *equation.outvars)]
        shapes = {aval.shape for aval in avals}
        found.append((equation.primitive.name, shapes <= {(), tile.shape}, len(shapes) == 1))
    return found


@jax.tree_util.register_pytree_node_class
class Parts:
    """The parts of a parameter with more than one axis, by index or in turn.

    It is no tuple, whose `+` and `*` are not those of an array.
    """

    def __init__(self, parts: Iterable[Any]):
        self.parts = tuple(parts)

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, index: Any) -> Any:
        found = self.parts[index]
        return Parts(found) if isinstance(index, slice) else found

    def tree_flatten(self) -> tuple[tuple, None]:
        """As JAX asks for it."""
        return self.parts, None

    @classmethod
    def tree_unflatten(cls, _: None, parts: Iterable[Any]) -> Parts:
        """As JAX asks for it."""
        return cls(parts)


def each_alone(weights: Params) -> Params:
    """Parameters with more than one axis, such as peepholes `[3, H]`, as `Parts`.

    No kernel could cut these out of an array.
    """

    def parts(leaf):
        return leaf if leaf.ndim < 2 else Parts(map(parts, leaf))

    return jax.tree.map(parts, weights)


def _equations(jaxpr: Jaxpr) -> Iterator[JaxprEqn]:
    for equation in jaxpr.eqns:
        if equation.primitive.name not in CALLS:
            yield equation
            continue
        for name in ("jaxpr", "call_jaxpr"):
            if name in equation.params:
                inner = equation.params[name]
                yield from _equations(getattr(inner, "jaxpr", inner))

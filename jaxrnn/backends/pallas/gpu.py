"""The forward and backward kernels for NVIDIA GPUs, written in Pallas Mosaic GPU.

They support Hopper and, from JAX 0.11, Ampere, Ada and the B200. A thread block runs all steps of
16 examples, and each of its warpgroups computes 64 units. The recurrent kernel stays in shared
memory and the state in registers. The warpgroups exchange the operands of the products through
shared memory. On Hopper, arrays are transposed, with units before examples. See
`jaxrnn.backends.pallas.products` for the products and the reason for this layout.

Shapes: N examples, T time, H hidden units, G gates, W warpgroups.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.extend.backend import get_default_device
from jax.extend.core import Literal
from jaxtyping import Array

from jaxrnn.backends.elementwise import (
    CALL_PRIMITIVES,
    EXAMPLES,
    IDENTITY_PRIMITIVES,
    BackwardInputs,
    ForwardInputs,
    Masks,
    Step,
)
from jaxrnn.backends.pallas.products import (
    HOPPER,
    UNITS,
    WARPGROUP,
    Card,
    card_of,
    load,
    parts,
    store,
)

# Axes of a kernel. In `jax.shard_map`, a mesh axis of the same name would shadow them.
RUN, BLOCK = "jaxrnn_run", "jaxrnn_block"
# Values of `jax_default_matmul_precision` that three products of bfloat16 operands satisfy.
PRECISIONS = {
    *(None, "default", "fastest", "high"),
    *("bfloat16", "bfloat16_3x", "BF16_BF16_F32", "BF16_BF16_F32_X3"),
    *("tensorfloat32", "TF32_TF32_F32"),
}


def card_for(given: ForwardInputs | BackwardInputs, step: Step) -> Card | None:
    """Returns the GPU to compile for, or None if the XLA loop must run.

    The XLA loop runs if no kernel can be compiled for the GPU, if the products do not fit into a
    block, or if they are less precise than `jax_default_matmul_precision`.
    """
    card = _compiled_for()
    if card is None or given.kernel is None:
        return card
    units = min(given.kernel.shape)
    asked = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
    bfloat16 = given.kernel.dtype == jnp.bfloat16
    gates = len(step.gate.names)
    factors = gates if isinstance(given, BackwardInputs) else 1
    room = card.room(gates, units, 1 if bfloat16 else 2, factors)
    return card if room.enough and (bfloat16 or asked in PRECISIONS) else None


def _compiled_for() -> Card | None:
    """Returns the GPU that Mosaic GPU compiles for, or None if the program is for another one.

    Mosaic GPU compiles for the default device. It compiles for Hopper instead if the default device
    is not a GPU, or if the program is for a described GPU of another kind.
    """
    default, described = get_default_device(), jax.sharding.get_abstract_mesh().abstract_device
    kind = described.device_kind if described and described.platform == "gpu" else None
    if kind not in (None, default.device_kind):
        return HOPPER if re.search(r"H\d", kind) else None
    try:
        devices = jax.devices("cuda")
    except RuntimeError:
        devices = []
    cards = {card_of(device.compute_capability) for device in devices}
    cards.add(card_of(default.compute_capability) if default.platform == "gpu" else HOPPER)
    return cards.pop() if len(cards) == 1 else None


def forward(
    given: ForwardInputs,
    *,
    step: Step,
    save: bool,
    unroll: int = 1,
    card: Card = HOPPER,
    interpret: bool = False,
) -> tuple[list[Array], list[Array]]:
    """Runs all steps; see `jaxrnn.backends.loop.forward`."""
    gates, time, tile = len(step.gate.names), len(given.drive), card.at(UNITS, EXAMPLES)
    step = step._replace(simplify=simple)
    operand = None
    if given.kernel is not None:  # [G, H, H]: gate, output unit, input unit
        operand = given.kernel.reshape(len(given.kernel), gates, -1).transpose(1, 2, 0)
    inputs = {
        "weights": [_for_examples(card, leaf) for leaf in given.weights],
        "drive": _by_gate(card, given.drive, gates),
        "start": _turned(card, given.start),
        "reset": _turned(card, given.reset),
        "masks": _turned_masks(card, given.masks),
    }
    last = [_like(leaf) for leaf in inputs["start"]]
    sequences = [_like(leaf, time) for leaf in inputs["start"][: None if save else 1]]

    def body(inputs, outputs, products, columns, rows):
        place, everyone = card.at(columns, rows), card.at(columns, slice(None))
        sequences, last = outputs

        def one(t, state):
            # Loaded before the product but used after it, to hide the latency of the loads.
            drives = [load(inputs["drive"].at[t, gate, *place]) for gate in range(gates)]
            reset = [load(leaf.at[place]) for leaf in inputs["reset"]]
            now = step.now(
                _masks(card, inputs["masks"], t, columns, rows), tile, resets=bool(reset)
            )
            before, hidden = step.before(state, reset, now)
            product = None
            if products is not None:
                products.share([hidden])
                product = products.multiply(apart=True)
            # Loaded from the cache in every step, because registers are scarce.
            weights = [load(leaf.at[everyone]) for leaf in inputs["weights"]]
            after = step.after(weights, drives, product, before, now)
            for out, value in zip(sequences, after, strict=False):
                store(out.at[(t, *place)], value)
            return after

        state = [load(leaf.at[place]) for leaf in inputs["start"]]
        state = lax.fori_loop(0, time, one, state)
        for out, value in zip(last, state, strict=True):
            store(out.at[place], value)

    sequences, last = _call(body, card, operand, 1, inputs, (sequences, last), interpret)
    return _turned(card, sequences), _turned(card, last)


def backward(
    given: BackwardInputs,
    *,
    step: Step,
    resets: bool,
    unroll: int = 1,
    card: Card = HOPPER,
    interpret: bool = False,
) -> tuple[list[Array], list[Array], list[Array], list[Array]]:
    """Computes the gradients of all steps; see `jaxrnn.backends.loop.backward`."""
    gates, time, tile = len(step.gate.names), len(given.d_outputs), card.at(UNITS, EXAMPLES)
    counts = [gates, len(step.gate.separate)][: len(given.arguments)]
    step = step._replace(simplify=simple)
    operand = None
    if given.kernel is not None:  # [G, H, H]: gate, input unit, output unit
        operand = given.kernel.reshape(gates, -1, given.kernel.shape[-1]).transpose(0, 2, 1)
    inputs = {
        "weights": [_for_examples(card, leaf) for leaf in given.weights],
        "arguments": [_by_gate(card, z, n) for z, n in zip(given.arguments, counts, strict=True)],
        "before": _turned(card, given.before),
        "d_outputs": card.turned(given.d_outputs),
        "d_state": _turned(card, given.d_state),
        "masks": _turned_masks(card, given.masks),
    }
    one_each = [_like(leaf) for leaf in inputs["d_state"]]
    outputs = (
        one_each[:1] * len(given.weights),
        [_like(leaf) for leaf in inputs["arguments"]],
        one_each,
        one_each if resets else [],
    )

    def body(inputs, outputs, products, columns, rows):
        place, everyone = card.at(columns, rows), card.at(columns, slice(None))
        d_weights, d_arguments, d_start, d_reset = outputs

        def moment(t):
            """Loads the inputs of a step."""
            arguments = [
                [load(z.at[t, gate, *place]) for gate in range(count)]
                for z, count in zip(inputs["arguments"], counts, strict=True)
            ]
            before = [load(leaf.at[(t, *place)]) for leaf in inputs["before"]]
            return arguments, before, load(inputs["d_outputs"].at[(t, *place)])

        def one(done, carry):
            (d_hidden, *others), sums, (arguments, before, d_output) = carry
            t = time - 1 - done
            weights = [load(leaf.at[everyone]) for leaf in inputs["weights"]]
            now = step.now(_masks(card, inputs["masks"], t, columns, rows), tile, resets=resets)
            now_weights, now_arguments, d_before = step.gradient(
                weights, arguments, before, [d_hidden + d_output, *others], now
            )
            for out, values in zip(d_arguments, now_arguments, strict=True):
                for gate, value in enumerate(values):
                    store(out.at[t, gate, *place], value)
            if products is not None:
                products.share(step.of_products(now_arguments))
            # The inputs of this step are no longer needed, and the product hides the latency of
            # loading the next ones.
            ahead = moment(lax.max(t - 1, 0))
            d_hidden = None
            if products is not None:
                (d_hidden,) = products.multiply(apart=False)
            d_before, now_reset = step.before_reset(d_before, d_hidden, now)
            sums = [a + b for a, b in zip(sums, [*now_weights, *now_reset], strict=True)]
            return d_before, sums, ahead

        d_state = [load(leaf.at[place]) for leaf in inputs["d_state"]]
        sums = [jnp.zeros(tile, jnp.float32)] * (len(d_weights) + len(d_reset))
        carry = d_state, sums, moment(time - 1)
        d_state, sums, _ = lax.fori_loop(0, time, one, carry)
        for out, value in zip([*d_start, *d_weights, *d_reset], [*d_state, *sums], strict=True):
            store(out.at[place], value)

    d_weights, d_arguments, d_start, d_reset = _call(
        body, card, operand, gates, inputs, outputs, interpret
    )
    return (
        [card.turned(leaf).sum(0) for leaf in d_weights],
        [_by_example(card, leaf) for leaf in d_arguments],
        _turned(card, d_start),
        _turned(card, d_reset),
    )


def _call(body, card, operand, factors, inputs, outputs, interpret):
    """Calls a kernel on every block of examples.

    Args:
        body: A function of `(inputs, outputs, products, columns, rows)`: trees of references to the
            arrays of all examples, the products of `card` or None, and the slices of the units and
            examples of this warpgroup.
        card: The GPU.
        operand: The matrices `[G, H, H]` of `products`, or None.
        factors: The number of tiles that `products` multiplies at a time.
        inputs: Arrays whose last two axes are ordered as in `card.at`.
        outputs: The shapes of the outputs.
        interpret: Whether to interpret the kernel, on any platform.
    """
    units, examples = card.at(*jax.tree.leaves(outputs)[0].shape[-2:])
    room, halves = None, []
    if operand is not None:
        halves = parts(operand)
        room = card.room(len(operand), units, len(halves), factors)
    operands, structure = jax.tree.flatten((inputs, halves))
    shapes, output_structure = jax.tree.flatten(outputs)

    def kernel(*references):
        # Runs have different parameters, such as those of several seeds.
        run = lax.axis_index(RUN)
        inputs, halves = structure.unflatten(references[: len(operands)])
        inputs = jax.tree.map(lambda each: each.at[run], inputs)
        outputs = [each.at[run] for each in references[len(operands) :]]
        outputs = output_structure.unflatten(outputs)
        columns = pl.ds(lax.axis_index(WARPGROUP) * UNITS, UNITS)
        rows = pl.ds(lax.axis_index(BLOCK) * EXAMPLES, EXAMPLES)

        def scoped(**scratch):
            products = room and room.products(run, halves, scratch, interpret=interpret)
            body(inputs, outputs, products, columns, rows)

        scratch = room.scratch() if room else {}
        pl.run_scoped(scoped, collective_axes=WARPGROUP, **scratch)

    @jax.custom_batching.custom_vmap
    def call(*operands):
        """Runs the kernel on arrays with a leading axis of runs."""
        runs, manual_axis_type = len(operands[0]), jax.typeof(operands[0]).manual_axis_type
        # Copies into shared memory support only this many axes.
        inputs, halves = structure.unflatten(operands)
        halves = [half.reshape(-1, *half.shape[2:]) for half in halves]
        mesh = plgpu.Mesh(
            grid=(runs, examples // EXAMPLES),
            grid_names=(RUN, BLOCK),
            num_threads=units // UNITS,
            thread_name=WARPGROUP,
        )
        params = plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Warpgroup)
        return pl.kernel(
            kernel,
            tuple(
                jax.ShapeDtypeStruct(
                    (runs, *each.shape), each.dtype, manual_axis_type=manual_axis_type
                )
                for each in shapes
            ),
            mesh=mesh,
            interpret=_interpreted() if interpret else False,
            compiler_params=params,
        )(*jax.tree.leaves((inputs, halves)))

    @call.def_vmap
    def _(size, batched, *operands):
        """Turns the axis of a `vmap` into more runs."""
        operands = [
            each if is_batched else jnp.broadcast_to(each, (size, *each.shape))
            for each, is_batched in zip(operands, batched, strict=True)
        ]
        results = call(*(each.reshape(-1, *each.shape[2:]) for each in operands))
        results = tuple(each.reshape(size, -1, *each.shape[1:]) for each in results)
        return results, (True,) * len(results)

    results = call(*(each[None] for each in operands))
    return output_structure.unflatten([each[0] for each in results])


def _interpreted() -> Any:
    return plgpu.InterpretGPUParams()  # pyright: ignore[reportAttributeAccessIssue]


def _masks(card: Card, masks: Masks, t, columns, rows) -> Masks:
    """Loads the mask tiles of a step."""
    place = card.at(columns, rows)
    flags = None if masks.flags is None else load(masks.flags.at[(t, *card.at(slice(None), rows))])
    dropout = None if masks.dropout is None else load(masks.dropout.at[(t, *place)])
    return Masks(flags, dropout, [load(leaf.at[(t, *place)]) for leaf in masks.zoneout])


def _turned(card: Card, arrays) -> list[Array]:
    """Applies `card.turned` to each array."""
    return [card.turned(each) for each in arrays]


def _by_gate(card: Card, x, gates):
    """Splits an array `[T, N, G·H]` into gates, `[T, G, N, H]`, and applies `card.turned`."""
    return card.turned(jnp.moveaxis(x.reshape(*x.shape[:-1], gates, -1), -2, -3))


def _by_example(card: Card, x):
    """Inverts `_by_gate`."""
    x = jnp.moveaxis(card.turned(x), -3, -2)
    return x.reshape(*x.shape[:-2], -1)


def _turned_masks(card: Card, masks: Masks) -> Masks:
    """Applies `card.turned` to the masks."""
    # The flags are repeated for every unit of a warpgroup, because a load returns whole tiles.
    flags, dropout = masks.flags, masks.dropout
    if flags is not None:
        flags = card.turned(jnp.broadcast_to(flags, (*flags.shape[:2], UNITS)))
    dropout = None if dropout is None else card.turned(dropout)
    return Masks(flags, dropout, _turned(card, masks.zoneout))


def _for_examples(card: Card, leaf):
    """Broadcasts a parameter `[H]` to the examples of a tile."""
    return card.turned(jnp.broadcast_to(leaf, (EXAMPLES, len(leaf))))


def _like(leaf, *leading):
    """Returns the shape of an output like `leaf`, with additional leading axes."""
    return jax.ShapeDtypeStruct((*leading, *leaf.shape), leaf.dtype)


def simple(function: Callable) -> Callable:
    """Rewrites a function of tiles without the primitives that Mosaic GPU does not support."""

    def run(*arguments):
        flat, structure = jax.tree.flatten(arguments)
        closed, shapes = jax.make_jaxpr(
            lambda *flat: function(*structure.unflatten(flat)), return_shape=True
        )(*flat)
        results = _evaluate(closed.jaxpr, closed.consts, flat)
        return jax.tree.structure(shapes).unflatten(results)

    return run


def _evaluate(jaxpr, consts, arguments):
    """Evaluates a jaxpr, replacing the primitives that Mosaic GPU does not support."""
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *arguments], strict=True))

    def read(variable):
        return variable.val if isinstance(variable, Literal) else values[variable]

    for equation in jaxpr.eqns:
        given, name = [read(variable) for variable in equation.invars], equation.primitive.name
        shape = equation.outvars[0].aval.shape
        if name in CALL_PRIMITIVES:
            inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
            made = _evaluate(inner.jaxpr, inner.consts, given)
        elif name == "add_any":
            made = [given[0] + given[1]]
        elif name in IDENTITY_PRIMITIVES and jnp.shape(given[0]) == shape:
            made = given
        elif name == "integer_pow" and equation.params["y"] < -1:  # the derivative of a quotient
            made = [1 / given[0] ** -equation.params["y"]]
        elif name == "broadcast_in_dim" and jnp.ndim(given[0]) == 0:
            made = [jnp.full(shape, given[0], equation.outvars[0].aval.dtype)]
        elif name == "convert_element_type" and not isinstance(given[0], Tracer):
            made = [np.asarray(given[0], equation.params["new_dtype"])[()]]
        else:
            made = equation.primitive.bind(*given, **equation.params)
            made = made if equation.primitive.multiple_results else [made]
        values.update(zip(equation.outvars, made, strict=True))
    return [read(variable) for variable in jaxpr.outvars]

"""The forward and backward kernels for NVIDIA's Hopper GPUs, written in Pallas Mosaic GPU.

A thread block runs all steps of 16 examples, and each of its warpgroups computes 64 units. Arrays
are transposed, with units before examples. The dimension of 64 of a `wgmma` instruction then runs
over units, so that a block may have few examples and many blocks share the work. The recurrent
kernel stays in shared memory and the state in registers. The warpgroups exchange the operands of
the products through shared memory.

A float32 product is a sum of three products of bfloat16 operands, high·high, high·low and low·high,
where an operand is the sum of a high and a low half. This is more precise than TF32. If the low
halves of the recurrent kernel do not fit into shared memory, they are read from the L2 cache in
every step.

Shapes: N examples, T time, H hidden units, G gates, W warpgroups.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.extend.core import Literal
from jaxtyping import Array

from jaxrnn.backends.elementwise import (
    CALLS,
    EXAMPLES,
    SAME,
    BackwardInputs,
    ForwardInputs,
    Masks,
    Step,
)

UNITS = 64  # per warpgroup
TILE = UNITS, EXAMPLES
SHARED_BYTES = 232_448 - 2048  # shared memory of a block, minus that used by the compiler
# The axes of a kernel. In `jax.shard_map`, a mesh axis of the same name would shadow them.
RUN, BLOCK, WARPGROUP = "jaxrnn_run", "jaxrnn_block", "jaxrnn_warpgroup"
# Values of `jax_default_matmul_precision` that three products of bfloat16 operands satisfy.
PRECISIONS = {
    *(None, "default", "fastest", "high"),
    *("bfloat16", "bfloat16_3x", "BF16_BF16_F32", "BF16_BF16_F32_X3"),
    *("tensorfloat32", "TF32_TF32_F32"),
}
MOST_WARPGROUPS = 8  # per block, which may have 1,024 threads


def fits(given: ForwardInputs | BackwardInputs, step: Step) -> bool:
    """Whether the GPU has `wgmma`, the block fits, and the products are precise enough."""
    if not _is_hopper():
        return False
    if given.kernel is None:
        return True
    units = min(given.kernel.shape)
    asked = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
    bfloat16 = given.kernel.dtype == jnp.bfloat16
    gates = len(step.gate.names)
    factors = gates if isinstance(given, BackwardInputs) else 1
    room = _Room(gates, units, 1 if bfloat16 else 2, factors)
    return room.enough and (bfloat16 or asked in PRECISIONS)


def _is_hopper() -> bool:
    """Whether all attached GPUs have `wgmma`. True if no GPU is attached."""
    try:
        devices = jax.devices("cuda")
    except RuntimeError:
        return True
    return all(str(device.compute_capability).startswith("9.") for device in devices)


def forward(
    given: ForwardInputs, *, step: Step, save: bool, unroll: int = 1, interpret: bool = False
) -> tuple[list[Array], list[Array]]:
    """Runs all steps; see `jaxrnn.backends.loop.forward`."""
    gates, time = len(step.gate.names), len(given.drive)
    step = step._replace(simplify=simple)
    operand = None
    if given.kernel is not None:  # [G, H, H]: gate, output unit, input unit
        operand = given.kernel.reshape(len(given.kernel), gates, -1).transpose(1, 2, 0)
    inputs = {
        "weights": [_for_examples(leaf) for leaf in given.weights],
        "drive": _turned(given.drive, gates),
        "start": _turned(given.start),
        "reset": _turned(given.reset),
        "masks": _turned_masks(given.masks),
    }
    last = [_like(leaf) for leaf in inputs["start"]]
    sequences = [_like(leaf, time) for leaf in inputs["start"][: None if save else 1]]

    def body(inputs, outputs, products, columns, rows):
        sequences, last = outputs

        def one(t, state):
            # Loaded before the product but used after it, to hide the latency of the loads.
            drives = [_load(inputs["drive"].at[t, gate, columns, rows]) for gate in range(gates)]
            reset = [_load(leaf.at[columns, rows]) for leaf in inputs["reset"]]
            now = step.now(_masks(inputs["masks"], t, columns, rows), TILE, resets=bool(reset))
            before, hidden = step.before(state, reset, now)
            product = None
            if products is not None:
                products.share([hidden])
                product = products.multiply(apart=True)
            # Loaded from the cache in every step, because registers are scarce.
            weights = [_load(leaf.at[columns, :]) for leaf in inputs["weights"]]
            after = step.after(weights, drives, product, before, now)
            for out, value in zip(sequences, after, strict=False):
                _store(out.at[t, columns, rows], value)
            return after

        state = [_load(leaf.at[columns, rows]) for leaf in inputs["start"]]
        state = lax.fori_loop(0, time, one, state)
        for out, value in zip(last, state, strict=True):
            _store(out.at[columns, rows], value)

    sequences, last = _call(body, operand, 1, inputs, (sequences, last), interpret)
    return [jnp.swapaxes(leaf, 1, 2) for leaf in sequences], [leaf.T for leaf in last]


def backward(
    given: BackwardInputs, *, step: Step, resets: bool, unroll: int = 1, interpret: bool = False
) -> tuple[list[Array], list[Array], list[Array], list[Array]]:
    """Computes the gradients of all steps; see `jaxrnn.backends.loop.backward`."""
    gates, time = len(step.gate.names), len(given.d_outputs)
    counts = [gates, len(step.gate.separate)][: len(given.arguments)]
    step = step._replace(simplify=simple)
    operand = None
    if given.kernel is not None:  # [G, H, H]: gate, input unit, output unit
        operand = given.kernel.reshape(gates, -1, given.kernel.shape[-1]).transpose(0, 2, 1)
    inputs = {
        "weights": [_for_examples(leaf) for leaf in given.weights],
        "arguments": [_turned(z, count) for z, count in zip(given.arguments, counts, strict=True)],
        "before": _turned(given.before),
        "d_outputs": jnp.swapaxes(given.d_outputs, 1, 2),
        "d_state": _turned(given.d_state),
        "masks": _turned_masks(given.masks),
    }
    one_each = [_like(leaf) for leaf in inputs["d_state"]]
    outputs = (
        one_each[:1] * len(given.weights),
        [_like(leaf) for leaf in inputs["arguments"]],
        one_each,
        one_each if resets else [],
    )

    def body(inputs, outputs, products, columns, rows):
        d_weights, d_arguments, d_start, d_reset = outputs

        def moment(t):
            """Loads the inputs of a step."""
            arguments = [
                [_load(z.at[t, gate, columns, rows]) for gate in range(count)]
                for z, count in zip(inputs["arguments"], counts, strict=True)
            ]
            before = [_load(leaf.at[t, columns, rows]) for leaf in inputs["before"]]
            return arguments, before, _load(inputs["d_outputs"].at[t, columns, rows])

        def one(done, carry):
            (d_hidden, *others), sums, (arguments, before, d_output) = carry
            t = time - 1 - done
            weights = [_load(leaf.at[columns, :]) for leaf in inputs["weights"]]
            now = step.now(_masks(inputs["masks"], t, columns, rows), TILE, resets=resets)
            now_weights, now_arguments, d_before = step.gradient(
                weights, arguments, before, [d_hidden + d_output, *others], now
            )
            for out, values in zip(d_arguments, now_arguments, strict=True):
                for gate, value in enumerate(values):
                    _store(out.at[t, gate, columns, rows], value)
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

        d_state = [_load(leaf.at[columns, rows]) for leaf in inputs["d_state"]]
        sums = [jnp.zeros(TILE, jnp.float32)] * (len(d_weights) + len(d_reset))
        carry = d_state, sums, moment(time - 1)
        d_state, sums, _ = lax.fori_loop(0, time, one, carry)
        for out, value in zip([*d_start, *d_weights, *d_reset], [*d_state, *sums], strict=True):
            _store(out.at[columns, rows], value)

    d_weights, d_arguments, d_start, d_reset = _call(
        body, operand, gates, inputs, outputs, interpret
    )
    return (
        [leaf.sum(1) for leaf in d_weights],
        [_turned_back(leaf) for leaf in d_arguments],
        [leaf.T for leaf in d_start],
        [leaf.T for leaf in d_reset],
    )


def _call(body, operand, factors, inputs, outputs, interpret):
    """Calls a kernel on every block of examples.

    Args:
        body: A function of `(inputs, outputs, products, columns, rows)`: trees of references to the
            arrays of all examples, a `_Products` or None, and the slices of the units and examples
            of this warpgroup.
        operand: The matrices `[G, H, H]` of `products`, or None.
        factors: The number of tiles that `products` multiplies at a time.
        inputs: Arrays whose last two axes are units and examples.
        outputs: The shapes of the outputs.
        interpret: Whether to interpret the kernel, on any platform.
    """
    units, examples = jax.tree.leaves(outputs)[0].shape[-2:]
    room, halves = None, []
    if operand is not None:
        halves = _parts(operand)
        room = _Room(len(operand), units, len(halves), factors)
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
            products = _Products(room, run, halves, scratch) if room else None
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


class _Room(NamedTuple):
    """The shared memory of the products.

    Attributes:
        gates: G, the number of gates.
        units: H, rounded up to whole warpgroups.
        halves: 2 for operands in float32, 1 for operands in bfloat16.
        factors: The number of tiles that are multiplied at a time, 1 or G.
    """

    gates: int
    units: int
    halves: int
    factors: int

    @property
    def warpgroups(self) -> int:
        return self.units // UNITS

    def bytes(self, streamed: bool) -> int:
        """Returns the bytes, given whether the low half of the kernel is streamed."""
        matrix = 2 * self.units**2
        kept = self.gates * (self.halves - streamed) * matrix
        return kept + 2 * streamed * matrix + 2 * self.halves * self.factors * self.units * EXAMPLES

    @property
    def streamed(self) -> bool:
        """Whether the low half of the kernel is read from global memory in every step."""
        return self.halves == 2 and self.bytes(streamed=False) > SHARED_BYTES

    @property
    def enough(self) -> bool:
        """Whether the products fit into one block."""
        fits = self.bytes(self.streamed) <= SHARED_BYTES
        return fits and self.warpgroups <= MOST_WARPGROUPS

    def scratch(self) -> dict[str, Any]:
        """Returns the scratch memory and barriers of `_Products`."""
        kernel = plgpu.SMEM((self.warpgroups * self.gates, UNITS, self.units), jnp.bfloat16)
        factor = plgpu.SMEM((self.factors * self.warpgroups, *TILE), jnp.bfloat16)
        scratch = {
            "kernels": [kernel] * (self.halves - self.streamed),
            "exchanged": [factor] * self.halves,
            "loaded": plgpu.Barrier(num_arrivals=self.halves - self.streamed),
            "ready": plgpu.Barrier(num_arrivals=self.warpgroups),
        }
        if self.streamed:
            slots = 2 * self.warpgroups
            scratch["slots"] = plgpu.SMEM((slots, UNITS, self.units), jnp.bfloat16)
            scratch["filled"] = plgpu.Barrier(num_barriers=slots)
        return scratch


class _Products:
    """Products with the recurrent kernel, computed by all warpgroups of a block together.

    Args:
        room: The sizes of the products.
        run: The index of the run.
        halves: The halves of the kernels of all runs in global memory, `[runs·W·G, 64, H]`.
        scratch: The scratch memory of `_Room.scratch`.
    """

    def __init__(self, room: _Room, run: Any, halves: Sequence[Any], scratch: dict[str, Any]):
        self.room, self.halves, self.scratch = room, halves, scratch
        self.me = lax.axis_index(WARPGROUP)
        count = room.warpgroups * room.gates
        self.first = run * count

        @pl.when(self.me == 0)
        def _():
            for half, kernel in zip(halves, scratch["kernels"], strict=False):
                mine = half.at[pl.ds(self.first, count)]
                plgpu.copy_gmem_to_smem(mine, kernel, scratch["loaded"])

        plgpu.barrier_wait(scratch["loaded"])

    def share(self, factors: Sequence[Array]) -> None:
        """Shares the operand tiles of this warpgroup with all warpgroups of the block.

        Args:
            factors: One tile for all gates, or one tile per gate.
        """
        room = self.room
        for index, factor in enumerate(factors):
            halves = _halves(factor, room.halves)
            for shared, half in zip(self.scratch["exchanged"], halves, strict=True):
                shared[index * room.warpgroups + self.me] = half
        plgpu.commit_smem()
        if room.streamed:
            for gate in range(min(2, room.gates)):
                self._fetch(gate)
        self._meet()

    def multiply(self, *, apart: bool) -> list[Array]:
        """Returns the products for the units of this warpgroup, one per gate or their sum."""
        room, kernels = self.room, self.scratch["kernels"]
        pairs = [(0, 0), (0, 1), (1, 0)] if room.halves == 2 else [(0, 0)]

        def add(gate, total, index):
            for half, other in pairs:
                if half < len(kernels):
                    kernel = kernels[half].at[self.me * room.gates + gate]
                    self._add(total, kernel, self.scratch["exchanged"][other], index)

        def body(*totals):
            for step in [add, self._add_streamed] if room.streamed else [add]:
                if apart:
                    for gate in range(room.gates):
                        step(gate, totals[gate], 0)
                else:  # unrolled, it would need more registers than there are
                    _repeat(room.gates, partial(step, total=totals[0]))
            plgpu.wgmma_wait(0)
            return [total[...] for total in totals]

        count = room.gates if apart else 1
        result = pl.run_scoped(body, *[plgpu.WGMMAAccumulatorRef(TILE, jnp.float32)] * count)
        self._meet()  # before anyone shares the next tiles
        return result

    def _meet(self):
        """Waits until all warpgroups of the block have arrived."""
        plgpu.barrier_arrive(self.scratch["ready"])
        plgpu.barrier_wait(self.scratch["ready"])

    def _add(self, total, kernel, factors, index):
        """Adds the product with the block of a gate for the units of this warpgroup."""
        for each in range(self.room.warpgroups):
            columns = pl.ds(each * UNITS, UNITS)
            factor = factors.at[index * self.room.warpgroups + each]
            plgpu.wgmma(total, kernel.at[:, columns], factor)

    def _fetch(self, gate):
        """Starts to copy the low half of a gate's block from global to shared memory."""
        slot = 2 * self.me + lax.rem(gate, 2)
        source = self.halves[1].at[self.first + self.me * self.room.gates + gate]
        filled = self.scratch["filled"].at[slot]
        plgpu.copy_gmem_to_smem(source, self.scratch["slots"].at[slot], filled)

    def _add_streamed(self, gate, total, index):
        """Adds the product with the low half of a gate's block, and fetches a later block."""
        slot = 2 * self.me + lax.rem(gate, 2)
        plgpu.barrier_wait(self.scratch["filled"].at[slot])
        self._add(total, self.scratch["slots"].at[slot], self.scratch["exchanged"][0], index)
        plgpu.wgmma_wait(0)

        @pl.when(gate + 2 < self.room.gates)
        def _():
            self._fetch(gate + 2)


def _parts(operand: Array) -> list[Array]:
    """Splits an operand `[G, H, H]` into halves, with one block per warpgroup, `[W·G, 64, H]`."""
    gates, units, _ = operand.shape
    parts = operand.reshape(gates, -1, UNITS, units).transpose(1, 0, 2, 3)
    parts = parts.reshape(-1, UNITS, units)
    if operand.dtype == jnp.bfloat16:
        return [parts]
    # XLA would remove a conversion to bfloat16 and back.
    high = lax.reduce_precision(parts, exponent_bits=8, mantissa_bits=7)
    return [high.astype(jnp.bfloat16), (parts - high).astype(jnp.bfloat16)]


def _halves(x: Array, count: int) -> list[Array]:
    """Rounds a float32 tile to bfloat16, or splits it into a sum of two bfloat16 tiles."""
    high = x.astype(jnp.bfloat16)
    return [high] if count == 1 else [high, (x - high.astype(x.dtype)).astype(jnp.bfloat16)]


def _interpreted() -> Any:
    return plgpu.InterpretGPUParams()  # pyright: ignore[reportAttributeAccessIssue]


def _repeat(count: int, function: Callable) -> None:
    """Calls `function(index, index=index)` in a loop that is not unrolled."""
    lax.fori_loop(0, count, lambda index, _: function(index, index=index), None)


def _load(reference):
    """Loads a tile into registers."""
    # There is no optimized load of a float32 tile. Before JAX 0.11 the index is an argument.
    index = [()] if jax.__version_info__ < (0, 11) else []
    tile = plgpu.load(reference, *index, optimized=False)
    # Under `jax.shard_map`, the type of a loaded tile varies over the mesh. The type of a result
    # computed from it does not, and loops and pullbacks reject this mismatch. The factor 1 gives
    # the tile the type of a result. The compiler removes the factor.
    return tile * jnp.ones((), tile.dtype)


def _store(reference, value):
    """Stores a tile."""
    # The 16 examples of a tile are half a cache line, for which there is no optimized store. Before
    # JAX 0.12 a plain store was accepted.
    if hasattr(plgpu, "store"):
        plgpu.store(  # pyright: ignore[reportAttributeAccessIssue]
            reference, value, optimized=False
        )
    else:
        reference[...] = value


def _masks(masks: Masks, t, columns, rows) -> Masks:
    """Loads the mask tiles of a step."""
    flags = None if masks.flags is None else _load(masks.flags.at[t, :, rows])
    dropout = None if masks.dropout is None else _load(masks.dropout.at[t, columns, rows])
    return Masks(flags, dropout, [_load(leaf.at[t, columns, rows]) for leaf in masks.zoneout])


def _turned(x, gates=None) -> Any:
    """Transposes arrays `[…, N, H]` to `[…, H, N]`, or one `[…, N, G·H]` to `[…, G, H, N]`."""
    if gates is None:
        return jax.tree.map(lambda leaf: jnp.swapaxes(leaf, -1, -2), list(x))
    return jnp.moveaxis(x.reshape(*x.shape[:-1], gates, -1), -3, -1)


def _turned_back(x):
    """Transposes an array `[T, G, H, N]` to `[T, N, G·H]`."""
    x = jnp.moveaxis(x, -1, 1)
    return x.reshape(*x.shape[:2], -1)


def _turned_masks(masks: Masks) -> Masks:
    """Transposes the masks `[T, N, …]` to `[T, …, N]`."""
    # The flags are repeated for every unit of a warpgroup, because a load returns whole tiles.
    flags, dropout = masks.flags, masks.dropout
    if flags is not None:
        flags = jnp.broadcast_to(flags.swapaxes(1, 2), (len(flags), UNITS, flags.shape[1]))
    dropout = None if dropout is None else jnp.swapaxes(dropout, 1, 2)
    return Masks(flags, dropout, _turned(masks.zoneout))


def _for_examples(leaf):
    """Broadcasts a parameter `[H]` to the examples of a tile."""
    return jnp.broadcast_to(leaf[:, None], (len(leaf), EXAMPLES))


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
        if name in CALLS:
            inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
            made = _evaluate(inner.jaxpr, inner.consts, given)
        elif name == "add_any":
            made = [given[0] + given[1]]
        elif name in SAME and jnp.shape(given[0]) == shape:
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

"""The forward and backward kernels for TPUs.

The grid is (blocks of examples, steps), and the steps of a block run one after the other. The
recurrent kernel and the state stay in VMEM. The inputs of a step are fetched during the previous
step.

Shapes: N examples, T time, H hidden units, G gates, S separate gates.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from jaxrnn.backends.elementwise import (
    EXAMPLES,
    UNITS,
    BackwardInputs,
    ForwardInputs,
    Step,
    split,
    tiles,
)
from jaxrnn.cell import product

# The VMEM for the arrays of a step, besides the recurrent kernel.
STEP_BYTES = 2**23
# More examples per block do not increase the utilization of the matrix unit.
MOST_EXAMPLES = 256
# A v5e or v6e has 128 MiB of VMEM and a v7x has 64 MiB. The compiler's default limit is lower.
VMEM_BYTES = 60 * 2**20


def forward(
    given: ForwardInputs, *, step: Step, save: bool, unroll: int = 1, interpret: bool = False
) -> tuple[list[Array], list[Array]]:
    """Runs all steps; see `jaxrnn.backends.loop.forward`."""
    time, last, gates = len(given.drive), given.start, len(step.gate.names)
    sequences = [_like(leaf, time) for leaf in (last if save else last[:1])]

    def kernel(given, outputs, scratch):
        sequences, last = outputs

        @pl.when(pl.program_id(1) == 0)
        def _():
            _write(scratch, _read(given.start))

        state = _read(scratch)
        now = step.now(_read(given.masks), state[0].shape, resets=bool(given.reset))
        before, hidden = step.before(state, _read(given.reset), now)
        products = None
        if given.kernel is not None:
            products = split(_product(hidden, given.kernel[...]), gates)
        weights, drives = tiles(_read(given.weights), hidden), split(given.drive[...], gates)
        after = step.after(weights, drives, products, before, now)
        _write(scratch, after)
        _write(sequences, after[: len(sequences)])

        @pl.when(pl.program_id(1) == time - 1)
        def _():
            _write(last, after)

    kinds = ("whole", "whole", "timed", "block", "block", "timed")
    outputs = sequences, [_like(leaf) for leaf in last]
    return _call(
        kernel,
        given,
        kinds,
        outputs,
        ("timed", "block"),
        last,
        time=time,
        reverse=False,
        interpret=interpret,
    )


def backward(
    given: BackwardInputs, *, step: Step, resets: bool, unroll: int = 1, interpret: bool = False
) -> tuple[list[Array], list[Array], list[Array], list[Array]]:
    """Computes the gradients of all steps; see `jaxrnn.backends.loop.backward`."""
    time = len(given.d_outputs)

    def kernel(given, outputs, scratch):
        d_weights, d_arguments, d_start, d_reset = outputs
        d_state, sums = scratch[: len(given.d_state)], scratch[len(given.d_state) :]

        @pl.when(pl.program_id(1) == 0)
        def _():
            _write(d_state, _read(given.d_state))
            _write(sums, [jnp.zeros(ref.shape, ref.dtype) for ref in sums])

        d_hidden, *others = _read(d_state)
        now = step.now(_read(given.masks), d_hidden.shape, resets=resets)
        now_weights, now_arguments, d_before = step.gradient(
            tiles(_read(given.weights), d_hidden),
            step.split(_read(given.arguments)),
            _read(given.before),
            [d_hidden + given.d_outputs[...], *others],
            now,
        )
        _write(d_arguments, [jnp.concatenate(d, axis=-1) for d in now_arguments])
        d_hidden = None
        if given.kernel is not None:
            d_products = jnp.concatenate(step.of_products(now_arguments), axis=-1)
            d_hidden = _product(d_products, given.kernel[...])
        d_before, now_reset = step.before_reset(d_before, d_hidden, now)
        _write(d_state, d_before)
        for total, added in zip(sums, [*now_weights, *now_reset], strict=True):
            total[...] += added

        @pl.when(pl.program_id(1) == time - 1)
        def _():
            _write([*d_weights, *d_reset], _read(sums))
            _write(d_start, d_before)

    kinds = ("whole", "whole", "timed", "timed", "timed", "block", "timed")
    blocks = [_like(leaf) for leaf in given.d_state]
    per_example = blocks[:1] * len(given.weights)
    outputs = per_example, [_like(z) for z in given.arguments], blocks, blocks if resets else []
    d_weights, *others = _call(
        kernel,
        given,
        kinds,
        outputs,
        ("block", "timed", "block", "block"),
        [*given.d_state, *per_example, *(blocks if resets else [])],
        time=time,
        reverse=True,
        interpret=interpret,
    )
    return [leaf.sum(0) for leaf in d_weights], *others


def _call(kernel, given, kinds, outputs, output_kinds, scratch, *, time, reverse, interpret):
    """Calls a kernel on all blocks of examples and all steps.

    Args:
        kernel: A function of `(inputs, outputs, scratch)`, each a tree of references.
        given: The inputs of the kernel.
        kinds: One string per field of `given`: "whole" for an array that every block reads
            completely, "block" for arrays `[N, …]`, "timed" for arrays `[T, N, …]`.
        outputs: The shapes of the outputs.
        output_kinds: One string per output, "block" or "timed".
        scratch: Arrays `[N, H]` with the shapes and dtypes of the scratch memory.
        time: T, the number of steps.
        reverse: Whether the kernel runs from the last step to the first.
        interpret: Whether to interpret the kernel.
    """
    as_given = type(given)
    given = given._replace(weights=[leaf[None] for leaf in given.weights])
    block = _block(given, kinds, outputs, output_kinds, scratch)

    def spec(kind, leaf):
        if kind == "whole":
            # The block is the same in every step, so a single buffer suffices.
            return pl.BlockSpec(leaf.shape, lambda n, t: (0, 0), pipeline_mode=pl.Buffered(1))
        if kind == "block":
            return pl.BlockSpec((block, leaf.shape[-1]), lambda n, t: (n, 0))
        moment = (lambda t: time - 1 - t) if reverse else (lambda t: t)
        return pl.BlockSpec((None, block, leaf.shape[-1]), lambda n, t: (moment(t), n, 0))

    def specs(kinds, trees):
        return [
            jax.tree.map(partial(spec, kind), tree) for kind, tree in zip(kinds, trees, strict=True)
        ]

    call = pl.pallas_call(
        lambda given, *rest: kernel(as_given(*given), rest[:-1], rest[-1]),
        out_shape=list(outputs),
        grid=(scratch[0].shape[0] // block, time),
        in_specs=[specs(kinds, given)],
        out_specs=specs(output_kinds, outputs),
        scratch_shapes=[[pltpu.VMEM((block, leaf.shape[-1]), leaf.dtype) for leaf in scratch]],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=VMEM_BYTES
        ),
        interpret=interpret,
    )
    return call(list(given))


def _block(given, kinds, outputs, output_kinds, scratch):
    """Returns the number of examples in a block, the largest that is useful and fits into VMEM."""
    trees = zip((*kinds, *output_kinds), (*given, *outputs), strict=True)
    leaves = [leaf for kind, tree in trees if kind != "whole" for leaf in jax.tree.leaves(tree)]
    # Two buffers of 4 bytes per value. An array narrower than a tile occupies a whole tile.
    bytes_each = sum(8 * max(leaf.shape[-1], UNITS) for leaf in leaves)
    bytes_each += sum(4 * leaf.shape[-1] for leaf in scratch)
    examples = scratch[0].shape[0]
    most = max(EXAMPLES, min(MOST_EXAMPLES, STEP_BYTES // bytes_each))
    return next(n for n in range(most, 0, -1) if n % EXAMPLES == 0 and examples % n == 0)


def _like(leaf, *leading):
    """Returns the shape of an output like `leaf`, with additional leading axes."""
    return jax.ShapeDtypeStruct(
        (*leading, *leaf.shape), leaf.dtype, manual_axis_type=jax.typeof(leaf).manual_axis_type
    )


def _product(x: Array, kernel: Array) -> Array:
    """Computes `jaxrnn.product` in default or highest precision; a TPU kernel supports no other."""
    asked = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
    exact = kernel.dtype == jnp.float32 and asked not in (None, "default", "fastest", "bfloat16")
    with jax.default_matmul_precision("highest" if exact else "default"):
        return product(x, kernel)


def _read(references: Any) -> Any:
    return jax.tree.map(lambda ref: ref[...], references)


def _write(references: Sequence[Any], values: Sequence[Array]) -> None:
    for ref, value in zip(references, values, strict=True):
        ref[...] = value

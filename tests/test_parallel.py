"""Linear recurrences, in log₂ T rounds on accelerators and step by step on a CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import jit
from random_variables import random_variables

import jaxrnn
from jaxrnn.backends import parallel
from jaxrnn.linen import RNN

T, B, H = 13, 3, 4


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.complex128])
def test_rounds_and_turns_give_the_same_states_and_gradients(dtype):
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(0), 3)
        a, b, weights = (jax.random.normal(key, (T, B, H), dtype) for key in keys)
        state, expected = np.zeros((B, H), dtype), []
        for now in range(T):
            state = np.asarray(a)[now] * state + np.asarray(b)[now]
            expected.append(state)

        def total(states):
            return lambda a, b: (states(a, b) * weights).sum().real

        ways = [
            lambda a, b, way=way: way(a, b, None) for way in (parallel._at_once, parallel._in_turn)
        ]
        ways.append(parallel.states_of)
        states, gradients = jit(
            lambda a, b: (
                [way(a, b) for way in ways],
                [jax.grad(total(way), (0, 1))(a, b) for way in ways],
            )
        )(a, b)
        for each in states:
            np.testing.assert_allclose(each, expected, rtol=1e-10)
        for one, *others in zip(*gradients, strict=True):
            for other in others:
                np.testing.assert_allclose(other, one, rtol=1e-10, atol=1e-10)


def test_a_decay_of_all_examples_and_steps_under_vmap():
    """With two sets of parameters, whose decays [H] are not repeated for every example."""
    cell = jaxrnn.lru(H)
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(0), 2)
        inputs = jax.random.normal(keys[0], (B, T, 2))
        start = jax.tree.map(
            lambda leaf: leaf + 0.5,
            cell.initial_state(cell.init(keys[0], 2, jnp.float64), (B,)),
        )

        def loss(params, start, implementation):
            outputs, state = jaxrnn.unroll(
                cell, params, inputs, initial_state=start, implementation=implementation
            )
            return sum(jnp.sin(leaf).sum() for leaf in (outputs, *state))

        @jit
        def gradients():
            params = jax.vmap(lambda key: cell.init(key, 2, jnp.float64))(keys)
            gradient = jax.vmap(jax.grad(loss, (0, 1)), (0, None, None))
            return gradient(params, start, "parallel"), gradient(params, start, "scan")

        for one, other in zip(*map(jax.tree.leaves, gradients()), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)


def test_a_decay_of_all_examples_is_not_repeated():
    params = jax.eval_shape(lambda: jaxrnn.lru(H).init(jax.random.key(0), 2))

    def shapes(**options):
        cell = jaxrnn.lru.__wrapped__(H)  # another object than that of programs in JAX's caches
        found = []

        def states_of(a, b, resets=None):
            found.append((a.shape, b.shape))
            return b

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(parallel, "states_of", states_of)
            run = lambda params: jaxrnn.unroll(cell, params, jnp.ones((B, T, 2)), **options)  # noqa: E731
            jax.eval_shape(run, params)
        return found

    assert shapes() == [((T, 1, H), (T, B, H))]
    assert shapes(lengths=jnp.ones(B, int)) == [((T, B, H), (T, B, H))]


def test_products_in_bfloat16_and_a_learned_initial_state():
    cell, inputs = jaxrnn.s5(H), jnp.ones((B, T, 2))
    layers = [
        RNN(cell, dtype=jnp.bfloat16, learn_initial_state=True, implementation=implementation)
        for implementation in ("parallel", "scan")
    ]
    variables = random_variables(layers[0], inputs)
    outputs, gradients = zip(
        *jit(
            lambda variables: [
                (
                    layer.apply(variables, inputs),
                    jax.grad(lambda v, layer=layer: layer.apply(v, inputs).sum())(variables),
                )
                for layer in layers
            ]
        )(variables),
        strict=True,
    )
    np.testing.assert_allclose(*outputs, rtol=0.02, atol=0.02)
    for one, other in zip(*map(jax.tree.leaves, gradients), strict=True):
        np.testing.assert_allclose(one, other, rtol=0.05, atol=0.05 * float(abs(other).max()))


@pytest.mark.parametrize("time", [T, 600])
@pytest.mark.parametrize(("platform", "loops"), [("cpu", True), ("tpu", False), ("cuda", False)])
def test_an_accelerator_gets_no_loop_over_time(platform, loops, time):
    cell = jaxrnn.min_gru(H)
    params = cell.init(jax.random.key(0), 2)
    run = jax.jit(lambda inputs: jaxrnn.unroll(cell, params, inputs)[0])
    exported = jax.export.export(run, platforms=[platform])(jnp.zeros((B, time, 2)))
    assert ("stablehlo.while" in exported.mlir_module()) == loops


@pytest.mark.parametrize("time", [T, 600])
def test_the_rounds_are_lowered_once(time):
    """Forward and reversed in time, of both layers: lowering them again would take longest."""
    cell = jaxrnn.lru(H)

    def loss(params, inputs):
        outputs, _ = jaxrnn.unroll(cell, params, inputs)
        return jaxrnn.unroll(cell, params, outputs)[0].sum()

    shapes = jax.eval_shape(lambda: (cell.init(jax.random.key(0), H), jnp.ones((B, time, H))))
    lowered = jit(jax.grad(loss)).trace(*shapes).lower(lowering_platforms=("cuda",)).as_text()
    assert lowered.count("func.func private @_at_once") == 1
    assert lowered.count("call @_at_once") == 4


def test_a_long_sequence_on_a_cpu_goes_in_blocks_to_the_same_gradient():
    cell = jaxrnn.lru(16)
    params = jit(lambda: cell.init(jax.random.key(0), 16))()
    inputs = np.random.default_rng(0).normal(size=(10, 230, 16)).astype(np.float32)

    def loss(params, memory):
        return (jaxrnn.unroll(cell, params, inputs, memory=memory)[0] ** 2).mean()

    chosen, saved = (
        jax.jit(jax.value_and_grad(loss), static_argnums=1).lower(params, memory).compile()
        for memory in (None, "save")
    )
    # The peak is determined by the residuals of 10 x 230 steps. A block keeps only one state.
    sizes = [one.memory_analysis().temp_size_in_bytes for one in (chosen, saved)]
    assert sizes[0] < 0.7 * sizes[1]
    for one, other in zip(
        jax.tree.leaves(chosen(params)), jax.tree.leaves(saved(params)), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=2e-3, atol=1e-6)

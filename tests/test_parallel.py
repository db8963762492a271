"""Linear recurrences, in log₂ T rounds on accelerators and step by step on a CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import jit

import jaxrnn
from jaxrnn.backends import parallel

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


@pytest.mark.parametrize("time", [T, 600])
@pytest.mark.parametrize(("platform", "loops"), [("cpu", True), ("tpu", False), ("cuda", False)])
def test_an_accelerator_gets_no_loop_over_time(platform, loops, time):
    cell = jaxrnn.min_gru(H)
    params = cell.init(jax.random.key(0), 2)
    run = jax.jit(lambda inputs: jaxrnn.unroll(cell, params, inputs)[0])
    exported = jax.export.export(run, platforms=[platform])(jnp.zeros((B, time, 2)))
    assert ("stablehlo.while" in exported.mlir_module()) == loops


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

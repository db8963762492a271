"""cuDNN's LSTM without a GPU: the layout of its weights and the code around the call."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import jit
from jax.experimental import rnn

import jaxrnn
from jaxrnn.backends import cudnn
from jaxrnn.backends.cudnn import pack

T, I, H = 7, 3, 4  # noqa: E741
CELL = jaxrnn.lstm(H)


def reference(inputs, hidden, cell, weights, lengths, input_size, hidden_size, *rest):
    """Computes `jax.experimental.rnn.lstm` by the reference implementation of JAX."""
    layers, _, bidirectional = rest
    unpacked = rnn.unpack_lstm_weights(weights, input_size, hidden_size, layers, bidirectional)
    with jax.numpy_rank_promotion("allow"):
        return rnn.lstm_ref(
            inputs, hidden, cell, *unpacked, lengths, input_size, hidden_size, *rest
        )


@pytest.fixture
def without_gpu(monkeypatch):
    """Makes implementation="cudnn" run without a GPU, by the reference implementation."""
    on_cuda = functools.partial(cudnn._run_on_cuda, lstm=reference)
    monkeypatch.setattr(cudnn, "_has_gpu", lambda: True)
    monkeypatch.setattr(cudnn, "_run_on_cuda", on_cuda)
    monkeypatch.setattr(cudnn, "run", lambda cell, *arguments, **_: on_cuda(*arguments))
    yield
    jax.clear_caches()  # which contain programs with the replacement


def problem(batch):
    random = np.random.default_rng(0)
    normal = lambda leaf: jnp.asarray(random.normal(size=leaf.shape), jnp.float32)  # noqa: E731
    params = jax.eval_shape(lambda: CELL.init(jax.random.key(0), I))
    state = jax.eval_shape(lambda params: CELL.initial_state(params, batch), params)
    inputs = jax.ShapeDtypeStruct((*batch, T, I), jnp.float32)
    return jax.tree.map(normal, (params, inputs, state))


def everything(params, inputs, state, implementations, **options):
    """Computes outputs, final state and gradients of a linear function by each implementation."""

    def each(implementation, params, inputs, state):
        def run(params, inputs, state):
            return jaxrnn.unroll(
                CELL,
                params,
                inputs,
                initial_state=state,
                implementation=implementation,
                **options,
            )

        result, pull = jax.vjp(run, params, inputs, state)
        random = np.random.default_rng(1)
        weights = lambda leaf: jnp.asarray(random.normal(size=leaf.shape), jnp.float32)  # noqa: E731
        return result, pull(jax.tree.map(weights, result))

    return jit(lambda *floats: [each(name, *floats) for name in implementations])(
        params, inputs, state
    )


def assert_close(actual, expected, tolerance=1e-5):
    compare = functools.partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance)
    jax.tree.map(compare, actual, expected)


def test_pack_is_the_layout_of_cudnn():
    params = problem(())[0]
    kernels, recurrent_kernels, biases, second_biases = rnn.unpack_lstm_weights(
        pack(params), I, H, 1, False
    )
    np.testing.assert_array_equal(kernels[0], params.kernel.T)
    np.testing.assert_array_equal(recurrent_kernels[0], params.recurrent_kernel.T)
    np.testing.assert_array_equal(biases[0] + second_biases[0], params.bias)
    assert pack(params).shape == (rnn.get_num_params_in_lstm(I, H, 1, False),)


@pytest.mark.usefixtures("without_gpu")
@pytest.mark.parametrize(
    ("batch", "options"),
    [
        ((), {}),
        ((4,), {"lengths": [0, 1, 5, T], "memory": "recompute"}),
        ((2, 3), {"lengths": [[0, T, 2], [1, 6, 0]], "reverse": True}),
    ],
)
def test_equals_the_scan(batch, options):
    if "lengths" in options:
        options = {**options, "lengths": jnp.array(options["lengths"])}
    arguments = problem(batch)
    assert_close(*everything(*arguments, ["cudnn", "scan"], **options))


@pytest.mark.usefixtures("without_gpu")
def test_an_empty_row_gives_back_its_state():
    arguments = problem((2,))
    lengths = jnp.zeros(2, jnp.int32)
    (((outputs, state), _),) = everything(*arguments, ["cudnn"], lengths=lengths)
    np.testing.assert_array_equal(outputs, 0)
    jax.tree.map(np.testing.assert_array_equal, state, arguments[2])


@pytest.mark.parametrize(
    ("cell", "dtype", "resets", "reason"),
    [
        (jaxrnn.gru(H), jnp.float32, False, "cell must be jaxrnn.lstm with default options"),
        (jaxrnn.rnn(H), jnp.float32, False, "cell must be jaxrnn.lstm"),
        (jaxrnn.lstm(H, peephole=True), jnp.float32, False, "cell must be jaxrnn.lstm"),
        (jaxrnn.lstm(H, projection_size=2), jnp.float32, False, "cell must be jaxrnn.lstm"),
        (jaxrnn.lstm(H, cell_clip=1.0), jnp.float32, False, "cell must be jaxrnn.lstm"),
        (jaxrnn.lstm(H, activation=jax.nn.relu), jnp.float32, False, "cell must be jaxrnn.lstm"),
        (CELL, jnp.bfloat16, False, "params must be float32, got bfloat16"),
        (CELL, jnp.float64, False, "params must be float32, got float64"),
        (CELL, jnp.float32, True, "resets must be None"),
    ],
)
def test_says_what_it_cannot_compute(cell, dtype, resets, reason):
    with jax.enable_x64(dtype == jnp.float64):
        params = jax.eval_shape(lambda: cell.init(jax.random.key(0), I, dtype))
        params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), params)
        resets = jnp.zeros((2, T), bool) if resets else None
        with pytest.raises(ValueError, match=f"implementation 'cudnn' cannot .*: {reason}"):
            jaxrnn.unroll(
                cell, params, jnp.zeros((2, T, I), dtype), resets=resets, implementation="cudnn"
            )


@pytest.mark.skipif(cudnn._has_gpu(), reason="there is a GPU")
def test_says_that_there_is_no_gpu():
    params, inputs, _ = problem((2,))
    with pytest.raises(ValueError, match="there is no NVIDIA GPU"):
        jaxrnn.unroll(CELL, params, inputs, implementation="cudnn")


def test_the_platform_of_lowering_decides(monkeypatch):
    on_cuda = functools.partial(cudnn._run_on_cuda, lstm=reference)
    monkeypatch.setattr(cudnn, "_has_gpu", lambda: True)
    monkeypatch.setattr(
        cudnn, "_run_on_cuda", lambda *given: jax.tree.map(jnp.sin, on_cuda(*given))
    )
    params, inputs, _ = problem((2,))
    run = jax.jit(
        lambda name: jaxrnn.unroll(CELL, params, inputs, implementation=name), static_argnums=0
    )
    text = {
        platform: jax.export.export(run, platforms=[platform])("cudnn").mlir_module()
        for platform in ("cpu", "cuda")
    }
    assert ["stablehlo.sine" in text[platform] for platform in ("cpu", "cuda")] == [False, True]
    assert_close(run("cudnn"), run("fused"))
    jax.clear_caches()  # which contain programs with the reference


@pytest.mark.skipif(
    jax.default_backend() != "gpu", reason="no GPU: cuDNN itself has not been run by this test"
)
@pytest.mark.parametrize("lengths", [None, [0, 1, 5, T]])
def test_cudnn_itself_equals_the_scan(lengths):
    arguments = problem((4,))
    options = {} if lengths is None else {"lengths": jnp.array(lengths)}
    with jax.default_matmul_precision("highest"):
        actual, expected = everything(*arguments, ["cudnn", "scan"], **options)
    assert_close(actual, expected, 1e-3)  # cuDNN may round to TF32

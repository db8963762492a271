"""The Pallas kernels, interpreted, against "scan"; their refusals and their default.

`tests/accelerators` compiles them. test_fused tests the same backend as XLA loops.
"""

import functools
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from all_cells import CELLS as LIBRARY
from jax import jit
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from test_fused import slow_cell

import jaxrnn
from jaxrnn import backends
from jaxrnn.backends import BACKENDS, blocks, elementwise, pallas
from jaxrnn.backends.pallas import gpu, products, tpu
from jaxrnn.backends.pallas.products import HOPPER
from jaxrnn.backends.steps import Steps
from jaxrnn.training import train

B, T, I, H = 3, 4, 3, 4  # noqa: E741
CELLS = {name: cell for name, cell in LIBRARY.items() if cell.gate is not None}
CELLS["user-gated"] = slow_cell(H)
# Too little shared memory for the recurrent kernel, so that a part is read from the L2 cache.
MMA = products.Card(wgmma=False, kibibytes=60)
KERNELS = {"tpu": (tpu, {}), "gpu": (gpu, {}), "gpu-mma": (gpu, {"card": MMA})}
# Each takes seconds to compile. The other cells differ only in their gates.
QUICK = [("tpu", "lstm-peephole"), ("tpu", "user-gated"), ("tpu", "indrnn"), ("gpu", "gru")]
QUICK += [("gpu-mma", "rnn")]
OTHERS = products.card_of("8.0") and True  # whether Pallas has `mma`
INTERPRETED = {name: name == "tpu" or jax.__version_info__ >= (0, 11) for name in KERNELS}


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    """Registers backends under the names in `KERNELS`, whose kernels are interpreted on a CPU."""
    for name, (module, options) in KERNELS.items():
        monkeypatch.setitem(BACKENDS, name, pallas.with_kernels(module, interpret=True, **options))


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def normal_like(tree, seed):
    leaves, structure = jax.tree.flatten(tree)
    return structure.unflatten(
        [normal(*leaf.shape, seed=seed + n) for n, leaf in enumerate(leaves)]
    )


def problem(cell, batch=(B,)):
    """Returns nonzero parameters, inputs, initial state and reset state."""
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), I))
    state = jax.eval_shape(lambda params: cell.initial_state(params, batch), params)
    params = jax.tree.map(lambda leaf: 0.7 * leaf, normal_like(params, 10))
    return params, normal(*batch, T, I), normal_like(state, 20), normal_like(state, 30)


def everything(cell, implementation, given, **options):
    """Computes outputs, final state and all gradients of a random linear function of both."""

    def run(params, inputs, state, reset_state):
        return jaxrnn.unroll(
            cell,
            params,
            inputs,
            initial_state=state,
            reset_state=reset_state,
            implementation=implementation,
            **options,
        )

    result, pull = jax.vjp(run, *given)
    return result, pull(normal_like(result, 40))


def assert_close(actual, expected, tolerance):
    def one(a, b):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * max(1, abs(b).max()))

    jax.tree.map(one, actual, expected)


@pytest.mark.parametrize(
    ("kernels", "name"),
    [
        pytest.param(
            kernels,
            name,
            marks=() if (kernels, name) in QUICK else pytest.mark.slow,
            id=f"{kernels}-{name}",
        )
        for kernels in KERNELS
        for name in CELLS
    ],
)
def test_interpreted_kernels_are_the_scan(kernels, name):
    if not INTERPRETED[kernels]:
        pytest.skip(f"JAX {jax.__version__} does not interpret these kernels, 0.11 does")
    cell = CELLS[name]
    recurrent_dropout = None if name in ("indrnn", "unicornn") else 0.3
    options = {
        "lengths": jnp.array([T, 0, 2]),
        "resets": jnp.array([[0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0]], bool),
        "regularizer": jaxrnn.Regularizer(
            zoneout=0.2, recurrent_dropout=recurrent_dropout, tied=False
        ),
        "key": jax.random.key(1),
    }
    given = problem(cell)
    scan, own = (
        jit(functools.partial(everything, cell, each, **options))(given)
        for each in ("scan", kernels)
    )
    # A float32 product of the GPU kernels is a sum of three products of bfloat16 halves.
    assert_close(own, scan, 1e-5 if kernels == "tpu" else 1e-4)


def test_more_tiles_of_units_and_examples():
    cell, given = jaxrnn.rnn(130), problem(jaxrnn.rnn(130), (3, 7))
    options = {"reverse": True, "memory": "recompute"}
    scan, own = (
        jit(functools.partial(everything, cell, each, **options))(given) for each in ("scan", "tpu")
    )
    assert_close(own, scan, 3e-5)


@pytest.mark.parametrize("kernels", ["tpu", "gpu"])  # the card changes only the products
def test_vmap_over_parameters_makes_runs(kernels):
    if not INTERPRETED[kernels]:
        pytest.skip(f"JAX {jax.__version__} does not interpret these kernels, 0.11 does")
    cell = jaxrnn.rnn(H)
    params, *others = problem(cell)
    params = jax.tree.map(lambda leaf: jnp.stack([leaf, -leaf]), params)

    def gradients(implementation):
        run = functools.partial(everything, cell, implementation)
        return jit(jax.vmap(lambda params: run((params, *others))))(params)

    assert_close(gradients(kernels), gradients("scan"), 1e-4)


def test_second_derivatives_are_those_of_the_scan():
    """No kernel can be differentiated, and every platform traces the kernels of all platforms."""
    cell = CELLS["rnn"]
    params, inputs, *states = problem(cell)
    options = {"lengths": jnp.array([T, 0, 2]), "resets": jnp.eye(B, T, 1) > 0}

    def derivatives(implementation):
        def gradient(*given):
            return everything(cell, implementation, (*given, *states), **options)[1][:2]

        return jax.vjp(gradient, params, inputs)[1](normal_like((params, inputs), 50))

    pallas, scan = jit(lambda: (derivatives("pallas"), derivatives("scan")))()
    assert_close(pallas, scan, 1e-4)


def test_what_is_added_to_fill_a_tile_meets_no_other_values():
    """The gate is infinite at zero, so a tile must not be padded with zeros."""

    def gate(params, z, state):
        return jaxrnn.RNNState(jnp.tanh(jnp.log(jnp.square(z.a)) / state.hidden))

    def init(key, input_size, dtype=jnp.float32):
        kernels = jaxrnn.initializers.kernels(key, input_size, H, H, gates=1, dtype=dtype)
        return jaxrnn.RNNParams(*kernels, jnp.ones(H, dtype))

    cell = jaxrnn.gated(gate, "a", init, jaxrnn.rnn(H).initial_state)
    given = problem(cell)
    scan, own = (jit(functools.partial(everything, cell, each))(given) for each in ("scan", "tpu"))
    assert np.isfinite(scan[0][0]).all()
    assert_close(own, scan, 1e-3)


def test_high_and_low_halves_give_a_float32_product():
    """As XLA does for "high". A single bfloat16 product has a relative error of 1e-3."""
    high, low = products.parts(normal(1, 64, 64))
    whole = high.astype(jnp.float32) + low.astype(jnp.float32)
    np.testing.assert_allclose(whole, normal(1, 64, 64), rtol=2e-5)
    assert abs(low).max() > 1e-4


@pytest.mark.parametrize(
    ("hidden_size", "capability", "precision", "expected"),
    [
        (128, "9.0", None, HOPPER),
        (128, "9.0", "tensorfloat32", HOPPER),
        (128, "9.0", "highest", None),
        (128, "9.0", "F32_F32_F32", None),
        (256, "9.0", None, None),
        (128, "8.0", None, OTHERS and products.Card(wgmma=False, kibibytes=163)),
        (128, "8.9", None, OTHERS and products.Card(wgmma=False, kibibytes=99)),
        (128, "8.0", "highest", None),
        (256, "8.0", None, None),
        (128, "7.5", None, None),
        (128, "12.0", None, None),
        (128, "gfx90a", None, None),
    ],
)
def test_where_a_gpu_takes_the_kernels(monkeypatch, hidden_size, capability, precision, expected):
    device = types.SimpleNamespace(
        platform="gpu", device_kind="a GPU", compute_capability=capability
    )
    monkeypatch.setattr(gpu, "get_default_device", lambda: device)
    monkeypatch.setattr(jax, "devices", lambda platform=None: [device])
    kernel = jax.ShapeDtypeStruct((hidden_size, 4 * hidden_size), jnp.float32)
    given = elementwise.ForwardInputs(kernel, *[()] * 5)
    step = elementwise.Step(CELLS["lstm"].gate, None, None)
    with jax.default_matmul_precision(precision):
        assert gpu.card_for(given, step) == expected


@pytest.mark.parametrize(
    ("default", "attached", "expected"),
    [
        (None, [], HOPPER),
        (None, ["9.0"], HOPPER),
        (None, ["8.0"], None),  # Mosaic GPU compiles for Hopper if the default device is a CPU
        ("9.0", ["9.0", "8.0"], None),
    ],
)
def test_a_gpu_that_mosaic_does_not_compile_for_has_no_kernels(
    monkeypatch, default, attached, expected
):
    def device(capability):
        return types.SimpleNamespace(
            platform="gpu", device_kind="a GPU", compute_capability=capability
        )

    def devices(platform):
        if not attached:
            raise RuntimeError
        return [device(each) for each in attached]

    if default:
        monkeypatch.setattr(gpu, "get_default_device", lambda: device(default))
    monkeypatch.setattr(jax, "devices", devices)
    assert gpu._compiled_for() == expected


def mixing(params, z, state):
    return jaxrnn.RNNState(jnp.tanh(z.a - z.a.mean(-1, keepdims=True)))


TABLE = np.linspace(0, 1, H, dtype=np.float32)


def closing_over(params, z, state):
    return jaxrnn.RNNState(z.a * jnp.broadcast_to(jnp.asarray(TABLE), z.a.shape))


ONE = jnp.ones(())


def closing_over_a_number(params, z, state):
    return jaxrnn.RNNState(z.a * ONE)


def of_a_shape(params, z, state):
    return jaxrnn.RNNState(z.a / z.a.shape[-1])


@jax.custom_jvp
def mixed_backwards(x):
    return jnp.tanh(x)


@mixed_backwards.defjvp
def _(x, dx):
    return jnp.tanh(*x), dx[0] - dx[0].mean(-1, keepdims=True)


def with_peepholes(gate):
    lstm = jaxrnn.lstm(H, peephole=True)
    return jaxrnn.gated(gate, "i f g o", lstm.init, lstm.initial_state)


def twice_a_peephole(params, z, state):
    first = (2 * params.peephole[:1])[0]
    return jaxrnn.LSTMState(jnp.tanh(z.i + jnp.broadcast_to(first, z.i.shape)), state.cell)


def user_cell(gate):
    rnn = jaxrnn.rnn(H)
    return jaxrnn.gated(gate, "a", rnn.init, rnn.initial_state)


@pytest.mark.parametrize(
    ("cell", "dtype", "words"),
    [
        (jaxrnn.mgu(H), jnp.float32, "cell must be made by jaxrnn.gated"),
        (jaxrnn.lstm(H), jnp.bfloat16, "params must be float32"),
        (jaxrnn.lstm(2000), jnp.float32, "recurrent_kernel must have at most 32 MiB, got 64"),
        (user_cell(mixing), jnp.float32, "must consist of known elementwise operations"),
        (user_cell(closing_over), jnp.float32, r"gate fails on arrays.*\[4\].*units"),
        (user_cell(closing_over_a_number), jnp.float32, "gate must not close over an array"),
        (user_cell(of_a_shape), jnp.float32, "must consist of known elementwise operations"),
        (
            user_cell(lambda params, z, state: jaxrnn.RNNState(mixed_backwards(z.a))),
            jnp.float32,
            "must consist of known elementwise operations",
        ),
        (with_peepholes(twice_a_peephole), jnp.float32, "gate fails on arrays"),
    ],
    ids=[
        *("step", "bfloat16", "large", "mixes", "closes over", "closes over a number"),
        *("takes a shape", "mixes backwards", "multiplies parts"),
    ],
)
def test_what_it_cannot_compute_is_refused(cell, dtype, words):
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), I, dtype))
    inputs = jax.ShapeDtypeStruct((B, T, I), dtype)
    run = functools.partial(jaxrnn.unroll, cell, implementation="pallas")
    with pytest.raises(ValueError, match=f"'pallas' cannot compute this.*{words}"):
        jax.eval_shape(run, params, inputs)


def test_the_gates_of_the_library_are_elementwise_also_under_a_mesh():
    """Autodiff adds reshapes there that do not change the shape."""
    cell = CELLS["lstm-peephole"]
    params, _, state, _ = problem(cell)
    gate = cell.gate._replace(function=lambda *given: cell.gate.function(*given))  # in no cache
    found = []

    def run(x):
        weights = jaxrnn.cell.elementwise(params)
        found.append(elementwise.refusal(gate, weights, state, in_kernels=True))
        return x

    mesh = Mesh(np.array(jax.devices()[:1]), ("batch",))
    jit(jax.shard_map(run, mesh=mesh, in_specs=P(), out_specs=P())).trace(jnp.ones(1))
    assert found == [None]


def test_products_in_float64_are_refused():
    params, inputs, *_ = problem(CELLS["lstm"])
    options = {"dtype": jnp.float64, "implementation": "pallas"}
    with jax.enable_x64(True), pytest.raises(ValueError, match="have at most 32 bits"):
        jaxrnn.unroll(CELLS["lstm"], params, inputs, **options)


def softplus(params, z, state):
    return jaxrnn.RNNState(jnp.tanh(state.hidden * jax.nn.softplus(z.a)))


def test_a_function_that_no_kernel_has_runs_in_a_loop():
    cell = user_cell(softplus)
    given = problem(cell)
    scan, own = (
        jit(functools.partial(everything, cell, each))(given) for each in ("scan", "states")
    )
    assert_close(own, scan, 1e-5)
    with pytest.raises(ValueError, match=r"'pallas' cannot compute this.*operations, got log1p"):
        everything(cell, "pallas", given)


@pytest.mark.parametrize(
    ("backend", "time", "memory"),
    [
        ("fused", 784, "recompute"),
        ("states", 784, "save"),
        ("pallas", 784, "save"),
        ("pallas", 10_000, "recompute"),
    ],
)
def test_the_default_memory_of_a_long_sequence(backend, time, memory):
    params = jax.eval_shape(lambda: jaxrnn.lstm(128).init(jax.random.key(0), 1))
    inputs = jnp.zeros((time, 100, 1))
    assert blocks.choose_memory(backend, None, None, params, inputs) == memory


@pytest.fixture
def attached(monkeypatch):
    """Sets the apparent number of attached devices of each platform."""

    def attach(**platforms):
        monkeypatch.setattr(backends, "_attached", lambda platform: platforms.get(platform, 0))

    return attach


def chosen(cell, dtype=jnp.float32):
    """Returns the default backends by platform."""
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), I, dtype))
    state = jax.eval_shape(lambda params: cell.initial_state(params, (B,)), params)
    steps = Steps(jax.ShapeDtypeStruct((T, B, I), dtype), None, None)
    return backends.choose(cell, params, state, steps, None, None)


def test_the_default_on_an_attached_accelerator(attached):
    assert chosen(jaxrnn.lstm(H)) == {"default": "fused"}
    assert chosen(jaxrnn.indrnn(H)) == {"default": "fused", "cpu": "states"}
    attached(cuda=8)
    assert chosen(jaxrnn.lstm(H)) == {"default": "fused", "cuda": "states"}
    assert chosen(jaxrnn.gru(H)) == {"default": "fused", "cpu": "scan", "cuda": "states"}
    attached(tpu=1)
    assert chosen(jaxrnn.lstm(H)) == {"default": "fused", "tpu": "pallas"}
    assert chosen(jaxrnn.lstm(H), jnp.bfloat16) == {"default": "fused", "tpu": "states"}
    assert chosen(user_cell(mixing)) == {"default": "fused"}
    assert chosen(jaxrnn.mgu(H)) == {"default": "scan"}
    assert chosen(jaxrnn.min_gru(H)) == {"default": "parallel"}


def test_steps_per_iteration_on_an_attached_gpu(attached):
    cell = jaxrnn.lstm(H)
    params = cell.init(jax.random.key(0), I)

    def iterated(**options):
        run = lambda x: jaxrnn.unroll(cell, params, x, implementation="states", **options)  # noqa: E731
        return set(re.findall(r"unroll=(\d+)", str(jax.make_jaxpr(run)(jnp.ones((B, T, I))))))

    assert iterated() == {"1"}
    attached(cuda=1)
    assert (iterated(), iterated(unroll=1), iterated(unroll=2)) == ({"4"}, {"1"}, {"2"})


def test_kernels_only_where_the_compiler_need_not_divide_them(attached):
    attached(tpu=4)
    assert chosen(jaxrnn.lstm(H))["tpu"] == "states"
    found = []
    run = lambda x: found.append(chosen(jaxrnn.lstm(H))["tpu"]) or x  # noqa: E731
    for axes in (("batch",), ("batch", "run")):
        mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("batch", "run"))
        jit(jax.shard_map(run, mesh=mesh, in_specs=P(), out_specs=P(), axis_names={*axes})).trace(
            jnp.ones(1)
        )
    assert found == ["states", "pallas"]


def test_a_program_lowered_for_a_tpu_has_the_kernel(attached):
    attached(tpu=1)
    cell = jaxrnn.lstm(H + 1)  # a cell that no other test has traced
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), I))
    run = jit(lambda params, inputs: jaxrnn.unroll(cell, params, inputs)[0])
    traced = run.trace(params, jax.ShapeDtypeStruct((B, T, I), jnp.float32))
    counts = [
        traced.lower(lowering_platforms=(platform,)).as_text().count("tpu_custom_call")
        for platform in ("tpu", "cpu")
    ]
    assert counts == [1, 0]


def test_the_axes_of_a_kernel_have_names_of_their_own():
    """Under `jax.shard_map`, an axis index is that of the device if the mesh has its name."""
    assert not {gpu.RUN, gpu.BLOCK, products.WARPGROUP} & {train.RUN, train.BATCH}

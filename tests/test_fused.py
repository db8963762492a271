"""Compares the backends with "scan" in float64: outputs, final states and all gradients."""

import contextlib
import functools
import itertools
import re
from typing import Any, NamedTuple

import all_cells
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from jax import jit
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads, check_jvp, check_vjp

import jaxrnn
from jaxrnn.backends.blocks import BLOCK

T, H = BLOCK + 3, 4  # one block and a remainder
NARROW, WIDE = 3, 6  # inputs narrower than the state share one product with it


@pytest.fixture(autouse=True, scope="module")
def x64():
    with jax.enable_x64(True):
        yield


class SlowParams(NamedTuple):
    kernel: Any
    recurrent_kernel: Any
    bias: Any
    rates: dict


class SlowState(NamedTuple):
    hidden: Any
    slow: Any
    slower: Any


def slow_cell(size):
    """A user-defined gated cell with three leaves of state and a tree of rates."""

    def init(key, input_size, dtype=jnp.float32):
        zeros = functools.partial(jnp.zeros, dtype=dtype)
        rates = {"slow": zeros(size), "slower": zeros(size)}
        kernels = zeros((input_size, 2 * size)), zeros((size, 2 * size))
        return SlowParams(*kernels, zeros(2 * size), rates)

    def initial_state(params, batch_shape=()):
        zero = lambda: jnp.zeros((*batch_shape, size), params.bias.dtype)  # noqa: E731
        return SlowState(zero(), zero(), zero())

    def gate(params, z, product, state):
        rates = jax.tree.map(lambda rate: jnp.broadcast_to(rate, state.hidden.shape), params.rates)
        slow = rates["slow"] * state.slow + jnp.sin(z.a * product.b)
        slower = rates["slower"] * state.slower + slow * state.hidden
        return SlowState(jnp.tanh(slower + z.b * product.a), slow, slower)

    return jaxrnn.gated(gate, ("a", "b"), init, initial_state, separate="a b")


CELLS = all_cells.CELLS | {"user-gated": slow_cell(H)}
# One of each kind: with a gate, with a step, and a linear recurrence.
OF_A_KIND = ("lstm-peephole", "mgu", "lru")
# Those whose gradient differs from another's in nothing but the gate's formula, of which autodiff
# makes the gate's part; and those with a step, which have nothing but "scan".
ALIKE = ["rnn-relu", "rnn-sigmoid", "lstm", "lstm-projection", "lstm-clip", "lstm-softsign"]
ALIKE += ["lstm-layer-norm", "gru-before", "min-gru", "lru-pairs", "s5-square"]
ALIKE += [f"odyssey-{name}" for name in ("V", "NIG", "NOG", "NIAF", "NOAF", "CIFG", "NP", "FGR")]


class Problem(NamedTuple):
    params: Any
    inputs: jax.Array
    state: Any
    masks: dict


def normal(shape, *seed):
    return np.random.default_rng(seed).normal(size=shape)


def normal_like(tree, *seed):
    leaves, treedef = jax.tree.flatten(tree)
    return treedef.unflatten([normal(leaf.shape, *seed, i) for i, leaf in enumerate(leaves)])


def problem(cell, batch=(4,), *, input_size=NARROW, time=T, lengths=False, resets=False, seed=0):
    """Returns random nonzero arguments, with 0 and `time` among the lengths."""
    random = np.random.default_rng(seed)
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), input_size, jnp.float64))
    state = jax.eval_shape(lambda params: cell.initial_state(params, batch), params)
    params = jax.tree.map(lambda leaf: 0.7 * leaf, normal_like(params, seed, 1))
    masks = {}
    if lengths:
        values = np.array(random.integers(0, time + 1, batch))
        if values.size > 2:
            values.flat[:2] = 0, time
        masks["lengths"] = values
    if resets:
        masks["resets"] = random.random((*batch, time)) < 0.25
    inputs = normal((*batch, time, input_size), seed, 3)
    given = Problem(params, inputs, normal_like(state, seed, 2), masks)
    return jax.tree.map(jnp.asarray, given)


def run(cell, **options):
    def function(params, inputs, state, masks):
        return jaxrnn.unroll(cell, params, inputs, initial_state=state, **masks, **options)

    return function


def fast(cell):
    """Returns the backend other than "scan", even where "scan" is the default."""
    return "fused" if cell.gate is not None else None


def everything(run, problem):
    """Computes outputs, final state and all gradients of a random linear function of both."""
    result, pull = jax.vjp(lambda *floats: run(*floats, problem.masks), *problem[:3])
    return result, pull(normal_like(result, 4))


def assert_close(actual, expected, tolerance=1e-10):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    compare = functools.partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance)
    jax.tree.map(compare, actual, expected)


def assert_same(problem, reference, *runs):
    """Checks that every run returns the outputs, final state and gradients of the reference."""
    together = jit(lambda problem: [everything(run, problem) for run in (reference, *runs)])
    expected, *actual = together(problem)
    for each in actual:
        assert_close(each, expected)


def curved(run):
    """A nonlinear function of outputs and final state."""

    def function(*arguments, **masks):
        result = run(*arguments, **masks)
        return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(result))

    return function


# "fused" equals "scan"


@pytest.mark.parametrize(
    ("name", "input_size"),
    [
        *(
            pytest.param(name, NARROW, marks=pytest.mark.slow if name in ALIKE else ())
            for name in CELLS
        ),
        *(("lstm-peephole", WIDE), ("gru", WIDE)),
    ],
)
def test_every_gradient_is_that_of_the_scan(name, input_size):
    cell, of_a_kind = CELLS[name], name in (*OF_A_KIND, "user-gated")
    # Neither masks nor blocks know the cell, and each makes a program half as long again. So does a
    # remainder after the blocks.
    given = problem(
        cell,
        input_size=input_size,
        time=2 * BLOCK if name == "user-gated" else T,
        lengths=of_a_kind,
        resets=of_a_kind,
    )
    reverse = input_size == WIDE
    scan = run(cell, implementation="scan", memory="save", reverse=reverse)
    others = []
    if cell.gate is not None or cell.recurrence is not None:  # the default of all others is "scan"
        others.append(run(cell, implementation=fast(cell), reverse=reverse))
    if not others or (of_a_kind and not reverse):
        others.append(run(cell, implementation=fast(cell), memory="recompute"))
    if cell.gate is not None:
        others.append(run(cell, implementation="states", reverse=reverse))
    assert_same(given, scan, *others)


@pytest.mark.parametrize(
    ("name", "batch", "lengths", "resets", "reverse"),
    [
        (name, batch, *masks)
        for masks, name, batch in zip(
            itertools.product([False, True], repeat=3),
            ["lstm-peephole", "slstm", "rnn", "lru", "indrnn", "s5", "gru", "s6"],
            itertools.cycle([(2, 3), (), (5,), ()]),
            strict=False,
        )
    ],
)
def test_masks_and_batch_axes(name, batch, lengths, resets, reverse):
    cell = CELLS[name]
    given = problem(cell, batch, lengths=lengths, resets=resets)
    scan = run(cell, implementation="scan", reverse=reverse)
    assert_same(given, scan, run(cell, implementation=fast(cell), reverse=reverse))


# Every example compiles a program, so a failing example is not shrunk.
@settings(max_examples=3, deadline=None, phases=[Phase.reuse, Phase.generate])
@given(st.data())
def test_drawn_cases(data):
    draw = lambda *values: data.draw(st.sampled_from(values))  # noqa: E731
    cell = CELLS[draw(*CELLS)]
    given = problem(
        cell,
        draw((), (1,), (5,), (2, 3)),
        input_size=draw(1, NARROW, H, WIDE),
        time=data.draw(st.integers(1, 2 * BLOCK + 1)),
        lengths=draw(False, True),
        resets=draw(False, True),
        seed=data.draw(st.integers(0, 2**16)),
    )
    reverse = draw(False, True)
    other = run(
        cell,
        implementation=fast(cell),
        reverse=reverse,
        memory=draw("save", "recompute", "offload"),
        unroll=draw(1, 3),
    )
    assert_same(given, run(cell, implementation="scan", reverse=reverse), other)


@pytest.mark.parametrize(
    ("name", "platform", "backend"),
    [
        ("lstm", "cpu", "fused"),
        ("lstm", "cuda", "fused"),
        ("gru", "cpu", "scan"),
        ("gru", "cuda", "fused"),
        ("mgu", "cuda", "scan"),
    ],
)
def test_the_default_by_the_platform_of_lowering(name, platform, backend):
    cell = CELLS[name]
    given = problem(cell)

    def products(implementation):
        gradient = jit(jax.grad(curved(run(cell, implementation=implementation))))
        lowered = gradient.trace(*given).lower(lowering_platforms=(platform,))
        return re.findall(r"stablehlo.dot_general .* : (.*)", lowered.as_text())

    assert products(None) == products(backend)
    if name != "mgu":
        assert products("scan") != products("fused")


def test_second_derivatives_are_those_of_the_scan():
    cell = CELLS["lstm-peephole"]
    given = problem(cell, (3,), time=4, lengths=True, resets=True)
    direction = normal_like(given[:3], 5)

    def gradient(implementation):
        function = curved(run(cell, implementation=implementation, **given.masks))
        return jax.grad(lambda *args: function(*args, {}), (0, 1, 2))

    @jit
    def derivatives():
        reverse_over_reverse = jax.vjp(gradient("fused"), *given[:3])[1](direction)
        forward_over_reverse = jax.jvp(gradient("fused"), given[:3], direction)[1]
        # Second derivatives are symmetric: both are this.
        return (
            reverse_over_reverse,
            forward_over_reverse,
            jax.jvp(gradient("scan"), given[:3], direction)[1],
        )

    backward, forward, expected = derivatives()
    assert_close(backward, expected)
    assert_close(forward, expected)


def test_numerical_gradients_of_the_scan():
    cell = CELLS["lstm-peephole"]
    given = problem(cell, (3,), time=5, lengths=True, resets=True)
    function = curved(run(cell, implementation="scan"))
    floats, function = given[:3], functools.partial(function, masks=given.masks)
    gradient = jit(jax.value_and_grad(function, (0, 1, 2)))

    def pullback(*arguments):
        value, gradients = gradient(*arguments)
        return value, lambda d_value: jax.tree.map(lambda leaf: d_value * leaf, gradients)

    check_vjp(jit(function), pullback, floats)
    check_jvp(jit(function), jit(functools.partial(jax.jvp, function)), floats)


def products(jaxpr, in_loop=False):
    """Returns the shape of every matrix product, and whether it is inside a loop."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation.outvars[0].aval.shape, in_loop
        for value in jax.tree.leaves(list(equation.params.values())):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from products(inner, in_loop or equation.primitive.name == "scan")


@pytest.mark.parametrize(
    ("name", "input_size", "shapes"),
    [
        ("lstm", NARROW, [(H + NARROW + 1, 4 * H)]),
        ("lstm", WIDE, [(WIDE, 4 * H), (H, 4 * H)]),
        ("gru", NARROW, [(NARROW, 3 * H), (H, 3 * H)]),
    ],
)
def test_the_kernels_gradients_are_one_product_after_the_loops(name, input_size, shapes):
    cell = CELLS[name]
    given = problem(cell, (5,), input_size=input_size)

    def kernel_gradients(implementation):
        gradient = jax.grad(curved(run(cell, implementation=implementation)))
        jaxpr = jax.make_jaxpr(gradient)(*given).jaxpr
        batch = {(5, size) for size in (H, input_size, *(g * H for g in (3, 4)))}
        whole = {(T, *shape) for shape in batch}
        return sorted(
            (shape, in_loop) for shape, in_loop in products(jaxpr) if shape not in batch | whole
        )

    assert kernel_gradients("fused") == sorted((shape, False) for shape in shapes)
    assert all(in_loop for _, in_loop in kernel_gradients("scan"))


# Transformations and options that must not change the result


@pytest.mark.parametrize("time", [BLOCK - 1, BLOCK + 1])
def test_memory_changes_nothing(time):
    cell = CELLS["rnn"]
    given = problem(cell, time=time, lengths=True, resets=True)
    reference = run(cell, implementation="scan", memory="save")
    others = [run(cell, implementation="fused", memory="recompute")]
    if time == BLOCK + 1:
        others.append(run(cell, implementation="scan", memory="recompute"))
        others.append(run(cell, implementation="fused", memory="offload"))
    assert_same(given, reference, *others)


def test_unroll_changes_nothing():
    cell = CELLS["rnn"]
    given = problem(cell, time=5, lengths=True, resets=True)
    runs = [run(cell, implementation="fused", unroll=steps) for steps in (2, 9)]
    scan = run(cell, implementation="scan", unroll=2)
    assert_same(given, run(cell, implementation="scan"), *runs, scan)


def test_chunks_that_carry_the_state_are_the_whole():
    cell = CELLS["gru"]
    whole = run(cell, implementation="fused")

    def chunks(params, inputs, state, masks):
        outputs = []
        for start, end in itertools.pairwise([0, 5, 6, 6, T]):
            lengths = jnp.clip(masks["lengths"] - start, 0, end - start)
            part = inputs[:, start:end]
            output, state = whole(params, part, state, {"lengths": lengths})
            outputs.append(output)
        return jnp.concatenate(outputs, axis=1), state

    assert_same(problem(cell, lengths=True), whole, chunks)


def test_a_row_alone_is_the_row_in_a_batch_and_under_vmap():
    cell = CELLS["gru"]
    whole = run(cell, implementation="fused", reverse=True)

    def alone(params, *arguments):
        row = lambda i: jax.tree.map(lambda leaf: leaf[i], arguments)  # noqa: E731
        parts = [whole(params, *row(i)) for i in range(3)]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts)

    mapped = jax.vmap(whole, in_axes=(None, 0, 0, 0))
    assert_same(problem(cell, (3,), lengths=True, resets=True), whole, alone, mapped)


def test_vmap_over_parameters():
    cell = CELLS["gru"]
    given = [
        problem(cell, (3,), time=BLOCK, lengths=True, resets=True, seed=seed) for seed in range(2)
    ]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *given)
    gradient = jax.grad(curved(run(cell, implementation="fused", memory="recompute")), (0, 1, 2))
    one = jit(gradient)
    expected = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[one(*p) for p in given])
    assert_close(jit(jax.vmap(gradient))(*stacked), expected)


def test_gradient_steps_inside_a_scan():
    cell = CELLS["gru"]
    given = problem(cell, lengths=True, resets=True)

    def train(implementation):
        loss = curved(run(cell, implementation=implementation))

        def step(params, scale):
            value, gradient = jax.value_and_grad(loss)(params, scale * given.inputs, *given[2:])
            return jax.tree.map(lambda p, g: p - 0.01 * g, params, gradient), value

        return jax.lax.scan(step, given.params, jnp.array([0.5, 1.0, 2.0]))

    fused, scan = jit(lambda: (train("fused"), train("scan")))()
    assert_close(fused, scan)


@functools.cache
def unsharded(cell):
    """The reference program for the sharded programs."""
    scan, fused = (run(cell, implementation=name) for name in ("scan", "fused"))
    return jit(lambda *given: (scan(*given), jax.grad(curved(fused), (0, 1))(*given)))


@pytest.mark.parametrize(("check_vma", "state"), [(False, "given"), (True, "default")])
def test_the_batch_sharded_over_devices(check_vma, state):
    devices = jax.devices("cpu")[:2]
    assert len(devices) == 2, "conftest.py asks for two CPU devices"
    cell = CELLS["lstm-peephole"]
    given = problem(cell, lengths=True, resets=True)
    if state == "default":
        given = given._replace(state=None)
    loss = curved(run(cell, implementation="fused"))
    split = P("batch")
    shard = functools.partial(
        jax.shard_map,
        mesh=Mesh(np.array(devices), "batch"),
        in_specs=(P(), split, split, split),
        check_vma=check_vma,
    )
    summed = shard(lambda *args: jax.lax.psum(loss(*args), "batch"), out_specs=P())

    def inside(*arguments):
        gradient = jax.grad(loss)(*arguments)
        return gradient if check_vma else jax.lax.psum(gradient, "batch")

    @jit
    def sharded(*arguments):
        outputs = shard(run(cell, implementation="fused"), out_specs=split)(*arguments)
        outside = jax.grad(summed, (0, 1))(*arguments)
        return outputs, outside, shard(inside, out_specs=P())(*arguments)

    outputs, gradients = unsharded(cell)(*given)
    assert_close(sharded(*given), (outputs, gradients, gradients[0]))


@contextlib.contextmanager
def compilations():
    """Lists the compilations that JAX reports inside the context."""
    heard = []
    listener = lambda event, *_, **__: heard.append(event) if "compile" in event else None  # noqa: E731
    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        yield heard
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)


def test_a_second_call_does_not_compile():
    cell = CELLS["rnn"]
    function = jit(jax.value_and_grad(curved(run(cell))))
    first, second = (problem(cell, lengths=True, resets=True, seed=seed) for seed in (0, 1))
    jax.block_until_ready(function(*first))
    with compilations() as compiled:
        jax.block_until_ready(function(*second))
        assert not compiled
        jax.block_until_ready(function(*problem(cell, (1,), lengths=True, resets=True)))
        assert compiled  # the counter works
    assert function._cache_size() == 2


@pytest.mark.parametrize("name", ["rnn", "lru"])
def test_a_second_call_outside_of_jit_does_not_compile(name):
    """This is common for rows that arrive one at a time."""
    cell = CELLS[name]
    params, state = cell.init(jax.random.key(0), NARROW), None
    with compilations() as compiled:
        for row in np.ones((3, 2, 1, NARROW), np.float32):
            del compiled[:]
            _, state = jaxrnn.unroll(cell, params, row, initial_state=state)
    assert not compiled


# Dependencies of outputs


@pytest.mark.parametrize("reverse", [False, True])
def test_outputs_depend_on_what_was_read_and_on_nothing_else(reverse):
    cell, time, lengths = CELLS["lstm"], 6, [4, 6, 0]
    given = problem(cell, (3,), time=time)
    resets = np.zeros((3, time), bool)
    resets[:2, 2] = True

    def jacobian(masks):
        function = run(cell, implementation="fused", reverse=reverse)
        return jax.jacrev(lambda inputs: function(given.params, inputs, given.state, masks)[0])(
            given.inputs
        )

    for masks in ({}, {"lengths": jnp.array(lengths), "resets": jnp.asarray(resets)}):
        depends = np.zeros((3, time, 3, time), bool)
        for row, t in itertools.product(range(3), range(time)):
            length = lengths[row] if masks else time
            for s in range(t, length) if reverse and t < length else range(t, -1, -1):
                if t >= length:
                    break
                depends[row, t, row, s] = True
                if masks and resets[row, s]:
                    break
        found = np.abs(jit(jacobian)(masks)).max(axis=(2, 5)) > 0
        np.testing.assert_array_equal(found, depends)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float64])
def test_the_dtype_is_kept(dtype):
    for name in ("lstm-peephole", "gru"):
        cell = CELLS[name]
        given = problem(cell, time=BLOCK, lengths=True, resets=True)
        cast = lambda leaf: leaf.astype(dtype) if leaf.dtype == jnp.float64 else leaf  # noqa: E731
        given = jax.tree.map(cast, given)
        fused, scan = (
            run(cell, implementation=each, memory="recompute") for each in ("fused", "scan")
        )
        shapes = jax.eval_shape(
            lambda *args: (scan(*args), fused(*args), jax.grad(curved(fused), (0, 1, 2))(*args)),  # noqa: B023
            *given,
        )
        assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype(dtype)}


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 0.15)])
def test_low_precision_is_near_the_high(dtype, tolerance):
    cell = CELLS["lstm"]
    given = problem(cell, lengths=True, resets=True)
    function = jit(run(cell, implementation="fused"))
    low = jax.tree.map(lambda leaf: leaf.astype(dtype), given[:3])
    high = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), low)
    outputs = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), function(*low, given.masks))
    assert_close(outputs, function(*high, given.masks), tolerance)


# Edge cases


@pytest.mark.parametrize("implementation", ["fused", "scan"])
@pytest.mark.parametrize(
    ("batch", "time", "memory"),
    [((2,), 0, "save"), ((2,), 0, "recompute"), ((0,), 5, "save"), ((2, 0), T, "recompute")],
)
def test_no_steps_or_no_rows(batch, time, memory, implementation):
    cell = CELLS["gru"]
    given = problem(cell, batch, time=time)
    each = run(cell, implementation=implementation, memory=memory)
    (outputs, state), gradients = jit(lambda given: everything(each, given))(given)
    assert outputs.shape == (*batch, time, H)
    assert_close(state, given.state)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradients[:2]))


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.uint8, jnp.int64])
def test_lengths_of_any_integer_dtype(dtype):
    cell, time = CELLS["rnn"], 300
    given = problem(cell, (3,), time=time)
    lengths = [0, 5, 120]
    outputs, _ = jit(run(cell, reverse=True))(*given[:3], {"lengths": jnp.array(lengths, dtype)})
    np.testing.assert_array_equal((outputs != 0).any(-1).sum(-1), lengths)


# A cell made of init, initial_state and step


def plain_cell(size):
    """A layer-normalised network whose state is a dict with a step count and not the output."""

    def init(key, input_size, dtype=jnp.float32):
        kernel = jax.random.normal(key, (input_size + size, size), dtype)
        return {"kernel": kernel, "readout": jnp.ones((size, 2), dtype)}

    def initial_state(params, batch_shape=()):
        memory = jnp.zeros((*batch_shape, size), params["kernel"].dtype)
        return {"memory": memory, "count": jnp.zeros(batch_shape, jnp.int32)}

    def step(params, state, x):
        total = jnp.concatenate([x, state["memory"]], axis=-1) @ params["kernel"]
        memory = jnp.tanh(jax.nn.standardize(total, epsilon=1e-3))
        return {"memory": memory, "count": state["count"] + 1}, memory @ params["readout"]

    return jaxrnn.Cell(init, initial_state, step)


PLAIN = plain_cell(H)


def plain_run(**options):
    """Runs it as a function of the floating-point states only, to be differentiable."""

    def function(params, inputs, memory, masks):
        state = {"memory": memory, "count": jnp.zeros(memory.shape[:-1], jnp.int32)}
        outputs, state = run(PLAIN, **options)(params, inputs, state, masks)
        return outputs, state["memory"]

    return function


def plain_problem(**options):
    floats = PLAIN._replace(initial_state=lambda *args: PLAIN.initial_state(*args)["memory"])
    return problem(floats, lengths=True, resets=True, **options)


@pytest.mark.parametrize("reverse", [False, True])
def test_a_plain_cell_is_its_loop(reverse):
    given = plain_problem(time=6)
    start = {"memory": given.state, "count": jnp.arange(4, dtype=jnp.int32)}
    whole, step = jit(run(PLAIN, reverse=reverse)), jit(PLAIN.step)
    outputs, final = whole(*given[:2], start, given.masks)
    for row in range(4):
        state = jax.tree.map(lambda leaf, row=row: leaf[row], start)
        expected = np.zeros((6, 2))
        order = range(int(given.masks["lengths"][row]))
        for t in reversed(order) if reverse else order:
            if given.masks["resets"][row, t]:
                state = PLAIN.initial_state(given.params)
            state, expected[t] = step(given.params, state, given.inputs[row, t])
        assert_close(outputs[row], jnp.asarray(expected))
        assert_close(jax.tree.map(lambda leaf, row=row: leaf[row], final), state)


def test_a_plain_cell_with_any_memory_reversed_and_mapped():
    save = plain_run(memory="save", reverse=True)
    recompute, offload = (plain_run(memory=each, reverse=True) for each in ("recompute", "offload"))
    mapped = jax.vmap(recompute, in_axes=(None, 0, 0, 0))
    assert_same(plain_problem(), save, offload, mapped)


def test_a_plain_cell_has_no_deferred_gradient():
    given = plain_problem()
    with pytest.raises(ValueError, match=r"implementation 'fused' cannot .* made by .*gated"):
        jaxrnn.unroll(PLAIN, given.params, given.inputs, implementation="fused")


def test_forward_mode_goes_through_the_scan():
    given = plain_problem()
    check_grads(
        jit(lambda *args: curved(plain_run(implementation="scan"))(*args, given.masks)),
        given[:3],
        order=1,
        modes=["fwd"],
    )
    cell = CELLS["lstm"]
    floats = problem(cell)[:3]
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda *args: run(cell, implementation="fused")(*args, {}), floats, floats)

"""Models written as ONNX compute what the modules compute, in ONNX Runtime and in ONNX's own."""

import functools
import inspect
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from all_cells import CELLS
from jax import jit
from onnx_models import (
    LENGTHS,
    NATIVE,
    SCANNED,
    B,
    H,
    I,
    T,
    layer,
    normal,
    random_carry,
    run,
    stack,
    variables,
)

import jaxrnn
from jaxrnn.convert import onnx as convert
from jaxrnn.linen import RNN, Classifier, Stack

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
reference = pytest.importorskip("onnx.reference")


def assert_close(actual, expected):
    compare = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5)  # noqa: E731
    jax.tree.map(compare, actual, expected)


def check(module, size=I, *, lengths=None, carry=False, params=None, **options):
    """Compares the module with its model, which is returned."""
    time_major = getattr(module, "time_major", False)
    inputs = normal(2, (T, B, size) if time_major else (B, T, size))
    params = variables(module, size) if params is None else params
    model = convert.to_onnx(module, params, lengths=lengths is not None, carry=carry, **options)

    def apply(params, inputs, lengths, start):
        given = {} if start is None else {"initial_carry": start}
        return module.apply(params, inputs, seq_lengths=lengths, return_carry=True, **given)

    start = random_carry(module, size) if carry else None
    state, outputs = jit(apply)(params, inputs, lengths, start)
    given = [each for each in (inputs, lengths, *jax.tree.leaves(start)) if each is not None]
    given = dict(zip([each.name for each in model.graph.input], given, strict=True))
    expected = [outputs, *(jax.tree.leaves(state) if carry else [])]
    assert_close(run(model, given), expected)
    if "Scan" in node_types(model):
        assert_close(reference.ReferenceEvaluator(model).run(None, given), expected)
    return model


def node_types(model):
    return [node.op_type for node in model.graph.node]


@pytest.mark.parametrize("name", NATIVE)
def test_a_layer_is_one_operator(name):
    model = check(layer(NATIVE[name]), lengths=LENGTHS, carry=True)
    kinds = {"rnn": "RNN", "lstm": "LSTM", "odyssey": "LSTM", "gru": "GRU"}
    assert node_types(model).count(kinds[name.split("-")[0]]) == 1


@pytest.mark.parametrize("name", ["rnn", "lstm-peephole", "gru"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_stack_has_every_option(name, bidirectional):
    module = stack(
        NATIVE[name],
        num_layers=2,
        bidirectional=bidirectional,
        residual=True,
        learn_initial_state=True,
        dropout=0.5,
        regularizer=jaxrnn.Regularizer(weight_dropout=0.5),
    )
    size = 2 * H if bidirectional else H  # so that the first layer is residual too
    model = check(module, size, lengths=LENGTHS)
    assert node_types(model).count("Add") == 2
    names = [each.name for each in model.graph.input]
    assert names == ["inputs", "lengths"]


def test_a_carry_has_a_name_for_each_leaf():
    module = stack(NATIVE["lstm"], num_layers=2, bidirectional=True)
    model = check(module, lengths=LENGTHS, carry=True)
    leaves = [
        f"layer_{number}/{direction}/{leaf}"
        for number in range(2)
        for direction in ("forward", "backward")
        for leaf in ("hidden", "cell")
    ]
    assert [each.name for each in model.graph.input] == ["inputs", "lengths", *leaves]
    outputs = [each.name for each in model.graph.output]
    assert outputs == ["outputs", *(f"{leaf}_out" for leaf in leaves)]


@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize("options", [{}, {"keep_order": True}, {"time_major": True}])
def test_a_layer_reads_from_the_end(options, lengths):
    model = check(layer(NATIVE["gru"], reverse=True, **options), lengths=lengths)
    assert ("ReverseSequence" in node_types(model)) == (not options.get("keep_order", False))


@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_classifier_gives_logits(bidirectional, lengths):
    module = Classifier(stack(NATIVE["rnn"], bidirectional=bidirectional), 5)
    model = check(module, lengths=lengths)
    assert model.graph.output[0].name == "logits"


def test_a_classifier_gives_logits_after_every_step():
    model = check(Classifier(stack(NATIVE["rnn"]), 5, every_step=True), lengths=LENGTHS, carry=True)
    assert [each.name for each in model.graph.output] == ["logits", "layer_0/forward/hidden_out"]


@pytest.mark.parametrize("name", ["rnn", "lstm-peephole", "gru", "gru-before"])
def test_onnx_computes_the_same(name):
    """Its reference knows neither sequence lengths nor activations."""
    module = stack(NATIVE[name], num_layers=2, bidirectional=True)
    model, inputs = convert.to_onnx(module, params := variables(module)), normal(2, (B, T, I))
    (found,) = reference.ReferenceEvaluator(model).run(None, {"inputs": inputs})
    assert_close(found, jit(module.apply)(params, inputs))


@pytest.mark.parametrize("name", SCANNED)
def test_a_cell_without_an_operator_is_a_scan(name):
    reverse = len(name) % 2 == 0
    module = layer(CELLS[name], reverse=reverse, keep_order=True, learn_initial_state=True)
    model = check(module, lengths=LENGTHS, carry=name != "mgu")
    assert node_types(model).count("Scan") == 1


def test_a_stack_of_scans_has_every_option():
    options = {"num_layers": 2, "bidirectional": True, "residual": True}
    check(stack(CELLS["mgu"], learn_initial_state=True, **options), 2 * H, lengths=LENGTHS)


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_zoneout_is_a_mean(name):
    regularizer = jaxrnn.Regularizer(zoneout=(0.1, 0.4) if name == "lstm" else 0.2)
    model = check(layer(CELLS[name], regularizer=regularizer), lengths=LENGTHS, carry=True)
    assert "Scan" in node_types(model)


# Functions of [B, H] whose primitives are translated in other ways than by an operator alone.
FUNCTIONS = {
    "softplus": jax.nn.softplus,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "celu": jax.nn.celu,
    "hard_tanh": jax.nn.hard_tanh,
    "softmax": jax.nn.softmax,
    "standardize": jax.nn.standardize,
    "log1p of little": lambda x: 1e4 * jnp.log1p(1e-4 * x),
    "log1p": lambda x: jnp.log1p(x * x),
    "expm1 of little": lambda x: 1e4 * jnp.expm1(1e-4 * x),
    "round": jnp.round,
    "power": lambda x: jnp.abs(x) ** 1.5 + x**3,
    "clamp": lambda x: jax.lax.clamp(np.float32(-0.5), x, np.float32(0.5)),
    "maximum": lambda x: x - x.max(-1, keepdims=True),
    "minimum": lambda x: x - x.min(-1, keepdims=True),
    "prod": lambda x: x * jnp.prod(x, -1, keepdims=True),
    "logic": lambda x: jnp.where(((x > 0) & (x <= 1)) | ~(x != -1), x, np.float32(0)),
    "booleans": lambda x: jnp.where(jnp.where(x > 0, x < 1, x > -1), x, np.float32(0)),
    "integers": lambda x: jnp.abs((3 * x).astype(jnp.int32)).astype(jnp.float32),
    "slices": lambda x: jnp.concatenate([x[:, 1:3], x[:, ::-2]], axis=-1),
    "one": lambda x: x[:, 1:2] * x[:, 2][:, None] + x,
    "gather": lambda x: x[:, np.array([2, 0, 3, 1])],
    "roll": lambda x: jnp.roll(x, 1, axis=-1),
    "reverse": lambda x: jax.lax.rev(x, (1,)),
    "pad": lambda x: jnp.pad(x, ((0, 0), (1, 2)))[:, :H],
    "reshape": lambda x: x.reshape(-1, 2, 2).sum(1).repeat(2, axis=-1),
    "transpose": lambda x: jnp.swapaxes(jnp.swapaxes(x, 0, 1) * 2, 0, 1),
    "stack": lambda x: jnp.stack([x[:, 3], x[:, 0], x[:, 1], x[:, 2]], axis=-1),
    "unstack": lambda x: x * sum(jnp.arange(8.0).reshape(2, 4))[None],
    "sum": lambda x: (x[:, None] * jnp.arange(1.0, 3)[None, :, None]).sum(1),
    "no axes": lambda x: x.sum(()) + jnp.where((x > 0).any(()), x.max(()), x.prod(())),
    "cumsum": lambda x: jnp.cumsum(x, axis=-1),
    "outer": lambda x: jnp.einsum("bi,bj->bij", x, x).sum(-1),
    "product": lambda x: jnp.einsum("bi,ji->bj", x, jnp.arange(16.0).reshape(4, 4)),
    "jit": jax.checkpoint(jax.jit(lambda x: jnp.tanh(x) + jnp.eye(H)[:1])),
}


class Everything(NamedTuple):
    hidden: jax.Array
    count: jax.Array
    seen: jax.Array


def everything():
    """A cell of one's own with all functions, and with a state of integers and booleans."""

    def init(key, input_size, dtype=jnp.float32):
        return {"weight": jnp.zeros((input_size, H), dtype)}

    def initial_state(params, batch_shape=()):
        hidden = jnp.full((*batch_shape, H), 0.5, params["weight"].dtype)
        seen = jnp.zeros(batch_shape, bool)
        return Everything(hidden, jnp.zeros(batch_shape, jnp.int32), seen)

    def step(params, state, x):
        hidden = x @ params["weight"] + np.float32(0.1) * state.hidden
        count = state.count + jnp.where(state.seen, 2, 1)
        parts = [jnp.broadcast_to(each(hidden), hidden.shape) for each in FUNCTIONS.values()]
        output = jnp.concatenate([*parts, count.astype(jnp.float32)[:, None]], axis=-1)
        return Everything(hidden, count, state.seen | (hidden > 1).any(-1)), output

    return jaxrnn.Cell(init, initial_state, step)


@pytest.fixture(scope="module")
def computed():
    """The outputs of that cell: those of JAX, of ONNX Runtime and of ONNX's reference."""
    cell, inputs = everything(), normal(2, (B, T, I), 2.0)
    params = {"weight": normal(1, (I, H))}
    with jax.numpy_rank_promotion("allow"):
        model = convert.to_onnx(RNN(cell), {"cell": params}, lengths=True)
        expected, _ = jit(lambda x: jaxrnn.unroll(cell, params, x, lengths=LENGTHS))(inputs)
    given = {"inputs": inputs, "lengths": LENGTHS}
    (found,), (same,) = run(model, given), reference.ReferenceEvaluator(model).run(None, given)
    return expected, found, same


@pytest.mark.parametrize("number", range(len(FUNCTIONS) + 1), ids=[*FUNCTIONS, "count"])
def test_primitives_are_translated(computed, number):
    expected, *both = (array[..., H * number : H * (number + 1)] for array in computed)
    assert np.any(expected)
    for found in both:
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)


def test_batch_and_time_are_dynamic():
    module = Classifier(stack(CELLS["gru"], bidirectional=True), 5)
    params = variables(module)
    model = convert.to_onnx(module, params)
    for shape in ((1, 1, I), (2, 5, I)):
        (found,) = run(model, {"inputs": normal(4, shape)})
        assert_close(found, module.apply(params, normal(4, shape)))


@pytest.mark.parametrize("lengths", [[2, -1, 9], [2, 0, T]])
@pytest.mark.parametrize("name", ["lstm", "mgu"])
def test_lengths_beyond_the_inputs_are_clamped(name, lengths):
    module = layer(CELLS[name])
    params, inputs = variables(module), normal(2, (B, T, I))
    model = convert.to_onnx(module, params, lengths=True)
    (found,) = run(model, {"inputs": inputs, "lengths": np.array(lengths, np.int32)})
    (same,) = run(model, {"inputs": inputs, "lengths": np.array([2, 0, T], np.int32)})
    np.testing.assert_array_equal(found, same)


@pytest.mark.parametrize("name", ["lstm", "mgu"])
def test_nan_past_the_end_changes_nothing(name):
    module = stack(CELLS[name], bidirectional=True, residual=True)
    inputs = normal(2, (B, T, 2 * H))
    model = convert.to_onnx(module, variables(module, 2 * H), lengths=True)
    (expected,) = run(model, {"inputs": inputs, "lengths": LENGTHS})
    inputs[np.arange(T) >= LENGTHS[:, None]] = np.nan
    (found,) = run(model, {"inputs": inputs, "lengths": LENGTHS})
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", ["lstm", "mgu"])
def test_weights_in_float16_are_rounded_and_computed_in_float32(name):
    module = Classifier(stack(CELLS[name], learn_initial_state=True), 5)
    params = variables(module)
    model = convert.to_onnx(module, params, weights="float16")
    large = [each for each in model.graph.initializer if np.prod(each.dims) >= H]
    assert {each.data_type for each in large} == {onnx.TensorProto.FLOAT16}
    rounded = jax.tree.map(lambda leaf: leaf.astype(np.float16).astype(np.float32), params)
    inputs = normal(2, (B, T, I))
    (found,) = run(model, {"inputs": inputs})
    assert_close(found, jit(module.apply)(rounded, inputs))
    params["params"]["readout"]["bias"][1] = -1e5
    with pytest.raises(ValueError, match="readout/bias does not fit float16: it holds 100000"):
        convert.to_onnx(module, params, weights="float16")


def test_dtypes_are_computed_in_float32():
    module = Classifier(stack(CELLS["gru"], dtype=jnp.bfloat16, param_dtype=jnp.bfloat16), 5)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), variables(module))
    wide = jax.tree.map(lambda leaf: leaf.astype(np.float32), params)
    model = convert.to_onnx(module, params)
    assert model == convert.to_onnx(Classifier(stack(CELLS["gru"]), 5), wide["params"])


def test_a_model_is_written_to_a_file(tmp_path):
    module = layer(CELLS["gru"])
    model = convert.to_onnx(module, variables(module), path=tmp_path / "model.onnx")
    assert onnx.load(tmp_path / "model.onnx") == model


@pytest.mark.parametrize("names", ["xw", "sw", "yx"])
def test_leaves_of_a_cell_have_any_name(names):
    """Whatever their names, also if a parameter has that of a leaf of the state."""

    def init(key, input_size, dtype=jnp.float32):
        return dict(zip(names, (jnp.ones((input_size, H), dtype), jnp.ones(H, dtype)), strict=True))

    def initial_state(params, batch_shape=()):
        return {names[0]: jnp.zeros((*batch_shape, H))}

    def step(params, state, x):
        one, other = (params[name] for name in names)
        hidden = jnp.tanh(x @ one + other[None] * state[names[0]])
        return {names[0]: hidden}, hidden

    module = layer(jaxrnn.Cell(init, initial_state, step), learn_initial_state=True)
    params = {names[0]: normal(1, (I, H)), names[1]: normal(2, (H,))}
    params = {"params": {"cell": params, "initial_state": {names[0]: normal(3, (H,))}}}
    check(module, params=params, lengths=LENGTHS)
    model = convert.to_onnx(module, params, carry=True)
    assert [each.name for each in model.graph.input][1:] == [f"layer_0/forward/{names[0]}"]


def test_two_leaves_of_one_name_are_refused():
    def initial_state(params, batch_shape=()):
        return {name: jnp.zeros((*batch_shape, H)) for name in ("a", "a_out")}

    def init(key, input_size, dtype=jnp.float32):
        return {"kernel": jnp.ones((input_size, H), dtype)}

    cell = jaxrnn.Cell(init, initial_state, lambda params, state, x: (state, state["a"]))
    words = "two values of the ONNX model would have the name layer_0/forward/a_out"
    with pytest.raises(ValueError, match=words):
        convert.to_onnx(layer(cell), {"cell": {"kernel": normal(1, (I, H))}}, carry=True)


def own_gate(params, z, state):
    return jaxrnn.RNNState(jax.lax.erf_inv(z.h))


def test_what_onnx_cannot_express_is_refused():
    own = jaxrnn.gated(own_gate, "h", CELLS["rnn"].init, CELLS["rnn"].initial_state)
    for cell, words in {
        CELLS["lru"]: "ONNX cannot express lru, whose step has the primitive complex of complex64",
        CELLS["s5"]: "ONNX cannot express s5, whose step has the primitive complex of complex64",
        own: "ONNX cannot express own_gate, whose step has the primitive erf_inv",
    }.items():
        with pytest.raises(ValueError, match=f"^{words}$"):
            convert.to_onnx(layer(cell), variables(layer(cell)))
    regularizer = jaxrnn.Regularizer(zoneout=0.1)
    module = layer(CELLS["min-gru"], regularizer=regularizer)
    with pytest.raises(ValueError, match=r"regularizer\.zoneout must be None"):
        convert.to_onnx(module, variables(module))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p: p["stack"].pop("layer_1"), r"params must hold \['layer_0', 'layer_1'\], got"),
        (
            lambda p: p["stack"].update(layer_2={}),
            r"params must hold \['layer_0', 'layer_1'\], got",
        ),
        (lambda p: p.pop("readout"), r"params must hold \['readout', 'stack'\], got \['stack'\]"),
        (lambda p: p["readout"].pop("bias"), r"readout must hold \['bias', 'kernel'\]"),
        (lambda p: p["readout"].update(bias=np.ones(4)), r"bias of readout must have shape \(5,\)"),
        (lambda p: p["stack"]["layer_1"].update(initial_state={}), r"layer_1 must hold \['cell'\]"),
        (lambda p: p["stack"]["layer_1"]["cell"].pop("bias"), "params must be LSTMParams"),
        (
            lambda p: p["stack"]["layer_1"]["cell"].update(kernel=np.ones((I, 4 * H))),
            r"params must be LSTMParams.*got .*float32\[3,16\]",
        ),
    ],
)
def test_parameters_of_another_module_are_refused(change, words):
    module = Classifier(stack(CELLS["lstm"], num_layers=2), 5)
    params = variables(module)["params"]
    change(params)
    with pytest.raises(ValueError, match=words):
        convert.to_onnx(module, params)


class Doubled(Stack):
    """Computes something else than a `Stack`."""

    def __call__(self, inputs, *args, **options):
        return super().__call__(2 * inputs, *args, **options)


@pytest.mark.parametrize("module", [Doubled(CELLS["rnn"]), Classifier(Doubled(CELLS["rnn"]), 5)])
def test_a_subclass_is_refused(module):
    with pytest.raises(ValueError, match=r"module must be an RNN, Stack or .*, got Doubled"):
        convert.to_onnx(module, {})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"module": CELLS["lstm"]},
            "module must be an RNN, Stack or Classifier of jaxrnn, got Cell",
        ),
        ({"params": 7}, "params must be the variables of the module, got int"),
        ({"weights": "int8"}, "weights must be 'float32' or 'float16', got 'int8'"),
        ({"lengths": LENGTHS}, "lengths must be True or False"),
        ({"carry": None}, "carry must be True or False"),
    ],
)
def test_other_arguments_are_refused(options, words):
    given = {"module": layer(CELLS["lstm"]), "params": {}, **options}
    with pytest.raises(ValueError, match=words):
        inspect.unwrap(convert.to_onnx)(**given)


def test_without_onnx_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r"need the package onnx: pip install 'jaxrnn\[onnx\]'"):
        convert.to_onnx(layer(CELLS["lstm"]), {})

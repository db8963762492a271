"""Models written as ONNX compute what the modules compute, in ONNX Runtime and in ONNX's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import jit

import jaxrnn
from jaxrnn.convert import onnx as convert
from jaxrnn.linen import RNN, Classifier, Stack

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
reference = pytest.importorskip("onnx.reference")

B, T, I, H = 3, 4, 3, 4  # noqa: E741
KEY = jax.random.key(0)
LENGTHS = np.array([T, 0, 2], np.int32)
NATIVE = {
    "rnn": jaxrnn.rnn(H),
    "rnn-relu": jaxrnn.rnn(H, activation=jax.nn.relu),
    "rnn-hard-sigmoid": jaxrnn.rnn(H, activation=jax.nn.hard_sigmoid),
    "rnn-identity": jaxrnn.rnn(H, activation=jax.nn.identity),
    "lstm": jaxrnn.lstm(H),
    "lstm-leaky-relu": jaxrnn.lstm(H, activation=jax.nn.leaky_relu),
    "lstm-elu": jaxrnn.lstm(H, activation=jax.nn.elu),
    "lstm-softsign": jaxrnn.lstm(H, activation=jax.nn.soft_sign),
    "lstm-sigmoid": jaxrnn.lstm(H, activation=jax.nn.sigmoid),
    "lstm-peephole": jaxrnn.lstm(H, peephole=True),
    "odyssey-V": jaxrnn.odyssey(H, "V"),
    "gru": jaxrnn.gru(H),
    "gru-before": jaxrnn.gru(H, reset_after=False),
}


def layer(cell, **options):
    return RNN(cell, implementation="scan", **options)


def stack(cell, **options):
    return Stack(cell, implementation="scan", **options)


def normal(seed, shape, scale=0.7):
    return (scale * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def variables(module, size=I):
    """Random variables: none is zero or a round number."""
    shapes = jax.eval_shape(module.init, KEY, jnp.zeros((1, 1, size)))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: normal(rng, leaf.shape).astype(leaf.dtype), shapes)


def run(model, inputs, lengths=None, carry=()):
    """The outputs by name, of ONNX Runtime."""
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [each.name for each in session.get_inputs()]
    given = [inputs, *([] if lengths is None else [lengths]), *carry]
    found = session.run(None, dict(zip(names, map(np.asarray, given), strict=True)))
    return dict(zip([each.name for each in session.get_outputs()], found, strict=True))


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

    start = None
    if carry:
        shapes, _ = jax.eval_shape(apply, params, inputs, lengths, None)
        start = jax.tree.map(lambda leaf: normal(sum(leaf.shape), leaf.shape), shapes)
    state, outputs = jit(apply)(params, inputs, lengths, start)
    found = run(model, inputs, lengths, jax.tree.leaves(start))
    expected = [outputs, *(jax.tree.leaves(state) if carry else [])]
    assert_close(list(found.values()), expected)
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

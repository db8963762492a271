"""Modules with random variables, and ONNX Runtime, for the tests of ONNX."""

import jax
import numpy as np
import pytest

import jaxrnn
from jaxrnn.linen import RNN, Classifier, Stack, as_dict

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
# The others; those of the LRU are complex.
SCANNED = [
    *("indrnn", "lstm-projection", "lstm-clip", "lstm-everything", "lstm-layer-norm", "janet"),
    *("mgu", "min-gru", "min-lstm", "s6", "slstm-heads"),
    *(f"odyssey-{name}" for name in ("NIG", "NFG", "NOG", "NIAF", "NOAF", "CIFG", "FGR")),
]


def layer(cell, **options):
    return RNN(cell, implementation="scan", **options)


def stack(cell, **options):
    return Stack(cell, implementation="scan", **options)


def normal(seed, shape, scale=0.7):
    return (scale * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def variables(module, size=I):
    """Random variables: none is zero or a round number. Cheaper than to trace `module.init`."""
    rng = np.random.default_rng(1)

    def draw(make):
        shapes = as_dict(jax.eval_shape(make))
        return jax.tree.map(lambda leaf: normal(rng, leaf.shape).astype(leaf.dtype), shapes)

    def one(module, size):
        params = {"cell": draw(lambda: module.cell.init(KEY, size))}
        if module.learn_initial_state:
            params["initial_state"] = draw(lambda: state_of(module.cell, size, ()))
        return params

    if isinstance(module, RNN):
        return {"params": one(module, size)}
    if isinstance(module, Classifier):
        params, width = variables(module.stack, size)["params"], output_size(module.stack, size)
        readout = {"kernel": (width, module.num_classes), "bias": (module.num_classes,)}
        readout = {name: normal(rng, shape) for name, shape in readout.items()}
        return {"params": {"stack": params, "readout": readout}}
    params = {}
    for number in range(module.num_layers):
        for suffix in ("", "_reverse")[: 1 + module.bidirectional]:
            params[f"layer_{number}{suffix}"] = one(module, size)
        size = output_size(module, size)
    return {"params": params}


def state_of(cell, size, batch):
    return cell.initial_state(cell.init(KEY, size), batch)


def output_size(module, size):
    state = jax.eval_shape(lambda: state_of(module.cell, size, ()))
    return (1 + module.bidirectional) * state[0].shape[-1]


def run(model, given):
    """The outputs, of ONNX Runtime."""
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {name: np.asarray(array) for name, array in given.items()})


def random_carry(module, size):
    module = getattr(module, "stack", module)
    shapes = jax.eval_shape(lambda: state_of(module.cell, size, (B,)))
    rng = np.random.default_rng(3)
    draw = lambda: jax.tree.map(lambda leaf: normal(rng, leaf.shape).astype(leaf.dtype), shapes)  # noqa: E731
    if isinstance(module, RNN):
        return draw()
    pair = lambda: (draw(), draw()) if module.bidirectional else draw()  # noqa: E731
    return tuple(pair() for _ in range(module.num_layers))

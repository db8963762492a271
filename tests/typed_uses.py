"""Uses of the public names with the types that pyright must infer. This file is never run.

A line with `pyright: ignore` is an error that pyright must report, or else it reports the comment.
"""
# pyright: reportUnnecessaryTypeIgnoreComment=true

from typing import Any, assert_type

from flax import nnx
from jax import Array

import jaxrnn
from jaxrnn import convert
from jaxrnn.linen import RNN, Carry, Classifier, Stack, last_output
from jaxrnn.nnx import RNN as NNXRNN

LSTM = jaxrnn.Cell[jaxrnn.LSTMParams, jaxrnn.LSTMState]


def cells_and_unroll(x: Array, key: Array) -> None:
    lstm = jaxrnn.lstm(4, forget_bias=1.0)
    assert_type(lstm, LSTM)
    params = lstm.init(key, 3)
    assert_type(params, jaxrnn.LSTMParams)
    assert_type(lstm.initial_state(params, (2,)), jaxrnn.LSTMState)
    assert_type(lstm.step(params, lstm.initial_state(params), x), tuple[jaxrnn.LSTMState, Array])
    assert_type(jaxrnn.scaled(lstm, 0.5), LSTM)
    assert_type(jaxrnn.unroll(lstm, params, x), tuple[Array, jaxrnn.LSTMState])
    assert_type(jaxrnn.unroll(lstm, {"kernel": x}, x)[1], jaxrnn.LSTMState)
    jaxrnn.lstm("a")  # pyright: ignore[reportArgumentType]
    jaxrnn.lstm(4, forgetbias=1)  # pyright: ignore[reportCallIssue]
    gru = jaxrnn.gru(4)
    assert_type(gru, jaxrnn.Cell[jaxrnn.GRUParams, jaxrnn.GRUState])
    jaxrnn.unroll(gru, params, x)  # pyright: ignore[reportArgumentType]
    jaxrnn.unroll(gru, gru.init(key, 3), x, initial_state=lstm.initial_state(params))  # pyright: ignore[reportArgumentType]

    def init(key: Array, input_size: int, dtype: Any = None) -> jaxrnn.RNNParams:
        return jaxrnn.RNNParams(x, x, x)

    def initial_state(params: jaxrnn.RNNParams, batch_shape: tuple[int, ...] = ()):
        return jaxrnn.RNNState(x)

    def gate(params: jaxrnn.RNNParams, z: Any, state: jaxrnn.RNNState):
        return jaxrnn.RNNState(z.h)

    own = jaxrnn.gated(gate, "h", init, initial_state)
    assert_type(own, jaxrnn.Cell[jaxrnn.RNNParams, jaxrnn.RNNState])


def linen_layers(lstm: LSTM, x: Array, lengths: Array, flag: bool) -> None:
    layer = RNN(lstm, reverse=True)
    assert_type(layer(x, return_carry=False), Array)
    assert_type(layer(x, seq_lengths=lengths, return_carry=True), tuple[jaxrnn.LSTMState, Array])
    # The attribute determines the type.
    assert_type(layer(x), Array | tuple[jaxrnn.LSTMState, Array])
    assert_type(layer(x, return_carry=flag), Array | tuple[jaxrnn.LSTMState, Array])
    layer(x, lengths=lengths)  # pyright: ignore[reportCallIssue]
    layer(x, lengths)  # pyright: ignore[reportCallIssue]
    RNN(jaxrnn.lstm(4), reversed=True)  # pyright: ignore[reportCallIssue]

    stack = Stack(jaxrnn.gru(4), num_layers=2, bidirectional=True)
    assert_type(stack(x), Array)
    assert_type(stack(x, lengths, return_carry=True), tuple[Carry, Array])
    carry, outputs = stack(x, seq_lengths=lengths, return_carry=True)
    assert_type(stack(x, initial_carry=carry), Array)
    assert_type(last_output(outputs, lengths, bidirectional=True), Array)
    stack(x, lengths=lengths)  # pyright: ignore[reportCallIssue]

    model = Classifier(stack, num_classes=10)
    assert_type(model(x), Array)
    assert_type(model(x, lengths, return_carry=True), tuple[Carry, Array])
    Classifier(jaxrnn.gru(4), num_classes=10)  # pyright: ignore[reportArgumentType]
    Classifier(stack, num_classes=10, num_layers=2)  # pyright: ignore[reportCallIssue]


def nnx_layers(lstm: LSTM, x: Array, lengths: Array) -> None:
    layer = NNXRNN(lstm, 3, rngs=nnx.Rngs(0))
    assert_type(layer(x, return_carry=False), Array)
    assert_type(layer(x, seq_lengths=lengths, return_carry=True), tuple[jaxrnn.LSTMState, Array])
    assert_type(layer(x), Array | tuple[jaxrnn.LSTMState, Array])
    layer(x, lengths=lengths)  # pyright: ignore[reportCallIssue]
    NNXRNN(jaxrnn.lstm(4), 3)  # pyright: ignore[reportCallIssue]


def weights(state_dict: dict[str, Any]) -> None:
    layers = convert.from_torch("lstm", state_dict)
    for forward, *_ in layers:
        convert.to_keras(jaxrnn.lstm(4), forward)
    convert.to_tf1(layers[0][0], jaxrnn.lstm(4))  # pyright: ignore[reportArgumentType]
    convert.from_keras("lstm", state_dict, 1.0)  # pyright: ignore[reportCallIssue]

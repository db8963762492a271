"""Uses of the public names with the types that pyright must find; only pyright reads this file.

A line with `pyright: ignore` is a mistake that pyright must report; else it reports the comment.
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


def linen_layers(lstm: LSTM, x: Array, lengths: Array, flag: bool) -> None:
    layer = RNN(lstm, reverse=True)
    assert_type(layer(x, return_carry=False), Array)
    assert_type(layer(x, seq_lengths=lengths, return_carry=True), tuple[jaxrnn.LSTMState, Array])
    # The attribute decides.
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

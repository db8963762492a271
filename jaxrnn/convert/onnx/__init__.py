"""Trained networks to and from ONNX, the format that ONNX Runtime and browsers run.

`to_onnx` writes what an `RNN`, a `Stack` or a `Classifier` computes at evaluation. Layers of
`jaxrnn.rnn`, `jaxrnn.lstm` and `jaxrnn.gru` become ONNX's own operators, one a layer. ONNX has none
for the other cells: they become a `Scan` over the cell's `step`, if each of the operations in it
has a counterpart in ONNX.

`from_onnx` reads the LSTM, GRU and RNN operators of a model, whoever wrote it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from typing import Any

from jaxrnn.arguments import describe, flag


def to_onnx(
    module: Any,
    params: Mapping[str, Any],
    *,
    path: str | os.PathLike[str] | None = None,
    lengths: bool = False,
    carry: bool = False,
    weights: str = "float32",
) -> Any:
    """Writes a module of `jaxrnn.linen` as an ONNX model, with dynamic batch and time axes.

    The model's input is `inputs` [batch, time, features] and its output `outputs`, or `logits` of
    a `Classifier`. An `RNN` with `time_major` keeps its layout, [time, batch, features]. There is
    one batch axis, at least one example and at least one time step, and there are no resets.

    The model computes in float32, also where the module's `dtype` or `param_dtype` is another: it
    then differs from the module by the rounding of that dtype. Dropout and recurrent regularization
    are those of evaluation.

    Args:
        module: An `RNN`, `Stack` or `Classifier`; RNN's `return_carry` is ignored.
        params: Its variables, `{"params": …}`, or its parameters alone.
        path: Where to write the model, if anywhere.
        lengths: Whether there is an input `lengths` [batch] of int32, the module's `seq_lengths`.
            Lengths beyond the number of time steps count as that number, and negative ones as 0.
        carry: Whether the state before the first step is an input and the state after the last
            step an output. Each leaf of the state is one: the inputs are `layer_0/forward/hidden`,
            `layer_0/forward/cell` and so on, with `backward` for a layer that reads from the end,
            and the outputs have the same names followed by `_out`. The first chunk of a sequence
            starts with zeros, or with the `initial_state` of the parameters. Without `carry` the
            states start as the module's do without `initial_carry`.
        weights: "float32", or "float16" for a file of half the size: the weights are rounded to
            float16, and the model still computes in float32.

    Returns:
        The `onnx.ModelProto`.

    Raises:
        ImportError: If the package onnx is not installed.
        ValueError: If the module is another, ONNX cannot express its cell, or the parameters do not
            fit the module. The message names what is wrong.

    Examples:
        In another process, without jaxrnn, ONNX Runtime then computes the logits by
        `onnxruntime.InferenceSession("model.onnx").run(["logits"], {"inputs": inputs})`.

        >>> import jax, jaxrnn
        >>> import jax.numpy as jnp
        >>> from jaxrnn import convert
        >>> from jaxrnn.linen import Classifier, Stack
        >>> model = Classifier(Stack(jaxrnn.lstm(4)), num_classes=10)
        >>> variables = model.init(jax.random.key(0), jnp.ones((1, 5, 3)))
        >>> onnx_model = convert.to_onnx(model, variables)  # doctest: +SKIP
        >>> [each.name for each in onnx_model.graph.output]  # doctest: +SKIP
        ['logits']
    """
    write = _import("write")
    lengths, carry = flag("lengths", lengths), flag("carry", carry)
    if weights not in ("float32", "float16"):
        raise ValueError(f"weights must be 'float32' or 'float16', got {weights!r}")
    if not isinstance(params, Mapping):
        raise ValueError(f"params must be the variables of the module, got {describe(params)}")
    params = params.get("params", params)
    model = write.model_of(module, params, lengths=lengths, carry=carry, weights=weights)
    if path is not None:
        import onnx

        onnx.save(model, os.fspath(path))
    return model


def from_onnx(model: Any, inputs: Mapping[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
    """Reads the recurrent layers of an ONNX model: its LSTM, GRU or RNN nodes.

    The model may come from anywhere: PyTorch's exporters, tf2onnx, `to_onnx`. Weights may be behind
    other nodes, if they are constants. What precedes the first recurrent node, what follows the
    last one, and the order of the axes are left out: the module reads [batch, time, features].
    Each layer must read the outputs of the one before as they are.

    Args:
        model: The path of a file, its bytes, or an `onnx.ModelProto`.
        inputs: Values of inputs of the model by name, which then count as constants; for a model
            whose weights are inputs.

    Returns:
        A `jaxrnn.linen.Stack` and its parameters; for a single node with the direction "reverse"
        an `RNN` with `reverse` and `keep_order`. An initial state that is a constant becomes the
        learned initial state; one that is not is the call's `initial_carry`, and `sequence_lens`
        are its `seq_lengths`.

    Raises:
        ImportError: If the package onnx is not installed.
        OSError: If the file cannot be opened.
        ValueError: If the model cannot be read, there is no such node, its weights are not
            constants, or jaxrnn cannot compute it. The message names the node and what is wrong.
            Weights in other files are read only of a model given by its path, and only from the
            folder of that file.

    Examples:
        >>> from jaxrnn.convert import from_onnx
        >>> stack, params = from_onnx("model.onnx")  # doctest: +SKIP
        >>> outputs = stack.apply({"params": params}, inputs)  # doctest: +SKIP
    """
    read = _import("read")
    import onnx

    inputs = {} if inputs is None else inputs
    if not isinstance(inputs, Mapping):
        raise ValueError(f"inputs must be arrays by their names, got {describe(inputs)}")
    try:
        if isinstance(model, bytes):
            model = onnx.load_model_from_string(model)
        elif isinstance(model, str | os.PathLike):
            if not stat.S_ISREG(os.stat(model).st_mode):  # a pipe would wait for a writer
                raise ValueError(f"{os.fspath(model)} is not a regular file")
            model = onnx.load(os.fspath(model))
    except OSError:
        raise
    except Exception as error:  # of protobuf, of onnx and of the numbers in the file
        raise ValueError(f"the ONNX model cannot be read: {read.line_of(error)}") from error
    if not isinstance(model, onnx.ModelProto):
        raise ValueError(f"model must be a path, bytes or a ModelProto, got {describe(model)}")
    return read.module_of(model, inputs)


def _import(name: str) -> Any:
    """A module of this package that needs onnx."""
    try:
        import onnx  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "to_onnx and from_onnx need the package onnx: pip install 'jaxrnn[onnx]'"
        ) from error
    import importlib

    return importlib.import_module(f"{__name__}.{name}")

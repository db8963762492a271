"""Weights to and from TensorFlow 1: `BasicRNNCell`, `BasicLSTMCell`, `LSTMCell`, `GRUCell`."""

from __future__ import annotations

import numpy as np

from jaxrnn.cell import Cell
from jaxrnn.convert.common import (
    Arrays,
    Kind,
    Params,
    WeightReader,
    copies,
    gate_width,
    make_params,
    reorder,
    weights_of,
)

OPTIONS = ("activation", "peephole", "projection_size", "cell_clip", "reset_after=False")


def from_tf1(kind: Kind, variables: Arrays, *, forget_bias: float = 1.0) -> Params:
    """Converts the variables of a `BasicRNNCell`, `BasicLSTMCell`, `LSTMCell` or `GRUCell`.

    Args:
        kind: The cell.
        variables: Arrays by their names within the cell's scope: `kernel`, `bias`, and for an
            `LSTMCell` optionally `w_i_diag`, `w_f_diag`, `w_o_diag` and `projection/kernel`; or for
            a `GRUCell` `gates/kernel`, `gates/bias`, `candidate/kernel`, `candidate/bias`.
        forget_bias: The number that TF1's cell adds at run time; it is added to the bias of the
            forget gate. The sum is rounded, so `to_tf1` returns that bias up to rounding, and all
            other weights exactly.

    Returns:
        The parameters; for a GRU those of `jaxrnn.gru(H, reset_after=False)`.

    Raises:
        ValueError: If a name is missing or unexpected, or a shape is wrong; names it.
    """
    read, width = WeightReader(variables), gate_width(kind)
    optional = {}
    if kind == "gru":
        name = "gates/kernel"
        both = np.concatenate([read(name, "R 2H"), read("candidate/kernel", "R H")], axis=-1)
        bias = np.concatenate([read("gates/bias", "2H"), read("candidate/bias", "H")])
    else:
        name = "kernel"
        both, bias = read(name, f"R {width}"), read("bias", width)
    if kind == "lstm":
        both, bias = (reorder(each, "igfo", "ifgo") for each in (both, bias))
        bias = bias + _on_forget_gate(forget_bias, bias)
        diagonals = [f"w_{gate}_diag" for gate in "ifo"]
        if any(each in read for each in diagonals):
            optional["peephole"] = np.stack([read(each, "H") for each in diagonals])
        if "projection/kernel" in read:
            optional["projection"] = read("projection/kernel", "H P")
    read.done()
    output = read.sizes["P" if "projection" in optional else "H"]
    if len(both) <= output:
        raise ValueError(f"{name} must have more than {output} rows, got {len(both)}")
    return make_params(kind, both[:-output], both[-output:], bias, **optional)


def to_tf1(
    cell: Cell, params: Params | Arrays, *, forget_bias: float = 1.0
) -> dict[str, np.ndarray]:
    """The reverse of `from_tf1`; the table in `jaxrnn.convert` lists the options to set in TF1.

    The bias of the forget gate is rounded after `forget_bias` is subtracted; all else is exact.

    Args:
        cell: The cell.
        params: Its parameters: the named tuple, or a dict of its arrays.
        forget_bias: The `forget_bias` of TF1's LSTM, which adds it at run time.

    Returns:
        The variables by their names within the scope of TF1's cell.

    Raises:
        ValueError: If TF1 cannot compute this cell, or the parameters do not fit it; names what is
            wrong.
    """
    kind, arrays = weights_of(cell, params, "TF1", OPTIONS)
    both, bias = np.concatenate([arrays["kernel"], arrays["recurrent_kernel"]]), arrays["bias"]
    if kind == "rnn":
        return copies({"kernel": both, "bias": bias})
    if kind == "gru":
        hidden = len(bias) // 3
        gates, candidate = np.split(both, [2 * hidden], axis=-1)
        return copies(
            {
                "gates/kernel": gates,
                "gates/bias": bias[: 2 * hidden],
                "candidate/kernel": candidate,
                "candidate/bias": bias[2 * hidden :],
            }
        )
    variables = {
        "kernel": reorder(both, "ifgo", "igfo"),
        "bias": reorder(bias - _on_forget_gate(forget_bias, bias), "ifgo", "igfo"),
    }
    if "peephole" in arrays:
        diagonals = zip("ifo", arrays["peephole"], strict=True)
        variables |= {f"w_{gate}_diag": diagonal for gate, diagonal in diagonals}
    if "projection" in arrays:
        variables["projection/kernel"] = arrays["projection"]
    return copies(variables)


def _on_forget_gate(value: float, bias: np.ndarray) -> np.ndarray:
    """An array like `bias`, of gates i, f, g, o, with `value` for f and zeros elsewhere."""
    return np.repeat(np.array([0, value, 0, 0], bias.dtype), len(bias) // 4)

"""Conversion of weights to and from the recurrent cells of TensorFlow 1.

The cells are `BasicRNNCell`, `BasicLSTMCell`, `LSTMCell` and `GRUCell`.
"""

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
        kind: The kind of cell: "rnn", "lstm" or "gru".
        variables: The arrays by their names in the scope of the cell: `kernel` and `bias`, and for
            an `LSTMCell` optionally `w_i_diag`, `w_f_diag`, `w_o_diag` and `projection/kernel`. For
            a `GRUCell`: `gates/kernel`, `gates/bias`, `candidate/kernel` and `candidate/bias`.
        forget_bias: The `forget_bias` of TF1's LSTM, which TF1 adds at run time. It is added to the
            bias of the forget gate. The sum is rounded, so that `to_tf1` restores this bias up to
            rounding, and all other weights exactly.

    Returns:
        The parameters of the jaxrnn cell, for a GRU those of `jaxrnn.gru(H, reset_after=False)`.

    Raises:
        ValueError: If a name is missing or unexpected, or an array has a wrong shape or dtype. The
            message names the array.
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
        raise ValueError(f"{name} must have length > {output} on axis 0, got {len(both)}")
    return make_params(kind, both[:-output], both[-output:], bias, **optional)


def to_tf1(
    cell: Cell, params: Params | Arrays, *, forget_bias: float = 1.0
) -> dict[str, np.ndarray]:
    """Converts parameters to the variables of a TF1 cell.

    The table in `jaxrnn.convert` lists the options to pass to TF1's cell.

    Args:
        cell: The cell.
        params: The parameters of the cell, as a named tuple or a dict of its arrays.
        forget_bias: The `forget_bias` of TF1's LSTM, which TF1 adds at run time. It is subtracted
            from the bias of the forget gate, which is thereby rounded.

    Returns:
        The arrays by their names in the scope of the cell, as in `from_tf1`.

    Raises:
        ValueError: If TF1 has no such cell, or the parameters do not fit the cell.
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
    """Returns an array like `bias` with `value` for the forget gate and zeros for i, g and o."""
    return np.repeat(np.array([0, value, 0, 0], bias.dtype), len(bias) // 4)

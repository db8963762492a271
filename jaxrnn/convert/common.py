"""Helpers of the conversions: reading arrays by name and shape, and checking the cell."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from string import ascii_uppercase, digits
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn.arguments import as_dict
from jaxrnn.cell import Cell
from jaxrnn.cells.gru import GRUParams, gru
from jaxrnn.cells.lstm import LSTMParams, lstm, odyssey
from jaxrnn.cells.rnn import RNNParams, rnn

Kind = str  # "rnn", "lstm" or "gru"
Arrays = Mapping[str, Any]
Params = RNNParams | LSTMParams | GRUParams
PARAMS = {"rnn": RNNParams, "lstm": LSTMParams, "gru": GRUParams}
# The number of columns of a kernel, with gates in jaxrnn's order i, f, g, o or r, z, n.
WIDTHS = {"rnn": "H", "lstm": "4H", "gru": "3H"}
# The names that JAX has for tanh.
TANH = (jnp.tanh, jax.nn.tanh, jax.lax.tanh)


class WeightReader:
    """Reads arrays from a mapping and checks that their shapes are consistent.

    A letter in an expected shape stands for the same size in all arrays that are read.
    """

    def __init__(self, arrays: Any):
        check_named(arrays)
        self.arrays = arrays
        self.names_read: set[str] = set()
        self.sizes: dict[str, Any] = {"": 1}  # the known sizes, by letter

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    def __call__(self, name: str, shape: str) -> np.ndarray:
        """Returns the array of this name.

        Args:
            name: The name of the array.
            shape: The expected shape, such as "4H I" for `[4·H, I]`.

        Raises:
            ValueError: If the array is missing, is not floating-point or has another shape.
        """
        if name not in self.arrays:
            raise ValueError(f"{name} is missing, got {sorted(self.arrays)}")
        self.names_read.add(name)
        array, sizes = _as_floats(name, self.arrays[name]), dict(self.sizes)
        axes = [
            (axis, int(axis.rstrip(ascii_uppercase) or 1), axis.lstrip(digits))
            for axis in shape.split()
        ]
        fits = array.ndim == len(axes)
        for (_, times, letter), size in zip(axes, array.shape, strict=False):
            fits &= 0 < size == times * sizes.setdefault(letter, size // times)
        if not fits:
            expected = [
                str(times * self.sizes[letter]) if letter in self.sizes else axis
                for axis, times, letter in axes
            ]
            raise ValueError(
                f"{name} must have shape [{', '.join(expected)}], got {list(array.shape)}"
            )
        self.sizes = sizes
        return array

    def done(self) -> None:
        """Raises ValueError if an array of the mapping has not been read."""
        if extra := sorted(set(self.arrays) - self.names_read):
            raise ValueError(
                f"{', '.join(extra)}: unexpected, expected only {sorted(self.names_read)}"
            )


def check_named(arrays: Any) -> None:
    """Raises ValueError if the arrays are not in a mapping."""
    if not isinstance(arrays, Mapping):
        raise ValueError(
            f"weights must be a mapping from names to arrays, got {type(arrays).__name__}"
        )


def flat_names(arrays: Any) -> dict[str, Any]:
    """Arrays in nested mappings by names such as `hi/kernel`."""
    check_named(arrays)
    flat = {}
    for name, each in arrays.items():
        nested = flat_names(each) if isinstance(each, Mapping) else {}
        flat |= {f"{name}/{leaf}": array for leaf, array in nested.items()} or {name: each}
    return flat


def gate_width(kind: Kind) -> str:
    """Returns the number of columns of a kernel with all gates, such as "4H" for an LSTM."""
    if kind not in WIDTHS:
        raise ValueError(f"kind must be one of {tuple(WIDTHS)}, got {kind!r}")
    return WIDTHS[kind]


def _as_floats(name: str, values: Any) -> np.ndarray:
    """Converts the values to a floating-point NumPy array in the byte order of the machine."""
    try:
        array = np.asarray(values)
    except Exception as error:  # any type, because the array may belong to another library
        raise ValueError(f"{name} must be an array: {error}") from error
    if not hasattr(values, "dtype") and np.issubdtype(array.dtype, np.integer):
        array = array.astype(float)  # a list of Python integers
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(f"{name} must be floating-point, got {array.dtype}")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def make_params(
    kind: Kind,
    kernel: np.ndarray,
    recurrent_kernel: np.ndarray,
    bias: np.ndarray,
    **optional: np.ndarray,
) -> Params:
    """Returns the parameters of a kind of cell as JAX arrays, which are copies."""
    arrays = {"kernel": kernel, "recurrent_kernel": recurrent_kernel, "bias": bias, **optional}
    return PARAMS[kind](**{name: jnp.array(array) for name, array in arrays.items()})


def weights_of(
    cell: Any, params: Any, library: str, supported: Collection[str]
) -> tuple[Kind, dict[str, np.ndarray]]:
    """Returns the kind of a cell and its parameters; see `kind_and_options` and `arrays_of`."""
    kind, options = kind_and_options(cell, library, supported)
    return kind, arrays_of(kind, options, params)


def kind_and_options(
    cell: Any, library: str, supported: Collection[str]
) -> tuple[Kind, dict[str, Any]]:
    """Returns the kind of a cell and the options that change its computation.

    Args:
        cell: The cell.
        library: The name of the library, for error messages.
        supported: The options of jaxrnn's constructors that the library's cells support.

    Raises:
        ValueError: If the library has no such cell.
    """
    if not isinstance(cell, Cell):
        raise ValueError(f"cell must be a jaxrnn.Cell, got {type(cell).__name__}")
    if cell.origin is None or not cell.origin.describes(cell):
        function = cell.gate.function if cell.gate else cell.step
        raise ValueError(
            f"{library} has no {getattr(function, '__qualname__', repr(function))}: cell must be "
            "made by a constructor of jaxrnn, and only its init may be replaced"
        )
    constructor, options = cell.origin.constructor, cell.origin.options
    if constructor is odyssey and options["variant"] in ("V", "NP"):
        same = lstm(options["hidden_size"], peephole=options["variant"] == "V")
        return kind_and_options(same, library, supported)
    kinds = {rnn: "rnn", lstm: "lstm", gru: "gru"}
    if constructor not in kinds:
        variant = f"(variant={options['variant']!r})" if constructor is odyssey else ""
        raise ValueError(f"{library} has no {constructor.__name__}{variant}")
    kind = kinds[constructor]
    used = {name: value for name, value in options.items() if value is not None}
    if kind == "lstm" and not used["peephole"]:
        del used["peephole"]
    if kind == "gru":  # a library may have either kind of GRU, or only one
        used[f"reset_after={bool(used.pop('reset_after'))}"] = True
    if refused := sorted(used.keys() - {*supported, "hidden_size"}):
        raise ValueError(f"{library}'s {kind.upper()} has no {' and no '.join(refused)}")
    return kind, used


def check_activation(
    name: str, options: Mapping[str, Any], allowed: Sequence[Callable[..., Any]]
) -> None:
    """Raises ValueError if there is an activation that is not among those allowed.

    Args:
        name: The name of the library's cell for error messages.
        options: The options of the constructor.
        allowed: The activations that the library's cell can compute.
    """
    if "activation" in options:
        activation = options["activation"]
        if not any(activation is each for each in allowed):
            names = " or ".join(dict.fromkeys(each.__name__ for each in allowed))
            got = getattr(activation, "__name__", repr(activation))
            raise ValueError(f"{name} has no activation but {names}, got {got}")


def arrays_of(
    kind: Kind, options: dict[str, Any], params: Any, place: str = "params"
) -> dict[str, np.ndarray]:
    """Returns the parameters as NumPy arrays by name.

    Args:
        kind: The kind of the cell.
        options: The options of the cell's constructor.
        params: The parameters of the cell.
        place: The name of the parameters, for error messages.

    Raises:
        ValueError: If the parameters do not fit the cell.
    """
    shapes = {
        "recurrent_kernel": f"{'P' if 'projection_size' in options else 'H'} {WIDTHS[kind]}",
        "kernel": f"I {WIDTHS[kind]}",
        "bias": WIDTHS[kind],
    }
    if "peephole" in options:
        shapes["peephole"] = "3 H"
    if "projection_size" in options:
        shapes["projection"] = "H P"
    if "reset_after=True" in options:
        shapes["recurrent_bias"] = "H"
    given = as_dict(params)
    if not isinstance(given, Mapping):
        raise ValueError(
            f"{place} must be the cell's named tuple or a dict of its arrays, "
            f"got {type(params).__name__}"
        )
    read = WeightReader({f"{place}.{name}": array for name, array in given.items()})
    read.sizes |= {"H": options["hidden_size"], "P": options.get("projection_size")}
    arrays = {name: read(f"{place}.{name}", shape) for name, shape in shapes.items()}
    read.done()
    return arrays


def join_gru_bias(biases: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Converts two biases `[2, 3H]` to the bias and the recurrent bias of jaxrnn's GRU.

    The second bias is added to the first, except for the bias of n, which is multiplied by the
    reset gate.
    """
    hidden = biases.shape[-1] // 3
    bias = biases[0] + biases[1] * np.repeat(np.array([1, 1, 0], biases.dtype), hidden)
    return bias, biases[1, 2 * hidden :]


def split_bias(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """Returns two biases `[2, G·H]`; the second is zero except for a GRU's recurrent bias."""
    second = np.zeros_like(arrays["bias"])
    if "recurrent_bias" in arrays:
        second[-len(arrays["recurrent_bias"]) :] = arrays["recurrent_bias"]
    return np.stack([arrays["bias"], second])


def reorder(array: np.ndarray, source: str, target: str) -> np.ndarray:
    """Reorders the gates on the last axis of an array."""
    blocks = dict(zip(source, np.split(array, len(source), axis=-1), strict=True))
    return np.concatenate([blocks[name] for name in target], axis=-1)


def copies(arrays: Arrays) -> dict[str, np.ndarray]:
    """Returns contiguous copies of the arrays."""
    return {name: np.array(array, order="C") for name, array in arrays.items()}

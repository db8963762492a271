"""Recurrent cells: `Cell` and its constructors `gated` and `linear`.

Most recurrent cells are an affine map followed by an elementwise gate:

    drive    z_t = x_t·U + b
    product  r_t = h_{t-1}·W
    gate     s_t = gate(z_t + r_t, s_{t-1})     s is the state, h its first leaf

The drive does not depend on the state, so it can be computed for all steps at once. The product is
the only matrix product that needs the previous step. The gate is elementwise.

`gated` makes a `Cell` from a gate, `linear` makes one from a linear recurrence. Any other cell
provides its own `step`.

Shapes: B batch (any number of axes, also none), I input features, H hidden units, P output
features, G gates, N any number of features.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Inexact

Params = Any
State = Any
P = TypeVar("P")
S = TypeVar("S")
Options = ParamSpec("Options")
AnyCell = TypeVar("AnyCell", bound="Cell")


class _Functions(NamedTuple):
    """The fields of `Cell`."""

    init: Callable[..., Any]
    initial_state: Callable[..., Any]
    step: Callable[[Any, Any, Array], tuple[Any, Array]]
    gate: Gate | None = None
    recurrence: Recurrence | None = None
    outputs_state: bool = False
    origin: Origin | None = None


# `Generic` is added in a subclass, because runtime type checkers reject a generic named tuple.
class Cell(_Functions, Generic[P, S]):
    """A recurrent cell as a named tuple of pure functions.

    The library's constructors, such as `jaxrnn.lstm`, return a `Cell`. A new cell is made by
    `jaxrnn.gated`, by `jaxrnn.linear`, or from its functions, as in the example below.

    Attributes:
        init: `(key, input_size, dtype=jnp.float32) -> params`. Returns the initial parameters.
        initial_state: `(params, batch_shape=()) -> state`. Returns the state before the first
            step, a pytree with leaves `[*batch_shape, ...]`.
        step: `(params, state, x) -> (state, y)`. Computes one time step from the input x `[*B, I]`
            and returns the new state and the output y `[*B, P]`. `functools.partial(cell.step,
            params)` can be the body of a `jax.lax.scan`. The parameters must be of the type that
            `init` returns; `jaxrnn.LSTMParams(**params)` converts the dict `params` of a layer.
        gate: The elementwise part of a cell made by `jaxrnn.gated`, else None.
        recurrence: The linear recurrence of a cell made by `jaxrnn.linear`, else None.
        outputs_state: Whether the output of `step` is the first leaf of the state that it returns.
        origin: The constructor and the options of a cell made by the library, else None.

    Examples:
        A cell whose output is the exponential moving average of its input:

        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jaxrnn
        >>> def step(decay, mean, x):
        ...     mean = decay * mean + (1 - decay) * x
        ...     return mean, mean
        >>> def init(key, input_size, dtype=jnp.float32):
        ...     return jnp.asarray(0.9, dtype)
        >>> def initial_state(decay, batch_shape=()):
        ...     return jnp.zeros((*batch_shape, 1))
        >>> cell = jaxrnn.Cell(init, initial_state, step)
        >>> params = cell.init(jax.random.key(0), 1)
        >>> means, last = jaxrnn.unroll(cell, params, jnp.ones((8, 28, 1)))
        >>> means.shape, last.shape
        ((8, 28, 1), (8, 1))
    """

    __slots__ = ()

    if TYPE_CHECKING:
        init: Callable[..., P]  # pyright: ignore[reportIncompatibleVariableOverride]
        initial_state: Callable[..., S]  # pyright: ignore[reportIncompatibleVariableOverride]
        step: Callable[[P, S, Array], tuple[S, Array]]  # pyright: ignore[reportIncompatibleVariableOverride]

        def __new__(  # noqa: D102
            cls,
            init: Callable[..., P],
            initial_state: Callable[..., S],
            step: Callable[[P, S, Array], tuple[S, Array]],
            gate: Gate | None = None,
            recurrence: Recurrence | None = None,
            outputs_state: bool = False,
            origin: Origin | None = None,
        ) -> Cell[P, S]: ...


class Gate(NamedTuple):
    """The elementwise part of a cell; see `gated`.

    Attributes:
        function: `(params, z, state) -> state`, or `(params, z, product, state) -> state` if some
            gates are separate.
        names: The names of the G gates, in their order in the kernels.
        separate: The names of the gates that receive drive and product separately instead of as a
            sum.
    """

    function: Callable[..., Any]
    names: tuple[str, ...]
    separate: tuple[str, ...] = ()

    def __call__(self, params: Params, arguments: tuple, state: State) -> State:
        """Applies the gate to the arguments that `arguments` or `summed` returns."""
        return self.function(params, *arguments, state)

    def arguments(self, drive: Array, product: Array | None) -> tuple:
        """Returns the arguments of `function` between params and state.

        Args:
            drive: `[..., G·H]`.
            product: `[..., G·H]`, or None for a cell without a recurrent kernel.

        Returns:
            The pre-activations z and, if some gates are separate, their products: named tuples of
            arrays `[..., H]`.
        """
        if product is None or not self.separate:
            return self.summed(drive if product is None else drive + product)
        count = len(self.names)
        return self.named(jnp.split(drive, count, axis=-1), jnp.split(product, count, axis=-1))

    def named(self, drives: Sequence[Array], products: Sequence[Array] | None) -> tuple:
        """Returns the same as `arguments`, from one drive and one product `[..., H]` per gate."""
        together = [
            z if products is None or name in self.separate else z + products[index]
            for index, (name, z) in enumerate(zip(self.names, drives, strict=True))
        ]
        if products is None or not self.separate:
            return (_named(self.names)(*together),)
        apart = [products[self.names.index(name)] for name in self.separate]
        return _named(self.names)(*together), _named(self.separate)(*apart)

    def summed(self, total: Array) -> tuple:
        """Returns the same as `arguments`, from the sum of drive and product `[..., G·H]`."""
        return (_named(self.names)(*jnp.split(total, len(self.names), axis=-1)),)

    def join(self, arguments: tuple) -> tuple[Array, Array | None]:
        """Returns the gradients of drive and product `[..., G·H]`, the transpose of `arguments`.

        The gradient of the product is None if it equals that of the drive.
        """
        z, *product = arguments
        drive = jnp.concatenate(z, axis=-1)
        if not self.separate:
            return drive, None
        return drive, jnp.concatenate(z._replace(**product[0]._asdict()), axis=-1)


@functools.cache
def _named(names: tuple[str, ...]):
    """Returns the named tuple type with one field per gate."""
    return collections.namedtuple("Gates", names)


@dataclasses.dataclass(frozen=True, eq=False)
class Origin:
    """The constructor of a cell and its options.

    Attributes:
        constructor: The constructor, such as `jaxrnn.lstm`.
        options: Its arguments by name, including defaults, except for those that only `init` uses.
        computation: The fields of the cell that determine its outputs; `init` is not among them.
    """

    constructor: Callable[..., Cell]
    options: dict[str, Any]
    computation: tuple

    def __deepcopy__(self, memo: dict) -> Origin:
        """Returns the object itself, so that a copied cell equals the original."""
        return self

    def describes(self, cell: Cell) -> bool:
        """Whether the cell still computes what its constructor defined; `init` may differ."""
        return self.computation == _computation(cell)


def _computation(cell: Cell) -> tuple:
    """Returns the fields of a cell that determine its outputs."""
    return cell.initial_state, cell.step, cell.gate, cell.recurrence


def gated(
    gate: Callable[..., S],
    gates: str | Sequence[str],
    init: Callable[..., P],
    initial_state: Callable[..., S],
    *,
    separate: str | Sequence[str] = (),
) -> Cell[P, S]:
    """Makes a cell from an elementwise gate.

    The library computes the matrix products, and the gate does the rest of a time step:

        z_t = x_t·U + b + h_{t-1}·W
        s_t = gate(params, z_t, s_{t-1})

    U is `kernel`, W is `recurrent_kernel` and b is `bias`. The output h_t is the first leaf of the
    state s_t.

    Args:
        gate: `(params, z, state) -> state`, elementwise over the batch and, by convention, over the
            units. `z` is a named tuple of G pre-activations `[*B, H]`, one per gate. `params` are
            the parameters without the kernels and the bias. Values to be differentiated must be
            among the parameters: differentiating a value that the gate closes over is an error,
            except with `implementation="scan"`.
        gates: The names of the G gates in their order in the kernels, as a string such as "f n" or
            a sequence of strings.
        init: As in `Cell`. Returns a named tuple with `kernel` `[I, G·H]`, `recurrent_kernel`
            `[H, G·H]`, `bias` `[G·H]`, and any elementwise parameters of the gate. If
            `recurrent_kernel` is None, `z` is `x·U + b`, and no gate can be separate.
        initial_state: As in `Cell`. Returns a named tuple whose first leaf is the hidden state,
            which is also the output.
        separate: The names of the gates for which `x·U + b` and `h·W` are passed separately, such
            as n of `jaxrnn.gru`. The gate is then `(params, z, product, state) -> state`, where for
            these gates `z` contains `x·U + b` and the named tuple `product` contains `h·W`.

    Returns:
        The cell. Its `step` computes the two matrix products and applies the gate.

    Raises:
        ValueError: If `gates` is empty, a name is repeated or is not a valid field name, or
            `separate` contains a name that is not in `gates`.

    Examples:
        A cell of 64 units with one gate f, which interpolates between the old and the new state:

        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jaxrnn
        >>> def init(key, input_size, dtype=jnp.float32):
        ...     sizes = input_size, 64, 64, 2  # I, P, H, G
        ...     kernels = jaxrnn.initializers.kernels(key, *sizes, dtype)
        ...     return jaxrnn.RNNParams(*kernels, bias=jnp.zeros(2 * 64, dtype))
        >>> def initial_state(params, batch_shape=()):
        ...     return jaxrnn.RNNState(jnp.zeros((*batch_shape, 64)))
        >>> def gate(params, z, state):
        ...     f = jax.nn.sigmoid(z.f)
        ...     return jaxrnn.RNNState((1 - f) * state.hidden + f * jnp.tanh(z.n))
        >>> cell = jaxrnn.gated(gate, "f n", init, initial_state)
        >>> params = cell.init(jax.random.key(0), 28)
        >>> outputs, state = jaxrnn.unroll(cell, params, jnp.ones((8, 28, 28)))
        >>> outputs.shape
        (8, 28, 64)
    """
    names, apart = _names("gates", gates), _names("separate", separate)
    if not names:
        raise ValueError(f"gates must name at least one gate, got {gates!r}")
    if not {*apart} <= {*names}:
        raise ValueError(f"separate must be among the gates {names}, got {separate!r}")
    elements = Gate(gate, names, apart)

    def step(params, state, x):
        state = gated_step(elements, params, state, state[0], x)
        return state, state[0]

    return Cell(init, initial_state, step, elements, outputs_state=True)


def _names(argument: str, names: str | Sequence[str]) -> tuple[str, ...]:
    """Converts the names of gates to a tuple and checks that they are distinct field names."""
    try:
        found = tuple(names.replace(",", " ").split() if isinstance(names, str) else names)
        _named(found)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{argument} must be distinct names, got {names!r}: {error}") from None
    return found


def gated_step(gate: Gate, params: Params, state: State, hidden: Array, x: Array) -> State:
    """Computes one step with `hidden` as the operand of the recurrent product."""
    drive, kernel = affine(x, params.kernel, params.bias), params.recurrent_kernel
    recurrent = None if kernel is None else product(hidden, kernel)
    return gate(elementwise(params), gate.arguments(drive, recurrent), state)


def pointwise(function: Callable[..., Array]) -> Callable[..., Array]:
    """Makes autodiff save one derivative per argument of an elementwise function.

    Otherwise autodiff saves the residuals of every operation in the function. One derivative per
    argument is less to store in the forward loop over time, and takes one multiplication per
    argument in the backward loop. An argument may be None.
    """
    wrapped = jax.custom_jvp(function)

    @wrapped.defjvp
    def jvp(arguments, tangents):
        value, pullback = jax.vjp(function, *arguments)
        slopes = pullback(jnp.ones_like(value))
        changes = jax.tree.leaves(jax.tree.map(jnp.multiply, slopes, tangents))
        return value, functools.reduce(jnp.add, changes)

    return wrapped


def elementwise(params: Params) -> Params:
    """Returns the parameters that a gate receives: all but the two kernels and the bias."""
    return params._replace(kernel=None, recurrent_kernel=None, bias=None)


def affine(
    x: Float[Array, "*batch I"], kernel: Float[Array, "I N"], bias: Float[Array, " N"]
) -> Float[Array, "*batch N"]:
    """Computes `x·kernel + bias`, with the bias broadcast explicitly over the batch axes."""
    made = product(x, kernel)
    return made + along(bias, made)


def product(
    x: Inexact[Array, "*batch I"], kernel: Inexact[Array, "I N"]
) -> Inexact[Array, "*batch N"]:
    """Computes the matrix product `x·kernel` in mixed precision.

    A cell with its own `step` obeys the `dtype` argument of `jaxrnn.unroll` if it computes its
    matrix products with this function.

    Args:
        x: `[*B, I]`. Cast to the dtype of the kernel.
        kernel: `[I, N]`.

    Returns:
        The product `[*B, N]`, accumulated and returned in the dtype of `x`.
    """
    if x.dtype == kernel.dtype:
        return x @ kernel
    return jnp.matmul(x.astype(kernel.dtype), kernel, preferred_element_type=x.dtype)


def with_kernels_in(dtype: Any, params: Params) -> Params:
    """Casts every kernel among the parameters to `dtype`; None leaves them unchanged.

    The kernels are the parameters whose names end in `kernel`, and the LSTM's `projection`.
    """
    if dtype is None:
        return params

    def cast(path, leaf):
        name = jax.tree_util.keystr(path[-1:], simple=True)
        return leaf.astype(dtype) if name.endswith(("kernel", "projection")) else leaf

    return jax.tree_util.tree_map_with_path(cast, params)


def block_product(
    x: Inexact[Array, "*batch I"], kernel: Inexact[Array, "heads K N"]
) -> Inexact[Array, "*batch heads N"]:
    """Computes the product of x with a block-diagonal kernel.

    The features of x are those of the blocks side by side, I = heads·K. The operands are rounded to
    the dtype of the kernel and multiplied in the dtype of `x`, because on a CPU XLA has no batched
    product of bfloat16 numbers with a float32 result.
    """
    blocks = x.reshape(*x.shape[:-1], *kernel.shape[:2]).astype(kernel.dtype)
    return jnp.einsum("...hk,hkn->...hn", blocks.astype(x.dtype), kernel.astype(x.dtype))


def along(
    vector: Inexact[Array, "... N"], like: Inexact[Array, "*batch N"]
) -> Inexact[Array, "*batch N"]:
    """Broadcasts a vector `[N]` over the batch axes of `like`.

    In a Pallas kernel the vector has already been broadcast to a tile.
    """
    return jnp.broadcast_to(vector, like.shape)


def broadcast(state: State, batch_shape: tuple) -> State:
    """Repeats the state of one example for every example of a batch."""
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (*batch_shape, *leaf.shape)), state)


def with_precise_rates(params: P, dtype: Any) -> P:
    """Casts kernels to `dtype` and all other parameters to at least float32.

    The parameters that determine how fast a linear recurrence forgets would lose too much in
    bfloat16: eigenvalues near 1 are rounded to the same number, and the error of a phase grows with
    every step.
    """
    given: Any = params
    return given._replace(
        **{
            name: leaf.astype(dtype if name.endswith("kernel") else precise(dtype))
            for name, leaf in given._asdict().items()
        }
    )


def precise(dtype: Any) -> Any:
    """Returns float64 for float64, otherwise float32."""
    return jnp.float64 if dtype == jnp.float64 else jnp.float32


def zeros(params: Params, batch_shape: tuple, size: int) -> Float[Array, "*batch size"]:
    """Returns zeros `[*B, size]` in the dtype of the parameters."""
    return jnp.zeros((*batch_shape, size), jax.tree.leaves(params)[0].dtype)


# Options that only `init` uses. They are left out of `Origin.options`, because they may be tracers,
# which must not outlive their trace.
_INIT_OPTIONS = {
    "forget_bias",
    "chrono",
    "kernel_init",
    "recurrent_kernel_init",
    "radius",
    "max_phase",
    "step_range",
}


def cached(constructor: Callable[Options, AnyCell]) -> Callable[Options, AnyCell]:
    """Makes a constructor return the same cell for equal options, and sets the cell's `origin`.

    JAX then reuses the programs that it compiled for the cell. Two functions are equal options only
    if they are the same object. A `lambda` in the call is a new function at every call, hence a new
    cell, whose programs are compiled again (about a second and 2 MB each). Define the function once
    outside of the call.

    An option may also be a traced number, such as a forget bias under `jax.vmap`. Such a cell is
    not cached.
    """
    signature = inspect.signature(constructor)

    def construct(*args, **kwargs):
        cell = constructor(*args, **kwargs)
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        options = {
            name: value for name, value in bound.arguments.items() if name not in _INIT_OPTIONS
        }
        return cell._replace(origin=Origin(make, options, _computation(cell)))

    remember = functools.lru_cache(maxsize=None, typed=True)(construct)

    def plain(option):
        """Converts a NumPy number or a concrete array of size 1 to a Python number, for hashing."""
        is_array = isinstance(option, (np.generic, np.ndarray, jax.Array))
        if not is_array or isinstance(option, Tracer) or option.size != 1:
            return option
        return option.item()

    @functools.wraps(constructor)
    def make(*given: Any, **named: Any) -> Any:
        args: Any = tuple(map(plain, given))
        kwargs: Any = {name: plain(option) for name, option in named.items()}
        try:
            hash((args, tuple(kwargs.values())))
        except TypeError:
            return construct(*args, **kwargs)
        return remember(*args, **kwargs)

    return make


def sigmoid(x: Array) -> Array:
    """Computes the logistic function from tanh, which XLA vectorizes on a CPU."""
    return 0.5 * jnp.tanh(0.5 * x) + 0.5


class Recurrence(NamedTuple):
    """A linear recurrence, for `jaxrnn.linear`.

        s_t = a_t∘s_{t-1} + b_t     a and b are functions of x_t, not of the state
        y_t = readout(s_t, x_t)

    The recurrence is computed on the packed state, one real or complex array `[..., H]`. The state
    of the cell may consist of several real leaves, such as a real and an imaginary part.

    Attributes:
        coefficients: `(params, x) -> (a, b)` for inputs x `[..., I]`. The coefficients a and b have
            the dtype of the packed state and its shape `[..., H]`, or a shape that broadcasts to
            it.
        unpack: `(packed, dtype) -> state`. Converts the packed state to the cell's state, with
            leaves of this dtype.
        pack: `state -> packed`, the inverse of `unpack`. Defaults to the first leaf of the state.
        readout: `(params, packed, x) -> y`. Computes the output `[..., P]`. Defaults to the packed
            state.
    """

    coefficients: Callable[[Params, Array], tuple[Array, Array]]
    unpack: Callable[[Array, Any], State]
    pack: Callable[[State], Array] = lambda state: state[0]
    readout: Callable[[Params, Array, Array], Array] = lambda params, packed, x: packed


def linear(
    recurrence: Recurrence, init: Callable[..., P], initial_state: Callable[..., S]
) -> Cell[P, S]:
    """Makes a cell from a linear recurrence, all steps of which can be computed in parallel.

    Args:
        recurrence: The coefficients and the output of the recurrence.
        init: As in `Cell`.
        initial_state: As in `Cell`.

    Returns:
        The cell. Its `step` computes one step of the recurrence.

    Examples:
        An exponential moving average with one learned decay per feature:

        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jaxrnn
        >>> def coefficients(decay, x):
        ...     a = jnp.broadcast_to(decay, x.shape)
        ...     return a, (1 - a) * x
        >>> def init(key, input_size, dtype=jnp.float32):
        ...     return jnp.full(input_size, 0.9, dtype)
        >>> def initial_state(decay, batch_shape=()):
        ...     return (jnp.zeros((*batch_shape, *decay.shape)),)
        >>> def unpack(packed, dtype):
        ...     return (packed,)
        >>> recurrence = jaxrnn.Recurrence(coefficients, unpack)
        >>> cell = jaxrnn.linear(recurrence, init, initial_state)
        >>> params = cell.init(jax.random.key(0), 4)
        >>> means, _ = jaxrnn.unroll(cell, params, jnp.ones((8, 28, 4)))
        >>> means.shape
        (8, 28, 4)
    """

    def step(params, state, x):
        before = recurrence.pack(state)
        a, b = (jnp.broadcast_to(c, before.shape) for c in recurrence.coefficients(params, x))
        packed = a * before + b
        return recurrence.unpack(packed, x.dtype), recurrence.readout(params, packed, x)

    return Cell(init, initial_state, step, recurrence=recurrence)

"""Recurrent cells; most are an affine map and an elementwise gate.

    drive    z_t = x_t·U + b          needs no state, so every time step can be computed at once
    product  r_t = h_{t-1}·W          the only matrix product that has to wait for the step before
    gate     s_t = gate(z_t + r_t, s_{t-1})     elementwise; s is the state, h its first leaf

`gated` makes a `Cell` from a gate, `linear` from a linear recurrence. Any other cell gives its own
`step`.

Shapes: B batch (any number of axes, also none), I input features, H hidden units, G gates, N any
number of features.
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
    init: Callable[..., Any]
    initial_state: Callable[..., Any]
    step: Callable[[Any, Any, Array], tuple[Any, Array]]
    gate: Gate | None = None
    recurrence: Recurrence | None = None
    outputs_state: bool = False
    origin: Origin | None = None


# Generic in a class of its own, since runtime type checkers refuse a named tuple that is generic.
class Cell(_Functions, Generic[P, S]):
    """A recurrent cell as a tuple of pure functions, over its parameters P and its state S.

    Attributes:
        init: `(key, input_size, dtype=float32) -> params`.
        initial_state: `(params, batch_shape=()) -> state`, leaves `[*batch_shape, ...]`.
        step: `(params, state, x [..., I]) -> (state, y)`, one time step;
            `functools.partial(cell.step, params)` is the body of a `jax.lax.scan`.
        gate: The elementwise part of a cell made by `gated`, or None.
        recurrence: The coefficients of a cell made by `linear`, or None.
        outputs_state: Whether the output of `step` is the first leaf of the state that it returns.
        origin: How one of the library's constructors made this cell, or None.
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
        names: The names of the G gates, in the order in which they stand in the kernels.
        separate: The names of those that take drive and product apart, and not their sum.
    """

    function: Callable[..., Any]
    names: tuple[str, ...]
    separate: tuple[str, ...] = ()

    def __call__(self, params: Params, arguments: tuple, state: State) -> State:
        """The state after a step, from what `arguments` or `summed` gives."""
        return self.function(params, *arguments, state)

    def arguments(self, drive: Array, product: Array | None) -> tuple:
        """What the function takes between params and state: named tuples of arrays `[..., H]`.

        Args:
            drive: `[..., G·H]`.
            product: The same, or None for a cell without a recurrent kernel.
        """
        if product is None or not self.separate:
            return self.summed(drive if product is None else drive + product)
        count = len(self.names)
        return self.named(jnp.split(drive, count, axis=-1), jnp.split(product, count, axis=-1))

    def named(self, drives: Sequence[Array], products: Sequence[Array] | None) -> tuple:
        """What `arguments` gives, from the drive and the product of each gate `[..., H]`."""
        together = [
            z if products is None or name in self.separate else z + products[index]
            for index, (name, z) in enumerate(zip(self.names, drives, strict=True))
        ]
        if not self.separate:
            return (_named(self.names)(*together),)
        apart = [products[self.names.index(name)] for name in self.separate]
        return _named(self.names)(*together), _named(self.separate)(*apart)

    def summed(self, total: Array) -> tuple:
        """What `arguments` gives, from the sum of drive and product `[..., G·H]`."""
        return (_named(self.names)(*jnp.split(total, len(self.names), axis=-1)),)

    def join(self, arguments: tuple) -> tuple[Array, Array | None]:
        """The transpose of `arguments`: the gradients of drive and product `[..., G·H]`.

        The second is None where both are equal.
        """
        z, *product = arguments
        drive = jnp.concatenate(z, axis=-1)
        if not self.separate:
            return drive, None
        return drive, jnp.concatenate(z._replace(**product[0]._asdict()), axis=-1)


@functools.cache
def _named(names: tuple[str, ...]):
    return collections.namedtuple("Gates", names)


@dataclasses.dataclass(frozen=True, eq=False)
class Origin:
    """The constructor that made a cell and the options it was given.

    Attributes:
        constructor: Such as `jaxrnn.lstm`.
        options: Its arguments by name, defaults included, without those of the initialization.
        computation: The fields of the cell that decide what it computes, all but `init`.
    """

    constructor: Callable[..., Cell]
    options: dict[str, Any]
    computation: tuple

    def __deepcopy__(self, memo: dict) -> Origin:
        """Returns the same object, because a copied cell must be equal to its original."""
        return self

    def describes(self, cell: Cell) -> bool:
        """Whether the cell computes what its constructor made, as it does with another `init`."""
        return self.computation == _computation(cell)


def _computation(cell: Cell) -> tuple:
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

    Example::

        def init(key, input_size, dtype=jnp.float32):
            kernels = jaxrnn.initializers.kernels(key, input_size, 64, 64, gates=2, dtype=dtype)
            return jaxrnn.RNNParams(*kernels, bias=jnp.zeros(2 * 64, dtype))

        def initial_state(params, batch_shape=()):
            return jaxrnn.RNNState(jnp.zeros((*batch_shape, 64), params.bias.dtype))

        def gate(params, z, state):
            f = jax.nn.sigmoid(z.f)
            return jaxrnn.RNNState((1 - f) * state.hidden + f * jnp.tanh(z.n))

        cell = jaxrnn.gated(gate, "f n", init, initial_state)

    Args:
        gate: `(params, z, state) -> state`, elementwise over the batch and, by convention, over the
            units. `z` is a named tuple of G pre-activations `[..., H]`, each the sum of drive and
            product. `params` are the parameters without the kernels and the bias. Anything to be
            differentiated must be among them: differentiating a value that the gate closes over
            is an error, except with implementation="scan".
        gates: The names of the G gates in the order in which they stand in the kernels, as
            `collections.namedtuple` takes them.
        init: As in `Cell`; returns a named tuple with `kernel [I, G·H]`, `recurrent_kernel
            [H, G·H]`, `bias [G·H]`, and whatever elementwise parameters the gate uses. Where the
            recurrent kernel is None, `z` is the drive alone, and no gate can be separate.
        initial_state: As in `Cell`; returns a named tuple whose first leaf is the hidden state,
            which is also the output.
        separate: The names of gates for which drive and product are passed apart, such as n of
            `jaxrnn.gru`. The gate is then `(params, z, product, state) -> state`: for these gates
            `z` holds the drive, and the named tuple `product` the product.

    Returns:
        The cell; its `step` computes the two products and applies the gate.

    Raises:
        ValueError: If `gates` is empty or its names are not distinct, or `separate` names another.
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
    try:
        found = tuple(names.replace(",", " ").split() if isinstance(names, str) else names)
        _named(found)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{argument} must be distinct names, got {names!r}: {error}") from None
    return found


def gated_step(gate: Gate, params: Params, state: State, hidden: Array, x: Array) -> State:
    """The state after a step whose recurrent product sees `hidden`."""
    drive, kernel = affine(x, params.kernel, params.bias), params.recurrent_kernel
    recurrent = None if kernel is None else product(hidden, kernel)
    return gate(elementwise(params), gate.arguments(drive, recurrent), state)


def pointwise(function: Callable[..., Array]) -> Callable[..., Array]:
    """Makes autodiff save one derivative for each argument of an elementwise function.

    In place of the residuals of every operation in it, this is less to store in the forward loop
    over time, and one multiplication for each argument in the backward loop. An argument may be
    None.
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
    """The parameters that a gate may see: all but the two kernels and the bias."""
    return params._replace(kernel=None, recurrent_kernel=None, bias=None)


def affine(
    x: Float[Array, "*batch I"], kernel: Float[Array, "I N"], bias: Float[Array, " N"]
) -> Float[Array, "*batch N"]:
    """`x·kernel + bias`, with the bias broadcast explicitly over the batch axes."""
    made = product(x, kernel)
    return made + along(bias, made)


def product(
    x: Inexact[Array, "*batch I"], kernel: Inexact[Array, "I N"]
) -> Inexact[Array, "*batch N"]:
    """`x·kernel` with operands in the kernel's dtype, accumulated and returned in that of `x`.

    A cell whose `step` makes its products by it obeys the `dtype` of `jaxrnn.unroll`.
    """
    if x.dtype == kernel.dtype:
        return x @ kernel
    return jnp.matmul(x.astype(kernel.dtype), kernel, preferred_element_type=x.dtype)


def with_kernels_in(dtype: Any, params: Params) -> Params:
    """The parameters with every kernel in this dtype; None leaves them as they are.

    A kernel is what is named so: `kernel`, `recurrent_kernel`, …, and the LSTM's `projection`.
    """
    if dtype is None:
        return params

    def cast(path, leaf):
        name = jax.tree_util.keystr(path[-1:], simple=True)
        return leaf.astype(dtype) if name.endswith(("kernel", "projection")) else leaf

    return jax.tree_util.tree_map_with_path(cast, params)


def along(
    vector: Inexact[Array, "... N"], like: Inexact[Array, "*batch N"]
) -> Inexact[Array, "*batch N"]:
    """Broadcasts a per-unit vector over the batch axes of `like`; kernels have done so before."""
    return jnp.broadcast_to(vector, like.shape)


def broadcast(state: State, batch_shape: tuple) -> State:
    """The same state for every example of a batch."""
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (*batch_shape, *leaf.shape)), state)


def zeros(params: Params, batch_shape: tuple, size: int) -> Float[Array, "*batch size"]:
    """A state of zeros in the dtype of the parameters."""
    return jnp.zeros((*batch_shape, size), jax.tree.leaves(params)[0].dtype)


# Options that only `init` uses. They are left out of `origin`, where a tracer would leak.
_INIT_OPTIONS = {
    "forget_bias",
    "chrono",
    "kernel_init",
    "recurrent_kernel_init",
    "radius",
    "max_phase",
}


def cached(constructor: Callable[Options, AnyCell]) -> Callable[Options, AnyCell]:
    """Makes a constructor return the same cell for the same options.

    JAX then finds the programs that it compiled for the cell. Two functions are the same option
    only if they are the same object: a `lambda` in the call is a new function, and so a new cell,
    at every call, and its programs are compiled again (about a second and 2 MB each). Define it
    once, outside of the call.

    An option may also be a traced number, such as a forget bias under `jax.vmap`; such a cell is
    not cached. The cell's `origin` names the constructor and options.
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
        """A NumPy integer or a concrete array of size one as a Python number, which is hashable."""
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
    """The logistic function, computed with tanh, because XLA vectorizes tanh on a CPU."""
    return 0.5 * jnp.tanh(0.5 * x) + 0.5


class Recurrence(NamedTuple):
    """A linear recurrence `s_t = a_t∘s_{t-1} + b_t`; a and b depend on the inputs only.

    Attributes:
        coefficients: `(params, x [..., I]) -> (a, b)`, each `[..., H]` or of a shape that is
            broadcast to it, real or complex, in the dtype of the packed state.
        unpack: `(packed, dtype) -> state`, of the packed state `[..., H]` with all its leaves.
        pack: Its inverse, `state -> packed`, in the coefficients' dtype; by default the first leaf.
        readout: `(params, packed [..., H], x) -> y`.
    """

    coefficients: Callable[[Params, Array], tuple[Array, Array]]
    unpack: Callable[[Array, Any], State]
    pack: Callable[[State], Array] = lambda state: state[0]
    readout: Callable[[Params, Array, Array], Array] = lambda params, packed, x: packed


def linear(
    recurrence: Recurrence, init: Callable[..., P], initial_state: Callable[..., S]
) -> Cell[P, S]:
    """Makes a cell from a linear recurrence, whose steps can be computed all at once.

    Args:
        recurrence: The recurrence.
        init: As in `Cell`.
        initial_state: As in `Cell`.

    Returns:
        The cell.
    """

    def step(params, state, x):
        a, b = recurrence.coefficients(params, x)
        packed = a * recurrence.pack(state) + b
        return recurrence.unpack(packed, x.dtype), recurrence.readout(params, packed, x)

    return Cell(init, initial_state, step, recurrence=recurrence)

"""What a recurrent cell is: an affine map and an elementwise gate.

    drive    z_t = x_t·U + b          needs no state, so every time step can be computed at once
    product  r_t = h_{t-1}·W          the only matrix product that has to wait for the step before
    gate     s_t = gate(z_t + r_t, s_{t-1})     elementwise; s is the state, h its first leaf

`gated` makes a `Cell` from a gate, `linear` from a linear recurrence. Any other cell gives its own
`step`.

Shapes: B batch (any number of axes, also none), I input features, H hidden units, G gates.
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
        if product is None:
            return self.summed(drive)
        if not self.separate:
            return self.summed(drive + product)
        (z,), (r,) = self.summed(drive), self.summed(product)
        apart = {name: getattr(r, name) for name in self.separate}
        together = {n: getattr(z, n) + getattr(r, n) for n in self.names if n not in apart}
        return z._replace(**together), _named(self.separate)(**apart)

    def summed(self, total: Array) -> tuple:
        """What `arguments` gives, from the sum of drive and product `[..., G·H]`."""
        return (_named(self.names)(*jnp.split(total, len(self.names), axis=-1)),)

    def join(self, arguments: tuple) -> tuple[Array, Array | None]:
        """Gradients of the arguments as those of drive and product `[..., G·H]`.

        Of the product None where it is the same as of the drive.
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
        options: Its arguments by name, defaults included, without those that only say how the
            parameters start.
        computation: What the constructor made of a `Cell`, apart from `init`.
    """

    constructor: Callable[..., Cell]
    options: dict[str, Any]
    computation: tuple

    def __deepcopy__(self, memo: dict) -> Origin:
        """The same object, so that a copied cell is equal to its original."""
        return self

    def describes(self, cell: Cell) -> bool:
        """Whether the cell still computes what its constructor made it compute.

        It does if only `init` was replaced, as `scaled` does.
        """
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

        def gate(params, z, state):
            return State((1 - σ(z.f))·state.hidden + σ(z.f)·tanh(z.n))

        cell = gated(gate, "f n", init, initial_state)

    Args:
        gate: `(params, z, state) -> state`, elementwise over the batch and the units. `z` is a
            named tuple of G pre-activations `[..., H]`, each the sum of drive and product.
            `params` are the parameters without the kernels and the bias. A number that a gradient
            is to reach must be among them: the deferred gradient does not reach what the gate
            closes over (only implementation="scan" does).
        gates: The names of the G gates in the order in which they stand in the kernels, as
            `collections.namedtuple` takes them.
        init: As in `Cell`; returns a named tuple with `kernel [I, G·H]`, `recurrent_kernel
            [H, G·H]`, `bias [G·H]`, and whatever elementwise parameters the gate uses. Where the
            recurrent kernel is None there is no product, and `z` is the drive alone.
        initial_state: As in `Cell`; returns a named tuple whose first leaf is the hidden state,
            which is also the output.
        separate: The names of gates that do not take the sum, as the GRU's candidate does not. The
            gate is then `(params, z, product, state) -> state`: of these gates `z` holds the
            drive, and the named tuple `product` the product.

    Returns:
        The cell, with `step` = the gate applied to the two products.

    Raises:
        ValueError: If `gates` are no distinct names, or `separate` not among them.
    """
    names, apart = _names("gates", gates), _names("separate", separate)
    if not names or not {*apart} <= {*names}:
        raise ValueError(f"gates must name at least one, and all separate ones, got {gates!r}")
    elements = Gate(gate, names, apart)

    def step(params, state, x):
        state = gated_step(elements, params, state, state[0], x)
        return state, state[0]

    return Cell(init, initial_state, step, elements, outputs_state=True)


def _names(argument: str, names: str | Sequence[str]) -> tuple[str, ...]:
    found = tuple(names.replace(",", " ").split()) if isinstance(names, str) else tuple(names)
    try:
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
    """An elementwise function whose derivative is kept as one slope for each argument.

    Autodiff keeps a factor for each operation inside; multiplying them at once leaves less to
    store in the forward loop over time and nothing to compute in the backward one. An argument
    may be None.
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
    x: Float[Array, "*batch I"], kernel: Float[Array, "I G"], bias: Float[Array, " G"]
) -> Float[Array, "*batch G"]:
    """`x·kernel + bias`, with the bias broadcast explicitly over the batch axes."""
    made = product(x, kernel)
    return made + along(bias, made)


def product(
    x: Inexact[Array, "*batch I"], kernel: Inexact[Array, "I G"]
) -> Inexact[Array, "*batch G"]:
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
    vector: Inexact[Array, " N"], like: Inexact[Array, "*batch N"]
) -> Inexact[Array, "*batch N"]:
    """Broadcasts a per-unit vector over the batch axes of `like`."""
    return jnp.broadcast_to(vector, like.shape)


def broadcast(state: State, batch_shape: tuple) -> State:
    """The same state for every row of a batch."""
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (*batch_shape, *leaf.shape)), state)


def zeros(params: Params, batch_shape: tuple, size: int) -> Float[Array, "*batch size"]:
    """A state of zeros in the dtype of the parameters."""
    return jnp.zeros((*batch_shape, size), jax.tree.leaves(params)[0].dtype)


# Options that only say how parameters start. They may be traced numbers, which must not be kept.
_STARTS = {"forget_bias", "chrono", "kernel_init", "recurrent_kernel_init", "radius", "max_phase"}


def cached(constructor: Callable[Options, AnyCell]) -> Callable[Options, AnyCell]:
    """Makes a constructor give the same cell for the same options.

    What was compiled for a cell is then found again. A function is the same only if it is the same
    object: a `lambda` written into the call is a new one each time, and so a new cell, whose
    programs compile anew (about a second and 2 MB each). Define it once, outside of the call.

    An option may also be a traced number, as a forget bias that differs from run to run of one
    program; such a cell is made anew. The cell's `origin` names the constructor and its options.
    """
    signature = inspect.signature(constructor)

    def construct(*args, **kwargs):
        cell = constructor(*args, **kwargs)
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        options = {name: value for name, value in bound.arguments.items() if name not in _STARTS}
        return cell._replace(origin=Origin(make, options, _computation(cell)))

    remember = functools.lru_cache(maxsize=None, typed=True)(construct)

    def plain(option):
        """NumPy's integers and concrete arrays of one number as numbers, which can be hashed."""
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
    """The logistic function, written so that XLA's vectorised tanh computes it."""
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

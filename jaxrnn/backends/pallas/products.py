"""Products with the recurrent kernel inside of the kernels of `jaxrnn.backends.pallas.gpu`.

On Hopper a product is a `wgmma` of two operands in shared memory. The 64 rows of its result are
units, so arrays are turned, units before examples: a block may then have few examples, and many
blocks share the work. On Ampere, Ada and B200 a product is an `mma` of two operands in
registers. The 16 rows of its result are examples, as in the arrays of XLA.

A float32 product is three products of bfloat16 operands, of high and low halves without that of
both low ones, which is more precise than TF32. A half of the kernel that has no room in shared
memory comes from the L2 cache in every step.

Shapes: G gates, H hidden units, W warpgroups.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array

from jaxrnn.backends.elementwise import EXAMPLES

UNITS = 64  # of a warpgroup
MOST_WARPGROUPS = 8  # of a block, of the 1,024 threads that it may have
MOST_READ = 2**18  # bytes from the L2 cache in every step, which take as long as some launches
# An axis of a kernel. In `jax.shard_map`, an axis of the devices' mesh would hide one of its name.
WARPGROUP = "jaxrnn_warpgroup"


class Card(NamedTuple):
    """The properties of a GPU on which the kernels depend.

    Attributes:
        wgmma: Whether products are by `wgmma`, as on Hopper, or by `mma`.
        kibibytes: The shared memory that a block may have.
    """

    wgmma: bool
    kibibytes: int

    def at(self, units: Any, examples: Any) -> tuple[Any, Any]:
        """The last two axes of arrays and tiles, in their order."""
        return (units, examples) if self.wgmma else (examples, units)

    def turned(self, x: Array) -> Array:
        """An array `[…, N, H]` with its axes in this order, or such an array turned back."""
        return jnp.swapaxes(x, -1, -2) if self.wgmma else x

    def room(self, gates: int, units: int, halves: int, factors: int) -> _WgmmaRoom | _MmaRoom:
        """What products need of shared memory; see `_WgmmaRoom`."""
        shared_bytes = 1024 * self.kibibytes - 2048  # less what the compiler takes
        return (_WgmmaRoom if self.wgmma else _MmaRoom)(gates, units, halves, factors, shared_bytes)


HOPPER = Card(wgmma=True, kibibytes=227)
KIBIBYTES = {"8.0": 163, "8.7": 163, "10.0": 227, "10.3": 227}  # of others that have more than 99


def card_of(capability: str) -> Card | None:
    """The card of a compute capability, or None if no kernel can be compiled for it."""
    major = capability.split(".")[0]
    if major == "9":
        return HOPPER
    # Turing has no bfloat16, for 12 Mosaic GPU of JAX 0.12 fails, and Pallas has `mma` from 0.11.
    if major not in ("8", "10") or not hasattr(plgpu, "mma"):
        return None
    return Card(wgmma=False, kibibytes=KIBIBYTES.get(capability, 99))


class _WgmmaRoom(NamedTuple):
    """What products by `wgmma` need of shared memory.

    Attributes:
        gates: G.
        units: H, rounded up to whole warpgroups.
        halves: 2 for operands in float32, 1 in bfloat16.
        factors: How many tiles of examples are multiplied at once, 1 or G.
        shared_bytes: The shared memory of a block.
    """

    gates: int
    units: int
    halves: int
    factors: int
    shared_bytes: int

    @property
    def warpgroups(self) -> int:
        return self.units // UNITS

    def bytes(self, streamed: bool) -> int:
        """The bytes, if the low half of the kernel is streamed or not."""
        matrix = 2 * self.units**2
        kept = self.gates * (self.halves - streamed) * matrix
        return kept + 2 * streamed * matrix + 2 * self.halves * self.factors * self.units * EXAMPLES

    @property
    def streamed(self) -> bool:
        """Whether the low half of the kernel is read in every step."""
        return self.halves == 2 and self.bytes(streamed=False) > self.shared_bytes

    @property
    def enough(self) -> bool:
        """Whether a block has it."""
        fits = self.bytes(self.streamed) <= self.shared_bytes
        return fits and self.warpgroups <= MOST_WARPGROUPS

    def scratch(self) -> dict[str, Any]:
        """What to allocate for `_WgmmaProducts`."""
        kernel = plgpu.SMEM((self.warpgroups * self.gates, UNITS, self.units), jnp.bfloat16)
        factor = plgpu.SMEM((self.factors * self.warpgroups, UNITS, EXAMPLES), jnp.bfloat16)
        scratch = {
            "kernels": [kernel] * (self.halves - self.streamed),
            "exchanged": [factor] * self.halves,
            "loaded": plgpu.Barrier(num_arrivals=self.halves - self.streamed),
            "ready": plgpu.Barrier(num_arrivals=self.warpgroups),
        }
        if self.streamed:
            slots = 2 * self.warpgroups
            scratch["slots"] = plgpu.SMEM((slots, UNITS, self.units), jnp.bfloat16)
            scratch["filled"] = plgpu.Barrier(num_barriers=slots)
        return scratch

    def products(
        self, run: Any, halves: Sequence[Any], scratch: dict[str, Any], *, interpret: bool
    ) -> _WgmmaProducts:
        """The products in a kernel."""
        return _WgmmaProducts(self, run, halves, scratch)


class _WgmmaProducts:
    """Products by `wgmma`, in which all warpgroups of a block take part.

    Args:
        room: The shapes.
        run: Which of the runs this is.
        halves: The halves of the kernels of all runs in global memory, `[runs·W·G, 64, H]`.
        scratch: What `_WgmmaRoom.scratch` names.
    """

    def __init__(self, room: _WgmmaRoom, run: Any, halves: Sequence[Any], scratch: dict[str, Any]):
        self.room, self.halves, self.scratch = room, halves, scratch
        self.me = lax.axis_index(WARPGROUP)
        count = room.warpgroups * room.gates
        self.first = run * count

        @pl.when(self.me == 0)
        def _():
            for half, kernel in zip(halves, scratch["kernels"], strict=False):
                mine = half.at[pl.ds(self.first, count)]
                plgpu.copy_gmem_to_smem(mine, kernel, scratch["loaded"])

        plgpu.barrier_wait(scratch["loaded"])

    def share(self, factors: Sequence[Array]) -> None:
        """Lets all warpgroups have this one's tiles of what is multiplied.

        Args:
            factors: One tile for all gates, or one for each.
        """
        room = self.room
        for index, factor in enumerate(factors):
            halves = _halves(factor, room.halves)
            for shared, half in zip(self.scratch["exchanged"], halves, strict=True):
                shared[index * room.warpgroups + self.me] = half
        plgpu.commit_smem()
        if room.streamed:
            for gate in range(min(2, room.gates)):
                self._fetch(gate)
        self._meet()

    def multiply(self, *, apart: bool) -> list[Array]:
        """The products for the units of this warpgroup, one for each gate or their sum."""
        room, kernels = self.room, self.scratch["kernels"]
        pairs = [(0, 0), (0, 1), (1, 0)] if room.halves == 2 else [(0, 0)]

        def add(gate, total, index):
            for half, other in pairs:
                if half < len(kernels):
                    kernel = kernels[half].at[self.me * room.gates + gate]
                    self._add(total, kernel, self.scratch["exchanged"][other], index)

        def body(*totals):
            for step in [add, self._add_streamed] if room.streamed else [add]:
                if apart:
                    for gate in range(room.gates):
                        step(gate, totals[gate], 0)
                else:  # Unrolled, it would take more registers than there are.
                    _repeat(room.gates, partial(step, total=totals[0]))
            plgpu.wgmma_wait(0)
            return [total[...] for total in totals]

        count = room.gates if apart else 1
        result = pl.run_scoped(
            body, *[plgpu.WGMMAAccumulatorRef((UNITS, EXAMPLES), jnp.float32)] * count
        )
        self._meet()  # before anyone shares the next tiles
        return result

    def _meet(self):
        plgpu.barrier_arrive(self.scratch["ready"])
        plgpu.barrier_wait(self.scratch["ready"])

    def _add(self, total, kernel, factors, index):
        """Adds the product of a gate's part of the kernel, for the units of this warpgroup."""
        for each in range(self.room.warpgroups):
            columns = pl.ds(each * UNITS, UNITS)
            factor = factors.at[index * self.room.warpgroups + each]
            plgpu.wgmma(total, kernel.at[:, columns], factor)

    def _fetch(self, gate):
        slot = 2 * self.me + lax.rem(gate, 2)
        source = self.halves[1].at[self.first + self.me * self.room.gates + gate]
        filled = self.scratch["filled"].at[slot]
        plgpu.copy_gmem_to_smem(source, self.scratch["slots"].at[slot], filled)

    def _add_streamed(self, gate, total, index):
        """Adds the product of the low half of a gate's part, and fetches what comes next."""
        slot = 2 * self.me + lax.rem(gate, 2)
        plgpu.barrier_wait(self.scratch["filled"].at[slot])
        self._add(total, self.scratch["slots"].at[slot], self.scratch["exchanged"][0], index)
        plgpu.wgmma_wait(0)

        @pl.when(gate + 2 < self.room.gates)
        def _():
            self._fetch(gate + 2)


class _MmaRoom(NamedTuple):
    """What products by `mma` need of shared memory; for the attributes see `_WgmmaRoom`."""

    gates: int
    units: int
    halves: int
    factors: int
    shared_bytes: int

    @property
    def warpgroups(self) -> int:
        return self.units // UNITS

    def bytes(self, kept: int) -> int:
        """The bytes, if this many halves of the kernel are kept in shared memory."""
        kernels = kept * self.gates * self.units * self.units
        factors = self.halves * self.factors * EXAMPLES * self.warpgroups * UNITS
        return 2 * (kernels + factors)

    @property
    def kept(self) -> int:
        """How many halves of the kernel are not read in every step."""
        return max(n for n in range(self.halves + 1) if not n or self.bytes(n) <= self.shared_bytes)

    @property
    def enough(self) -> bool:
        """Whether a block has it, and reads little in every step."""
        read = 2 * (self.halves - self.kept) * self.gates * self.units**2
        fits = self.bytes(self.kept) <= self.shared_bytes and read <= MOST_READ
        return fits and self.warpgroups <= MOST_WARPGROUPS

    def scratch(self) -> dict[str, Any]:
        """What to allocate for `_MmaProducts`."""
        kernel = self.warpgroups * self.gates, UNITS, self.units
        factor = self.factors * self.warpgroups, EXAMPLES, UNITS
        return {
            "kernels": [plgpu.SMEM(kernel, jnp.bfloat16)] * self.kept,
            "exchanged": [plgpu.SMEM(factor, jnp.bfloat16)] * self.halves,
            "ready": plgpu.Barrier(num_arrivals=self.warpgroups),
        }

    def products(
        self, run: Any, halves: Sequence[Any], scratch: dict[str, Any], *, interpret: bool
    ) -> _MmaProducts:
        """The products in a kernel."""
        return _MmaProducts(self, run, halves, scratch, interpret)


class _MmaProducts:
    """Products by `mma`, in which all warpgroups of a block take part.

    Args:
        room: The shapes.
        run: Which of the runs this is.
        halves: The halves of the kernels of all runs in global memory, `[runs·W·G, 64, H]`.
        scratch: What `_MmaRoom.scratch` names.
        interpret: Whether the kernel is interpreted, for which `mma` is not known.
    """

    def __init__(
        self,
        room: _MmaRoom,
        run: Any,
        halves: Sequence[Any],
        scratch: dict[str, Any],
        interpret: bool,
    ):
        self.room, self.halves, self.scratch, self.interpret = room, halves, scratch, interpret
        self.me = lax.axis_index(WARPGROUP)
        self.first = run * room.warpgroups * room.gates

        # Each warpgroup reads what it alone needs later.
        def keep(gate, index):
            mine = self.me * room.gates + index
            for half, kernel in zip(halves, scratch["kernels"], strict=False):
                for columns in self._columns():
                    kernel[mine, :, columns] = load(half.at[self.first + mine, :, columns])

        _repeat(room.gates, keep)

    def share(self, factors: Sequence[Array]) -> None:
        """Lets all warpgroups have this one's tiles; see `_WgmmaProducts.share`."""
        for index, factor in enumerate(factors):
            halves = _halves(factor, self.room.halves)
            for shared, half in zip(self.scratch["exchanged"], halves, strict=True):
                shared[index * self.room.warpgroups + self.me] = half
        self._meet()

    def multiply(self, *, apart: bool) -> list[Array]:
        """The products for the units of this warpgroup, one for each gate or their sum."""
        gates, zeros = self.room.gates, jnp.zeros((EXAMPLES, UNITS), jnp.float32)
        if apart:
            totals = [zeros] * gates
            for each, columns in enumerate(self._columns()):
                factors = self._factors(0, each)
                totals = [self._add(totals[n], factors, n, columns) for n in range(gates)]
        else:

            def add(gate, total):
                for each, columns in enumerate(self._columns()):
                    total = self._add(total, self._factors(gate, each), gate, columns)
                return total

            totals = [lax.fori_loop(0, gates, add, zeros)]
        self._meet()  # before anyone shares the next tiles
        return totals

    def _meet(self):
        plgpu.barrier_arrive(self.scratch["ready"])
        plgpu.barrier_wait(self.scratch["ready"])

    def _columns(self):
        return [pl.ds(each * UNITS, UNITS) for each in range(self.room.warpgroups)]

    def _factors(self, index, each):
        """The halves of a tile that a warpgroup shared."""
        index = index * self.room.warpgroups + each
        return [load(shared.at[index]) for shared in self.scratch["exchanged"]]

    def _add(self, total, factors, gate, columns):
        """Adds the product with some columns of a gate's part of the kernel."""
        mine, kernels = self.me * self.room.gates + gate, self.scratch["kernels"]
        for half in range(self.room.halves):
            if half < len(kernels):
                part = kernels[half].at[mine, :, columns]
            else:
                part = self.halves[half].at[self.first + mine, :, columns]
            for factor in factors[: self.room.halves - half]:
                total = self._product(total, factor, part)
        return total

    def _product(self, total, factor, part):
        if self.interpret:
            return total + jnp.dot(factor, load(part).T, preferred_element_type=total.dtype)
        return plgpu.mma(total, factor, load(part.transpose((1, 0))))  # pyright: ignore[reportAttributeAccessIssue]


def parts(operand: Array) -> list[Array]:
    """The halves of an operand `[G, H, H]`, by warpgroup, `[W·G, 64, H]`."""
    gates, units, _ = operand.shape
    parts = operand.reshape(gates, -1, UNITS, units).transpose(1, 0, 2, 3)
    parts = parts.reshape(-1, UNITS, units)
    if operand.dtype == jnp.bfloat16:
        return [parts]
    # XLA would take a conversion to bfloat16 and back for the identity.
    high = lax.reduce_precision(parts, exponent_bits=8, mantissa_bits=7)
    return [high.astype(jnp.bfloat16), (parts - high).astype(jnp.bfloat16)]


def _halves(x: Array, count: int) -> list[Array]:
    """A float32 tile in bfloat16, or as the sum of two tiles in bfloat16."""
    high = x.astype(jnp.bfloat16)
    return [high] if count == 1 else [high, (x - high.astype(x.dtype)).astype(jnp.bfloat16)]


def _repeat(count: int, function: Callable) -> None:
    lax.fori_loop(0, count, lambda index, _: function(index, index=index), None)


def load(reference: Any) -> Any:
    """The tile at a reference."""
    # A float32 tile has no faster load. Before JAX 0.11 the index is an argument of its own.
    index = [()] if jax.__version_info__ < (0, 11) else []
    tile = plgpu.load(reference, *index, optimized=False)
    # Under `jax.shard_map` what is loaded has a type that varies over the mesh, and what is
    # computed from it has not; no loop and no pullback takes both. The compiler drops this.
    return tile * jnp.ones((), tile.dtype)


def store(reference: Any, value: Array) -> None:
    """Puts a tile at a reference."""
    # A tile's rows are half of a cache line. Before JAX 0.12 no store minded.
    if hasattr(plgpu, "store"):
        plgpu.store(  # pyright: ignore[reportAttributeAccessIssue]
            reference, value, optimized=False
        )
    else:
        reference[...] = value

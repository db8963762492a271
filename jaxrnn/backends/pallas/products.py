"""Products with the recurrent kernel, for the kernels of `jaxrnn.backends.pallas.gpu`.

A warpgroup, four warps of 32 threads, computes tiles of 64 units and 16 examples. The instruction
that multiplies depends on the GPU, and the layout of arrays and tiles depends on the instruction:

- Hopper has `wgmma`, an instruction of a whole warpgroup. It reads both operands from shared memory
  and adds the product to an accumulator in registers, of 64 rows and a multiple of 8 columns. The
  rows are units and the columns are examples, so all arrays are transposed, with units before
  examples. A block then needs few examples, so that many blocks share the work. `wgmma` is
  asynchronous: an accumulator may be read after `wgmma_wait`.
- Ampere, Ada and the B200 have `mma`, a synchronous instruction of one warp, which multiplies
  operands in registers. Its result has 16 rows and 8 columns. The rows are examples, as in the
  arrays of XLA, and the four warps divide the 64 units.

In both cases the recurrent kernel is stored as one block `[64, H]` per gate and warpgroup, whose
rows are the units of the result. `wgmma` multiplies this block by a tile `[64, 16]` of each
warpgroup. `mma` multiplies a tile `[16, 64]` of each warpgroup by the transposed block.

A float32 product is a sum of three products of bfloat16 operands, high·high, high·low and low·high,
where an operand is the sum of a high and a low half. This is more precise than TF32. A half of the
recurrent kernel that does not fit into shared memory is read from the L2 cache in every step.

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

UNITS = 64  # per warpgroup
MOST_WARPGROUPS = 8  # per block, which may have 1,024 threads
# Bytes that a block may read from the L2 cache per step with `mma`. Reading more is estimated to
# take longer than the launches of an XLA loop.
MOST_READ = 2**18
# An axis of a kernel. In `jax.shard_map`, a mesh axis of the same name would shadow it.
WARPGROUP = "jaxrnn_warpgroup"


class Card(NamedTuple):
    """The properties of a GPU on which the kernels depend.

    Attributes:
        wgmma: Whether the GPU multiplies by `wgmma`, as Hopper does, rather than by `mma`.
        kibibytes: The shared memory of a block in KiB.
    """

    wgmma: bool
    kibibytes: int

    def at(self, units: Any, examples: Any) -> tuple[Any, Any]:
        """Orders the sizes or indices of the last two axes of arrays and tiles."""
        return (units, examples) if self.wgmma else (examples, units)

    def turned(self, x: Array) -> Array:
        """Transposes an array `[…, N, H]` to the order of `at`, or back."""
        return jnp.swapaxes(x, -1, -2) if self.wgmma else x

    def room(self, gates: int, units: int, halves: int, factors: int) -> _WgmmaRoom | _MmaRoom:
        """Returns the shared memory of products; see `_WgmmaRoom` for the arguments."""
        shared_bytes = 1024 * self.kibibytes - 2048  # minus that used by the compiler
        return (_WgmmaRoom if self.wgmma else _MmaRoom)(gates, units, halves, factors, shared_bytes)


HOPPER = Card(wgmma=True, kibibytes=227)
# Shared memory of a block on other GPUs, by compute capability, if it is more than 99 KiB.
KIBIBYTES = {"8.0": 163, "8.7": 163, "10.0": 227, "10.3": 227}


def card_of(capability: str) -> Card | None:
    """Returns the GPU of a compute capability, or None if no kernel can be compiled for it."""
    major = capability.split(".")[0]
    if major == "9":
        return HOPPER
    # Turing, capability 7.5, has no bfloat16. Mosaic GPU of JAX 0.12 fails for capability 12.
    # Pallas has `mma` from JAX 0.11.
    if major not in ("8", "10") or not hasattr(plgpu, "mma"):
        return None
    return Card(wgmma=False, kibibytes=KIBIBYTES.get(capability, 99))


class _WgmmaRoom(NamedTuple):
    """The shared memory of products by `wgmma`.

    Attributes:
        gates: G, the number of gates.
        units: H, rounded up to whole warpgroups.
        halves: 2 for operands in float32, 1 for operands in bfloat16.
        factors: The number of tiles that are multiplied at a time, 1 or G.
        shared_bytes: The bytes of shared memory that a block may use.
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
        """Returns the bytes, given whether the low half of the kernel is streamed."""
        matrix = 2 * self.units**2
        kept = self.gates * (self.halves - streamed) * matrix
        return kept + 2 * streamed * matrix + 2 * self.halves * self.factors * self.units * EXAMPLES

    @property
    def streamed(self) -> bool:
        """Whether the low half of the kernel is read from global memory in every step."""
        return self.halves == 2 and self.bytes(streamed=False) > self.shared_bytes

    @property
    def enough(self) -> bool:
        """Whether the products fit into one block."""
        fits = self.bytes(self.streamed) <= self.shared_bytes
        return fits and self.warpgroups <= MOST_WARPGROUPS

    def scratch(self) -> dict[str, Any]:
        """Returns the scratch memory and barriers of `_WgmmaProducts`."""
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
        """Creates the products inside a kernel."""
        return _WgmmaProducts(self, run, halves, scratch)


class _WgmmaProducts:
    """Products by `wgmma`, computed by all warpgroups of a block together.

    Args:
        room: The sizes of the products.
        run: The index of the run.
        halves: The halves of the kernels of all runs in global memory, `[runs·W·G, 64, H]`.
        scratch: The scratch memory of `_WgmmaRoom.scratch`.
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
        """Shares the operand tiles of this warpgroup with all warpgroups of the block.

        Args:
            factors: One tile for all gates, or one tile per gate.
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
        """Returns the products for the units of this warpgroup, one per gate or their sum."""
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
                else:  # unrolled, it would need more registers than there are
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
        """Waits until all warpgroups of the block have arrived."""
        plgpu.barrier_arrive(self.scratch["ready"])
        plgpu.barrier_wait(self.scratch["ready"])

    def _add(self, total, kernel, factors, index):
        """Adds the product with the block of a gate for the units of this warpgroup."""
        for each in range(self.room.warpgroups):
            columns = pl.ds(each * UNITS, UNITS)
            factor = factors.at[index * self.room.warpgroups + each]
            plgpu.wgmma(total, kernel.at[:, columns], factor)

    def _fetch(self, gate):
        """Starts to copy the low half of a gate's block from global to shared memory."""
        slot = 2 * self.me + lax.rem(gate, 2)
        source = self.halves[1].at[self.first + self.me * self.room.gates + gate]
        filled = self.scratch["filled"].at[slot]
        plgpu.copy_gmem_to_smem(source, self.scratch["slots"].at[slot], filled)

    def _add_streamed(self, gate, total, index):
        """Adds the product with the low half of a gate's block, and fetches a later block."""
        slot = 2 * self.me + lax.rem(gate, 2)
        plgpu.barrier_wait(self.scratch["filled"].at[slot])
        self._add(total, self.scratch["slots"].at[slot], self.scratch["exchanged"][0], index)
        plgpu.wgmma_wait(0)

        @pl.when(gate + 2 < self.room.gates)
        def _():
            self._fetch(gate + 2)


class _MmaRoom(NamedTuple):
    """The shared memory of products by `mma`; see `_WgmmaRoom` for the attributes."""

    gates: int
    units: int
    halves: int
    factors: int
    shared_bytes: int

    @property
    def warpgroups(self) -> int:
        return self.units // UNITS

    def bytes(self, kept: int) -> int:
        """Returns the bytes if `kept` halves of the kernel are in shared memory."""
        kernels = kept * self.gates * self.units * self.units
        factors = self.halves * self.factors * EXAMPLES * self.warpgroups * UNITS
        return 2 * (kernels + factors)

    @property
    def kept(self) -> int:
        """The number of halves of the kernel that stay in shared memory."""
        return max(n for n in range(self.halves + 1) if not n or self.bytes(n) <= self.shared_bytes)

    @property
    def enough(self) -> bool:
        """Whether the products fit into one block and it reads at most `MOST_READ` per step."""
        read = 2 * (self.halves - self.kept) * self.gates * self.units**2
        fits = self.bytes(self.kept) <= self.shared_bytes and read <= MOST_READ
        return fits and self.warpgroups <= MOST_WARPGROUPS

    def scratch(self) -> dict[str, Any]:
        """Returns the scratch memory and barrier of `_MmaProducts`."""
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
        """Creates the products inside a kernel."""
        return _MmaProducts(self, run, halves, scratch, interpret)


class _MmaProducts:
    """Products by `mma`, computed by all warpgroups of a block together.

    Args:
        room: The sizes of the products.
        run: The index of the run.
        halves: The halves of the kernels of all runs in global memory, `[runs·W·G, 64, H]`.
        scratch: The scratch memory of `_MmaRoom.scratch`.
        interpret: Whether the kernel is interpreted. Pallas does not interpret `mma`, so that
            `jnp.dot` is used instead.
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

        # Each warpgroup copies only the blocks that it multiplies by.
        def keep(gate, index):
            mine = self.me * room.gates + index
            for half, kernel in zip(halves, scratch["kernels"], strict=False):
                for columns in self._columns():
                    kernel[mine, :, columns] = load(half.at[self.first + mine, :, columns])

        _repeat(room.gates, keep)

    def share(self, factors: Sequence[Array]) -> None:
        """Shares the tiles of this warpgroup; see `_WgmmaProducts.share`."""
        for index, factor in enumerate(factors):
            halves = _halves(factor, self.room.halves)
            for shared, half in zip(self.scratch["exchanged"], halves, strict=True):
                shared[index * self.room.warpgroups + self.me] = half
        self._meet()

    def multiply(self, *, apart: bool) -> list[Array]:
        """Returns the products for the units of this warpgroup, one per gate or their sum."""
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
        """Waits until all warpgroups of the block have arrived."""
        plgpu.barrier_arrive(self.scratch["ready"])
        plgpu.barrier_wait(self.scratch["ready"])

    def _columns(self):
        """Returns the slices of the input units of each warpgroup."""
        return [pl.ds(each * UNITS, UNITS) for each in range(self.room.warpgroups)]

    def _factors(self, index, each):
        """Loads the halves of the tile `index` that the warpgroup `each` shared."""
        index = index * self.room.warpgroups + each
        return [load(shared.at[index]) for shared in self.scratch["exchanged"]]

    def _add(self, total, factors, gate, columns):
        """Adds the product with some columns of a gate's block."""
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
        """Returns `total + factor · partᵀ`."""
        if self.interpret:
            return total + jnp.dot(factor, load(part).T, preferred_element_type=total.dtype)
        return plgpu.mma(total, factor, load(part.transpose((1, 0))))  # pyright: ignore[reportAttributeAccessIssue]


def parts(operand: Array) -> list[Array]:
    """Splits an operand `[G, H, H]` into halves, with one block per warpgroup, `[W·G, 64, H]`."""
    gates, units, _ = operand.shape
    parts = operand.reshape(gates, -1, UNITS, units).transpose(1, 0, 2, 3)
    parts = parts.reshape(-1, UNITS, units)
    if operand.dtype == jnp.bfloat16:
        return [parts]
    # XLA would remove a conversion to bfloat16 and back.
    high = lax.reduce_precision(parts, exponent_bits=8, mantissa_bits=7)
    return [high.astype(jnp.bfloat16), (parts - high).astype(jnp.bfloat16)]


def _halves(x: Array, count: int) -> list[Array]:
    """Rounds a float32 tile to bfloat16, or splits it into a sum of two bfloat16 tiles."""
    high = x.astype(jnp.bfloat16)
    return [high] if count == 1 else [high, (x - high.astype(x.dtype)).astype(jnp.bfloat16)]


def _repeat(count: int, function: Callable) -> None:
    """Calls `function(index, index=index)` in a loop that is not unrolled."""
    lax.fori_loop(0, count, lambda index, _: function(index, index=index), None)


def load(reference: Any) -> Any:
    """Loads a tile into registers."""
    # There is no optimized load of a float32 tile. Before JAX 0.11 the index is an argument.
    index = [()] if jax.__version_info__ < (0, 11) else []
    tile = plgpu.load(reference, *index, optimized=False)
    # Under `jax.shard_map`, the type of a loaded tile varies over the mesh. The type of a result
    # computed from it does not, and loops and pullbacks reject this mismatch. The factor 1 gives
    # the tile the type of a result. The compiler removes the factor.
    return tile * jnp.ones((), tile.dtype)


def store(reference: Any, value: Array) -> None:
    """Stores a tile."""
    # On Hopper, the 16 examples of a tile are half a cache line, for which there is no optimized
    # store. Before JAX 0.12 a plain store was accepted.
    if hasattr(plgpu, "store"):
        plgpu.store(  # pyright: ignore[reportAttributeAccessIssue]
            reference, value, optimized=False
        )
    else:
        reference[...] = value

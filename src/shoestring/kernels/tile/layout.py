"""Register layouts: which thread holds which elements of a tile, and in which of its slots.

A layout maps (thread, slot) to the index of an element. Every dimension of the tile is split into modes
(sub-dimensions); the thread number is made of some of the modes, the slot number of the others, both
row-major (the first mode listed is the slowest). A negative entry −r among the spatial modes is a digit of
the thread number that changes nothing: r threads hold copies.

Source: Tilus: A Virtual Machine for Arbitrary Low-Precision GPGPU Computation in LLM Serving (2025),
section 4.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Int

from shoestring.errors import LayoutError
from shoestring.kernels.tile.digits import (
    Digit,
    cut,
    homes_of_modes,
    merged,
    place,
    without_head,
    without_tail,
)


@dataclass(frozen=True, repr=False)
class RegisterLayout:
    """The map (thread, slot) -> index of a tile of `shape`, in canonical form: equal maps are equal objects.

    `mode_shape`: sizes of the modes, dimension after dimension, slowest first inside each. `spatial_modes`:
    the modes of the thread number, −r for r copies. `local_modes`: those of the slot number. Canonical: no
    mode of size 1, and neighbours that move as one are one. Neighbouring replications stay apart: −2, −3
    is not −6.

    Raises: LayoutError where the modes do not multiply to the shape or are not each used once.
    """

    shape: tuple[int, ...]
    mode_shape: tuple[int, ...]
    spatial_modes: tuple[int, ...]
    local_modes: tuple[int, ...]
    spatial_digits: tuple[Digit, ...] = field(init=False, compare=False)
    local_digits: tuple[Digit, ...] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        homes = homes_of_modes(self.shape, self.mode_shape)
        used = [mode for mode in (*self.spatial_modes, *self.local_modes) if mode >= 0]
        if sorted(used) != list(range(len(self.mode_shape))) or any(mode < 0 for mode in self.local_modes):
            raise LayoutError(
                f"spatial_modes={self.spatial_modes} and local_modes={self.local_modes} must together name "
                f"each of the {len(self.mode_shape)} modes once; only spatial ones may be negative (copies)"
            )
        spatial = merged(Digit(-m, None, 0) if m < 0 else homes[m] for m in self.spatial_modes)
        local = merged(homes[m] for m in self.local_modes)
        order = sorted((d for d in (*spatial, *local) if d.dim is not None), key=place)
        number = {digit: mode for mode, digit in enumerate(order)}
        fields = {
            "mode_shape": tuple(d.size for d in order),
            "spatial_modes": tuple(-d.size if d.dim is None else number[d] for d in spatial),
            "local_modes": tuple(number[d] for d in local),
            "spatial_digits": spatial,
            "local_digits": local,
        }
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    @classmethod
    def from_digits(
        cls, shape: Sequence[int], spatial: Sequence[Digit], local: Sequence[Digit]
    ) -> "RegisterLayout":
        """The layout whose thread and slot numbers have these digits, slowest first."""
        digits = [d for d in (*spatial, *local) if d.size > 1]
        order = sorted((d for d in digits if d.dim is not None), key=place)
        number = {digit: mode for mode, digit in enumerate(order)}
        return cls(
            tuple(shape),
            tuple(d.size for d in order),
            tuple(-d.size if d.dim is None else number[d] for d in spatial if d.size > 1),
            tuple(number[d] for d in local if d.size > 1),
        )

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        """Elements of the tile, copies not counted."""
        return math.prod(self.shape)

    @property
    def threads(self) -> int:
        return math.prod(digit.size for digit in self.spatial_digits)

    @property
    def local_size(self) -> int:
        """Slots of each thread."""
        return math.prod(digit.size for digit in self.local_digits)

    @property
    def replicas(self) -> int:
        """Threads that hold a copy of one element."""
        return math.prod(digit.size for digit in self.spatial_digits if digit.dim is None)

    def index_of(self, thread: int, slot: int) -> tuple[int, ...]:
        """Index of the element that `thread` holds in `slot`. Raises: IndexError outside the layout."""
        if not (0 <= thread < self.threads and 0 <= slot < self.local_size):
            raise IndexError(f"thread {thread}, slot {slot}: {self} has {self.threads} × {self.local_size}")
        return tuple(self.index_table[thread, slot].tolist())

    def slot_of(self, index: Sequence[int]) -> int:
        """Slot in which every holder keeps the element."""
        return int(self.slot_table[tuple(index)])

    def threads_of(self, index: Sequence[int]) -> tuple[int, ...]:
        """The threads that hold the element, the writer (all replica digits 0) first."""
        return tuple((int(self.thread_table[tuple(index)]) + self._replica_offsets).tolist())

    @cached_property
    def index_table(self) -> Int[np.ndarray, "threads slots rank"]:
        """Index of the element in each slot of each thread."""
        table = np.zeros((self.threads, self.local_size, self.rank), np.int64)
        for axis, digits in ((0, self.spatial_digits), (1, self.local_digits)):
            rest = np.arange(table.shape[axis]).reshape((-1, 1) if axis == 0 else (1, -1))
            for digit in reversed(digits):
                if digit.dim is not None:
                    table[:, :, digit.dim] += rest % digit.size * digit.stride
                rest = rest // digit.size
        return table

    @cached_property
    def flat_table(self) -> Int[np.ndarray, "threads slots"]:
        """Row-major number of the element in each slot of each thread."""
        strides = np.array([math.prod(self.shape[d + 1 :]) for d in range(self.rank)], np.int64)
        return self.index_table @ strides

    @cached_property
    def writers(self) -> Bool[np.ndarray, " threads"]:
        """The threads that store what several hold: those whose replica digits are all 0."""
        rest, writes = np.arange(self.threads), np.ones(self.threads, bool)
        for digit in reversed(self.spatial_digits):
            if digit.dim is None:
                writes &= rest % digit.size == 0
            rest = rest // digit.size
        return writes

    @cached_property
    def thread_table(self) -> Int[np.ndarray, "*shape"]:
        """The writing thread of every element."""
        table = np.empty(self.size, np.int64)
        table[self.flat_table[self.writers]] = np.flatnonzero(self.writers)[:, None]
        return table.reshape(self.shape)

    @cached_property
    def slot_table(self) -> Int[np.ndarray, "*shape"]:
        """The slot of every element."""
        table = np.empty(self.size, np.int64)
        table[self.flat_table[self.writers]] = np.arange(self.local_size)
        return table.reshape(self.shape)

    @cached_property
    def _replica_offsets(self) -> Int[np.ndarray, " copies"]:
        """What is added to the writer's number to get those of all holders."""
        offsets, weight = np.zeros(1, np.int64), 1
        for digit in reversed(self.spatial_digits):
            if digit.dim is None:
                offsets = (np.arange(digit.size)[:, None] * weight + offsets).reshape(-1)
            weight *= digit.size
        return offsets

    def __mul__(self, inner: "RegisterLayout") -> "RegisterLayout":
        """Kronecker product: every element of this layout becomes a tile laid out by `inner`.

        (f·g)(t, i) = f(t div T_g, i div N_g) ⊙ shape_g + g(t mod T_g, i mod N_g). Associative, not
        commutative; the shorter shape is padded with leading ones.
        """
        rank = max(self.rank, inner.rank)
        outer, inner = self.padded(rank), inner.padded(rank)
        scaled = [
            [d if d.dim is None else Digit(d.size, d.dim, d.stride * inner.shape[d.dim]) for d in digits]
            for digits in (outer.spatial_digits, outer.local_digits)
        ]
        return RegisterLayout.from_digits(
            [a * b for a, b in zip(outer.shape, inner.shape, strict=True)],
            [*scaled[0], *inner.spatial_digits],
            [*scaled[1], *inner.local_digits],
        )

    def __truediv__(self, inner: "RegisterLayout") -> "RegisterLayout":
        """The f with f·inner = this layout. Raises: LayoutError, with both layouts, where there is none."""
        inner_padded = self._same_rank(inner, "right")
        spatial = without_tail(self.spatial_digits, inner_padded.spatial_digits)
        local = without_tail(self.local_digits, inner_padded.local_digits)
        if spatial is None or local is None:
            raise LayoutError(f"{self!r} is not divisible by {inner!r} on the right")
        quotient = [
            [d if d.dim is None else Digit(d.size, d.dim, d.stride // inner_padded.shape[d.dim]) for d in ds]
            for ds in (spatial, local)
        ]
        shape = [a // b for a, b in zip(self.shape, inner_padded.shape, strict=True)]
        return RegisterLayout.from_digits(shape, *quotient)

    def left_divide(self, outer: "RegisterLayout") -> "RegisterLayout":
        """The g with outer·g = this layout. Raises: LayoutError, with both layouts, where there is none."""
        outer_padded = self._same_rank(outer, "left")
        shape = [a // b for a, b in zip(self.shape, outer_padded.shape, strict=True)]
        remainders = []
        for whole, head in (
            (self.spatial_digits, outer_padded.spatial_digits),
            (self.local_digits, outer_padded.local_digits),
        ):
            scaled = [d if d.dim is None else Digit(d.size, d.dim, d.stride * shape[d.dim]) for d in head]
            remainder = without_head(whole, scaled)
            if remainder is None:
                raise LayoutError(f"{self!r} is not divisible by {outer!r} on the left")
            remainders.append(remainder)
        return RegisterLayout.from_digits(shape, *remainders)

    def _same_rank(self, divisor: "RegisterLayout", side: str) -> "RegisterLayout":
        if divisor.rank <= self.rank:
            padded = divisor.padded(self.rank)
            if all(a % b == 0 for a, b in zip(self.shape, padded.shape, strict=True)):
                return padded
        raise LayoutError(
            f"{self!r} of shape {list(self.shape)} is not divisible by {divisor!r} of shape "
            f"{list(divisor.shape)} on the {side}"
        )

    def padded(self, rank: int) -> "RegisterLayout":
        """This layout with leading dimensions of size 1 up to `rank`."""
        return self.unsqueeze(range(rank - self.rank)) if rank > self.rank else self

    def permute(self, dims: Sequence[int]) -> "RegisterLayout":
        """Dimension i of the result is dimension dims[i] of this layout."""
        if sorted(dims) != list(range(self.rank)):
            raise LayoutError(f"dims={list(dims)} is no permutation of the dimensions of {self!r}")
        return self._with_dims([self.shape[d] for d in dims], {old: new for new, old in enumerate(dims)})

    def squeeze(self, dims: Sequence[int]) -> "RegisterLayout":
        """Without the dimensions `dims`, all of size 1."""
        wrong = [d for d in dims if not 0 <= d < self.rank or self.shape[d] != 1]
        if wrong:
            raise LayoutError(f"squeeze of dimensions {wrong} of {self!r}: they are not of size 1")
        kept = [d for d in range(self.rank) if d not in dims]
        return self._with_dims([self.shape[d] for d in kept], {old: new for new, old in enumerate(kept)})

    def unsqueeze(self, dims: Sequence[int]) -> "RegisterLayout":
        """With new dimensions of size 1, which stand at `dims` of the result."""
        rank = self.rank + len(dims)
        if len(set(dims)) != len(dims) or any(not 0 <= d < rank for d in dims):
            raise LayoutError(f"unsqueeze at {list(dims)}: not different dimensions of a rank-{rank} result")
        kept = [d for d in range(rank) if d not in dims]
        shape = [1] * rank
        for old, new in enumerate(kept):
            shape[new] = self.shape[old]
        return self._with_dims(shape, dict(enumerate(kept)))

    def reduce(self, dims: Sequence[int], *, keepdims: bool = False) -> "RegisterLayout":
        """Where the results of a reduction over `dims` lie: spatial modes turn into copies, slots vanish."""
        if any(not 0 <= d < self.rank for d in dims):
            raise LayoutError(f"reduction over {list(dims)}: {self!r} has {self.rank} dimensions")
        spatial = [Digit(d.size, None, 0) if d.dim in dims else d for d in self.spatial_digits]
        local = [d for d in self.local_digits if d.dim not in dims]
        shape = [1 if d in dims else n for d, n in enumerate(self.shape)]
        reduced = RegisterLayout.from_digits(shape, spatial, local)
        return reduced if keepdims else reduced.squeeze(sorted(set(dims)))

    def concat(self, other: "RegisterLayout") -> "RegisterLayout":
        """The layout of shape self.shape + other.shape; the digits of this layout are the slower ones."""
        moved = [
            [d if d.dim is None else Digit(d.size, d.dim + self.rank, d.stride) for d in digits]
            for digits in (other.spatial_digits, other.local_digits)
        ]
        return RegisterLayout.from_digits(
            self.shape + other.shape, [*self.spatial_digits, *moved[0]], [*self.local_digits, *moved[1]]
        )

    def reshape(self, shape: Sequence[int]) -> "RegisterLayout":
        """The same elements, row-major, under another shape.

        Raises: LayoutError where the sizes differ or a mode would be cut at a place that does not divide.
        """
        if math.prod(shape) != self.size:
            raise LayoutError(
                f"{self!r} has {self.size} elements, not the {math.prod(shape)} of {list(shape)}"
            )
        old_stride = [math.prod(self.shape[d + 1 :]) for d in range(self.rank)]
        new_stride = [math.prod(shape[d + 1 :]) for d in range(len(shape))]
        try:
            spatial, local = (
                [piece for digit in digits for piece in cut(digit, old_stride, new_stride, shape)]
                for digits in (self.spatial_digits, self.local_digits)
            )
        except LayoutError as error:
            raise LayoutError(f"{self!r} cannot be reshaped to {list(shape)}: {error}") from None
        return RegisterLayout.from_digits(shape, spatial, local)

    def flatten(self) -> "RegisterLayout":
        """The same elements in one dimension."""
        return self.reshape([self.size])

    def _with_dims(self, shape: Sequence[int], renamed: dict[int, int]) -> "RegisterLayout":
        spatial, local = (
            [d if d.dim is None else Digit(d.size, renamed.get(d.dim, -1), d.stride) for d in digits]
            for digits in (self.spatial_digits, self.local_digits)
        )
        return RegisterLayout.from_digits(shape, spatial, local)

    def local(self, *shape: int) -> "RegisterLayout":
        return self * local(*shape)

    def spatial(self, *shape: int) -> "RegisterLayout":
        return self * spatial(*shape)

    def column_local(self, *shape: int) -> "RegisterLayout":
        return self * column_local(*shape)

    def column_spatial(self, *shape: int) -> "RegisterLayout":
        return self * column_spatial(*shape)

    def replicate(self, copies: int) -> "RegisterLayout":
        return self * replicate(copies)

    def __repr__(self) -> str:
        from shoestring.kernels.tile.layout_text import composition_of

        composition = composition_of(self)
        if composition is not None:
            return composition
        return f"RegisterLayout({self.shape}, {self.mode_shape}, {self.spatial_modes}, {self.local_modes})"


def local(*shape: int) -> RegisterLayout:
    """All elements in one thread, row-major."""
    return RegisterLayout(shape, shape, (), tuple(range(len(shape))))


def spatial(*shape: int) -> RegisterLayout:
    """One element in each thread, row-major."""
    return RegisterLayout(shape, shape, tuple(range(len(shape))), ())


def column_local(*shape: int) -> RegisterLayout:
    """All elements in one thread, the first dimension fastest."""
    return RegisterLayout(shape, shape, (), tuple(reversed(range(len(shape)))))


def column_spatial(*shape: int) -> RegisterLayout:
    """One element in each thread, the first dimension fastest."""
    return RegisterLayout(shape, shape, tuple(reversed(range(len(shape)))), ())


def replicate(copies: int) -> RegisterLayout:
    """One element that `copies` threads hold; of rank 1, as a factor it fits every rank."""
    if copies < 1:
        raise LayoutError(f"replicate({copies}): at least one thread holds an element")
    return RegisterLayout((1,), (), (-copies,), ())


def auto_local_spatial(threads: int, shape: Sequence[int]) -> RegisterLayout:
    """local(shape / s).spatial(s), threads spread from the last dimension back; those left over hold copies.

    Raises: LayoutError for less than one thread.
    """
    if threads < 1:
        raise LayoutError(f"{threads} threads cannot hold a tile of shape {list(shape)}")
    left, spread = threads, [1] * len(shape)
    for dim in reversed(range(len(shape))):
        spread[dim] = math.gcd(left, shape[dim])
        left //= spread[dim]
    inner = local(*(n // s for n, s in zip(shape, spread, strict=True))).spatial(*spread)
    return replicate(left) * inner if left > 1 else inner

"""Whether the threads already hold what an instruction needs, and in which slots.

Element-wise work and matrix steps move nothing between threads: each thread must find its operands among its
own slots, in the same slots for all threads, because a slot is a named register.
"""

import functools

import numpy as np

from shoestring.errors import LayoutError
from shoestring.kernels.tile.fragments import MatrixAtom
from shoestring.kernels.tile.layout import RegisterLayout, local


@functools.lru_cache(maxsize=1024)
def slots_of_operand(needed: RegisterLayout, held: RegisterLayout) -> tuple[int, ...]:
    """For each slot of `needed` the slot of `held` in which the same thread has that element.

    Dimensions of size 1 of `held` broadcast.

    Raises: LayoutError, with both layouts, where a thread lacks an element, or has it in another slot than
    its neighbours do.
    """
    if needed == held:
        return tuple(range(needed.local_size))
    fits = needed.rank == held.rank and needed.threads == held.threads
    if not fits or any(h not in (1, n) for h, n in zip(held.shape, needed.shape, strict=True)):
        raise LayoutError(
            f"{held!r} of shape {list(held.shape)} on {held.threads} threads cannot serve {needed!r} of "
            f"shape {list(needed.shape)} on {needed.threads}"
        )
    wanted_index = np.where(np.array(held.shape) == 1, 0, needed.index_table)
    strides = np.cumprod([1, *held.shape[:0:-1]])[::-1]
    by_thread = np.arange(held.threads)[:, None] * held.size
    wanted = wanted_index @ strides + by_thread
    present = (held.flat_table + by_thread).reshape(-1)
    order = np.argsort(present)
    at = np.minimum(np.searchsorted(present[order], wanted), len(order) - 1)
    if (present[order][at] != wanted).any():
        thread, slot = np.argwhere(present[order][at] != wanted)[0]
        raise LayoutError(
            f"thread {thread} needs element {wanted_index[thread, slot].tolist()} but does not hold it: "
            f"needed {needed!r}, held {held!r}"
        )
    slots = order[at] % held.local_size
    if (slots != slots[0]).any():
        raise LayoutError(f"the slots of {held!r} that {needed!r} needs differ from thread to thread")
    return tuple(slots[0].tolist())


def operand_a(c: RegisterLayout, k: int) -> RegisterLayout:
    """Where a (m, k) must lie for threads that own c (m, n): each has the whole of its rows."""
    return c.reduce([1], keepdims=True) * local(1, k)


def operand_b(c: RegisterLayout, k: int) -> RegisterLayout:
    """Where b (k, n) must lie for threads that own c (m, n): each has the whole of its columns."""
    return c.reduce([0], keepdims=True) * local(k, 1)


def fit_atom(
    atom: MatrixAtom, a: RegisterLayout, b: RegisterLayout, c: RegisterLayout
) -> tuple[RegisterLayout, RegisterLayout, RegisterLayout]:
    """The layouts of the atom's repetitions: a, b and c with the fragments divided off.

    Raises: LayoutError where a fragment does not divide, or a group of threads lacks an operand.
    """
    outer_a, outer_b, outer_c = a / atom.a, b / atom.b, c / atom.c
    k = outer_a.shape[1]
    if outer_b.shape[0] != k:
        raise LayoutError(f"a {list(a.shape)} and b {list(b.shape)} differ in k")
    slots_of_operand(operand_a(outer_c, k), outer_a)
    slots_of_operand(operand_b(outer_c, k), outer_b)
    return outer_a, outer_b, outer_c


def choose_atom(
    atoms: tuple[MatrixAtom, ...], a: RegisterLayout, b: RegisterLayout, c: RegisterLayout
) -> MatrixAtom:
    """The first atom that the layouts fit. Raises: LayoutError with all three layouts and each reason."""
    reasons = []
    for atom in atoms:
        try:
            fit_atom(atom, a, b, c)
        except LayoutError as error:
            reasons.append(f"{atom.name}: {error}")
        else:
            return atom
    raise LayoutError(f"no matrix step fits a={a!r}, b={b!r}, c={c!r}; " + "; ".join(reasons))

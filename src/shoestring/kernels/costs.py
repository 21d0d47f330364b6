"""Compiled kernels state their own cost: no dispatcher sees inside them.

A kernel's wrapper says what a call costs, and a counter (`shoestring.yardstick.flops.CostCounter`), if one
listens, adds it up. Whatever the wrapper does in torch meanwhile is part of the stated cost and not counted
again. Without a listener the cost of stating a cost is one comparison.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

Listener = Callable[[str, "Cost"], None]

_listeners: list[Listener] = []
_inside_stated: ContextVar[bool] = ContextVar("inside_stated", default=False)


@dataclass(frozen=True)
class Cost:
    """What a call costs: arithmetic operations on numbers, and bytes read from plus written to memory."""

    flops: int = 0
    bytes: int = 0

    def __post_init__(self) -> None:
        if self.flops < 0 or self.bytes < 0:
            raise ValueError(f"flops={self.flops} and bytes={self.bytes} must not be negative")


@contextmanager
def count_cost(name: str, *, flops: int, bytes: int) -> Iterator[None]:
    """State what the block costs, in place of what happens inside it.

        with count_cost("nibble_gemm", flops=2 * m * n * k, bytes=packed.nbytes + x.nbytes + y.nbytes):
            library.nibble_gemm(...)

    Within a block that has stated its cost this says nothing: the outermost statement counts.
    Raises: ValueError for a negative cost.
    """
    if not _listeners or _inside_stated.get():
        yield
        return
    cost = Cost(flops, bytes)
    token = _inside_stated.set(True)
    try:
        yield
    finally:
        _inside_stated.reset(token)
    for listener in _listeners:
        listener(name, cost)


def states_cost(cost_of: Callable[P, Cost]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a kernel with a function of the same arguments that says what a call costs.

    @states_cost(lambda x, packed: Cost(flops=2 * x.numel() * packed.rows, bytes=x.nbytes + packed.nbytes))
    def nibble_gemm(x, packed): ...
    """

    def decorate(kernel: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(kernel)
        def counted(*args: P.args, **kwargs: P.kwargs) -> R:
            if not _listeners or _inside_stated.get():
                return kernel(*args, **kwargs)
            token = _inside_stated.set(True)  # working the cost out costs nothing
            try:
                cost = cost_of(*args, **kwargs)
            finally:
                _inside_stated.reset(token)
            with count_cost(kernel.__name__, flops=cost.flops, bytes=cost.bytes):
                return kernel(*args, **kwargs)

        return counted

    return decorate


@contextmanager
def listen(listener: Listener) -> Iterator[None]:
    """Call `listener(name, cost)` for every cost stated inside the block."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def cost_is_wanted() -> bool:
    """Whether a cost stated here would be heard: if not, nobody need work it out."""
    return bool(_listeners) and not _inside_stated.get()


def cost_is_stated() -> bool:
    """Whether the code that asks runs inside a block whose cost somebody has stated."""
    return _inside_stated.get()

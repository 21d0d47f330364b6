"""Low rank along the weights or along the sequence: what a Transformer block would cost, and which is faster.

Costs are counted by hand from the sizes; times are predicted from products of those very shapes, timed
on this machine.

Source: Cahyawijaya 2021, "Greenformers", for the comparison.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch.nn import functional as F

from shoestring.layers.low_rank.linformer import mixes_first


@dataclass(frozen=True)
class Product:
    """`count` products of (rows, inputs) with (inputs, outputs)."""

    rows: int
    inputs: int
    outputs: int
    count: int = 1

    @property
    def flops(self) -> int:
        return 2 * self.rows * self.inputs * self.outputs * self.count


@dataclass(frozen=True)
class Attention:
    """Every query meets every key, in each head of each sample."""

    batch: int
    heads: int
    queries: int
    keys: int
    head_dim: int

    @property
    def flops(self) -> int:
        return 4 * self.batch * self.heads * self.queries * self.keys * self.head_dim

    @property
    def scores(self) -> int:
        return self.batch * self.heads * self.queries * self.keys


@dataclass(frozen=True)
class BlockCost:
    """What one block does and holds. weights: numbers in its matrices (no biases or norms)."""

    products: tuple[Product, ...]
    attention: Attention
    weights: int

    @property
    def flops(self) -> int:
        """A multiply-add is 2; norms, activations and the softmax are left out."""
        return sum(p.flops for p in self.products) + self.attention.flops

    def weight_bytes(self, itemsize: int = 4) -> int:
        """Bytes of the matrices."""
        return self.weights * itemsize

    def score_bytes(self, itemsize: int = 4) -> int:
        """Bytes of all attention scores, where they are kept for the backward pass."""
        return self.attention.scores * itemsize


@dataclass(frozen=True, kw_only=True)
class BlockShape:
    """Sizes of a block and its input. d_ff: 4 d_model if None. Raises: ValueError for sizes below 1."""

    length: int
    d_model: int
    n_heads: int
    d_ff: int | None = None
    batch: int = 1

    def __post_init__(self) -> None:
        for name in ("length", "d_model", "n_heads", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")
        if self.d_model % self.n_heads:
            raise ValueError(f"n_heads={self.n_heads} must divide d_model={self.d_model}.")

    @property
    def inner(self) -> int:
        return self.d_ff or 4 * self.d_model

    @property
    def tokens(self) -> int:
        return self.batch * self.length


def dense_block(shape: BlockShape) -> BlockCost:
    """24 n d² + 4 n² d operations and 12 d² weights, where the inner width is 4 d."""
    return _block(shape, None)


def low_rank_block(shape: BlockShape, rank: int) -> BlockCost:
    """16 n d r + 20 n d r + 4 n² d operations and 18 d r weights, where the inner width is 4 d.

    Raises: ValueError for a rank below 1.
    """
    if rank < 1:
        raise ValueError(f"rank={rank} must be at least 1.")
    return _block(shape, rank)


def _block(shape: BlockShape, rank: int | None) -> BlockCost:
    d, n, parts = shape.d_model, shape.tokens, _feed_forward(shape, rank)
    if rank is None:
        parts += [Product(n, d, 3 * d), Product(n, d, d)]
    else:
        parts += [Product(n, d, 3 * rank), Product(n, rank, d, 3), *_map(n, d, d, rank)]
    return BlockCost(tuple(parts), _attention(shape, shape.length), _map_weights(shape, rank))


def linformer_block(
    shape: BlockShape, projected: int, max_length: int | None = None, rank: int | None = None
) -> BlockCost:
    """At most 24 n d² + 8 n k d operations, and 12 d² + 2 n k weights for a maximum of n (heads share them).

    Where the sequence is longer than k, rows are mixed before keys and values are made of them, which leaves
    20 n d² + 4 k d² + 8 n k d. rank: of the linear maps as well.

    Raises: ValueError for projected above the maximum length, or a length above it.
    """
    length, d = shape.length, shape.d_model
    longest = length if max_length is None else max_length
    if not 1 <= projected <= longest:
        raise ValueError(f"projected={projected} must be from 1 to max_length={longest}.")
    if length > longest:
        raise ValueError(f"length={length} is above max_length={longest}.")
    mixed = mixes_first(length, projected, d, d)
    parts = [
        *_feed_forward(shape, rank),
        *_map(shape.tokens, d, d, rank, 2),
        *_map(shape.batch * (projected if mixed else length), d, d, rank, 2),
        Product(projected, length, d, 2 * shape.batch),
    ]
    weights = _map_weights(shape, rank) + 2 * longest * projected
    return BlockCost(tuple(parts), _attention(shape, projected), weights)


@runtime_checkable
class Clock(Protocol):
    """Tells how long a product, or attention, takes."""

    def product(self, work: Product) -> float:
        """Seconds of all `count` products."""
        ...

    def attention(self, work: Attention) -> float:
        """Seconds."""
        ...


@dataclass
class MeasuredClock:
    """Times every shape once on this machine, the best of `repeats` runs; `threads` as torch is set."""

    dtype: torch.dtype = torch.float32
    device: torch.device | str = "cpu"
    repeats: int = 3
    _known: dict[Product | Attention, float] = field(default_factory=dict, repr=False)

    def product(self, work: Product) -> float:
        one = Product(work.rows, work.inputs, work.outputs)
        if one not in self._known:
            x, weight = self._draw(one.rows, one.inputs), self._draw(one.outputs, one.inputs)
            self._known[one] = self._best(lambda: F.linear(x, weight))
        return work.count * self._known[one]

    def attention(self, work: Attention) -> float:
        if work not in self._known:
            q = self._draw(work.batch, work.heads, work.queries, work.head_dim)
            k = self._draw(work.batch, work.heads, work.keys, work.head_dim)
            self._known[work] = self._best(lambda: F.scaled_dot_product_attention(q, k, k))
        return self._known[work]

    def _draw(self, *shape: int) -> torch.Tensor:
        generator = torch.Generator(device=self.device).manual_seed(0)
        return torch.randn(shape, generator=generator, dtype=self.dtype, device=self.device)

    def _best(self, run: Callable[[], object]) -> float:
        best = float("inf")
        with torch.inference_mode():
            run()
            for _ in range(self.repeats):
                self._await()
                start = time.perf_counter()
                run()
                self._await()
                best = min(best, time.perf_counter() - start)
        return best

    def _await(self) -> None:
        if torch.device(self.device).type == "cuda":
            torch.cuda.synchronize(self.device)


DENSE, LOW_RANK, LINFORMER, BOTH = "dense", "low rank", "linformer", "both"


@dataclass(frozen=True)
class Choice:
    """Costs and predicted seconds of a block by name: dense, low rank, linformer, and both at once."""

    costs: Mapping[str, BlockCost]
    seconds: Mapping[str, float]

    def fastest(self, names: Sequence[str] = (DENSE, LOW_RANK, LINFORMER, BOTH)) -> str:
        """The name of the block that is predicted to take the least time, of these."""
        return min(names, key=self.seconds.__getitem__)


def seconds_of(cost: BlockCost, clock: Clock) -> float:
    """Predicted seconds of a block's products and attention; what is left out is the same for all."""
    return sum(clock.product(work) for work in cost.products) + clock.attention(cost.attention)


def choose(
    shape: BlockShape, *, rank: int, projected: int, clock: Clock, max_length: int | None = None
) -> Choice:
    """What a block would cost dense, with low rank, with Linformer, and with both.

    max_length: of Linformer, the length itself if None.
    Raises: ValueError as the costs do.
    """
    costs = {
        DENSE: dense_block(shape),
        LOW_RANK: low_rank_block(shape, rank),
        LINFORMER: linformer_block(shape, projected, max_length),
        BOTH: linformer_block(shape, projected, max_length, rank),
    }
    return Choice(costs, {name: seconds_of(cost, clock) for name, cost in costs.items()})


def crossover(choices: Mapping[int, Choice], method: str = LINFORMER, against: str = LOW_RANK) -> int | None:
    """The least length from which `method` is the faster of the two at every length there is; None if never.

    choices: by length.
    """
    found = None
    for length in sorted(choices, reverse=True):
        if choices[length].fastest((against, method)) != method:
            break
        found = length
    return found


def _map(rows: int, inputs: int, outputs: int, rank: int | None, count: int = 1) -> list[Product]:
    if rank is None:
        return [Product(rows, inputs, outputs, count)]
    return [Product(rows, inputs, rank, count), Product(rows, rank, outputs, count)]


def _feed_forward(shape: BlockShape, rank: int | None) -> list[Product]:
    d, inner = shape.d_model, shape.inner
    return [*_map(shape.tokens, d, inner, rank), *_map(shape.tokens, inner, d, rank)]


def _map_weights(shape: BlockShape, rank: int | None) -> int:
    d, inner = shape.d_model, shape.inner
    return 4 * d * d + 2 * d * inner if rank is None else 8 * d * rank + 2 * (d + inner) * rank


def _attention(shape: BlockShape, keys: int) -> Attention:
    return Attention(shape.batch, shape.n_heads, shape.length, keys, shape.d_model // shape.n_heads)

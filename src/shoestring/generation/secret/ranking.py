"""The k largest of secret scores, with what belongs to them, and without a word on which they are.

Both functions take scores (batch, n) and rows (batch, n, w) and give the rows of the k largest (batch, k, w).
"""

from collections.abc import Callable

import numpy as np

from shoestring.generation.secret.comparison import equal, less, negative_bit
from shoestring.generation.secret.engine import Engine, FixedOperand
from shoestring.generation.secret.shares import Secret, concatenate
from shoestring.numbers.ring import Ring

TopRows = Callable[[Engine, Secret, Secret, int], Secret]


def ranks(engine: Engine, scores: Secret) -> Secret:
    """How many items come before each: all pairs in one batch; of equal items the earlier comes first."""
    n = scores.shape[-1]
    if n < 2:
        return scores - scores
    first, second = np.triu_indices(n, 1)
    behind = less(engine, scores[..., first], scores[..., second])
    return _count(engine, behind, first, second, n)


def one_hot(engine: Engine, numbers: Secret, values: Ring) -> Secret:
    """[numbers_i = values_j] as integers: numbers (batch, n), values (k,) -> (batch, k, n)."""
    batch, n = numbers.shape
    k = len(values)
    spread = Secret(np.broadcast_to(numbers.parts[:, :, None], (numbers.parts.shape[0], batch, k, n)))
    wanted = engine.constant(np.broadcast_to(values[None, :, None], (batch, k, n)))
    return equal(engine, spread, wanted)


def ranked_rows(engine: Engine, scores: Secret, rows: Secret, k: int) -> Secret:
    """By rank: k·n equality tests make a one-hot matrix, which is multiplied with the rows (integers stay
    so)."""
    chosen = one_hot(engine, ranks(engine, scores), np.arange(k, dtype=np.uint64))
    return gather(engine, chosen, rows)


def shuffled_rows(engine: Engine, scores: Secret, rows: Secret, k: int) -> Secret:
    """By order: all items are shuffled, then comparisons may be opened, and the best rows simply taken.

    What is opened is the order of items at random places: it says nothing of where they come from, but
    whether some of them are equal in fixed point, of which a random one wins.
    """
    n = scores.shape[-1]
    if n < 2:
        return rows[:, :k]
    mixed = engine.shuffle(concatenate([scores.reshape(*scores.shape, 1), rows], -1))
    first, second = np.triu_indices(n, 1)
    values = mixed[..., 0]
    behind = engine.open_bits(negative_bit(engine, values[..., first] - values[..., second])) & np.uint64(1)
    places = np.zeros(scores.shape, dtype=np.int64)
    for pair, (i, j) in enumerate(zip(first, second, strict=True)):
        places[:, i] += behind[:, pair].astype(np.int64)
        places[:, j] += 1 - behind[:, pair].astype(np.int64)
    best = np.argsort(places, axis=-1)[:, :k]
    index = best[None, :, :, None]
    return Secret(np.take_along_axis(mixed.parts[..., 1:], index, axis=2))


def quick_select_rows(engine: Engine, scores: Secret, rows: Secret, k: int) -> Secret:
    """As `shuffled_rows`, by comparisons with a pivot until k items are apart: about 3n of them instead of
    n²/2, in rounds whose number depends on chance. For one row of many items; several are done one after the
    other."""
    mixed = engine.shuffle(concatenate([scores.reshape(*scores.shape, 1), rows], -1))
    found = []
    for row in range(scores.shape[0]):
        best = _quick_select(engine, mixed[row, :, 0], k)
        found.append(mixed[row][best][..., 1:].parts)
    return Secret(np.stack(found, axis=1))


def _quick_select(engine: Engine, values: Secret, k: int) -> list[int]:
    left, chosen = list(range(values.shape[0])), []
    while k > 0 and len(left) > k:
        pivot, others = left[0], left[1:]
        here = Secret(np.broadcast_to(values.parts[:, pivot, None], (values.parts.shape[0], len(others))))
        above = engine.open_bits(negative_bit(engine, here - values[others])) & np.uint64(1)
        high = [i for i, bit in zip(others, above, strict=True) if bit]
        low = [i for i, bit in zip(others, above, strict=True) if not bit]
        if len(high) >= k:
            left = high
        else:
            chosen += [*high, pivot]
            k -= len(high) + 1
            left = low
    return chosen + left[:k]


def keep_rows_in_order(engine: Engine, scores: Secret, rows: Secret, k: int) -> Secret:
    """The rows of the k largest in their original order: static eviction without a word on what stays.

    A row stays where its rank is below k; the number of those up to it is its new place.
    """
    limit = engine.constant(np.full(scores.shape, k, dtype=np.uint64))
    stays = less(engine, ranks(engine, scores), limit)
    place = Secret(np.cumsum(stays.parts, axis=-1, dtype=np.uint64))
    numbered = engine.multiply(stays, place)
    return gather(engine, one_hot(engine, numbered, np.arange(1, k + 1, dtype=np.uint64)), rows)


def gather(engine: Engine, chosen: Secret, rows: Secret | FixedOperand) -> Secret:
    """chosen (batch, k, n) of zeros and ones, a one in each row, times rows (batch, n, w)."""
    return engine.matmul(chosen, rows)


def _count(engine: Engine, behind: Secret, first: np.ndarray, second: np.ndarray, n: int) -> Secret:
    """Item i of a pair falls back by the bit, item j by its opposite: all local."""
    ahead = engine.add_public(-behind, 1)
    places = np.zeros((*behind.parts.shape[:-1], n), dtype=np.uint64)
    for pair, (i, j) in enumerate(zip(first, second, strict=True)):
        places[..., i] += behind.parts[..., pair]
        places[..., j] += ahead.parts[..., pair]
    return Secret(places)

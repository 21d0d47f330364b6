"""A KV cache that nobody can read: shares of keys and values, and of the bounds of their clusters.

Keys, values and cluster bounds are factors of many products, so each entry is prepared once when it comes.
"""

import enum
from dataclasses import dataclass

from shoestring.generation.clusters import ClusterOptions
from shoestring.generation.secret.comparison import maximum
from shoestring.generation.secret.engine import Engine, FixedOperand
from shoestring.generation.secret.ranking import gather, keep_rows_in_order
from shoestring.generation.secret.shares import Secret, concatenate
from shoestring.models.protocols import CacheCannot


class Static(enum.Enum):
    """How tokens are dropped after the prompt: by one-hot rows of tokens, of whole clusters, or in the
    open."""

    ONEHOT = "onehot"
    CLUSTER = "cluster"
    OPEN = "open"


@dataclass
class SecretLayer:
    """keys, values (heads, tokens, dim). fine, coarse: rbar of the clusters that are full. recent: shares of
    the keys of the tokens behind them, for the bounds of the next one."""

    keys: FixedOperand
    values: FixedOperand
    fine: FixedOperand | None
    coarse: FixedOperand | None
    recent: Secret
    half: tuple[Secret, Secret] | None
    tokens: int


class SecretCache:
    """append, view, evict and length as the caches of a plain decoder; `select` is a shared one-hot matrix.

    clusters: None where nothing is ever selected, so that no bounds are computed.
    """

    def __init__(self, engine: Engine, n_layers: int, clusters: ClusterOptions | None) -> None:
        if clusters is not None and clusters.coarse != 2 * clusters.fine:
            raise ValueError(
                f"coarse={clusters.coarse} must be twice fine={clusters.fine} in a secret cache: the bounds "
                "of "
                "two fine clusters make those of a coarse one."
            )
        self.engine, self.clusters = engine, clusters
        self.layers: list[SecretLayer | None] = [None] * n_layers
        self._preset: set[int] = set()

    def append(self, layer: int, k: Secret, v: Secret) -> None:
        """Tokens (heads, n, dim), keys already rotated; clusters that they fill get their bounds.

        Raises: CacheCannot for a layer that was preset.
        """
        if layer in self._preset:
            raise CacheCannot("append", f"layer {layer} was preset, without the bounds of its last clusters")
        held = self.layers[layer]
        if held is None:
            held = SecretLayer(self.engine.fix(k), self.engine.fix(v), None, None, k, None, k.shape[-2])
            self.layers[layer] = held
        else:
            held.keys, held.values = self.engine.extend(held.keys, k), self.engine.extend(held.values, v)
            held.recent, held.tokens = concatenate([held.recent, k], -2), held.tokens + k.shape[-2]
        if self.clusters is not None:
            self._bound(held, self.clusters)

    def preset(self, layer: int, k: Secret, v: Secret, fine: Secret, coarse: Secret) -> None:
        """A layer whose cluster representatives are known already; nothing can be appended to it."""
        assert self.clusters is not None
        self._preset.add(layer)
        rest = k[..., fine.shape[-2] * self.clusters.fine :, :]
        keys, values, small, large = (self.engine.fix(part) for part in (k, v, fine, coarse))
        self.layers[layer] = SecretLayer(keys, values, small, large, rest, None, k.shape[-2])

    def layer(self, layer: int) -> SecretLayer:
        """What a layer holds. Raises: ValueError where it holds nothing."""
        held = self.layers[layer]
        if held is None:
            raise ValueError(f"layer {layer} of this secret cache is empty; append to it first.")
        return held

    def length(self, layer: int) -> int:
        """Tokens held: public."""
        held = self.layers[layer]
        return 0 if held is None else held.tokens

    def view(self, layer: int, select: Secret) -> tuple[Secret, Secret]:
        """Keys and values of inner clusters (heads, k, n − 2 of n) chosen by one-hot rows: (heads, k·size,
        dim)."""
        assert self.clusters is not None
        held, size = self.layer(layer), self.clusters.fine
        heads, k, inner = select.shape
        dim = held.keys.shape[-1]
        found = []
        for operand in (held.keys, held.values):
            rows = operand.rows(size, size * (inner + 1)).reshape(heads, inner, size * dim)
            found.append(gather(self.engine, select, rows).reshape(heads, k * size, dim))
        return found[0], found[1]

    def evict(self, layer: int, keep: object) -> None:
        """Raises: CacheCannot: where slots are public this would tell which tokens matter."""
        raise CacheCannot(
            "evict", "slots are secret; drop tokens with static_eviction before they are appended"
        )

    def _bound(self, held: SecretLayer, options: ClusterOptions) -> None:
        """Bounds of the fine clusters that are full now, and of coarse ones when two of them are there."""
        full = held.recent.shape[-2] // options.fine
        if full == 0:
            return
        done, held.recent = (
            held.recent[..., : full * options.fine, :],
            held.recent[..., full * options.fine :, :],
        )
        heads, _, dim = done.shape
        grouped = done.reshape(heads, full, options.fine, dim).swap(-1, -2)
        high, low = self._extremes(grouped)
        held.fine = self._extended(held.fine, self._mixed(high, low, options.alpha))
        if held.half is not None:
            high, low = (concatenate([old, new], -2) for old, new in zip(held.half, (high, low), strict=True))
        pairs = high.shape[-2] // 2
        held.half = (high[:, 2 * pairs :], low[:, 2 * pairs :]) if high.shape[-2] % 2 else None
        if pairs == 0:
            return
        both = concatenate([high[:, : 2 * pairs], -low[:, : 2 * pairs]], -3)
        top = maximum(self.engine, both.reshape(2 * heads, pairs, 2, dim).swap(-1, -2))
        held.coarse = self._extended(held.coarse, self._mixed(top[:heads], -top[heads:], options.alpha))

    def _extremes(self, grouped: Secret) -> tuple[Secret, Secret]:
        """Largest and smallest of the last axis; the smallest of x is minus the largest of −x, in one
        batch."""
        heads = grouped.shape[0]
        top = maximum(self.engine, concatenate([grouped, -grouped], -4))
        return top[:heads], -top[heads:]

    def _mixed(self, high: Secret, low: Secret, alpha: float) -> Secret:
        """α high + (1 − α) low with a public α: an integer factor, and a truncation."""
        bits = self.engine.form.frac_bits
        weight = round(alpha * (1 << bits))
        mixed = high.scaled(weight) + low.scaled((1 << bits) - weight)
        return self.engine.truncate(mixed, bits)

    def _extended(self, operand: FixedOperand | None, more: Secret) -> FixedOperand:
        return self.engine.fix(more) if operand is None else self.engine.extend(operand, more)


def static_eviction(
    engine: Engine,
    importance: Secret,
    kv: Secret,
    keep: int,
    mode: Static = Static.CLUSTER,
    *,
    size: int = 16,
    allow_leak: bool = False,
) -> Secret:
    """The `keep` tokens of kv (heads, tokens, width) with the largest importance (tokens,), in their order.

    ONEHOT hides which tokens; CLUSTER hides which runs of `size` tokens, and drops whole runs; OPEN tells all
    parties which tokens, and is there to study costs.

    Raises: PermissionError for OPEN without `allow_leak`; ValueError where runs do not fit the numbers.
    """
    heads, tokens, width = kv.shape
    if mode is Static.OPEN:
        if not allow_leak:
            raise PermissionError(
                "static='open' tells all parties which tokens matter; pass allow_leak=True if that is wanted."
            )
        values = engine.form.decode(engine.open(importance))
        best = sorted(sorted(range(tokens), key=lambda j: (-values[j], j))[:keep])
        return kv[:, best]
    run = size if mode is Static.CLUSTER else 1
    if tokens % run or keep % run:
        raise ValueError(f"tokens={tokens} and keep={keep} must be multiples of size={run}.")
    scores = importance.reshape(1, tokens // run, run).sum(-1)
    rows = kv.reshape(heads, tokens // run, run * width).swap(-3, -2).reshape(1, tokens // run, -1)
    kept = keep_rows_in_order(engine, scores, rows, keep // run)
    return kept.reshape(keep // run, heads, run, width).swap(-4, -3).reshape(heads, keep, width)

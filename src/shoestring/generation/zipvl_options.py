"""What ZipVL may be told, and how it looks at a prompt: the attention of a few probe rows, by column.

Source: He et al. 2024, "ZipVL", v1, section 4.
"""

import functools
import warnings
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from shoestring.generation.important_tokens import Attended, TokenChoice, TopMass, probe_rows, recent_rows
from shoestring.layers.column_sums import column_sums
from shoestring.numbers.tier_format import TierFormat

PROBE_ROWS = 128
"""64 recent and 64 random rows (unconfirmed for v1; ZipCache's code takes 5 % and 5 % of the prompt)."""
BLOCK_TOKENS = 100
"""Decoded tokens that are compressed together, as in ZipCache's code."""


@dataclass(frozen=True)
class ZipVLOptions:
    """How ZipVL sorts and stores.

    choice: how many tokens are important, and which; `TopMass(0.96)` is the aggressive setting. tiers:
    bits of important tokens and of the others. probe: rows looked at, "all", or None for 128 or all where
    there are fewer. per: one set of tokens for a layer, by the mean over heads, or one for each KV head
    (the paper does not say; one per layer lets a plain kernel run). sparse: important tokens attend only
    among each other in the prompt, and the attention of the others is 0; else attention is dense, and
    only storage differs. low: whether the others are stored in `tiers.low_bits` or dropped (v2). least:
    prompts of fewer than twice as many tokens stay as they are. block_tokens: decoded tokens compressed
    together. seed: of the probe rows.

    Raises: ValueError for numbers below 1, words that are none of these, or dropping by KV head: heads of
    different lengths share no groups.
    """

    choice: TokenChoice = field(default_factory=TopMass)
    tiers: TierFormat = field(default_factory=TierFormat)
    probe: int | str | None = None
    per: str = "layer"
    sparse: bool = True
    low: str = "quantise"
    least: int = 16
    block_tokens: int = BLOCK_TOKENS
    seed: int = 0

    def __post_init__(self) -> None:
        for name, allowed in (("per", ("layer", "kv_head")), ("low", ("quantise", "drop"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r}; use {' or '.join(map(repr, allowed))}.")
        for name in ("probe", "least", "block_tokens"):
            value = getattr(self, name)
            if isinstance(value, int) and value < 1:
                raise ValueError(f"{name}={value} must be 1 or more.")
        if isinstance(self.probe, str) and self.probe != "all":
            raise ValueError(f"probe={self.probe!r}; use a number of rows, 'all' or None.")
        if self.low == "drop" and self.per == "kv_head":
            raise ValueError("low='drop' keeps the same tokens in all heads; use per='layer' with it.")


@functools.lru_cache(maxsize=8)
def _rows_of(n: int, count: int, seed: int) -> Tensor:
    """`probe_rows`, which are the same in every layer."""
    # Kept beyond this call: a tensor made in inference mode could not take part in training later.
    with torch.inference_mode(False):
        return probe_rows(n, count, torch.Generator().manual_seed(seed))


def probe(
    q: Float[Tensor, "1 heads n dim"],
    k: Float[Tensor, "1 kv_heads n dim"],
    pos: Int[Tensor, "1 n"],
    layer: int,
    scale: float,
    window: int | None,
    options: ZipVLOptions,
) -> Attended:
    """The attention that the tokens of one prompt get from its probe rows, mean over heads.

    Forced are the recent half of the probe rows, the last token among them; with probe="all" as many as by
    default. More rows than tokens are cut down, with a warning.
    """
    n = q.shape[2]
    if isinstance(options.probe, int) and options.probe > n:
        warnings.warn(f"probe={options.probe} rows of a prompt of {n} tokens: all are taken.", stacklevel=2)
    count = options.probe if isinstance(options.probe, int) else n if options.probe else PROBE_ROWS
    rows = _rows_of(n, count, options.seed).to(q.device)
    sums, counts = column_sums(q[:, :, rows], k, pos[:, rows], pos, scale, window)
    mass = sums[0] * (k.shape[1] / q.shape[1])
    if options.per == "layer":
        mass = mass.mean(0, keepdim=True)
    recent = recent_rows(n, PROBE_ROWS if options.probe == "all" else count)
    return Attended(layer, mass, counts[0], torch.arange(n, device=q.device) >= n - recent)

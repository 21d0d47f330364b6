"""Gated attention unit: one head whose queries and keys come from one small projection, its output gated.

    z, r, v = split(silu(W x)),  q, k = z · gain + offset,  y = W_o(attention(q, k, v) · r)

Source: Hua et al. 2022, "Transformer Quality in Linear Time", section 3; the form without a gate on z is
that of Ren et al. 2023, "Sparse Modular Activation for Efficient Sequence Modeling", with the authors' code.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.kernels.gated_attention import BlockPattern, gated_attention, why_not
from shoestring.layers.local_attention import (
    Allowed,
    Bias,
    Blocks,
    local_attention,
    softmax_weights,
    squared_relu_weights,
)
from shoestring.layers.seqboat.attention_positions import Positions, positions_of
from shoestring.layers.seqboat.attention_reach import Everywhere, Reach, Window
from shoestring.layers.state import State
from shoestring.notices import notice_fallback

ACTIVATIONS = {"softmax": softmax_weights, "relu2": squared_relu_weights}


class GatedAttentionUnit(nn.Module):
    """(batch, seq, d_model) -> (batch, seq, d_model), at a cost of seq · reach.

    d_qk: width of queries and keys; d_hidden: of values. activation: "softmax" of scores / sqrt(d_qk), or
    "relu2", squared rectified scores divided by the size of the window (twice that in both directions), not
    by the keys that are there. position: see `positions_of`; max_positions is for "simple".
    Raises: ValueError for an unknown name or a size below 1.
    """

    def __init__(
        self,
        d_model: int,
        *,
        d_qk: int = 64,
        d_hidden: int | None = None,
        reach: Reach,
        causal: bool = True,
        position: str | tuple[str, ...] | None = "rotary",
        max_positions: int = 1024,
        activation: str = "softmax",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        d_hidden = 2 * d_model if d_hidden is None else d_hidden
        for name, size in (("d_model", d_model), ("d_qk", d_qk), ("d_hidden", d_hidden)):
            if size < 1:
                raise ValueError(f"{name}={size} must be at least 1")
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation={activation!r}; use one of {', '.join(map(repr, ACTIVATIONS))}")
        self.d_qk, self.d_hidden, self.reach, self.causal = d_qk, d_hidden, reach, causal
        self.activation = activation
        self.positions: Positions = positions_of(position, d_qk, reach, max_positions)
        self.project = nn.Linear(d_model, d_qk + 2 * d_hidden)
        self.gain = nn.Parameter(torch.empty(2, d_qk))
        self.offset = nn.Parameter(torch.zeros(2, d_qk))
        self.output = nn.Linear(d_hidden, d_model)
        self.value_dropout = nn.Dropout(dropout)
        self.output_dropout = nn.Dropout(0.0 if causal else dropout)
        nn.init.trunc_normal_(self.gain, std=0.02, a=-0.04, b=0.04)
        # The two projections start at torch's scale, 1/sqrt(fan-in): from one of .02 attention learns so late
        # that a router has silenced it before.
        for bias in (self.project.bias, self.output.bias):
            nn.init.zeros_(bias)

    def forward(
        self,
        x: Float[Tensor, "batch n d_model"],
        positions: Int[Tensor, "batch n"] | None = None,
        filled: Bool[Tensor, "batch n"] | None = None,
        presence: Float[Tensor, "batch n 1"] | None = None,
    ) -> Float[Tensor, "batch n d_model"]:
        """positions: where tokens stood in the original sequence (default 0, 1, …); filled: False for tokens
        that nobody attends to and whose output is not used; presence: what the weight of a key is multiplied
        by, before weights are normalised."""
        if positions is None:
            positions = torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])
        mixed = self.project(x)
        if presence is None and self._may_compile(mixed):
            return self.output_dropout(self.output(self._gated(mixed, positions, filled)))
        q, k, v, r = self._split(mixed, positions)
        if presence is not None:
            q, k = self._with_presence(q, k, presence)
        return self.finish(self.attend(q, k, v, positions, filled), r)

    def parts(
        self, x: Float[Tensor, "batch n d_model"], positions: Int[Tensor, "batch n"]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Queries and keys (batch, n, d_qk), turned; values and gates (batch, n, d_hidden)."""
        return self._split(self.project(x), positions)

    def _split(self, mixed: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        z, r, v = F.silu(mixed).split([self.d_qk, self.d_hidden, self.d_hidden], -1)
        q, k = self.positions.turn(z.unsqueeze(2) * self.gain + self.offset, positions).unbind(2)
        return q, k, self.value_dropout(v), r

    def attend(
        self,
        q: Float[Tensor, "batch n d_qk"],
        k: Float[Tensor, "batch n d_qk"],
        v: Float[Tensor, "batch n d_hidden"],
        positions: Int[Tensor, "batch n"],
        filled: Bool[Tensor, "batch n"] | None = None,
    ) -> Float[Tensor, "batch n d_hidden"]:
        """Attention among the filled tokens within reach."""
        n = q.shape[1]
        bias = self._block_bias(positions) if self.positions.adds_bias else None
        plain = self.activation == "softmax" and bias is None
        if isinstance(self.reach, Everywhere) and plain:
            return _fused(q, k, v, filled, self.scale(n), self.causal)
        pattern = self.reach.pattern(n, causal=self.causal)
        window = self.reach if isinstance(self.reach, Window) and pattern.reach is None else None
        return local_attention(
            q, k, v, pattern, scale=self.scale(n), allowed=_allowed(filled, window), bias=bias,
            activation=None if plain else ACTIVATIONS[self.activation],
        )  # fmt: skip

    def attend_one(
        self, q: Float[Tensor, "batch d_qk"], position: Int[Tensor, " batch"], window: State
    ) -> Float[Tensor, "batch d_hidden"]:
        """The query of the youngest token of each `token_window` against all the tokens kept there."""
        keys, values, ranks = window["keys"], window["values"], window["ranks"]
        exact = torch.promote_types(q.dtype, torch.float32)
        scores = (keys.to(q.dtype) @ q.unsqueeze(-1)).squeeze(-1).to(exact) * self.scale(keys.shape[1])
        if self.positions.adds_bias:
            apart = (ranks - ranks.amax(1, keepdim=True)).unsqueeze(1)
            scores = scores + self.positions.bias(position.unsqueeze(1), window["positions"], apart).squeeze(
                1
            )
        weights = ACTIVATIONS[self.activation](scores, ranks >= 0).to(q.dtype)
        return (weights.unsqueeze(-2) @ values.to(q.dtype)).squeeze(-2)

    def finish(
        self, h: Float[Tensor, "*batch d_hidden"], r: Float[Tensor, "*batch d_hidden"]
    ) -> Float[Tensor, "*batch d_model"]:
        """Gate and project."""
        return self.output_dropout(self.output(h * r))

    def scale(self, n: int) -> float:
        """What scores are multiplied by."""
        return self.d_qk**-0.5 if self.activation == "softmax" else 1 / self.reach.keys(n, causal=self.causal)

    def _may_compile(self, mixed: Tensor) -> bool:
        """Whether the compiled passes do what this unit does, and can do it here."""
        softmax_of_blocks = self.activation == "softmax" and not isinstance(self.reach, Everywhere)
        drops = self.value_dropout.p > 0 and self.training
        if not softmax_of_blocks or self.positions.adds_bias or drops or torch.compiler.is_compiling():
            return False
        reason = why_not(mixed, self.gain, self.offset)
        if reason is not None and mixed.device.type == "cpu":
            notice_fallback("gated_attention", reason)
        return reason is None

    def _gated(self, mixed: Tensor, positions: Tensor, filled: Tensor | None) -> Tensor:
        """(softmax(q kᵀ) v) · r among the filled tokens within reach, compiled."""
        n = mixed.shape[1]
        pattern = self.reach.pattern(n, causal=self.causal)
        blocks = BlockPattern(
            pattern.block, pattern.before, pattern.after, self.causal,
            self.reach.size if isinstance(self.reach, Window) else None,
        )  # fmt: skip
        turns = self.positions.turns(positions)
        return gated_attention(
            mixed, self.gain, self.offset, blocks, scale=self.scale(n), turns=turns, filled=filled
        )

    def _with_presence(self, q: Tensor, k: Tensor, presence: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys whose weights are those of q and k, times the presence of the key."""
        presence = presence.clamp_min(torch.finfo(presence.dtype).tiny)
        if self.activation == "relu2":
            return q, k * presence.sqrt().to(k.dtype)
        # One more channel adds ln presence to the scaled scores.
        extra = (presence.log() / self.scale(q.shape[1])).to(k.dtype)
        return torch.cat([q, torch.ones_like(extra)], -1), torch.cat([k, extra], -1)

    def _block_bias(self, positions: Tensor) -> Bias:
        def bias(blocks: Blocks) -> Tensor:
            query = blocks.queries(positions.unsqueeze(-1)).squeeze(-1)
            key = blocks.keys(positions.unsqueeze(-1)).squeeze(-1)
            return self.positions.bias(query, key, blocks.distance)

        return bias


def naive_gated_attention(
    unit: GatedAttentionUnit,
    x: Float[Tensor, "batch seq d_model"],
    active: Bool[Tensor, "batch seq"],
) -> Float[Tensor, "batch seq d_model"]:
    """The whole sequence with dense scores, nothing compressed: tokens that are not active are masked as keys
    and zeroed as queries, and the reach counts active tokens. Without dropout."""
    positions = torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])
    rank = active.cumsum(1) - 1
    n = max(int(active.sum(1).amax()), 1)
    q, k, v, r = unit.parts(x, positions)
    scores = (q @ k.transpose(1, 2)) * unit.scale(n)
    apart = rank[:, None, :] - rank[:, :, None]
    if unit.positions.adds_bias:
        scores = scores + unit.positions.bias(positions, positions, apart)
    pattern = unit.reach.pattern(n, causal=unit.causal)
    seen = active[:, None, :] & active[:, :, None] & pattern.sees(rank[:, :, None], rank[:, None, :])
    if isinstance(unit.reach, Window):
        seen = seen & (apart.abs() <= unit.reach.size)
    if unit.activation == "softmax":
        weights = torch.where(seen, scores.exp(), 0.0)
        weights = weights / weights.sum(-1, keepdim=True).clamp_min(1e-300)
    else:
        weights = torch.where(seen, scores.relu() ** 2, 0.0)
    return unit.output((weights @ v) * r) * active.unsqueeze(-1)


def _allowed(filled: Tensor | None, window: Window | None) -> Allowed | None:
    """Filled keys, inside a window, for `local_attention`."""
    if filled is None and window is None:
        return None

    def allowed(blocks: Blocks) -> Tensor:
        near = window.sees(blocks.distance) if window is not None else None
        if filled is None:
            return near  # type: ignore[return-value]
        keys = blocks.keys(filled.unsqueeze(-1).int()).bool().transpose(-1, -2)
        return keys if near is None else keys & near

    return allowed


def _fused(q: Tensor, k: Tensor, v: Tensor, filled: Tensor | None, scale: float, causal: bool) -> Tensor:
    """All pairs, by torch's kernel, which never holds the scores where queries and values are as wide.

    So narrow queries and keys get zeros behind them.
    """
    n, width = q.shape[1], v.shape[2]
    if q.shape[2] < width:
        q, k = (F.pad(t, (0, width - t.shape[2])) for t in (q, k))
    mask = None
    if filled is not None and not bool(filled.all()):
        mask = filled.unsqueeze(1) | torch.eye(n, dtype=torch.bool, device=q.device)
        mask = (mask.tril() if causal else mask).unsqueeze(1)
    q, k, v = (t.unsqueeze(1) for t in (q, k, v))
    is_causal = causal and mask is None
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal, scale=scale)
    return out.squeeze(1)

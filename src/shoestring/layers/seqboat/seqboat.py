"""SeqBoat: a moving average over every token, and an attention unit over those that ask for it.

    m = silu(EMA(norm(x)));  u, g = W_u m, W_g m;  router(u) picks the tokens that attend
    y = silu(x + g + confidence · GAU(the picked m))

The rectifier comes after the residual sum. Attention counts its window in picked tokens, so it reaches back
without bound in the sequence at a cost that is linear in it.

Source: Ren et al. 2023, "Sparse Modular Activation for Efficient Sequence Modeling", section 3, with the
authors' code (renll/SeqBoat).
"""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.kernels.compressed_rows import compressed_sum
from shoestring.layers.seqboat import token_window
from shoestring.layers.seqboat.attention_reach import Reach, Window
from shoestring.layers.seqboat.compression_index import CompressedPlaces
from shoestring.layers.seqboat.ema import DampedEMA, naive_damped_ema
from shoestring.layers.seqboat.gated_attention_unit import GatedAttentionUnit, naive_gated_attention
from shoestring.layers.seqboat.router_logits import RouterLogits
from shoestring.layers.seqboat.sparse_modular_activation import (
    Decision,
    Router,
    RouterOptions,
    run_where_active,
)
from shoestring.layers.sequence_norm import sequence_norm
from shoestring.layers.state import State

ROUTED = RouterOptions()
DEFAULT_WINDOW = Window()


class SeqBoat(nn.Module):
    """(batch, seq, d_model) -> (batch, seq, d_model), residual and rectifier included.

    reach: how far attention goes among the tokens that attend; None leaves attention out (an EMA alone).
    router: how tokens are picked; None lets every token attend with weight 1. So `Chunks(w)` without a router
    is a Mega-chunk layer, `Everywhere()` without one has full attention, and all else is the same.
    causal: False looks both ways. ema_truncation: taps of the moving average (the recurrence needs all).
    Other options: `GatedAttentionUnit`, `DampedEMA`, `sequence_norm`.

    `activity` is the share of tokens that attended in the last pass. The recurrence (`init_state`, `prefill`,
    `step`) is of evaluation, needs causal=True and a `Window` or None, and keeps window + 1 attended tokens.
    Raises: ValueError for options that do not fit.
    """

    def __init__(
        self,
        d_model: int,
        *,
        reach: Reach | None = DEFAULT_WINDOW,
        router: RouterOptions | None = ROUTED,
        d_qk: int = 64,
        d_hidden: int | None = None,
        n_states: int = 16,
        causal: bool = True,
        position: str | tuple[str, ...] | None = "rotary",
        max_positions: int = 1024,
        activation: str = "softmax",
        norm: str = "layer",
        prenorm: bool = True,
        dropout: float = 0.0,
        ema_truncation: int | None = None,
    ) -> None:
        super().__init__()
        self.d_model, self.causal, self.prenorm = d_model, causal, prenorm
        self.norm = sequence_norm(norm, d_model)
        self.ema = DampedEMA(d_model, n_states, bidirectional=not causal, truncation=ema_truncation)
        self.router, self.choose = None, None
        if router is not None and reach is not None:
            self.router = Router(d_model, router)
            self.choose = RouterLogits(d_model, centred=router.centred, gradient_floor=router.gradient_floor)
        self.gate = nn.Linear(d_model, d_model)
        nn.init.trunc_normal_(self.gate.weight, std=0.02, a=-0.04, b=0.04)
        nn.init.zeros_(self.gate.bias)
        self.attention = None
        if reach is not None:
            self.attention = GatedAttentionUnit(
                d_model, d_qk=d_qk, d_hidden=d_hidden, reach=reach, causal=causal, position=position,
                max_positions=max_positions, activation=activation, dropout=dropout,
            )  # fmt: skip
        self.dropout = nn.Dropout(dropout)
        self.sum_dropout = nn.Dropout(dropout if causal else 0.0)

    @property
    def activity(self) -> float:
        """Share of the tokens that attended in the last pass; 1 without a router, 0 without attention."""
        if self.router is not None:
            return self.router.activity
        return float(self.attention is not None)

    def forward(
        self, x: Float[Tensor, "batch seq d_model"], mask: Tensor | None = None
    ) -> Float[Tensor, "batch seq d_model"]:
        """mask: bool (batch, seq), True for tokens, False for pads; each sequence needs a token.

        Raises: TypeError for a mask that is not bool; ValueError for one of another shape or with a
        sequence of pads only.
        """
        if mask is not None:
            check_mask(mask, x)
        m, u, g = self._mixed(x, self.ema(self._normed(x), mask), mask)
        return self._with_attention(x, g, m, u, mask)

    def init_state(
        self, batch: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """Before the first token. Raises: ValueError for a layer without a state of fixed size."""
        self._check_recurrent()
        weight = self.gate.weight
        device, dtype = device or weight.device, dtype or weight.dtype
        state = dict(self.ema.init_state(batch, device=device, dtype=dtype))
        state["seen"] = torch.zeros(batch, dtype=torch.int64, device=device)
        if self.attention is not None:
            unit = self.attention
            state |= token_window.empty_window(
                batch, self._slots, unit.d_qk, unit.d_hidden, device=device, dtype=dtype
            )
        return state

    def prefill(
        self, x: Float[Tensor, "batch seq d_model"], state: State
    ) -> tuple[Float[Tensor, "batch seq d_model"], State]:
        """Raises: as `init_state`."""
        self._check_recurrent()
        y, ema = self.ema.prefill(self._normed(x), state)
        m, u, g = self._mixed(x, y)
        attended, window = self._attended_after(m, u, state)
        after = {**ema, "seen": state["seen"] + x.shape[1], **window}
        return self._combined(x, g, attended), after

    def step(
        self, x: Float[Tensor, "batch d_model"], state: State
    ) -> tuple[Float[Tensor, "batch d_model"], State]:
        """Attention costs nothing where no sample asks for it, and window + 1 pairs where one does.

        Raises: as `init_state`.
        """
        self._check_recurrent()
        x = x.unsqueeze(1)
        y, ema = self.ema.step(self._normed(x).squeeze(1), state)
        m, u, g = self._mixed(x, y.unsqueeze(1))
        attended, window = self._attended_one(m, u, state)
        return self._combined(x, g, attended).squeeze(1), {**ema, "seen": state["seen"] + 1, **window}

    def _normed(self, x: Tensor) -> Tensor:
        return self.norm(x) if self.prenorm else x

    def _mixed(
        self, x: Tensor, averaged: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """m; the router's logits, if there is one; and what is added without attention."""
        m = self.dropout(F.silu(averaged.to(x.dtype)))
        return m, None if self.choose is None else self.choose(m, mask), self.gate(m)

    def _decision(self, m: Tensor, u: Tensor | None, mask: Tensor | None) -> Decision:
        if u is not None and self.router is not None:
            decision: Decision = self.router(u, mask)
            return decision
        active = torch.ones(m.shape[:2], dtype=torch.bool, device=m.device) if mask is None else mask
        return Decision(active, active.unsqueeze(-1).to(m.dtype))

    def _with_attention(
        self, x: Tensor, g: Tensor, m: Tensor, u: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        """The output, from what reads all tokens and what only those do that are picked."""
        unit = self.attention
        if unit is None or (self.sum_dropout.p > 0 and self.training):
            return self._combined(x, g, None if unit is None else self._attended(unit, m, u, mask))
        return self._normed_after(self._attended(unit, m, u, mask, to=(x, g)))

    def _attended(
        self,
        unit: GatedAttentionUnit,
        m: Tensor,
        u: Tensor | None,
        mask: Tensor | None,
        *,
        to: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Attention among the picked tokens; with `to`, silu(to[0] + to[1] + that)."""
        if u is None:
            out = unit(m, None, mask)
            out = out if mask is None else out.masked_fill(~mask.unsqueeze(-1), 0.0)
            if to is None:
                return out
            onto = (to[0].flatten(0, 1), to[1].flatten(0, 1))
            return compressed_sum(out.flatten(0, 1), to=onto).view_as(out)

        decision = self._decision(m, u, mask)

        def attend(h: Tensor, places: CompressedPlaces) -> Tensor:
            # Empty slots come last: where nobody looks ahead, nobody sees them.
            filled = None if places.is_full or self.causal else places.filled
            presence = None if decision.presence is None else places.compress(decision.presence)
            return unit(h, places.positions, filled, presence)

        return run_where_active(attend, m, decision, to=to)

    def _attended_after(self, m: Tensor, u: Tensor | None, state: State) -> tuple[Tensor | None, State]:
        """As `_attended`, with the kept tokens before the compressed ones."""
        unit = self.attention
        if unit is None:
            return None, {}
        decision = self._decision(m, u, None)
        places = CompressedPlaces(decision.active)
        positions = places.positions + state["seen"].unsqueeze(1)
        q, k, v, r = unit.parts(places.compress(m), positions)
        joined = token_window.with_sequence(_window_of(state), k, v, positions, places.counts)
        q = F.pad(q, (0, 0, self._slots, 0))
        h = unit.attend(q, joined["keys"], joined["values"], joined["positions"], joined["ranks"] >= 0)
        h = unit.finish(h[:, self._slots :], r)
        return places.extract(h, decision.confidence), token_window.last(joined, self._slots)

    def _attended_one(self, m: Tensor, u: Tensor | None, state: State) -> tuple[Tensor | None, State]:
        """One token a sample; only the samples whose token attends take part."""
        unit, window = self.attention, _window_of(state)
        if unit is None:
            return None, window
        decision = self._decision(m, u, None)
        samples = decision.active[:, 0].nonzero().squeeze(1)
        if not len(samples):
            return None, window
        at = state["seen"][samples]
        q, k, v, r = (part.squeeze(1) for part in unit.parts(m[samples], at.unsqueeze(1)))
        inside = token_window.push({name: part[samples] for name, part in window.items()}, k, v, at)
        h = unit.finish(unit.attend_one(q, at, inside), r)
        h = h * decision.confidence[samples, 0].to(h.dtype)
        out = h.new_zeros(len(m), h.shape[1]).index_copy(0, samples, h).unsqueeze(1)
        return out, {name: part.index_copy(0, samples, inside[name]) for name, part in window.items()}

    def _combined(self, x: Tensor, g: Tensor, attended: Tensor | None) -> Tensor:
        added = g if attended is None else g + attended
        return self._normed_after(F.silu(x + self.sum_dropout(added)))

    def _normed_after(self, out: Tensor) -> Tensor:
        return out if self.prenorm else self.norm(out)

    @property
    def _slots(self) -> int:
        reach = None if self.attention is None else self.attention.reach
        return reach.size + 1 if isinstance(reach, Window) else 0

    def _check_recurrent(self) -> None:
        if not self.causal:
            raise ValueError("a bidirectional layer has no step: later tokens change earlier outputs; "
                             "use causal=True")  # fmt: skip
        if self.attention is not None and not isinstance(self.attention.reach, Window):
            raise ValueError(
                f"reach={self.attention.reach} has no memory of fixed size to go on from; use Window(...)"
            )


def check_mask(mask: Tensor, x: Tensor) -> None:
    """Raises: TypeError for a mask that is not bool; ValueError for another shape or an item of pads only."""
    if mask.dtype != torch.bool:
        raise TypeError(f"mask is {mask.dtype}; give bool, True for tokens and False for pads")
    if mask.shape != x.shape[:2]:
        raise ValueError(f"mask has shape {tuple(mask.shape)}; give {tuple(x.shape[:2])}, (batch, seq)")
    empty = (~mask.any(1)).nonzero().flatten().tolist()
    if empty:
        raise ValueError(f"mask marks no token of batch item {empty[0]}; leave that item out of the batch")


def activity_by_layer(model: nn.Module) -> dict[str, float]:
    """The share of tokens that attended in the last pass of each layer: how much attention a task needs."""
    return {name: module.activity for name, module in model.named_modules() if isinstance(module, SeqBoat)}


def naive_seqboat(
    layer: SeqBoat, x: Float[Tensor, "batch seq d_model"], active: Bool[Tensor, "batch seq"]
) -> Float[Tensor, "batch seq d_model"]:
    """The equations in evaluation, attention dense and masked, for a given choice of tokens."""
    m = F.silu(naive_damped_ema(layer.ema, layer.norm(x) if layer.prenorm else x))
    out = x + layer.gate(m)
    if layer.attention is not None:
        attended = naive_gated_attention(layer.attention, m, active)
        if layer.router is not None and layer.choose is not None:
            u = layer.choose(m)
            attended = attended * torch.softmax(u / layer.router.temperature.exp(), -1)[..., 1:]
        out = out + attended
    out = F.silu(out)
    return out if layer.prenorm else layer.norm(out)


def _window_of(state: Mapping[str, Tensor]) -> State:
    return {name: state[name] for name in ("keys", "values", "positions", "ranks") if name in state}

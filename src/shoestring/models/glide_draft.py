"""A draft of one layer that reads its target's last keys and values: it needs no long cache of its own.

x ← x + self-attention(norm(x)) over a window; x ← x + cross-attention(norm(x)) over the target's last layer;
x ← x + W_down(silu(W_gate norm(x)) · W_up norm(x)). Embedding, head and, where `normalised`, the norm before
the head are the target's, frozen, and no part of this module.

Source: Yang et al. 2025, "LongSpec", section 3.1; Du et al. 2024, "GliDe with a CaPE", section 3.1. The
published code has no norm before the head; with it, a layer that is copied from the target's last one starts
with logits of the right size, and `normalised=False` gives the published form.

A draft of few `words` proposes only these, its commonest: most of what drafting a token costs is the head.
What it cannot propose the target says itself.
Source: Zhao et al. 2025, "FR-Spec: Accelerating Large-Vocabulary Language Models via Frequency-Ranked
Speculative Sampling", section 3.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.layers.attention import attend
from shoestring.layers.attention_masks import Causal, KVView
from shoestring.layers.norm import RMSNorm
from shoestring.layers.rotary import rotate
from shoestring.models.decoder import Decoder
from shoestring.models.decoder_config import DecoderConfig

Hidden = Float[Tensor, "batch n hidden"]


@dataclass(frozen=True)
class GlideOptions:
    """window: tokens before its own that self-attention sees. words: how many tokens of the vocabulary it can
    draft, None: all. Raises: ValueError for one below 1."""

    window: int = 512
    normalised: bool = True
    words: int | None = None

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"window={self.window} must be 1 or more; the paper takes 512.")
        if self.words is not None and self.words < 1:
            raise ValueError(f"words={self.words} must be 1 or more, or None for the whole vocabulary.")


class GlideDraft(nn.Module):
    """The trained part of the draft, for targets of the shape `cfg`."""

    def __init__(self, cfg: DecoderConfig, options: GlideOptions = GlideOptions()) -> None:
        super().__init__()
        self.cfg, self.options = cfg, options
        hidden, inner = cfg.hidden_size, cfg.num_attention_heads * cfg.head_dim
        shared = cfg.num_key_value_heads * cfg.head_dim
        self.q_proj, self.cross_q_proj = nn.Linear(hidden, inner), nn.Linear(hidden, inner)
        self.k_proj, self.v_proj = nn.Linear(hidden, shared), nn.Linear(hidden, shared)
        self.o_proj, self.cross_o_proj = (nn.Linear(inner, hidden, bias=False) for _ in range(2))
        self.gate_proj, self.up_proj = (
            nn.Linear(hidden, cfg.intermediate_size, bias=False) for _ in range(2)
        )
        self.down_proj = nn.Linear(cfg.intermediate_size, hidden, bias=False)
        self.self_norm, self.cross_norm, self.mlp_norm = (RMSNorm(hidden, cfg.rms_norm_eps) for _ in range(3))
        self.rope = cfg.ropes[-1]
        self.words: Int[Tensor, " words"] | None
        self.register_buffer("words", None if options.words is None else torch.arange(options.words))

    @torch.no_grad()
    def choose_words(self, counts: Int[Tensor, " vocab"]) -> "GlideDraft":
        """Draft the tokens that are counted most, of equals the first.

        Raises: ValueError for counts of another vocabulary, or a draft that drafts all tokens.
        """
        if self.words is None or len(counts) != self.cfg.vocab_size:
            raise ValueError(
                f"{len(counts)} counts, words={self.options.words}: give one for each of "
                f"{self.cfg.vocab_size} tokens, to a draft with options.words."
            )
        order = counts.sort(descending=True, stable=True).indices
        self.words.copy_(order[: len(self.words)].sort().values)
        return self

    def head_rows(self, head: Float[Tensor, "vocab hidden"]) -> Float[Tensor, "words hidden"]:
        """The rows of the target's head that belong to what it can draft."""
        return head if self.words is None else head[self.words]

    def tokens(self, drafted: Int[Tensor, "*any"]) -> Int[Tensor, "*any"]:
        """Tokens of the target, of places among the logits that `head_rows` gives."""
        return drafted if self.words is None else self.words[drafted]

    def draw_weights(self, generator: torch.Generator, std: float = 0.02) -> "GlideDraft":
        """Normal weights, biases 0, gains 1, as published."""
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=std, generator=generator)
            else:
                nn.init.constant_(parameter, 1.0 if "norm" in name else 0.0)
        return self

    @torch.no_grad()
    def copy_last_layer(self, target: Decoder) -> "GlideDraft":
        """Begin with the target's last layer; its queries and output serve both attentions, halved each.

        Raises: ValueError for a target that does not fit, as `check_fits`.
        """
        self.check_fits(target)
        layer = target.get_submodule(f"model.layers.{self.cfg.num_hidden_layers - 1}")
        pairs = {
            "q_proj": "self_attn.q_proj", "k_proj": "self_attn.k_proj", "v_proj": "self_attn.v_proj",
            "o_proj": "self_attn.o_proj", "cross_q_proj": "self_attn.q_proj",
            "cross_o_proj": "self_attn.o_proj", "gate_proj": "mlp.gate_proj", "up_proj": "mlp.up_proj",
            "down_proj": "mlp.down_proj", "self_norm": "input_layernorm", "cross_norm": "input_layernorm",
            "mlp_norm": "post_attention_layernorm",
        }  # fmt: skip
        for own, theirs in pairs.items():
            module, source = self.get_submodule(own), layer.get_submodule(theirs)
            module.weight.copy_(source.weight)  # type: ignore[operator, arg-type]
            bias = getattr(source, "bias", None)
            if getattr(module, "bias", None) is not None:
                module.bias.copy_(bias if bias is not None else torch.zeros_like(module.bias))  # type: ignore[operator, arg-type]
        for halved in (self.o_proj, self.cross_o_proj):
            halved.weight.mul_(0.5)
        return self

    def check_fits(self, target: Decoder) -> None:
        """Raises: ValueError naming everything in which the target differs from the one this was made for."""
        names = (
            "vocab_size", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim",
        )  # fmt: skip
        found = [
            f"{name} {getattr(target.cfg, name)} instead of {getattr(self.cfg, name)}"
            for name in names
            if getattr(target.cfg, name) != getattr(self.cfg, name)
        ]
        if target.cfg.ropes[-1] != self.rope:
            found.append(f"rotary positions {target.cfg.ropes[-1]} instead of {self.rope}")
        if found:
            raise ValueError(f"this draft was made for another target: {'; '.join(found)}.")

    def project(self, x: Hidden, pos: Int[Tensor, "batch n"]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of self-attention, (batch, heads, n, channels), rotated."""
        normal = self.self_norm(x)
        q, k, v = (self._heads(proj(normal)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        return self._rotate(q, pos), self._rotate(k, pos), v.transpose(1, 2)

    def cross_queries(self, x: Hidden, pos: Int[Tensor, "batch n"]) -> Float[Tensor, "batch heads n dim"]:
        """Queries into the target's keys, rotated."""
        return self._rotate(self._heads(self.cross_q_proj(self.cross_norm(x))), pos)

    def add_self(self, x: Hidden, attended: Float[Tensor, "batch heads n dim"]) -> Hidden:
        """x with what self-attention saw."""
        return x + self.o_proj(attended.transpose(1, 2).flatten(2))

    def finish(self, x: Hidden, attended: Float[Tensor, "batch heads n dim"]) -> Hidden:
        """x with what cross-attention saw, through the feed-forward: what goes to the head."""
        x = x + self.cross_o_proj(attended.transpose(1, 2).flatten(2))
        normal = self.mlp_norm(x)
        return x + self.down_proj(F.silu(self.gate_proj(normal)) * self.up_proj(normal))

    def forward(
        self, x: Hidden, pos: Int[Tensor, "batch n"], target: KVView, lag: int
    ) -> Float[Tensor, "batch n hidden"]:
        """All tokens of a text at once, as in training. target: last layer, the same tokens. The token at
        index t sees target keys up to t − lag; the first `lag` tokens see none."""
        q, k, v = self.project(x, pos)
        view = KVView(k, v, pos[:, None])
        x = self.add_self(x, attend(q, view, Causal(pos, pos[:, None]), self.cfg.head_dim**-0.5,
                                    self.options.window + 1).out)  # fmt: skip
        return self.finish(x, lagged_attention(self.cross_queries(x, pos), target.k, target.v, lag))

    def to_head(self, target: Decoder, x: Hidden) -> Hidden:
        """What the target's head takes, of what `finish` gives."""
        return target.model.norm(x) if self.options.normalised else x

    def to_logits(self, target: Decoder, x: Hidden) -> Float[Tensor, "batch n vocab"]:
        """The target's head on what `finish` gives."""
        return target.lm_head(self.to_head(target, x))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.cfg.head_dim))

    def _rotate(self, x: Tensor, pos: Tensor) -> Tensor:
        cos, sin = self.rope.tables(pos, self.cfg.head_dim, x.dtype)
        return rotate(x, cos, sin).transpose(1, 2)


def lagged_attention(
    q: Float[Tensor, "batch heads n dim"],
    k: Float[Tensor, "batch kv_heads n dim"],
    v: Float[Tensor, "batch kv_heads n dim"],
    lag: int,
) -> Float[Tensor, "batch heads n dim"]:
    """Row t attends to keys 0 … t − lag; the first `lag` rows are 0: causal attention without the first `lag`
    queries and the last `lag` keys.

    Raises: ValueError for a lag below 0.
    """
    if lag < 0:
        raise ValueError(f"lag={lag} must be 0 or more; training draws 1 to 4.")
    n = q.shape[2]
    if lag >= n:
        return torch.zeros_like(q)
    seen = F.scaled_dot_product_attention(
        q[:, :, lag:],
        k[:, :, : n - lag],
        v[:, :, : n - lag],
        is_causal=True,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return torch.cat([torch.zeros_like(q[:, :, :lag]), seen], 2)


def naive_lagged_attention(
    q: Float[Tensor, "batch heads n dim"],
    k: Float[Tensor, "batch kv_heads n dim"],
    v: Float[Tensor, "batch kv_heads n dim"],
    lag: int,
) -> Float[Tensor, "batch heads n dim"]:
    """The same with a mask over all pairs: key index <= t − lag."""
    group, n = q.shape[1] // k.shape[1], q.shape[2]
    k, v = (t.repeat_interleave(group, 1) for t in (k, v))
    row, column = torch.arange(n)[:, None], torch.arange(n)
    seen = column <= row - lag
    weight = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).exp() * seen
    total = weight.sum(-1, keepdim=True)
    return weight / total.masked_fill(total == 0, 1.0) @ v

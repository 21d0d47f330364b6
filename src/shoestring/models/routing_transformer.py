"""A language model of routing and local heads (the Routing Transformer).

Published runs were trained with Adafactor (second moment 1 − t^-0.8, clip 1, steps relative to the size of a
parameter) at 0.01 · rsqrt decay after 10k steps of warm-up. `torch.optim.Adafactor` at lr=0.01 is that: its
rate is min(lr, t^-½). As a plan: TrainingPlan(steps, learning_rate=0.01, optimizer="adafactor",
schedule="constant", warmup_steps=10_000). The published setting also names a second-moment decay of 0.999;
torch has the power law only, whose decay passes 0.999 at step 5,600.

Source: Roy et al. 2021, "Efficient Content-Based Sparse Attention with Routing Transformers", section 5.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.layers.geglu import GEGLU
from shoestring.layers.routing.routing_attention import HeadSplit, RoutingAttention
from shoestring.layers.state import State, join_states, state_of


@dataclass(frozen=True)
class RoutingTransformerConfig:
    """heads: of the layers from `skip_first` on; the layers before have local heads only (PG-19: 21 of 22).
    hidden: of the feed-forward networks. dropout: of residual branches. input_dropout: of whole input tokens.
    commitment: beta, what the clustering loss counts.

    Raises: ValueError naming the field that is out of range.
    """

    vocab_size: int
    dim: int
    n_layers: int
    heads: HeadSplit
    hidden: int
    skip_first: int = 0
    dropout: float = 0.0
    input_dropout: float = 0.0
    commitment: float = 1e-4

    def __post_init__(self) -> None:
        for name in ("vocab_size", "dim", "n_layers", "hidden"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be 1 or more.")
        if not 0 <= self.skip_first <= self.n_layers:
            raise ValueError(f"skip_first={self.skip_first} must lie within 0 .. n_layers={self.n_layers}.")
        for name in ("dropout", "input_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 0 and below 1.")
        if self.commitment < 0:
            raise ValueError(f"commitment={self.commitment} must not be negative.")

    def layer_heads(self, layer: int) -> HeadSplit:
        """The heads of one layer."""
        if layer >= self.skip_first:
            return self.heads
        return replace(self.heads, n_local_heads=self.heads.n_heads, n_routing_heads=0, routing=None)


class LanguageOutput(NamedTuple):
    """commitment: summed over layers. unrouted_fraction: one figure a layer."""

    logits: Float[Tensor, "batch seq vocab"]
    commitment: Float[Tensor, ""]
    unrouted_fraction: Float[Tensor, " layers"]


class RoutingBlock(nn.Module):
    """x + attention(norm x), then x + GEGLU(norm x)."""

    def __init__(self, config: RoutingTransformerConfig, layer: int) -> None:
        super().__init__()
        self.attention = RoutingAttention(config.dim, config.layer_heads(layer))
        self.attention_norm, self.feed_norm = nn.LayerNorm(config.dim), nn.LayerNorm(config.dim)
        self.feed = GEGLU(config.dim, config.hidden)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: Float[Tensor, "batch seq dim"], valid: Bool[Tensor, "batch seq"] | None = None
    ) -> tuple[Float[Tensor, "batch seq dim"], Tensor, Tensor]:
        """Output, commitment loss, unrouted fraction."""
        routed = self.attention(self.attention_norm(x), valid)
        return self.merge(x, routed.out), routed.commitment, routed.unrouted_fraction

    def prefill(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Tokens after those of the state."""
        out, state = self.attention.prefill(self.attention_norm(x), state)
        return self.merge(x, out), state

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One more token."""
        out, state = self.attention.step(self.attention_norm(x), state)
        return self.merge(x, out), state

    def merge(self, x: Tensor, out: Tensor) -> Tensor:
        """The block's output from its input and that of its attention."""
        x = x + self.dropout(out)
        return x + self.dropout(self.feed(self.feed_norm(x)))


class RoutingStack(nn.Module):
    """The layers of a Routing Transformer and a last norm: vectors (batch, seq, dim) to vectors.

    While training, call `update_after_step(optimizer, model)` once, so that centroids move with each step.
    """

    def __init__(self, config: RoutingTransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(RoutingBlock(config, layer) for layer in range(config.n_layers))
        self.norm = nn.LayerNorm(config.dim)

    @property
    def leaks_future(self) -> bool:
        """Whether outputs depend on later positions."""
        return any(block.attention.leaks_future for block in self._each())

    def forward(
        self, x: Float[Tensor, "batch seq dim"], valid: Bool[Tensor, "batch seq"] | None = None
    ) -> tuple[Float[Tensor, "batch seq dim"], Float[Tensor, ""], Float[Tensor, " layers"]]:
        """Outputs, commitment losses summed over layers, unrouted fraction of each layer."""
        commitments, unrouted = [], []
        for block in self._each():
            x, commitment, missed = block(x, valid)
            commitments.append(commitment)
            unrouted.append(missed)
        return self.norm(x), torch.stack(commitments).sum(), torch.stack(unrouted)

    @torch.no_grad()
    def init_centroids(self, x: Float[Tensor, "batch seq dim"], iterations: int = 10) -> None:
        """Start every layer's centroids from its own vectors of x, first layer first."""
        for block in self._each():
            normed = block.attention_norm(x)
            block.attention.init_centroids(normed, iterations)
            x = block.merge(x, block.attention(normed).out)

    def init_state(
        self, batch: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """The state before the first position."""
        return join_states(
            block.attention.init_state(batch, device=device, dtype=dtype) for block in self._each()
        )

    def prefill(
        self, x: Float[Tensor, "batch seq dim"], state: State
    ) -> tuple[Float[Tensor, "batch seq dim"], State]:
        """Outputs of positions that follow those of the state."""
        after = []
        for number, block in enumerate(self._each()):
            x, own = block.prefill(x, state_of(state, number))
            after.append(own)
        return self.norm(x), join_states(after)

    def step(self, x: Float[Tensor, "batch dim"], state: State) -> tuple[Float[Tensor, "batch dim"], State]:
        """The output of one more position."""
        after = []
        for number, block in enumerate(self._each()):
            x, own = block.step(x, state_of(state, number))
            after.append(own)
        return self.norm(x), join_states(after)

    def _each(self) -> list[RoutingBlock]:
        return cast(list[RoutingBlock], list(self.blocks))


class RoutingTransformer(nn.Module):
    """Token ids (batch, seq) -> `LanguageOutput`; the embedding is tied to the output."""

    def __init__(self, config: RoutingTransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.dim)
        nn.init.normal_(self.embedding.weight, std=config.dim**-0.5)
        self.stack = RoutingStack(config)

    @property
    def leaks_future(self) -> bool:
        """Whether logits depend on later tokens: then a perplexity read off one forward pass flatters it."""
        return self.stack.leaks_future

    def forward(
        self, tokens: Int[Tensor, "batch seq"], valid: Bool[Tensor, "batch seq"] | None = None
    ) -> LanguageOutput:
        """valid: tokens that are no padding. Raises: as `RoutingHeads`."""
        x, commitment, unrouted = self.stack(self._embedded(tokens), valid)
        return LanguageOutput(self._logits(x), commitment, unrouted)

    def init_centroids(self, tokens: Int[Tensor, "batch seq"], iterations: int = 10) -> None:
        """Start every layer's centroids from its own vectors of these tokens."""
        self.stack.init_centroids(self._embedded(tokens).detach(), iterations)

    def init_state(
        self, batch: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """The state before the first token."""
        return self.stack.init_state(batch, device=device, dtype=dtype)

    def prefill(
        self, tokens: Int[Tensor, "batch seq"], state: State
    ) -> tuple[Float[Tensor, "batch seq vocab"], State]:
        """Logits of tokens that follow those of the state."""
        x, state = self.stack.prefill(self._embedded(tokens), state)
        return self._logits(x), state

    def step(self, tokens: Int[Tensor, " batch"], state: State) -> tuple[Float[Tensor, "batch vocab"], State]:
        """Logits after one more token."""
        x, state = self.stack.step(self._embedded(tokens), state)
        return self._logits(x), state

    def _embedded(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens) * self.config.dim**0.5
        if not self.training or not self.config.input_dropout:
            return x
        kept = torch.rand(tokens.shape, device=x.device) >= self.config.input_dropout
        return x * kept[..., None]

    def _logits(self, x: Tensor) -> Tensor:
        return F.linear(x, self.embedding.weight)


def language_loss(
    model: RoutingTransformer, tokens: Int[Tensor, "batch seq"], targets: Int[Tensor, "batch seq"]
) -> Float[Tensor, ""]:
    """Mean cross-entropy of the target of each token, plus beta · commitment."""
    found = model(tokens)
    loss = F.cross_entropy(found.logits.flatten(0, 1).float(), targets.flatten())
    return loss + model.config.commitment * found.commitment

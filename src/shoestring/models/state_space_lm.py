"""A language model of state space layers and feed-forward networks: no cache, a state of fixed size.

Source: Gu et al. 2021, "Efficiently Modeling Long Sequences with Structured State Spaces", appendix D.3 (the
model of WikiText-103; its adaptive embedding is a plain tied one here).
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from shoestring.layers.state import State, join_states, state_of
from shoestring.layers.state_space import S4, StateSpaceLayer


class StateSpaceBlock(nn.Module):
    """x + layer(norm(x)), then x + feed_forward(norm(x)). Shapes: (batch, seq, d_model) -> the same."""

    def __init__(self, layer: StateSpaceLayer, d_model: int, d_ff: int, dropout: float) -> None:
        super().__init__()
        self.layer, self.layer_norm, self.norm = layer, nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.feed_forward = nn.Sequential(
            nn.Linear(d_model, d_ff), nn.GELU(), nn.Dropout(dropout), nn.Linear(d_ff, d_model)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "batch seq d_model"]) -> Float[Tensor, "batch seq d_model"]:
        return self._fed_forward(x + self.dropout(self.layer(self.layer_norm(x))))

    def prefill(
        self, x: Float[Tensor, "batch seq d_model"], state: State
    ) -> tuple[Float[Tensor, "batch seq d_model"], State]:
        """As `Recurrent.prefill`."""
        y, state = self.layer.prefill(self.layer_norm(x), state)
        return self._fed_forward(x + self.dropout(y)), state

    def step(
        self, x: Float[Tensor, "batch d_model"], state: State
    ) -> tuple[Float[Tensor, "batch d_model"], State]:
        """As `Recurrent.step`."""
        y, state = self.layer.step(self.layer_norm(x), state)
        return self._fed_forward(x + self.dropout(y)), state

    def _fed_forward(self, x: Tensor) -> Tensor:
        return x + self.dropout(self.feed_forward(self.norm(x)))


class StateSpaceLM(nn.Module):
    """ids (batch, seq) -> logits of the token after each, (batch, seq, vocabulary).

    layer: makes the layer of a block, `layer(d_model)`, by default `S4`. d_ff: width of the feed-forward
    networks, by default 4 d_model. The first tap of a state space lets y_t depend on u_t, so a token stands
    at its own position and the targets are shifted by one, as for any causal language model.

    After `setup_step` it reads in pieces: a state holds that of every layer under "0.x", "1.x", and so on.
    Raises: ValueError for a size below 1, a layer that reads the future, and ids outside the vocabulary.
    """

    def __init__(
        self,
        vocab_size: int,
        d_model: int,
        n_layers: int,
        *,
        layer: Callable[[int], StateSpaceLayer] = S4,
        d_ff: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        d_ff = 4 * d_model if d_ff is None else d_ff
        sizes = {"vocab_size": vocab_size, "d_model": d_model, "n_layers": n_layers, "d_ff": d_ff}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name}={size} must be at least 1")
        self.embedding = nn.Embedding(vocab_size, d_model)
        nn.init.normal_(self.embedding.weight, std=d_model**-0.5)  # it is the head as well
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            StateSpaceBlock(_causal(layer(d_model)), d_model, d_ff, dropout) for _ in range(n_layers)
        )
        self.norm = nn.LayerNorm(d_model)

    def forward(self, ids: Int[Tensor, "batch seq"]) -> Float[Tensor, "batch seq vocab"]:
        x = self._embedded(ids)
        for block in self._layers:
            x = block(x)
        return self._logits(x)

    def setup_step(self, mode: str | None = None) -> None:
        """Get ready to read in pieces, in the layers' own mode unless one is given."""
        for block in self._layers:
            block.layer.setup_step() if mode is None else block.layer.setup_step(mode)

    def init_state(
        self, batch: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """The state before the first token."""
        return join_states(
            block.layer.init_state(batch, device=device, dtype=dtype) for block in self._layers
        )

    def prefill(
        self, ids: Int[Tensor, "batch seq"], state: State
    ) -> tuple[Float[Tensor, "batch seq vocab"], State]:
        """Logits after each of these tokens, and the state after them."""
        x = self._embedded(ids)
        after = []
        for i, block in enumerate(self._layers):
            x, own = block.prefill(x, state_of(state, i))
            after.append(own)
        return self._logits(x), join_states(after)

    def step(self, ids: Int[Tensor, " batch"], state: State) -> tuple[Float[Tensor, "batch vocab"], State]:
        """Logits after one more token, and the state after it."""
        x = self._embedded(ids)
        after = []
        for i, block in enumerate(self._layers):
            x, own = block.step(x, state_of(state, i))
            after.append(own)
        return self._logits(x), join_states(after)

    @property
    def _layers(self) -> list[StateSpaceBlock]:
        return list(self.blocks)  # type: ignore[arg-type]

    def _embedded(self, ids: Tensor) -> Tensor:
        vocab_size = self.embedding.num_embeddings
        # Asking would stall a GPU, and stop a compiler; there the lookup itself complains.
        if not torch.compiler.is_compiling() and ids.device.type == "cpu" and ids.numel():
            low, high = ids.min().item(), ids.max().item()
            if low < 0 or high >= vocab_size:
                raise ValueError(f"ids reach from {low} to {high}; the vocabulary has 0 .. {vocab_size - 1}")
        return self.dropout(self.embedding(ids))

    def _logits(self, x: Tensor) -> Tensor:
        return nn.functional.linear(self.norm(x), self.embedding.weight)


def _causal(layer: StateSpaceLayer) -> StateSpaceLayer:
    if layer.ssm.bidirectional:
        raise ValueError("a bidirectional layer sees the token it should predict; use one direction")
    return layer

"""Networks of SeqBoat layers: a language model that goes on token by token, and a classifier.

The layers hold their own residual and rectifier, so they follow one another without a frame.

Source: Ren et al. 2023, "Sparse Modular Activation for Efficient Sequence Modeling", section 4 (models).
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from shoestring.layers.seqboat.seqboat import SeqBoat, check_mask
from shoestring.layers.state import State, join_states, state_of

LayerFactory = Callable[[int], SeqBoat]
"""From d_model to a layer, e.g. `functools.partial(SeqBoat, reach=Window(64))`."""


class SeqBoatStack(nn.Module):
    """Layers one after the other, and a last norm where they normalise first.

    Shapes: (batch, seq, d_model) -> the same. Raises: ValueError for sizes below 1.
    """

    def __init__(self, layer: LayerFactory, d_model: int, n_layers: int) -> None:
        super().__init__()
        for name, size in (("d_model", d_model), ("n_layers", n_layers)):
            if size < 1:
                raise ValueError(f"{name}={size} must be at least 1")
        self.layers = nn.ModuleList(layer(d_model) for _ in range(n_layers))
        self.norm: nn.Module = self._last_norm(d_model)

    def _last_norm(self, d_model: int) -> nn.Module:
        first = self.layers[0]
        return nn.LayerNorm(d_model) if isinstance(first, SeqBoat) and first.prenorm else nn.Identity()

    def forward(
        self, x: Float[Tensor, "batch seq d_model"], mask: Bool[Tensor, "batch seq"] | None = None
    ) -> Float[Tensor, "batch seq d_model"]:
        for layer in self.layers:
            x = layer(x, mask)
        return self.norm(x)

    def init_state(
        self, batch: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """The states of all layers, named "0.ema", "0.keys", … Raises: ValueError as the layers do."""
        states = [layer.init_state(batch, device=device, dtype=dtype) for layer in self._recurrent()]
        return join_states(states)

    def prefill(
        self, x: Float[Tensor, "batch seq d_model"], state: State
    ) -> tuple[Float[Tensor, "batch seq d_model"], State]:
        """As `Recurrent`."""
        states = []
        for number, layer in enumerate(self._recurrent()):
            x, after = layer.prefill(x, state_of(state, number))
            states.append(after)
        return self.norm(x), join_states(states)

    def step(
        self, x: Float[Tensor, "batch d_model"], state: State
    ) -> tuple[Float[Tensor, "batch d_model"], State]:
        """As `Recurrent`."""
        states = []
        for number, layer in enumerate(self._recurrent()):
            x, after = layer.step(x, state_of(state, number))
            states.append(after)
        return self.norm(x), join_states(states)

    def _recurrent(self) -> list[SeqBoat]:
        return [layer for layer in self.layers if isinstance(layer, SeqBoat)]


class SeqBoatLM(nn.Module):
    """Embedding, layers, logits of each token: (batch, seq) ids -> (batch, seq, outputs).

    n_outputs: classes of each token; None stands for the vocabulary, with the embedding as output matrix.
    `init_state`, `prefill` and `step` read ids and carry a state of fixed size.
    Raises: ValueError for sizes below 1.
    """

    def __init__(
        self,
        layer: LayerFactory,
        *,
        vocab_size: int,
        d_model: int,
        n_layers: int,
        n_outputs: int | None = None,
    ) -> None:
        super().__init__()
        for name, size in (("vocab_size", vocab_size), ("n_outputs", n_outputs)):
            if size is not None and size < 1:
                raise ValueError(f"{name}={size} must be at least 1")
        self.stack = SeqBoatStack(layer, d_model, n_layers)
        self.embedding = nn.Embedding(vocab_size, d_model)
        nn.init.normal_(self.embedding.weight, std=d_model**-0.5)
        self.head = nn.Linear(
            d_model, vocab_size if n_outputs is None else n_outputs, bias=n_outputs is not None
        )
        if n_outputs is None:
            self.head.weight = self.embedding.weight

    def forward(
        self, ids: Int[Tensor, "batch seq"], mask: Bool[Tensor, "batch seq"] | None = None
    ) -> Float[Tensor, "batch seq outputs"]:
        return self.head(self.stack(self.embedding(ids), mask))

    def init_state(
        self, batch: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """As `SeqBoatStack`."""
        return self.stack.init_state(batch, device=device, dtype=dtype)

    def prefill(
        self, ids: Int[Tensor, "batch seq"], state: State
    ) -> tuple[Float[Tensor, "batch seq outputs"], State]:
        """As `Recurrent`, from ids to logits."""
        x, state = self.stack.prefill(self.embedding(ids), state)
        return self.head(x), state

    def step(self, ids: Int[Tensor, " batch"], state: State) -> tuple[Float[Tensor, "batch outputs"], State]:
        """As `Recurrent`, from one id to its logits."""
        x, state = self.stack.step(self.embedding(ids), state)
        return self.head(x), state


class SeqBoatClassifier(nn.Module):
    """Encoder, layers, mean over the tokens, linear head.

    Shapes: x (batch, seq, d_input) -> logits (batch, n_classes); with `embedding=True`, x is token ids
    (batch, seq) below d_input. Raises: ValueError for sizes below 1.
    """

    def __init__(
        self,
        layer: LayerFactory,
        *,
        d_input: int,
        d_model: int,
        n_layers: int,
        n_classes: int,
        embedding: bool = False,
    ) -> None:
        super().__init__()
        for name, size in (("d_input", d_input), ("n_classes", n_classes)):
            if size < 1:
                raise ValueError(f"{name}={size} must be at least 1")
        self.stack = SeqBoatStack(layer, d_model, n_layers)
        self.encoder = nn.Embedding(d_input, d_model) if embedding else nn.Linear(d_input, d_model)
        self.head = nn.Linear(d_model, n_classes)

    def forward(
        self, x: Shaped[Tensor, "batch seq *d_input"], mask: Bool[Tensor, "batch seq"] | None = None
    ) -> Float[Tensor, "batch n_classes"]:
        """mask: True for tokens; pads take no part in the mean. Raises: as `SeqBoat.forward`."""
        if mask is None:
            return self.head(self.stack(self.encoder(x)).mean(1))
        check_mask(mask, x)
        h = self.stack(self.encoder(x), mask).masked_fill(~mask.unsqueeze(-1), 0.0)
        return self.head(h.sum(1) / mask.sum(1, keepdim=True))

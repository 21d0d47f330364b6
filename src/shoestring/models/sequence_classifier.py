"""A classifier of sequences: residual blocks around any layer that mixes a sequence, pooled over time.

Source: Gu et al. 2022, "Efficiently Modeling Long Sequences with Structured State Spaces", section 4 and
appendix D (the common frame of the Long Range Arena).
"""

from collections.abc import Callable

from jaxtyping import Float, Shaped
from torch import Tensor, nn

from shoestring.layers.sequence_norm import sequence_norm

POOLINGS = ("mean", "last")


class ResidualSequenceBlock(nn.Module):
    """x + dropout(layer(norm(x))), or norm(x + dropout(layer(x))) with `prenorm=False`.

    norm: see `sequence_norm`.

    Shapes: (batch, seq, d_model) -> the same.
    """

    def __init__(
        self,
        layer: nn.Module,
        d_model: int,
        *,
        prenorm: bool = True,
        norm: str = "layer",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.layer, self.norm = layer, sequence_norm(norm, d_model)
        self.dropout, self.prenorm = nn.Dropout(dropout), prenorm

    def forward(self, x: Float[Tensor, "batch seq d_model"]) -> Float[Tensor, "batch seq d_model"]:
        if self.prenorm:
            return x + self.dropout(self.layer(self.norm(x)))
        return self.norm(x + self.dropout(self.layer(x)))


class SequenceClassifier(nn.Module):
    """Encoder, `n_layers` residual blocks, a last norm (if prenorm), pooling over time, a linear head.

    layer: makes the sequence layer of a block, `layer(d_model)` with (batch, seq, d_model) -> the same.
    Shapes: x (batch, seq, d_input) -> logits (batch, n_classes); with `embedding=True`, x is token ids
    (batch, seq) below d_input, the size of the vocabulary.

    Raises: ValueError for sizes below 1, an unknown norm or pooling; in use, for an input of another shape;
    TypeError for a layer that is no module.
    """

    def __init__(
        self,
        layer: Callable[[int], nn.Module],
        *,
        d_input: int,
        d_model: int,
        n_layers: int,
        n_classes: int,
        prenorm: bool = True,
        norm: str = "layer",
        dropout: float = 0.0,
        pooling: str = "mean",
        embedding: bool = False,
    ) -> None:
        super().__init__()
        sizes = {"d_input": d_input, "d_model": d_model, "n_layers": n_layers, "n_classes": n_classes}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name}={size} must be at least 1")
        if pooling not in POOLINGS:
            raise ValueError(f"pooling={pooling!r}; use one of {', '.join(map(repr, POOLINGS))}")
        self.d_input, self.pooling = d_input, pooling
        self.encoder = nn.Embedding(d_input, d_model) if embedding else nn.Linear(d_input, d_model)
        self.blocks = nn.ModuleList(
            ResidualSequenceBlock(_made(layer, d_model), d_model, prenorm=prenorm, norm=norm, dropout=dropout)
            for _ in range(n_layers)
        )
        self.norm = sequence_norm(norm, d_model) if prenorm else nn.Identity()
        self.head = nn.Linear(d_model, n_classes)

    def forward(self, x: Shaped[Tensor, "batch seq *d_input"]) -> Float[Tensor, "batch n_classes"]:
        self._check(x)
        x = self.encoder(x)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return self.head(x.mean(1) if self.pooling == "mean" else x[:, -1])

    def _check(self, x: Tensor) -> None:
        if isinstance(self.encoder, nn.Embedding):
            if x.ndim != 2 or x.is_floating_point():
                raise ValueError(f"x is {x.dtype} of shape {tuple(x.shape)}; give token ids (batch, seq)")
        elif x.ndim != 3 or x.shape[-1] != self.d_input:
            raise ValueError(f"x has shape {tuple(x.shape)}; give (batch, seq, {self.d_input})")
        if x.shape[1] == 0:
            raise ValueError("x has no steps; give a sequence of at least one")


def _made(layer: Callable[[int], nn.Module], d_model: int) -> nn.Module:
    made = layer(d_model)
    if not isinstance(made, nn.Module):
        raise TypeError(f"layer({d_model}) gave a {type(made).__name__}; it must give an nn.Module")
    return made

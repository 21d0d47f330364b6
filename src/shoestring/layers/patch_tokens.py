"""A picture as the sequence that an image backbone reads: patches, class tokens among them, positions.

Source: Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words", section 3.1; Zhu et al. 2024, "Vision
Mamba", section 3.2 (class token in the middle) and table 8 (where else it may stand).
"""

import enum
import itertools
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shoestring.layers.parameter_hint import ParameterHint
from shoestring.layers.patch_embedding import Grid, PatchEmbedding, interpolate_positions


class ClassToken(enum.StrEnum):
    """Where the class token stands among the patches.

    RANDOM: at a place drawn anew for each batch in training, in the middle in evaluation, so that results
    repeat. NONE: the patches are averaged instead.
    """

    MIDDLE = "middle"
    HEAD = "head"
    BOTH_ENDS = "both ends"
    RANDOM = "random"
    NONE = "none"

    def slots(self, patches: int) -> tuple[int, ...]:
        """The places of class tokens in the whole sequence, in evaluation."""
        places = {"middle": (patches // 2,), "head": (0,), "both ends": (0, patches + 1), "none": ()}
        return places.get(self.value, (patches // 2,))


class TokenSequence(NamedTuple):
    """tokens (batch, patches + class tokens, dim), places of class tokens, rows and columns of patches."""

    tokens: Tensor
    slots: tuple[int, ...]
    grid: Grid


class PatchTokens(nn.Module):
    """images (batch, channels, height, width) -> `TokenSequence`.

    Pictures of another size than `image_size` (height, width) are read with their positions resized where
    `interpolate` is said. Raises: as `PatchEmbedding`; ValueError for such a picture without it.
    """

    def __init__(
        self,
        image_size: tuple[int, int],
        embedding: PatchEmbedding,
        class_token: ClassToken,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.image_size, self.class_token = image_size, class_token
        self.embedding = embedding
        self.grid = embedding.grid(*image_size)
        dim, patches = embedding.projection.out_channels, self.grid[0] * self.grid[1]
        count = len(class_token.slots(patches))
        self.class_tokens = nn.Parameter(torch.empty(count, dim))
        self.positions = nn.Parameter(torch.empty(patches + count, dim))
        for part in (self.class_tokens, self.positions):
            nn.init.trunc_normal_(part, std=0.02)
        self.dropout = nn.Dropout(dropout)
        no_decay = ParameterHint(weight_decay=0.0)
        self.parameter_hints = {"class_tokens": no_decay, "positions": no_decay}

    def forward(
        self, images: Float[Tensor, "batch _channels height width"], *, interpolate: bool = False
    ) -> TokenSequence:
        size = images.shape[2], images.shape[3]
        if size != self.image_size and not interpolate:
            raise ValueError(
                f"images are {size[0]} x {size[1]}, the model was built for "
                f"{self.image_size[0]} x {self.image_size[1]}; resize them or say interpolate=True"
            )
        patches = self.embedding(images)
        grid = self.embedding.grid(*size)
        slots = self._slots(patches.shape[1])
        tokens = place(self.class_tokens.expand(len(patches), -1, -1), patches, slots)
        tokens = tokens + self.positions_for(grid)
        return TokenSequence(self.dropout(tokens), slots, grid)

    def positions_for(self, grid: Grid) -> Float[Tensor, "slots dim"]:
        """The positions of a grid, in the order of the sequence."""
        if grid == self.grid:
            return self.positions
        slots = self.class_token.slots(self.grid[0] * self.grid[1])
        found = interpolate_positions(self.positions, self.grid, grid, slots)
        tokens, patches = found[: len(slots)], found[len(slots) :]
        return place(tokens[None], patches[None], self.class_token.slots(grid[0] * grid[1]))[0]

    def _slots(self, patches: int) -> tuple[int, ...]:
        if self.class_token is ClassToken.RANDOM and self.training:
            return (int(torch.randint(patches + 1, ())),)
        return self.class_token.slots(patches)


def place(
    tokens: Float[Tensor, "batch count dim"],
    patches: Float[Tensor, "batch patches dim"],
    slots: tuple[int, ...],
) -> Float[Tensor, "batch all dim"]:
    """The patches in their order, with the tokens at `slots`, ascending places in the result."""
    parts, taken = [], 0
    for number, slot in enumerate(slots):
        parts += [patches[:, taken : slot - number], tokens[:, number : number + 1]]
        taken = slot - number
    return torch.cat([*parts, patches[:, taken:]], 1)


def without(
    tokens: Float[Tensor, "batch all dim"], slots: tuple[int, ...]
) -> Float[Tensor, "batch patches dim"]:
    """The sequence without the class tokens at `slots`."""
    edges = [-1, *slots, tokens.shape[1]]
    return torch.cat([tokens[:, a + 1 : b] for a, b in itertools.pairwise(edges)], 1)

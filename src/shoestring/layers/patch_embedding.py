"""Pictures as sequences of patches, and positions that follow the picture to another size.

Source: Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words", section 3.1 and "Fine-tuning and higher
resolution" in 3.2.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

Grid = tuple[int, int]
"""Rows and columns of patches."""


class PatchEmbedding(nn.Module):
    """A strided convolution: images (batch, channels, height, width) -> tokens (batch, rows · columns, dim).

    Tokens go row by row. stride: by default the patch size; smaller for patches that overlap. Weights start
    as LeCun's normal.

    Raises: ValueError for a size below 1 or a stride above the patch size.
    """

    def __init__(self, channels: int, dim: int, patch_size: int, stride: int | None = None) -> None:
        super().__init__()
        stride = patch_size if stride is None else stride
        for name, size in (("channels", channels), ("dim", dim), ("patch_size", patch_size)):
            if size < 1:
                raise ValueError(f"{name}={size} must be at least 1")
        if not 1 <= stride <= patch_size:
            raise ValueError(f"stride={stride} must be 1 to patch_size={patch_size}, or pixels are skipped")
        self.channels, self.patch_size, self.stride = channels, patch_size, stride
        self.projection = nn.Conv2d(channels, dim, patch_size, stride)
        nn.init.normal_(self.projection.weight, std=(channels * patch_size**2) ** -0.5)
        nn.init.zeros_(self.projection.bias)  # type: ignore[arg-type]

    def grid(self, height: int, width: int) -> Grid:
        """How many patches a picture has. Raises: ValueError for a size that patches do not fill."""
        for name, size in (("height", height), ("width", width)):
            if size < self.patch_size or (size - self.patch_size) % self.stride:
                near = self.patch_size + max(0, size - self.patch_size) // self.stride * self.stride
                raise ValueError(
                    f"{name}={size}: patches of {self.patch_size} at stride {self.stride} do not fill it; "
                    f"use {near} or {near + self.stride}"
                )
        rows, columns = ((size - self.patch_size) // self.stride + 1 for size in (height, width))
        return rows, columns

    def forward(
        self, images: Float[Tensor, "batch _channels height width"]
    ) -> Float[Tensor, "batch patches dim"]:
        if images.shape[1] != self.channels:
            raise ValueError(f"images have {images.shape[1]} channels, the patch embedding {self.channels}")
        self.grid(images.shape[2], images.shape[3])
        return self.projection(images).flatten(2).transpose(1, 2)


def interpolate_positions(
    positions: Float[Tensor, "slots dim"], old: Grid, new: Grid, token_slots: tuple[int, ...] = ()
) -> Float[Tensor, "new_slots dim"]:
    """Positions of a grid of patches, resized bicubically to another grid; those of class tokens as they are.

    token_slots: which rows belong to class tokens, ascending. They are taken out first, wherever they stand,
    and returned before the patches' rows, for the caller to place them.

    Raises: ValueError for another number of rows than `old` and `token_slots` say.
    """
    if positions.shape[0] != old[0] * old[1] + len(token_slots):
        raise ValueError(
            f"positions has {positions.shape[0]} rows; a grid of {old[0]} x {old[1]} and "
            f"{len(token_slots)} class tokens take {old[0] * old[1] + len(token_slots)}"
        )
    is_patch = torch.ones(len(positions), dtype=torch.bool, device=positions.device)
    is_patch[list(token_slots)] = False
    tokens, patches = positions[~is_patch], positions[is_patch]
    if old != new:
        plane = patches.unflatten(0, old).permute(2, 0, 1)[None].float()
        resized = F.interpolate(plane, new, mode="bicubic", align_corners=False)
        patches = resized[0].flatten(1).T.to(positions.dtype)
    return torch.cat([tokens, patches])

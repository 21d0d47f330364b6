"""Maps of one resolution brought to four: what detectors and segmenters take from a plain backbone.

Source: Li et al. 2022, "Exploring Plain Vision Transformer Backbones for Object Detection", section 3.
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

Map = Float[Tensor, "batch dim _rows _columns"]


class FeaturePyramid(nn.Module):
    """Four maps (batch, dim, rows, columns) to ones of 4, 2, 1 and 1/2 times their rows and columns.

    Transposed convolutions of stride 2 (two with normalisation and GELU between, one), nothing, pooling.
    Give the same map four times where only the last block's is used. Raises: ValueError for other than four.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.steps = nn.ModuleList(
            [
                nn.Sequential(
                    nn.ConvTranspose2d(dim, dim, 2, 2),
                    nn.BatchNorm2d(dim),
                    nn.GELU(),
                    nn.ConvTranspose2d(dim, dim, 2, 2),
                ),
                nn.ConvTranspose2d(dim, dim, 2, 2),
                nn.Identity(),
                nn.MaxPool2d(2, 2),
            ]
        )

    def forward(self, maps: Sequence[Map]) -> list[Tensor]:
        if len(maps) != len(self.steps):
            raise ValueError(f"{len(maps)} maps; a pyramid takes {len(self.steps)}, e.g. one map four times")
        return [step(one) for step, one in zip(self.steps, maps, strict=True)]

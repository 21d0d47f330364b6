"""One channel of pictures drawn pixel by pixel by an Axial Transformer, nothing computed twice.

Masked blocks keep the keys and values of what is finished: a finished row goes through the outer decoder
once, a finished pixel through the inner one. The outputs are those of the whole model.

Source: Ho et al. 2019, "Axial Attention in Multidimensional Transformers", section 3.4 (which keeps rows;
the columns' keys and values are kept here too).
"""

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from shoestring.layers.axial.line_attention import LineCache

if TYPE_CHECKING:
    from shoestring.models.axial_image_model import AxialImageModel


class AxialImageSteps:
    """Logits of the next pixel, in row-major order; each is answered with `take`.

    `condition` is what the finished channels say, (batch, height, width, dim) or None. After the last column
    comes the first of the next row. Raises: ValueError for a step out of turn or past the last pixel.
    """

    def __init__(
        self, model: "AxialImageModel", condition: Float[Tensor, "batch height width dim"] | None, batch: int
    ) -> None:
        cfg = model.cfg
        self._model = model
        self._condition = condition
        self._outer_blocks = model.outer.line_blocks
        self._inner_blocks = model.inner.line_blocks
        self._outer: list[LineCache | None] = [
            block.attention.cache(batch * cfg.width, cfg.height) if block.attention.causal else None
            for block in self._outer_blocks
        ]
        self._inner = [block.attention.cache(batch, cfg.width) for block in self._inner_blocks]
        self._upper = model.embedding.weight.new_zeros(batch, cfg.width, cfg.dim)
        self._row = 0
        self._values: list[Int[Tensor, " batch"]] = []
        self._is_asked = False

    def logits(self) -> Float[Tensor, "batch n_values"]:
        """The logits of the next pixel."""
        if self._is_asked:
            raise ValueError("the logits of this pixel were given already; `take` its value first")
        if len(self._values) == self._model.cfg.width:
            self._end_row()
        if self._row == self._model.cfg.height:
            raise ValueError(f"all {self._row} rows are finished")
        self._is_asked = True
        column = len(self._values)
        position = self._model.position
        x = self._upper[:, column] + position.rows[self._row] + position.columns[column]
        if self._condition is not None:
            x = x + self._condition[:, self._row, column]
        if column:
            x = x + self._model.embedding(self._values[-1])
        for block, cache in zip(self._inner_blocks, self._inner, strict=True):
            x = block.step(x, cache)
        return self._model.head(x)

    def take(self, values: Int[Tensor, " batch"]) -> None:
        """The values that were chosen for the pixel whose logits were asked for last."""
        if not self._is_asked:
            raise ValueError("no pixel waits for its value; ask for its logits first")
        self._is_asked = False
        self._values.append(values)

    def _end_row(self) -> None:
        if self._row + 1 < self._model.cfg.height:
            self._upper = self._upper_of_next()
        self._row += 1
        self._values = []
        for cache in self._inner:
            cache.length = 0

    def _upper_of_next(self) -> Float[Tensor, "batch width dim"]:
        """The finished row through the outer decoder: what it and the rows above say to the next one."""
        position = self._model.position
        x = self._model.embedding(torch.stack(self._values, 1)) + position.rows[self._row] + position.columns
        if self._condition is not None:
            x = x + self._condition[:, self._row]
        for block, cache in zip(self._outer_blocks, self._outer, strict=True):
            x = block(x) if cache is None else block.step(x.flatten(0, 1), cache).view(x.shape)
        return x

"""What attention along rows and columns costs beside attention over all elements of a grid."""

from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from shoestring.layers.axial.along_axis import from_lines, to_lines
from shoestring.layers.axial.axial_attention import AxialBlocks
from shoestring.layers.axial.line_attention import AttentionBlock, LineAttention
from shoestring.layers.self_attention import self_attend
from shoestring.systems.axial_transformer.claims import BLOCK, MEMORY, SCORES, TIME
from shoestring.yardstick.comparison import Row
from shoestring.yardstick.flops import CostCounter
from shoestring.yardstick.memory import LiveMemory
from shoestring.yardstick.timing import time_interleaved

DIM, HEADS = 256, 4
Grid = Float[Tensor, "batch height width three_dim"]


@torch.inference_mode()
def cost_rows(sides: tuple[int, ...], rounds: int, seed: int) -> list[Row]:
    """Rows of time for square grids of these sides; blocks, memory and operations at the last but one.

    The last two answer the claims (64 and 96; a smoke run takes smaller ones), the others are shown only.
    """
    generator = torch.Generator().manual_seed(seed)
    grids = {side: torch.randn(1, side, side, 3 * DIM, generator=generator) for side in sides}
    names = dict(zip(sides[-2:], TIME.values(), strict=True))
    rows = []
    for side, grid in grids.items():
        timed = time_interleaved(
            {"lines": partial(along_lines, grid), "full": partial(over_everything, grid)}, rounds=rounds
        )
        if side in names:
            rows.append(names[side].row(**timed.figures("lines", "full")))
        else:
            rows.append(
                Row(metric=f"time of attention, {side} x {side}", kind="time", unit="s", better="lower",
                    **timed.figures("lines", "full"))
            )  # fmt: skip
    judged = grids[sides[-2]]
    return [*rows, _blocks(judged[..., :DIM].contiguous(), rounds), _memory(judged), _scores(judged)]


def along_lines(qkv: Grid) -> Float[Tensor, "batch height width dim"]:
    """Attention along rows and along columns, of queries, keys and values that are there."""
    batch, height, width, _ = qkv.shape
    for axis in (1, 0):
        lines = self_attend(to_lines(qkv, axis), HEADS)
        out = from_lines(lines, axis, batch, (height, width))
    return out


def over_everything(qkv: Grid) -> Float[Tensor, "batch elements dim"]:
    """Attention over all elements."""
    return self_attend(qkv.flatten(1, 2), HEADS)


def explicit_attention(qkv: Float[Tensor, "lines length three_dim"]) -> Float[Tensor, "lines length dim"]:
    """Attention whose scores are stored, as where no fused kernel exists."""
    q, k, v = qkv.unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def _blocks(x: Float[Tensor, "batch height width dim"], rounds: int) -> Row:
    axial = AxialBlocks(DIM, HEADS, (1, 0), n_axes=2)
    full = AttentionBlock(LineAttention(DIM, HEADS), DIM)
    elements = x.flatten(1, 2)
    timed = time_interleaved({"axial": lambda: axial(x), "full": lambda: full(elements)}, rounds=rounds)
    return BLOCK.row(**timed.figures("axial", "full"))


def _memory(qkv: Grid) -> Row:
    def by_lines() -> None:
        for axis in (1, 0):
            explicit_attention(to_lines(qkv, axis))

    return MEMORY.row(
        baseline=_peak(lambda: explicit_attention(qkv.flatten(1, 2)), qkv), method=_peak(by_lines, qkv)
    )


def _peak(work: Any, *static: Tensor) -> int:
    with LiveMemory(*static) as memory:
        work()
    return memory.peak_dynamic_bytes


def _scores(qkv: Grid) -> Row:
    return SCORES.row(
        baseline=_contractions(partial(over_everything, qkv)), method=_contractions(partial(along_lines, qkv))
    )


def _contractions(work: Any) -> int:
    with CostCounter() as cost:
        work()
    return cost.contraction_flops

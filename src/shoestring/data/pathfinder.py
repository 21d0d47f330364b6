"""Pathfinder: do two discs lie on the ends of one dashed path, or on those of two?

Pictures hold two long dashed paths and shorter ones that distract. Paths turn little from dash to dash and
never come near each other, so that the question has one answer, which only following the dashes finds.

Source: Linsley et al. 2018, "Learning Long-Range Spatial Dependencies with Horizontal Gated Recurrent Units",
section 4.1; Tay et al. 2021, "Long Range Arena", section 2.2.4 (pixels as a sequence; Path-X at 128 x 128).
The drawing is this project's own: sizes and margins below, not the authors' pictures.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from scipy import ndimage
from torch import Tensor

from shoestring.data.seeded import check_seed, numpy_generator

Array = np.ndarray
"""Points are (n, 2), row before column, in pixels; a path is (dashes, 2, 2), start and end of each."""
_SIDES = (32, 64, 128, 256)
_DASHES = {32: 4, 64: 10, 128: 20, 256: 40}
_DISTRACTORS = {32: 2, 64: 4, 128: 8, 256: 12}
_LENGTH = 2.5
"""Pixels of a dash between the centres of its round ends."""
_GAP = 2.25
"""Pixels between the centres of the ends of two dashes."""
_WIDTH = 1.0
_RADIUS = 1.75
"""Pixels of a disc."""
_INK = 0.25
"""Cover of a pixel that counts as drawn. A pixel's centre lies within √½ of any point of a dash, and is then
covered by more than this: what is drawn has no holes."""
_REACH = _GAP + 2 * math.sqrt(0.5) + 0.02
"""Pixels of the longest step, from drawn pixel to drawn pixel, across a gap within a path."""
_MARGIN = _REACH + 2 * (_WIDTH / 2 + 0.5 - _INK) + 0.05
"""Least pixels between the centre lines of two paths, or of one and itself further along: no step of _REACH
leads from one to the other. The last term is for distances taken between points half a pixel apart."""
_TURN = math.pi / 8
"""Largest turn from dash to dash."""
_DIRECTIONS = 12
_STARTS = 96
_BORDER = _RADIUS + 1
_PATH_TRIES = 24


@dataclass(frozen=True)
class Pathfinder:
    """Pictures of `side` x `side` and whether the discs are joined; sample i of a seed is always the same.

    Called with a step: pictures as rows of grey values in -1 .. 1, (batch, side², 1), and labels. Odd and
    even samples alternate in label, so that both are as frequent. Discs of two paths are chosen about as far
    apart as those of one; at 32, where there is little room, the distance alone still is right 7 times of 10.

    Raises: ValueError for another side than 32, 64, 128 or 256.
    """

    side: int = 32
    batch_size: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        check_seed(self.seed, self.batch_size)
        if self.side not in _SIDES:
            raise ValueError(f"side={self.side} must be one of {', '.join(map(str, _SIDES))}")

    def sample(self, index: int) -> tuple[UInt8[np.ndarray, "side side"], int]:
        """Picture and label of one sample."""
        draw = numpy_generator(self.seed, index)
        joined = index % 2
        while True:  # a picture that leaves no room for its paths is begun anew
            paths = self._paths(draw)
            if paths is not None:
                break
        ends = (paths[0][0, 0], paths[0][-1, 1])
        if not joined:
            ends = _like(ends, paths[1])
        return _render(self.side, paths, ends), joined

    def __call__(self, step: int) -> tuple[Float[Tensor, "batch length 1"], Int[Tensor, " batch"]]:
        """Pictures as sequences, and labels, of a step."""
        first = step * self.batch_size
        samples = [self.sample(index) for index in range(first, first + self.batch_size)]
        pictures = torch.from_numpy(np.stack([picture for picture, _ in samples])).float() / 127.5 - 1
        return pictures.flatten(1).unsqueeze(-1), torch.tensor([label for _, label in samples])

    def _paths(self, draw: np.random.Generator) -> list[Array] | None:
        """The two long paths, then the distractors; None where one found no room."""
        dashes, paths = _DASHES[self.side], []
        taken = np.empty((0, 2))
        counts = [dashes, dashes] + [max(2, dashes // 3)] * _DISTRACTORS[self.side]
        for number, count in enumerate(counts):
            clear = _MARGIN + (_RADIUS if number < 2 else 0.0)
            path = _grow(draw, self.side, count, taken, clear)
            if path is None:
                return None
            paths.append(path)
            points = _along(path)
            if number < 2:  # the discs that may stand on its ends
                points = np.concatenate([points, _ring(path[0, 0]), _ring(path[-1, 1])])
            taken = np.concatenate([taken, points])
        return paths


def _like(ends: tuple[Array, Array], other: Array) -> tuple[Array, Array]:
    """One of the two ends and one of the other path's, about as far apart: distance tells little."""
    apart = math.dist(*ends)
    pairs = [(mine, its) for mine in ends for its in (other[0, 0], other[-1, 1])]
    return min(pairs, key=lambda pair: abs(math.dist(*pair) - apart))


def _grow(draw: np.random.Generator, side: int, count: int, taken: Array, clear: float) -> Array | None:
    """A path of `count` dashes, `clear` of what is taken; None if many tries found no room."""
    starts = draw.uniform(_BORDER, side - 1 - _BORDER, (_STARTS, 2))
    if len(taken):
        starts = starts[(np.square(starts[:, None] - taken).sum(-1) >= clear**2).all(1)]
    for start in starts[:_PATH_TRIES]:
        angle = draw.uniform(0, 2 * math.pi)
        path = np.empty((0, 2, 2))
        while len(path) < count:
            angles = angle + draw.uniform(-_TURN, _TURN, _DIRECTIONS)
            towards = np.stack([np.sin(angles), np.cos(angles)], 1)
            dashes = np.stack([np.broadcast_to(start, towards.shape), start + _LENGTH * towards], 1)
            free = np.flatnonzero(_fits(dashes, path, side, taken, clear))
            if not len(free):
                break
            chosen = free[0]
            angle = angles[chosen]
            path = np.concatenate([path, dashes[chosen : chosen + 1]])
            start = path[-1, 1] + _GAP * towards[chosen]
        if len(path) == count:
            return path
    return None


def _fits(dashes: Array, path: Array, side: int, taken: Array, clear: float) -> Array:
    """Which of the dashes that may come next on a path keep their distances."""
    points = _along(dashes).reshape(len(dashes), -1, 2)
    fits: Array = np.all((points >= _BORDER) & (points <= side - 1 - _BORDER), axis=(1, 2))
    # A path keeps clear of its own past too, but for the dash that it goes on from.
    for other, least in ((taken, clear), (_along(path[:-1]), _MARGIN)):
        if len(other) and fits.any():
            apart = points[fits, :, None] - other
            fits[fits] = (np.square(apart).sum(-1) >= least**2).all((1, 2))
    return fits


def _along(path: Array) -> Array:
    """Array on the dashes of a path, half a pixel apart or less."""
    steps = np.linspace(0, 1, math.ceil(_LENGTH / 0.5) + 1)[None, :, None]
    return (path[:, None, 0] * (1 - steps) + path[:, None, 1] * steps).reshape(-1, 2)


def _ring(centre: Array) -> Array:
    angles = np.linspace(0, 2 * math.pi, 16, endpoint=False)
    return centre + _RADIUS * np.stack([np.sin(angles), np.cos(angles)], 1)


def _render(side: int, paths: Sequence[Array], ends: Sequence[Array]) -> UInt8[np.ndarray, "side side"]:
    """Dashes and discs, each pixel covered by as much as its centre lies within."""
    cover = np.zeros((side, side))
    for start, end in np.concatenate(paths):
        _draw(cover, start, end, _WIDTH / 2)
    for centre in ends:
        _draw(cover, centre, centre, _RADIUS)
    return np.round(255 * cover).astype(np.uint8)


def _draw(
    cover: Float[np.ndarray, "side side"],
    start: Array,
    end: Array,
    radius: float,
) -> None:
    """Draw what lies within `radius` of a stretch, in place, with a soft edge of a pixel."""
    low = np.maximum(np.floor(np.minimum(start, end) - radius - 1).astype(int), 0)
    high = np.minimum(np.ceil(np.maximum(start, end) + radius + 1).astype(int) + 1, len(cover))
    grid = np.stack(list(np.mgrid[low[0] : high[0], low[1] : high[1]]), -1)
    stretch = end - start
    length = float(stretch @ stretch)
    part = np.clip((grid - start) @ stretch / length, 0, 1) if length else np.zeros(grid.shape[:2])
    distance = np.hypot(*(grid - start - part[..., None] * stretch).transpose(2, 0, 1))
    window = cover[low[0] : high[0], low[1] : high[1]]
    np.maximum(window, np.clip(radius + 0.5 - distance, 0, 1), out=window)


def naive_joined(picture: UInt8[np.ndarray, "side side"]) -> int:
    """Walk over drawn pixels, across the gaps of a path: 1 if one disc is reached from the other.

    Raises: ValueError where there are not two discs.
    """
    cover = picture / 255
    discs, count = ndimage.label(ndimage.uniform_filter(cover, 3, mode="constant") > 0.6, np.ones((3, 3)))
    if count != 2:
        raise ValueError(f"the picture has {count} discs, not two")
    centres = ndimage.center_of_mass(cover, discs, [1, 2])
    ink = np.argwhere(cover > _INK)
    first, second = (int(np.hypot(*(ink - centre).T).argmin()) for centre in centres)
    seen, front = {first}, [first]
    while front:
        near = np.hypot(*(ink - ink[front.pop()]).T) <= _REACH
        new = set(np.flatnonzero(near).tolist()) - seen
        seen |= new
        front.extend(new)
    return int(second in seen)

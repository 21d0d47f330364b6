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

Points = Float[np.ndarray, "points 2"]
_SIDES = (32, 64, 128, 256)
_DASHES = {32: 5, 64: 10, 128: 20, 256: 40}
_DISTRACTORS = {32: 2, 64: 4, 128: 8, 256: 16}
_LENGTH = 2.5
"""Pixels of a dash between the centres of its round ends."""
_GAP = 2.5
"""Pixels between the centres of the ends of two dashes."""
_WIDTH = 1.0
_RADIUS = 2.0
"""Pixels of a disc."""
_MARGIN = 4.5
"""Least pixels between the centre lines of two paths, or of one and itself further along."""
_TURN = math.pi / 8
"""Largest turn from dash to dash."""
_DIRECTIONS = 12
_PATH_TRIES = 60


@dataclass(frozen=True)
class Pathfinder:
    """Pictures of `side` x `side` and whether the discs are joined; sample i of a seed is always the same.

    Called with a step: pictures as rows of grey values in -1 .. 1, (batch, side², 1), and labels. Odd and
    even samples alternate in label, so that both are as frequent.

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
        ends = (paths[0][0, 0], paths[0][-1, 1] if joined else paths[1][0, 0])
        return _render(self.side, paths, ends), joined

    def __call__(self, step: int) -> tuple[Float[Tensor, "batch length 1"], Int[Tensor, " batch"]]:
        """Pictures as sequences, and labels, of a step."""
        first = step * self.batch_size
        samples = [self.sample(index) for index in range(first, first + self.batch_size)]
        pictures = torch.from_numpy(np.stack([picture for picture, _ in samples])).float() / 127.5 - 1
        return pictures.flatten(1).unsqueeze(-1), torch.tensor([label for _, label in samples])

    def _paths(self, draw: np.random.Generator) -> "list[Float[np.ndarray, 'dashes 2 2']] | None":
        """The two long paths, then the distractors, as start and end of each dash; None where one found no room."""
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


def _grow(
    draw: np.random.Generator, side: int, count: int, taken: Points, clear: float
) -> "Float[np.ndarray, 'dashes 2 2'] | None":
    """A path of `count` dashes, `clear` of what is taken; None if many tries found no room."""
    border = _RADIUS + 1
    for _ in range(_PATH_TRIES):
        start = draw.uniform(border, side - 1 - border, 2)
        angle = draw.uniform(0, 2 * math.pi)
        path: list[Points] = []
        while len(path) < count:
            turns = draw.uniform(-_TURN, _TURN, _DIRECTIONS)
            found = next(
                (
                    (dash, angle + turn)
                    for turn in turns
                    if _fits(dash := _dash(start, angle + turn), path, side, border, taken, clear)
                ),
                None,
            )
            if found is None:
                break
            dash, angle = found
            path.append(dash)
            start = dash[1] + _GAP * _towards(angle)
        if len(path) == count:
            return np.stack(path)
    return None


def _fits(
    dash: Points, path: Sequence[Points], side: int, border: float, taken: Points, clear: float
) -> bool:
    points = _along(dash[None])
    if points.min() < border or points.max() > side - 1 - border:
        return False
    others, near = [(taken, clear)], path[:-1]
    if near:  # its own past, but for the dash it goes on from
        others.append((_along(np.stack(near)), _MARGIN))
    return all(
        not len(other) or np.hypot(*(points[:, None] - other[None]).transpose(2, 0, 1)).min() >= least
        for other, least in others
    )


def _towards(angle: float) -> Float[np.ndarray, " 2"]:
    return np.array([math.sin(angle), math.cos(angle)])


def _dash(start: Float[np.ndarray, " 2"], angle: float) -> Points:
    return np.stack([start, start + _LENGTH * _towards(angle)])


def _along(path: "Float[np.ndarray, 'dashes 2 2']") -> Points:
    """Points on the dashes of a path, half a pixel apart or less."""
    steps = np.linspace(0, 1, math.ceil(_LENGTH / 0.5) + 1)[None, :, None]
    return (path[:, None, 0] * (1 - steps) + path[:, None, 1] * steps).reshape(-1, 2)


def _ring(centre: Float[np.ndarray, " 2"]) -> Points:
    angles = np.linspace(0, 2 * math.pi, 16, endpoint=False)
    return centre + _RADIUS * np.stack([np.sin(angles), np.cos(angles)], 1)


def _render(
    side: int, paths: Sequence[Float[np.ndarray, "dashes 2 2"]], ends: Sequence[Float[np.ndarray, " 2"]]
) -> UInt8[np.ndarray, "side side"]:
    """Dashes and discs, each pixel covered by as much as its centre lies within."""
    cover = np.zeros((side, side))
    for start, end in np.concatenate(paths):
        _draw(cover, start, end, _WIDTH / 2)
    for centre in ends:
        _draw(cover, centre, centre, _RADIUS)
    return np.round(255 * cover).astype(np.uint8)


def _draw(
    cover: Float[np.ndarray, "side side"],
    start: Float[np.ndarray, " 2"],
    end: Float[np.ndarray, " 2"],
    radius: float,
) -> None:
    """Draw what lies within `radius` of a stretch, in place, with a soft edge of a pixel."""
    low = np.maximum(np.floor(np.minimum(start, end) - radius - 1).astype(int), 0)
    high = np.minimum(np.ceil(np.maximum(start, end) + radius + 1).astype(int) + 1, len(cover))
    grid = np.stack(np.mgrid[low[0] : high[0], low[1] : high[1]], -1)
    stretch = end - start
    length = float(stretch @ stretch)
    part = np.clip((grid - start) @ stretch / length, 0, 1) if length else np.zeros(grid.shape[:2])
    distance = np.hypot(*(grid - start - part[..., None] * stretch).transpose(2, 0, 1))
    window = cover[low[0] : high[0], low[1] : high[1]]
    np.maximum(window, np.clip(radius + 0.5 - distance, 0, 1), out=window)


def naive_joined(picture: UInt8[np.ndarray, "side side"]) -> int:
    """Follow the dashes: 1 if the two discs are one piece once the gaps within paths are filled.

    Raises: ValueError where there are not two discs.
    """
    ink = picture > 96
    reach = np.hypot(*np.mgrid[-2:3, -2:3]) <= 2
    core = ndimage.binary_erosion(picture > 127, np.ones((3, 3)))
    discs, count = ndimage.label(core, np.ones((3, 3)))
    if count != 2:
        raise ValueError(f"the picture has {count} discs, not two")
    centres = np.round(ndimage.center_of_mass(core, discs, [1, 2])).astype(int)
    grown = ndimage.binary_dilation(ink, ndimage.generate_binary_structure(2, 1))
    pieces, _ = ndimage.label(grown | (reach.any() & grown), np.ones((3, 3)))
    first, second = (pieces[tuple(centre)] for centre in centres)
    return int(first == second)

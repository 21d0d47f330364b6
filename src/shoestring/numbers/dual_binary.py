"""Two sparse binary planes stand for a weight: ŵ = a₁·b₁ + a₂·b₂ with b₁, b₂ in {0, 1}, a₁ and a₂ per group.

The levels are {a₂, 0, a₁ + a₂, a₁}; at first {−s, 0, s, 2s}, or their mirror image. As long as a₁ and a₂ are
in order (a₁ > 0 > a₂ and a₁ + a₂ > 0, or all three reversed) the planes are those of the nearest level.

Source: Chen et al. 2024, "DB-LLM: Accurate Dual-Binarization for Efficient LLMs", section 3.2. Not confirmed
there, so decided here: both mirror images are tried, and the scale is searched rather than set to max|w|/2.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from shoestring.numbers.packing import pack_bits, packed_bytes, unpack_bits

Weight = Float[Tensor, "rows cols"]
Levels = Float[Tensor, "rows groups 2"]
"""a₁ and a₂ of every group."""
Planes = tuple[Bool[Tensor, "rows cols"], Bool[Tensor, "rows cols"]]

SCALE_STEPS = tuple(torch.linspace(0.2, 1.2, 26).tolist())
"""Candidates for s, in units of half the largest weight of the group."""
LEAST_ORDER = 1e-3
"""How far a₁, −a₂ and a₁ + a₂ stay above zero, in units of the first s."""
CHUNK_ELEMENTS = 1 << 17
_LEAST_SCALE = 2.0**-22
_LARGEST = 65504.0


@dataclass(frozen=True)
class DualBinary:
    """The format: two bits a weight, and two float16 for every `group_size` inputs of an output."""

    group_size: int = 64

    def __post_init__(self) -> None:
        if self.group_size < 1:
            raise ValueError(f"group_size={self.group_size} must be 1 or more; 64 and 128 are usual.")

    def groups(self, cols: int) -> int:
        """Groups in a row of `cols` weights."""
        return cols // self.group_size

    def nbytes(self, rows: int, cols: int) -> int:
        """Exact bytes of both planes and all levels."""
        return 2 * rows * packed_bytes(cols, 1) + 4 * rows * self.groups(cols)

    def tensors(self, rows: int, cols: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and type of each stored tensor: both planes and the levels."""
        plane = (rows, packed_bytes(cols, 1)), torch.uint8
        return {"first": plane, "second": plane, "levels": ((rows, self.groups(cols), 2), torch.float16)}

    def why_not(self, name: str, cols: int) -> str | None:
        """Why rows of `cols` weights cannot be stored so; None if they can."""
        if cols % self.group_size:
            return (
                f"{name!r} has {cols} inputs, no whole groups of group_size={self.group_size}; "
                "use a divisor, or pad the inputs with zeros."
            )
        return None

    def assign(self, weight: Weight, levels: Levels) -> Planes:
        """The planes: b₁ = H(w − (a₁ + a₂)/2), b₂ = H(−(w − a₁·b₁ − a₂/2)), H(t) = 1 from t = 0 on.

        Where a₁ < 0 the rule is applied to −w, −a₁, −a₂.
        """
        a1, a2 = levels.float().unbind(-1)
        sign = torch.where(a1 < 0, -1.0, 1.0)
        w = self._grouped(weight) * sign[..., None]
        a1, a2 = (a1 * sign)[..., None], (a2 * sign)[..., None]
        first = w - (a1 + a2) / 2 >= 0
        second = a1 * first + a2 / 2 - w >= 0
        nothing = (a1 == 0) & (a2 == 0)
        return (first & ~nothing).reshape(weight.shape), (second & ~nothing).reshape(weight.shape)

    def decode(self, planes: Planes, levels: Levels) -> Weight:
        """a₁·b₁ + a₂·b₂, float32."""
        a1, a2 = (part[..., None] for part in levels.float().unbind(-1))
        first, second = (self._grouped(plane.float()) for plane in planes)
        return (a1 * first + a2 * second).reshape(planes[0].shape)

    def fit(
        self, weight: Weight, importance: Float[Tensor, " cols"] | None = None, name: str = "weight"
    ) -> Levels:
        """Levels of (nearly) least Σ importance·(w − ŵ)², representable in float16.

        A search over s and both mirror images; then least squares for (a₁, a₂) given the planes, equally
        weighted, where that leaves them in order. importance: non-negative, e.g. the mean square of each
        input. A group of zeros gets levels 0.

        Raises: ValueError where groups do not fit the columns, for weights that are not finite or beyond
        float16, or an importance that is negative.
        """
        self._check(weight, importance, name)
        step = max(1, CHUNK_ELEMENTS // weight.shape[1])
        weights = None if importance is None else self._grouped(importance.float()[None])
        parts = [self._fit_rows(rows, weights) for rows in weight.float().split(step)]
        return torch.cat(parts)

    def project(self, levels: Levels, floor: Float[Tensor, "rows groups"]) -> Levels:
        """The nearest levels in order: |a₁|, |a₂| and |a₁ + a₂| at least `floor`, the sign of a₁ kept."""
        sign = torch.where(levels[..., :1] < 0, -1.0, 1.0)
        a1, a2 = (levels * sign).unbind(-1)
        a1, a2 = torch.maximum(a1, floor), torch.minimum(a2, -floor)
        short = (floor - a1 - a2).clamp(min=0) / 2
        a2 = torch.minimum(a2 + short, -floor)
        # Once more in a₁, so that rounding of the sum cannot leave it short.
        a1 = torch.maximum(a1 + short, floor - a2)
        return torch.stack((a1, a2), -1) * sign

    def order(self, levels: Levels) -> Bool[Tensor, "rows groups"]:
        """Where a₁ > 0 > a₂ and a₁ + a₂ > 0, or all reversed."""
        a1, a2 = levels.unbind(-1)
        total = a1 + a2
        return ((a1 > 0) & (a2 < 0) & (total > 0)) | ((a1 < 0) & (a2 > 0) & (total < 0))

    def _fit_rows(self, weight: Weight, importance: Tensor | None) -> Levels:
        groups = self._grouped(weight)
        half = groups.abs().amax(-1) / 2
        best = torch.full_like(half, torch.inf)
        scale, sign = torch.zeros_like(half), torch.ones_like(half)
        for mirror in (1.0, -1.0):
            for factor in SCALE_STEPS:
                s = (factor * half).half().float().clamp(min=_LEAST_SCALE)
                steps = (groups * (mirror / s)[..., None]).round_().clamp_(-1, 2)
                error = steps.mul_((mirror * s)[..., None]).sub_(groups).square_()
                total = error.sum(-1) if importance is None else error.mul_(importance).sum(-1)
                better = total < best
                best = torch.where(better, total, best)
                scale, sign = torch.where(better, s, scale), torch.where(better, mirror, sign)
        levels = torch.stack((2 * scale, -scale), -1) * sign[..., None]
        levels = self._refit(weight, levels)
        return torch.where(half[..., None] < _LEAST_SCALE, 0.0, levels)

    def _refit(self, weight: Weight, levels: Levels) -> Levels:
        """Least squares for (a₁, a₂) with the planes as they are."""
        groups = self._grouped(weight)
        first, second = (self._grouped(plane.float()) for plane in self.assign(weight, levels))
        n1, n2, both = first.sum(-1), second.sum(-1), (first * second).sum(-1)
        t1, t2 = (first * groups).sum(-1), (second * groups).sum(-1)
        determinant = n1 * n2 - both * both  # of whole numbers, exact
        safe = determinant.clamp(min=1)
        solved = torch.stack(((t1 * n2 - t2 * both) / safe, (t2 * n1 - t1 * both) / safe), -1)
        solved = solved.half().float()
        usable = (determinant > 0) & self.order(solved) & solved.isfinite().all(-1)
        return torch.where(usable[..., None], solved, levels)

    def _grouped(self, rows: Tensor) -> Tensor:
        return rows.reshape(rows.shape[0], -1, self.group_size)

    def _check(self, weight: Tensor, importance: Tensor | None, name: str) -> None:
        if reason := self.why_not(name, weight.shape[1]):
            raise ValueError(reason)
        if not torch.isfinite(weight).all():
            raise ValueError(f"{name!r} holds NaN or infinite weights; repair the model first.")
        if weight.numel() and float(weight.abs().max()) > _LARGEST:
            raise ValueError(
                f"{name!r} holds weights beyond {_LARGEST:g}, which float16 levels cannot reach."
            )
        if importance is not None and not bool((importance >= 0).all()):
            raise ValueError(f"the importance of the inputs of {name!r} must be 0 or more, and no NaN.")


def naive_assign(
    weight: Weight, levels: Levels, group_size: int
) -> tuple[Bool[Tensor, "rows cols"], Bool[Tensor, "rows cols"]]:
    """The planes of the nearest level, by comparing every weight with all four."""
    a1, a2 = (part.repeat_interleave(group_size, 1)[:, : weight.shape[1]] for part in levels.unbind(-1))
    candidates = torch.stack((torch.zeros_like(a1), a1, a2, a1 + a2))
    nearest = (weight - candidates).abs().argmin(0)
    return (nearest & 1).bool(), (nearest >> 1).bool()


def pack_planes(planes: Planes) -> tuple[UInt8[Tensor, "rows bytes"], UInt8[Tensor, "rows bytes"]]:
    """Both planes as little-endian bits, every row from a byte on."""
    first, second = (pack_bits(plane.to(torch.uint8), 1) for plane in planes)
    return first, second


def unpack_planes(
    first: UInt8[Tensor, "rows bytes"], second: UInt8[Tensor, "rows bytes"], cols: int
) -> Planes:
    """What `pack_planes` packed."""
    return unpack_bits(first, 1, cols).bool(), unpack_bits(second, 1, cols).bool()

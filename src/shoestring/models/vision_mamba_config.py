"""The sizes and choices of a Vision Mamba.

Source: Zhu et al. 2024, "Vision Mamba", table 1 (sizes), tables 7 and 8 (directions, class token).
"""

import enum
from dataclasses import dataclass
from typing import Any

from shoestring.layers.patch_tokens import ClassToken


class Direction(enum.StrEnum):
    """How a block reads the sequence: the authors' v2, v1, none, and "bidirectional layer"."""

    BOTH = "both"
    """Both ways, each with a convolution and projections of its own."""
    SHARED = "shared"
    """Both ways; only the decays differ."""
    FORWARD = "forward"
    """From the first token to the last."""
    ALTERNATING = "alternating"
    """Every other block from the last token to the first."""


class Scan(enum.StrEnum):
    """What carries the past: another model each, with weights of its own."""

    SELECTIVE = "selective"
    """A decay for every channel and state (Mamba), as published."""
    SSD = "ssd"
    """A decay for every head (Mamba-2), as matrix products; not in the paper."""


class Pooling(enum.StrEnum):
    """What the head reads."""

    TOKEN = "token"
    MEAN = "mean"


@dataclass(frozen=True, kw_only=True)
class VisionMambaConfig:
    """Defaults are Vim-Ti's: patches of 16 without overlap, class token in the middle, both directions.

    stride: pixels from a patch to the next; 8 for the authors' fine-tuning on long sequences. pooling: the
    class token, or the mean of all patches where there is none. divide, layer_scale, original_init: of
    `BidirectionalMamba`.

    rotary: the patches turn by their rows and columns before every block, besides their learned positions.
    scan, head_dim: "ssd" takes heads of head_dim channels, which divide expand · dim.

    Raises: ValueError for pooling that contradicts the class token, alternating blocks of odd depth, options
    of the bidirectional mixer with another one, or sizes that are not positive.
    """

    image_size: tuple[int, int] = (224, 224)
    channels: int = 3
    patch_size: int = 16
    stride: int = 16
    dim: int = 192
    depth: int = 24
    d_state: int = 16
    d_conv: int = 4
    expand: int = 2
    n_classes: int = 1000
    class_token: ClassToken = ClassToken.MIDDLE
    pooling: Pooling = Pooling.TOKEN
    direction: Direction = Direction.BOTH
    scan: Scan = Scan.SELECTIVE
    head_dim: int = 64
    divide: bool = True
    layer_scale: float | None = None
    original_init: bool = False
    rotary: bool = False
    dropout: float = 0.0
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        if self.rotary and self.dim % 4:
            raise ValueError(f"dim={self.dim}: rotary=True takes a multiple of 4")
        for name in ("depth", "n_classes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        has_token = self.class_token is not ClassToken.NONE
        if has_token and self.pooling is Pooling.MEAN:
            raise ValueError(
                f"pooling='mean' with class_token={self.class_token.value!r}; take class_token='none' or "
                "pooling='token'"
            )
        if not has_token and self.pooling is Pooling.TOKEN:
            raise ValueError("pooling='token' with class_token='none'; take pooling='mean' or a class token")
        if self.direction is Direction.ALTERNATING and self.depth % 2:
            raise ValueError(f"depth={self.depth}: alternating directions take an even depth")
        if self.scan is Scan.SSD and self.direction is not Direction.BOTH:
            raise ValueError(f"scan='ssd' is for direction='both', not {self.direction.value!r}")
        only_both = self.layer_scale is not None or self.original_init
        if only_both and (self.direction is not Direction.BOTH or self.scan is Scan.SSD):
            raise ValueError(
                "layer_scale and original_init are for direction='both' with scan='selective', not "
                f"{self.direction.value!r} with {self.scan.value!r}"
            )

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in self.__dict__.items()}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "VisionMambaConfig":
        """What `to_dict` gave. Raises: ValueError for an unknown choice, TypeError for an unknown field."""
        kinds: dict[str, Any] = {
            "class_token": ClassToken, "pooling": Pooling, "direction": Direction, "scan": Scan,
            "image_size": tuple,
        }  # fmt: skip
        return cls(**{name: kinds.get(name, lambda v: v)(value) for name, value in fields.items()})


def vision_mamba_size(name: str, **changes: Any) -> VisionMambaConfig:
    """The published sizes: "tiny" (7M), "small" (26M), "base" (98M). Raises: ValueError for another."""
    dims = {"tiny": 192, "small": 384, "base": 768}
    if name not in dims:
        raise ValueError(f"name={name!r}; there are {', '.join(map(repr, dims))}")
    return VisionMambaConfig(**{"dim": dims[name], **changes})

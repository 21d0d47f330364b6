"""The Axial Transformer: an exact autoregressive model of pictures out of attention along rows and columns.

p(x) = prod over channels s, rows r, columns c of p(x[s,r,c] | everything before it in that order). An outer
decoder sums up all finished rows for each position, an inner one reads the row so far, an encoder the
finished channels; all are made of blocks along one axis, so a picture of H x W costs O(HW (H + W)) instead
of O((HW)^2).

Source: Ho et al. 2019, "Axial Attention in Multidimensional Transformers", section 3, and the authors' code
(initialisation, the encoder of channels).
"""

import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.layers.axial.axial_attention import AxialBlocks
from shoestring.layers.axial.line_attention import ZERO_SCALE, scaled_normal_
from shoestring.models.axial_image_config import AxialImageConfig
from shoestring.models.axial_image_steps import AxialImageSteps
from shoestring.models.grid_position import GridPosition
from shoestring.yardstick.bits_per_dimension import bits_per_dimension

HEIGHT, WIDTH = 0, 1
"""Axes of a picture: a row block runs along its width, a column block along its height."""

Images = Integer[Tensor, "batch channels height width"]
Values = Integer[Tensor, "batch rows width"]
Features = Float[Tensor, "batch rows width dim"]


class ChannelEncoder(nn.Module):
    """What the channels before one say about each position of it.

    The values of those channels, scaled to 0 … 1, the others as 0, and a plane of ones for the channel that
    is asked about, through a convolution of 3 x 3, then unmasked row and column blocks. One set of weights
    serves all channels.
    """

    def __init__(self, cfg: AxialImageConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.convolution = nn.Conv2d(2 * cfg.channels, cfg.dim, 3, padding=1)
        self.position = GridPosition(cfg.height, cfg.width, cfg.dim, cfg.embedding_std)
        self.blocks = _blocks(cfg, (WIDTH, HEIGHT), masked=None, repeats=cfg.encoder_layers // 2)
        scaled_normal_(self.convolution)

    def planes(
        self, images: Images, channel: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch planes height width"]:
        """The scaled values of earlier channels, then the channel asked about as planes of ones and zeros.

        Later channels are hidden before anything is computed from them.
        """
        channels = torch.arange(self.cfg.channels, device=images.device)
        earlier = (channels < channel[:, None])[..., None, None]
        scale = 1 / (self.cfg.n_values - 1)
        values = torch.where(earlier, images, 0).to(self.convolution.weight.dtype) * scale
        asked = (channels == channel[:, None])[..., None, None].to(values.dtype)
        return torch.cat([values, asked.expand_as(values)], 1)

    def forward(self, planes: Float[Tensor, "batch planes height width"]) -> Features:
        features = self.convolution(planes).permute(0, 2, 3, 1)
        return self.blocks(features + self.position())


class AxialImageModel(nn.Module):
    """Logits of every value of a picture, each from what comes before it: channel, then row, then column.

    Shapes: images (batch, channels, height, width), integers in 0 … n_values - 1 -> logits (batch, channels,
    height, width, n_values). `loss` is for training, `bits_per_dimension` for judging; drawing pictures is in
    `shoestring.generation.semi_parallel`.

    Decisions where the paper's text leaves them open (unconfirmed): one embedding of values and one position
    table serve both decoders; a picture of one channel has no encoder.
    Raises: ValueError or TypeError for images that do not fit the configuration.
    """

    def __init__(self, cfg: AxialImageConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.embedding = nn.Embedding(cfg.n_values, cfg.dim)
        nn.init.normal_(self.embedding.weight, std=cfg.embedding_std)
        self.position = GridPosition(cfg.height, cfg.width, cfg.dim, cfg.embedding_std)
        self.encoder = ChannelEncoder(cfg) if cfg.channels > 1 else None
        self.outer = _blocks(cfg, (WIDTH, HEIGHT), masked=HEIGHT, repeats=cfg.outer_layers // 2)
        self.inner = _blocks(cfg, (WIDTH,), masked=WIDTH, repeats=cfg.inner_layers)
        self.norm = nn.LayerNorm(cfg.dim, eps=1e-5)
        self.to_logits = nn.Linear(cfg.dim, cfg.n_values)
        scaled_normal_(self.to_logits, ZERO_SCALE)

    def forward(self, images: Tensor) -> Float[Tensor, "batch channels height width n_values"]:
        images = self.checked(images)
        return torch.stack([self.channel_logits(images, s) for s in range(self.cfg.channels)], 1)

    def channel_logits(
        self, images: Images, channel: int | Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch height width n_values"]:
        """Logits of one channel of each picture: the same one for all, or one each."""
        chosen = self._channels(images, channel)
        values = images[torch.arange(len(images), device=images.device), chosen]
        condition = self.encode(images, chosen)
        embedded = self.embedding(values)
        return self.decode(embedded, self.upper_features(embedded, condition), condition)

    def loss(self, images: Tensor, generator: torch.Generator | None = None) -> Float[Tensor, ""]:
        """Mean cross-entropy in nats of one channel of each picture, drawn at random: unbiased for them all.

        With one channel nothing is drawn; otherwise `generator` draws. Raises: ValueError if it is missing.
        """
        images = self.checked(images)
        channel = torch.zeros(len(images), dtype=torch.long)
        if self.cfg.channels > 1:
            if generator is None:
                raise ValueError("a random channel needs a generator; pass torch.Generator().manual_seed(…)")
            channel = torch.randint(self.cfg.channels, (len(images),), generator=generator)
        channel = channel.to(images.device)
        logits = self.channel_logits(images, channel)
        values = images[torch.arange(len(images), device=images.device), channel]
        return F.cross_entropy(logits.flatten(0, -2).float(), values.flatten())

    def bits_per_dimension(self, images: Tensor) -> Float[Tensor, " batch"]:
        """-log2 p(x) / (channels height width) of each picture, all channels counted."""
        return bits_per_dimension(self(images), images)

    def encode(self, images: Images, channel: int | Int[Tensor, " batch"]) -> Features | None:
        """What earlier channels say about each position of `channel`; None where there is only one."""
        if self.encoder is None:
            return None
        return self.encoder(self.encoder.planes(images, self._channels(images, channel)))

    def upper_context(
        self, values: Int[Tensor, "batch height width"], condition: Features | None
    ) -> Features:
        """What the rows above say about each position: row r depends on the rows before r, on all columns."""
        return self.upper_features(self.embedding(values), condition)

    def upper_features(self, embedded: Features, condition: Features | None) -> Features:
        """`upper_context` of values that are embedded already."""
        context = self.outer(self._placed(embedded, condition))
        # The masked column blocks let a row see itself; one row further down it is seen by later rows only.
        return F.pad(context[:, :-1], (0, 0, 0, 0, 1, 0))

    def row_logits(
        self, values: Values, upper: Features, condition: Features | None, first_row: int
    ) -> Float[Tensor, "batch rows width n_values"]:
        """Logits of the rows from `first_row` on, whose values, upper context and condition are given."""
        return self.decode(self.embedding(values), upper, condition, first_row)

    def decode(
        self, embedded: Features, upper: Features, condition: Features | None, first_row: int = 0
    ) -> Float[Tensor, "batch rows width n_values"]:
        """Logits from embedded values: (r, c) sees `upper` at its place and the values left of it."""
        left = F.pad(embedded[:, :, :-1], (0, 0, 1, 0))
        return self.head(self.inner(self._placed(left + upper, condition, first_row)))

    def start(self, condition: Features | None, batch: int) -> AxialImageSteps:
        """One channel of `batch` pictures, to be drawn pixel by pixel with nothing computed twice."""
        return AxialImageSteps(self, condition, batch)

    def _placed(self, x: Features, condition: Features | None, first_row: int = 0) -> Features:
        x = x + self.position()[first_row : first_row + x.shape[1]]
        return x if condition is None else x + condition

    def head(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch n_values"]:
        """Logits from the features that the inner decoder gives."""
        return self.to_logits(self.norm(x))

    def _channels(self, images: Images, channel: int | Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
        if isinstance(channel, Tensor):
            return channel
        return torch.full((len(images),), channel, device=images.device)

    def checked(self, images: Tensor) -> Images:
        """The images as int64. Raises: TypeError if they are no integers; ValueError for shape or values."""
        if images.is_floating_point() or images.dtype == torch.bool:
            raise TypeError(
                f"images are {images.dtype}; they must be integers in 0 … {self.cfg.n_values - 1}, "
                "for instance images.long()"
            )
        wanted = self.cfg.channels, self.cfg.height, self.cfg.width
        if images.dim() != 4 or tuple(images.shape[1:]) != wanted:
            raise ValueError(
                f"images have shape {tuple(images.shape)}; this model wants (batch, "
                f"{', '.join(map(str, wanted))}): channels, height, width"
            )
        if images.numel() == 0:
            raise ValueError(f"images have shape {tuple(images.shape)}: there is no picture")
        least, largest = int(images.min()), int(images.max())
        if least < 0 or largest >= self.cfg.n_values:
            raise ValueError(
                f"images hold values from {least} to {largest}; they must lie in 0 … {self.cfg.n_values - 1}"
            )
        return images.long()


def _blocks(cfg: AxialImageConfig, axes: tuple[int, ...], masked: int | None, repeats: int) -> AxialBlocks:
    return AxialBlocks(
        cfg.dim, cfg.n_heads, axes, n_axes=2, masked=() if masked is None else (masked,), repeats=repeats,
        hdim_factor=cfg.hdim_factor, dropout=cfg.dropout,
    )  # fmt: skip

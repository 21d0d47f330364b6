"""Small convolutional classifiers: a plain one and a deep residual one.

Source: LeCun et al. 1998, "Gradient-Based Learning Applied to Document Recognition" (the plain shape);
He et al. 2016, "Deep Residual Learning for Image Recognition", section 4.2 (the residual one).
"""

from jaxtyping import Float
from torch import Tensor, nn

Images = Float[Tensor, "batch 1 height width"]
Logits = Float[Tensor, "batch classes"]


class PlainConvNet(nn.Module):
    """Two convolutions with pooling, two linear layers; 194 thousand weights at 28 x 28.

    Shapes: images (batch, 1, image_size, image_size) -> logits (batch, n_classes).
    Raises: ValueError for images below 4 x 4.
    """

    def __init__(self, image_size: int = 28, n_classes: int = 10) -> None:
        super().__init__()
        if image_size < 4:
            raise ValueError(f"image_size={image_size}: two poolings need images of at least 4 x 4")
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
        )
        self.head = nn.Sequential(
            nn.Linear(32 * (image_size // 4) ** 2, 120), nn.ReLU(), nn.Linear(120, n_classes)
        )

    def forward(self, images: Images) -> Logits:
        return self.head(self.features(images))


class ResidualBlock(nn.Module):
    """x + F(x), where F is two convolutions; a strided 1 x 1 convolution is the shortcut if sizes change."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False),
            nn.BatchNorm2d(n_out),
            nn.ReLU(),
            nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False),
            nn.BatchNorm2d(n_out),
        )
        changes = stride != 1 or n_in != n_out
        self.shortcut = nn.Conv2d(n_in, n_out, 1, stride, bias=False) if changes else nn.Identity()
        self.activation = nn.ReLU()

    def forward(
        self, x: Float[Tensor, "batch n_in height width"]
    ) -> Float[Tensor, "batch n_out new_height new_width"]:
        return self.activation(self.body(x) + self.shortcut(x))


class ResidualNet(nn.Module):
    """A strided convolution, then three stages of `blocks` residual blocks: 6·blocks + 2 layers deep.

    Shapes: images (batch, 1, height, width) -> logits (batch, n_classes).
    Raises: ValueError for blocks < 1.
    """

    def __init__(self, blocks: int = 3, width: int = 8, n_classes: int = 10) -> None:
        super().__init__()
        if blocks < 1:
            raise ValueError(f"blocks={blocks} must be at least 1")
        layers: list[nn.Module] = [nn.Conv2d(1, width, 3, stride=2, padding=1), nn.ReLU()]
        n_in = width
        for stage in range(3):
            n_out = width << stage
            for block in range(blocks):
                layers.append(ResidualBlock(n_in, n_out, 2 if stage and not block else 1))
                n_in = n_out
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(n_in, n_classes)

    def forward(self, images: Images) -> Logits:
        return self.head(self.features(images))

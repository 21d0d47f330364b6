"""Steps that train layers of binary planes, whatever the loss: levels fast, latent weights slowly."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from shoestring.layers.dual_binary_linear import LatentDualBinaryLinear


@contextmanager
def latent_steps(
    module: nn.Module,
    layers: Sequence[LatentDualBinaryLinear],
    *,
    steps: int,
    level_rate: float,
    latent_rate: float,
) -> Iterator[Callable[[Tensor], None]]:
    """A function that takes a loss and makes one step: AdamW along a cosine to zero, gradients clipped to a
    norm of 1, levels put back in order. Within, nothing of `module` but the layers has gradients.
    """
    thetas, latents = [layer.theta for layer in layers], [layer.latent for layer in layers]
    parameters = [*thetas, *latents]
    groups = [{"params": thetas, "lr": level_rate}, {"params": latents, "lr": latent_rate}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999), weight_decay=0.0)
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps))
    )

    def make(loss: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        rate.step()
        for layer in layers:
            layer.project()

    before = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    chosen = set(map(id, parameters))
    try:
        for parameter, _ in before:
            parameter.requires_grad_(id(parameter) in chosen)
        with torch.enable_grad():
            yield make
    finally:
        for parameter, wanted in before:
            parameter.requires_grad_(wanted)
            parameter.grad = None

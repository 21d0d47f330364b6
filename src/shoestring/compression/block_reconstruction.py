"""Train the rewritten layers of one block until it puts out what the original block did.

A block is trained on the inputs that reach it; the loss is the mean square error of its outputs, the first
position of every sequence left out (its hidden state is an outlier of a thousand times the usual size).

Source: Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization", section 4.3; Li et
al. 2021, "BRECQ", section 3.2 (a block at a time).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from shoestring.layers.dual_binary_linear import LatentDualBinaryLinear
from shoestring.training.latent_steps import latent_steps
from shoestring.yardstick.language_quality import without_cache


@dataclass(frozen=True)
class Reconstruction:
    """AdamW over `steps` batches with a cosine to zero, gradients clipped to norm 1.

    level_rate: of the factors of the levels. latent_rate: of the latent weights.
    """

    steps: int = 100
    level_rate: float = 1e-2
    latent_rate: float = 1e-3

    def __post_init__(self) -> None:
        if self.steps < 1 or self.level_rate < 0 or self.latent_rate < 0:
            raise ValueError(f"{self} cannot be: steps must be 1 or more, rates 0 or more.")


@dataclass
class BlockTrace:
    """What a block was called with, batch by batch, and what it put out."""

    inputs: list[tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)

    def run(self, block: nn.Module, index: int) -> Tensor:
        """What `block` puts out for the inputs of batch `index`."""
        args, kwargs = self.inputs[index]
        return _hidden(block(*args, **kwargs))

    def hidden(self, index: int) -> Tensor:
        """The hidden states that came in with batch `index`."""
        args, kwargs = self.inputs[index]
        return args[0] if args else kwargs["hidden_states"]


@torch.no_grad()
def trace_block(model: nn.Module, block: nn.Module, batches: Iterable[Tensor]) -> BlockTrace:
    """Run `model` and keep what goes into `block` and comes out of it.

    batches: token ids, (sequences, tokens) each. Raises: ValueError if no batch reaches the block.
    """
    trace = BlockTrace()

    def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        trace.inputs.append((args, kwargs))
        trace.outputs.append(_hidden(output))

    handle = block.register_forward_hook(keep, with_kwargs=True)
    try:
        for ids in batches:
            model(ids, **without_cache(model))
    finally:
        handle.remove()
    if not trace.outputs:
        raise ValueError("no batch reached the block; give token ids, and a block of this model.")
    return trace


@torch.no_grad()
def update_error(block: nn.Module, trace: BlockTrace) -> float:
    """Mean square error of a block's outputs, in units of the mean square of what it adds to its inputs."""
    error = update = 0.0
    for index, target in enumerate(trace.outputs):
        error += float((trace.run(block, index) - target)[:, 1:].double().square().sum())
        update += float((target - trace.hidden(index))[:, 1:].double().square().sum())
    return error / update


def reconstruct(
    block: nn.Module,
    trace: BlockTrace,
    settings: Reconstruction,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Train the latent layers of `block` in place, on the batches of `trace` in turn.

    Raises: ValueError if the block has no latent layer (packed ones are for inference).
    """
    layers = [module for module in block.modules() if isinstance(module, LatentDualBinaryLinear)]
    if not layers:
        raise ValueError("the block has no latent layer to train; make some with DualBinarize.latent.")
    rates = {"level_rate": settings.level_rate, "latent_rate": settings.latent_rate}
    with latent_steps(block, layers, steps=settings.steps, **rates) as make_step:
        for step in range(settings.steps):
            index = step % len(trace.outputs)
            make_step((trace.run(block, index) - trace.outputs[index])[:, 1:].square().mean())
            if progress is not None:
                progress(step + 1, settings.steps)


def _hidden(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output

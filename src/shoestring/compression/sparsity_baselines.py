"""Other ways to read only a part of the weights for a token of decoding, as hooks of a `Decoder`, by masking.

They say what a share of weights costs in quality; none is made fast here. Each treats the tokens of decoding
and leaves prompts dense.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.compression.score_quantiles import ValueTable
from shoestring.layers.row_sparse_linear import RowSparseLinear
from shoestring.models.decoder import Decoder
from shoestring.models.decoder_config import Activation
from shoestring.models.hooks import Context, Phase, Project


class ReluActivation:
    """ReLU in the place of the gate's activation, without the training that makes up for it.

    Neurons with gate x ≤ 0 are left out of up and down; how many that are is not chosen, `sparsity` tells.
    Source: Mirzadeh et al. 2024, "ReLU Strikes Back: Exploiting Activation Sparsity in Large Language
    Models", section 4 (stage 1).
    """

    def __init__(self, model: Decoder) -> None:
        self._skippable = skippable_share(model)
        self._hidden: Tensor | None = None
        self._off, self._all = 0, 0

    @property
    def sparsity(self) -> float:
        """The share of the weights of the blocks that was not read so far."""
        return self._skippable * self._off / max(self._all, 1)

    def linear(
        self, layer: int, names: tuple[str, ...], x: Tensor, phase: Phase, proceed: Project
    ) -> tuple[Tensor, ...]:
        """As `LinearHook`; the input of down is worked out anew from gate and up."""
        if phase is not Phase.DECODE:
            return proceed(x)
        if names == ("down_proj",) and self._hidden is not None:
            hidden, self._hidden = self._hidden, None
            return proceed(hidden)
        outputs = proceed(x)
        if names == ("gate_proj", "up_proj"):
            gate, up = outputs
            self._hidden = gate.relu() * up
            self._off += int((gate <= 0).sum())
            self._all += gate.numel()
        return outputs


class ReluInputs:
    """A ReLU in front of every linear layer, again without training: inputs x_j ≤ 0 are left out.

    Source: Mirzadeh et al. 2024, section 4 (stage 2), which puts one behind the norms.
    """

    def linear(
        self, layer: int, names: tuple[str, ...], x: Tensor, phase: Phase, proceed: Project
    ) -> tuple[Tensor, ...]:
        """As `LinearHook`."""
        return proceed(x if phase is not Phase.DECODE else x.relu())


class RandomChannels:
    """Keeps each input of each linear layer by chance: the control that says what choosing is worth."""

    def __init__(self, sparsity: float, seed: int) -> None:
        self.kept = 1.0 - sparsity
        self.generator = torch.Generator().manual_seed(seed)

    def linear(
        self, layer: int, names: tuple[str, ...], x: Tensor, phase: Phase, proceed: Project
    ) -> tuple[Tensor, ...]:
        """As `LinearHook`."""
        if phase is not Phase.DECODE:
            return proceed(x)
        return proceed(x * (torch.rand(x.shape, generator=self.generator) < self.kept))


class Cats:
    """Neurons of the feed-forward part whose |act(gate x)| is small are left out of up and down; gate is
    dense.

    Source: Lee et al. 2024, "CATS: Contextually-Aware Thresholding for Sparsity in Large Language Models",
    section 3.
    """

    def __init__(self, model: Decoder, tables: Mapping[int, ValueTable], sparsity: float) -> None:
        """sparsity: of the reads of all linear layers of a block; more is asked of up and down to reach it.

        Raises: ValueError where skipping up and down altogether would not reach it.
        """
        self.activation = model.cfg.activation
        self.share = sparsity / skippable_share(model)
        if self.share >= 1:
            raise ValueError(
                f"sparsity={sparsity} is more than up and down hold ({skippable_share(model):.2f}); CATS "
                "skips no other reads."
            )
        self.thresholds = {layer: table.magnitude_quantile(self.share) for layer, table in tables.items()}

    def linear(
        self, layer: int, names: tuple[str, ...], x: Tensor, phase: Phase, proceed: Project
    ) -> tuple[Tensor, ...]:
        """As `LinearHook`."""
        outputs = proceed(x)
        if phase is not Phase.DECODE or names != ("gate_proj", "up_proj"):
            return outputs
        gate, up = outputs
        active = _activated(gate, self.activation).abs() > self.thresholds[layer]
        return gate, up * active


def skippable_share(model: Decoder) -> float:
    """The share of the weights of a block's linear layers that CATS can leave out: up and down."""
    total = sum(
        module.in_features * module.out_features
        for module in model.model.layers[0].modules()
        if isinstance(module, nn.Linear | RowSparseLinear)
    )
    cfg = model.cfg
    return 2 * cfg.hidden_size * cfg.intermediate_size / total


@torch.inference_mode()
def capture_gates(model: Decoder, batches: Sequence[Tensor], skip: int = 4) -> dict[int, ValueTable]:
    """Distributions of act(gate x) by layer, on dense inputs."""
    tables = {layer: ValueTable() for layer in range(model.cfg.num_hidden_layers)}

    class Listening:
        def linear(
            self, layer: int, names: tuple[str, ...], x: Tensor, phase: Phase, proceed: Project
        ) -> tuple[Tensor, ...]:
            outputs = proceed(x)
            if names == ("gate_proj", "up_proj"):
                tables[layer].add(_activated(outputs[0][:, skip:], model.cfg.activation))
            return outputs

    for ids in batches:
        model(ids, hooks=(Listening(),), ctx=Context(phase=Phase.PREFILL))
    return tables


def _activated(gate: Tensor, activation: Activation) -> Tensor:
    return F.silu(gate) if activation is Activation.SILU else F.gelu(gate, approximate="tanh")

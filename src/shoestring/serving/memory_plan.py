"""How many blocks for keys and values a budget of memory leaves beside weights and buffers."""

from dataclasses import dataclass

import torch

from shoestring.models.decoder_config import DecoderConfig
from shoestring.numbers.block_format import BlockFormat


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of a model at work; what is left holds `n_blocks` blocks of `slots` tokens in all layers."""

    budget_bytes: int
    weights_bytes: int
    buffers_bytes: int
    block_bytes: int
    slots: int

    @property
    def n_blocks(self) -> int:
        """Blocks that fit."""
        return (self.budget_bytes - self.weights_bytes - self.buffers_bytes) // self.block_bytes

    @property
    def tokens(self) -> int:
        """Tokens that fit."""
        return self.n_blocks * self.slots


def plan_memory(
    cfg: DecoderConfig,
    budget_bytes: int,
    form: BlockFormat,
    dtype: torch.dtype,
    *,
    weights_bytes: int,
    buffers_bytes: int,
    least_tokens: int = 1,
) -> MemoryPlan:
    """blocks = (budget − weights − buffers) / bytes of a block.

    dtype: of keys and values that are not in codes. least_tokens: that must fit for the plan to be any good.

    Raises: ValueError for a budget in which that is not so, with the smallest that works.

    Source: InternLM/lmdeploy, TurboMind's block manager.
    """
    block = form.block_bytes(cfg.num_key_value_heads, cfg.head_dim, dtype, cfg.num_hidden_layers)
    plan = MemoryPlan(budget_bytes, weights_bytes, buffers_bytes, block, form.slots)
    least = form.blocks_for(max(1, least_tokens))
    if plan.n_blocks < least:
        smallest = weights_bytes + buffers_bytes + least * block
        raise ValueError(
            f"a budget of {budget_bytes} bytes is too small: weights take {weights_bytes}, buffers "
            f"{buffers_bytes}, {max(1, least_tokens)} cached tokens "
            f"{least * block}. The smallest that works is {smallest}."
        )
    return plan

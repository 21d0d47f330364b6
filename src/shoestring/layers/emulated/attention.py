"""Multi-head attention in which the result of every operation is rounded."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.layers.emulated.module import EmulatedModule, map_floating
from shoestring.layers.emulated.straight_through import straight_through


class QuantMultiheadAttention(EmulatedModule, nn.MultiheadAttention):
    """`nn.MultiheadAttention` with rounded operands; takes its arguments and `rounders`.

    With an `output` rounder the projections, scores, probabilities, mixed values and the result are each
    rounded; else torch's own attention runs on the rounded operands.

    Raises: ValueError for `add_bias_kv` or `add_zero_attn` with an `output` rounder.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> Any:
        query, key, value = map_floating((query, key, value), self.rounders.input)
        masks = {"key_padding_mask": key_padding_mask, "attn_mask": attn_mask}
        with self.rounded_parameters():
            if self.rounders.output is None:
                mixed, weights = nn.MultiheadAttention.forward(
                    self,
                    query,
                    key,
                    value,
                    need_weights=need_weights,
                    average_attn_weights=average_attn_weights,
                    is_causal=is_causal,
                    **masks,
                )
                return self.round_output(mixed), weights
            if is_causal and attn_mask is None:
                raise ValueError("is_causal=True needs attn_mask too, as in nn.MultiheadAttention")
            mixed, probabilities = self._attend(query, key, value, **masks)
        if not need_weights:
            return mixed, None
        return mixed, probabilities.mean(-3) if average_attn_weights else probabilities

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, *, key_padding_mask: Any, attn_mask: Any
    ) -> tuple[Tensor, Tensor]:
        if self.bias_k is not None or self.add_zero_attn:
            raise ValueError("add_bias_kv and add_zero_attn are not emulated; build the layer without them")
        batched = query.dim() == 3
        sequences = [x if batched else x.unsqueeze(0) for x in (query, key, value)]
        if batched and not self.batch_first:
            sequences = [x.transpose(0, 1) for x in sequences]
        q, k, v = (self._heads(x, *p) for x, p in zip(sequences, self._projections(), strict=True))
        scores = self._round(q @ k.transpose(-1, -2) / math.sqrt(self.head_dim))
        mask = self._mask(attn_mask, key_padding_mask, scores)
        probabilities = self._round((scores if mask is None else scores + mask).softmax(-1))
        kept = F.dropout(probabilities, self.dropout, self.training)
        mixed = self._round(kept @ v).transpose(1, 2).flatten(2)
        result = self.round_output(F.linear(mixed, self.out_proj.weight, self.out_proj.bias))
        if not batched:
            return result[0], probabilities[0]
        return result if self.batch_first else result.transpose(0, 1), probabilities

    def _round(self, x: Tensor) -> Tensor:
        return straight_through(x, self.rounders.output)

    def _projections(self) -> list[tuple[Tensor, Tensor | None]]:
        """Weight and bias of query, key and value."""
        if self._qkv_same_embed_dim:
            weights = self.in_proj_weight.chunk(3)
        else:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        return list(zip(weights, biases, strict=True))

    def _heads(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """(batch, seq, features) -> (batch, heads, seq, head_dim), projected and rounded."""
        projected = self._round(F.linear(x, weight, bias))
        return projected.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)

    def _mask(self, attn_mask: Any, key_padding_mask: Any, scores: Tensor) -> Tensor | None:
        """Both masks as one summand that broadcasts over (batch, heads, queries, keys)."""
        summands = []
        if attn_mask is not None:
            mask = _additive(attn_mask, scores)
            summands.append(mask if mask.dim() == 2 else mask.view(-1, self.num_heads, *mask.shape[-2:]))
        if key_padding_mask is not None:
            mask = _additive(key_padding_mask, scores)
            summands.append(mask.view(-1, 1, 1, mask.shape[-1]))
        return sum(summands) if summands else None  # type: ignore[return-value]


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, -math.inf)

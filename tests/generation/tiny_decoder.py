"""A decoder that uses the cache protocol as sparingly as possible: the referee of the contract tests.

Written from the equations: one attention block per layer, rotary positions, grouped heads; visibility is
decided by comparing positions, so that slots may hold anything in any order.
"""

import torch
from torch import Tensor

LAYERS, DIM, HEADS, KV_HEADS, HEAD_DIM, VOCAB = 3, 48, 4, 2, 32, 61


class TinyDecoder:
    """forward(ids (batch, n), pos (batch, n), cache or None, store) -> logits (batch, n, vocab)."""

    def __init__(self, dtype: torch.dtype = torch.float32, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)

        def weight(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype) * shape[0] ** -0.5

        self.embedding = weight(VOCAB, DIM) * VOCAB**0.5
        self.head = weight(DIM, VOCAB)
        self.layers = [
            [weight(DIM, heads * HEAD_DIM) * 2 for heads in (HEADS, KV_HEADS, KV_HEADS)]
            + [weight(HEADS * HEAD_DIM, DIM) * 4, weight(DIM, 2 * DIM), weight(2 * DIM, DIM)]
            for _ in range(LAYERS)
        ]

    def forward(self, ids, pos, cache=None, store=None):
        x = self.embedding[ids]
        for layer, (wq, wk, wv, wo, up, down) in enumerate(self.layers):
            h = x / x.square().mean(-1, keepdim=True).sqrt()
            q, k, v = ((h @ w).unflatten(-1, (-1, HEAD_DIM)).transpose(1, 2) for w in (wq, wk, wv))
            q, k = rotate(q, pos), rotate(k, pos)
            k_pos, valid = pos[:, None], None
            if cache is not None:
                cache.append(layer, k, v, pos, store)
                view = cache.view(layer)
                k, v, k_pos, valid = view.k, view.v, view.pos, view.valid
            seen = k_pos[:, :, None, :] <= pos[:, None, :, None]
            if valid is not None:
                seen = seen & valid[:, :, None, :]
            k, v, seen = (t.repeat_interleave(HEADS // t.shape[1], dim=1) for t in (k, v, seen))
            scores = (q @ k.transpose(-1, -2) * HEAD_DIM**-0.5).masked_fill(~seen, -torch.inf)
            # A padded row sees nothing and matters to no one.
            out = scores.softmax(-1).nan_to_num() @ v
            x = x + out.transpose(1, 2).flatten(2) @ wo
            h = x / x.square().mean(-1, keepdim=True).sqrt()
            x = x + torch.nn.functional.silu(h @ up) @ down
        return 2 * x @ self.head


def rotate(x: Tensor, pos: Tensor) -> Tensor:
    """Rotary positions on half-split channels, base 10000."""
    half = x.shape[-1] // 2
    angle = pos[:, None, :, None] * 10000.0 ** (-torch.arange(half, dtype=x.dtype) / half)
    first, second = x[..., :half], x[..., half:]
    return torch.cat(
        [first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()], -1
    )

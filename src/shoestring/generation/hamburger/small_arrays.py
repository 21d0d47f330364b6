"""Merging and stopping of one group in numpy: on a few rows a call of torch costs more than what it
computes."""

import math

import numpy as np
from torch import Tensor, nn

from shoestring.models.hamburger import MergeEmbedder

Array = np.ndarray


def as_array(tensor: Tensor) -> Array:
    """Float32, without a copy where it is that already."""
    return tensor.detach().float().numpy()


class ArrayMerge:
    """`MergeEmbedder` of one group of two tokens or more; the part of keys and values that the places give
    is made once."""

    def __init__(self, module: MergeEmbedder) -> None:
        self.heads, self.head_size = module.heads, module.head_size
        hidden, places = module.q_proj.in_features, as_array(module.places)
        self.q, self.q_bias = as_array(module.q_proj.weight), as_array(module.q_proj.bias)
        self.o, self.o_bias = as_array(module.o_proj.weight), as_array(module.o_proj.bias)
        both = [as_array(layer.weight) for layer in (module.k_proj, module.v_proj)]
        biases = [as_array(layer.bias) for layer in (module.k_proj, module.v_proj)]
        # Keys and values in one product.
        self.of_token = np.ascontiguousarray(np.concatenate([w[:, :hidden] for w in both]).T)
        self.of_place = np.concatenate(
            [places @ w[:, hidden:].T + b for w, b in zip(both, biases, strict=True)], 1
        )

    def __call__(self, x: Array) -> Array:
        """x: (s, hidden) -> (hidden)."""
        s, shape = len(x), (len(x), 2, self.heads, self.head_size)
        mean = x.mean(0)
        q = (self.q @ mean + self.q_bias).reshape(self.heads, self.head_size)
        both = (x @ self.of_token + self.of_place[:s]).reshape(shape)
        scores = (both[:, 0] * q).sum(2) * self.head_size**-0.5
        weights = np.exp(scores - scores.max(0))
        weights /= weights.sum(0)
        seen = (weights[:, :, None] * both[:, 1]).sum(0).reshape(-1)
        return mean + self.o @ seen + self.o_bias


class ArrayStop:
    """The stop head behind its first map."""

    def __init__(self, head: nn.Sequential) -> None:
        second, last = head[2], head[4]
        self.second, self.bias = as_array(second.weight), as_array(second.bias)  # type: ignore[arg-type]
        self.last, self.last_bias = as_array(last.weight)[0], float(last.bias)  # type: ignore[arg-type]

    def __call__(self, x: Array) -> float:
        """x: (hidden), what the first map gives -> the stop logit."""
        value = float(self.last @ _silu(self.second @ _silu(x) + self.bias)) + self.last_bias
        if math.isnan(value):
            raise ValueError("the stop head gives NaN; check the model's weights.")
        return value


def _silu(x: Array) -> Array:
    # exp overflows to inf for very negative x, and x / inf is the 0 that it should be.
    with np.errstate(over="ignore"):
        return x / (1 + np.exp(-x))

"""Keys and values of groups of tokens in a few bits; see `CacheFormat` for what a group stores.

A block is one group of tokens: the codes of the keys of each channel along its tokens, the codes of the
values of each token along its channels, and a float16 scale and offset per group of codes.
"""

import itertools
import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from shoestring.kernels.dequantise import dequantise_rows
from shoestring.numbers.affine_fit import fit_min_max
from shoestring.numbers.cache_format import CacheFormat


class QuantisedBlocks:
    """A growing sequence of blocks, all of one format. capacity: blocks to allocate at once."""

    def __init__(
        self,
        form: CacheFormat,
        batch: int,
        n_heads: int,
        head_dim: int,
        device: torch.device | str,
        capacity: int = 0,
    ) -> None:
        self.form, self.batch, self.n_heads, self.head_dim = form, batch, n_heads, head_dim
        self.count, self.capacity = 0, capacity
        # As matrices: a row is a channel of the keys, or a token of the values.
        self._shapes = {
            "k": (n_heads * head_dim, form.group_size),
            "v": (n_heads * form.group_size, head_dim),
        }
        self.tensors: dict[str, dict[str, Tensor]] = {
            part: {
                name: torch.empty(capacity, batch, *shape, dtype=dtype, device=device)
                for name, (shape, dtype) in form.form.tensors(*matrix).items()
            }
            for part, matrix in self._shapes.items()
        }

    @property
    def tokens(self) -> int:
        """Tokens held."""
        return self.count * self.form.group_size

    @property
    def nbytes(self) -> dict[str, int]:
        """Bytes allocated for codes of keys and values, and for their scales and offsets."""
        held = {"k": 0, "v": 0, "scales": 0}
        for part, tensors in self.tensors.items():
            for name, tensor in tensors.items():
                held[part if name == "codes" else "scales"] += tensor.untyped_storage().nbytes()
        return held

    @property
    def read_bits(self) -> tuple[int, int]:
        """Bits of all keys and of all values, scales included."""
        k, v = (
            sum(math.prod(t.shape[1:]) * t.element_size() for t in self.tensors[part].values())
            for part in ("k", "v")
        )
        return 8 * k * self.count, 8 * v * self.count

    def append(
        self, k: Float[Tensor, "batch heads tokens dim"], v: Float[Tensor, "batch heads tokens dim"]
    ) -> None:
        """Store whole groups of tokens. Raises: ValueError if a value is not finite or beyond float16."""
        size, new = self.form.group_size, k.shape[2] // self.form.group_size
        self._reserve(self.count + new)
        blocks = {
            "k": k.unflatten(2, (new, size)).permute(2, 0, 1, 4, 3),
            "v": v.unflatten(2, (new, size)).permute(2, 0, 1, 3, 4),
        }
        for part, block in blocks.items():
            rows, cols = self._shapes[part]
            matrix = block.reshape(-1, cols).float()
            name = "cached keys" if part == "k" else "cached values"
            grid = fit_min_max(self.form.form, matrix, name)
            stored = self.form.form.store(self.form.form.encode(matrix, grid), grid)
            for column, tensor in stored.items():
                self.tensors[part][column][self.count : self.count + new] = tensor.reshape(
                    new, self.batch, rows, -1
                )
        self.count += new

    def read_into(
        self, k: Float[Tensor, "batch heads tokens dim"], v: Float[Tensor, "batch heads tokens dim"]
    ) -> None:
        """Dequantise everything into tensors of `tokens` tokens."""
        size = self.form.group_size
        lead = (self.count, self.batch, self.n_heads)
        keys = self._dequantise("k", k.dtype).reshape(*lead, self.head_dim, size)
        k.unflatten(2, (self.count, size)).copy_(keys.permute(1, 2, 0, 4, 3))
        values = self._dequantise("v", v.dtype).reshape(*lead, size, self.head_dim)
        v.unflatten(2, (self.count, size)).copy_(values.permute(1, 2, 0, 3, 4))

    def truncate(self, count: int) -> None:
        """Drop all blocks from `count` on; nothing is freed."""
        self.count = min(self.count, count)

    def free_reserve(self) -> None:
        """Give back the room behind the last block."""
        self.capacity = self.count
        for tensors in self.tensors.values():
            for name, tensor in tensors.items():
                tensors[name] = tensor[: self.count].clone()

    def reorder(self, samples: Int[Tensor, " new_batch"]) -> None:
        """Make sample i a copy of the present sample `samples[i]`."""
        self.batch = len(samples)
        for tensors in self.tensors.values():
            for name, tensor in tensors.items():
                tensors[name] = tensor.index_select(1, samples)

    def clone(self) -> "QuantisedBlocks":
        """A copy that shares no storage."""
        device = self.tensors["k"]["codes"].device
        other = QuantisedBlocks(self.form, self.batch, self.n_heads, self.head_dim, device, self.capacity)
        other.count = self.count
        for part, tensors in self.tensors.items():
            for name, tensor in tensors.items():
                other.tensors[part][name].copy_(tensor)
        return other

    def _dequantise(self, part: str, dtype: torch.dtype) -> Tensor:
        stored = {name: t[: self.count].flatten(0, 2) for name, t in self.tensors[part].items()}
        return dequantise_rows(self.form.form, stored, self._shapes[part][1], dtype)

    def _reserve(self, blocks: int) -> None:
        if blocks <= self.capacity:
            return
        self.capacity = max(blocks, self.capacity + self.capacity // 8)
        for tensors in self.tensors.values():
            for name, tensor in tensors.items():
                grown = tensor.new_empty(self.capacity, *tensor.shape[1:])
                grown[: self.count] = tensor[: self.count]
                tensors[name] = grown


def naive_round_trip(
    form: CacheFormat,
    k: Float[Tensor, "batch heads tokens dim"],
    v: Float[Tensor, "batch heads tokens dim"],
) -> tuple[Tensor, Tensor]:
    """What whole groups of keys and values are read back as, group by group: the meaning of the blocks."""

    def rounded(group: Tensor) -> Tensor:
        low, high = group.min().item(), group.max().item()
        step = torch.tensor((high - low) / (2**form.bits - 1)).half().item()
        low = torch.tensor(low).half().item()
        codes = ((group - low) / step).round().clamp(0, 2**form.bits - 1) if step else torch.zeros_like(group)
        return low + step * codes

    k, v, size = k.clone(), v.clone(), form.group_size
    for b, h in itertools.product(range(k.shape[0]), range(k.shape[1])):
        for start in range(0, k.shape[2], size):
            for channel in range(k.shape[3]):
                group = k[b, h, start : start + size, channel]
                k[b, h, start : start + size, channel] = rounded(group)
        for token in range(v.shape[2]):
            for start in range(0, v.shape[3], size):
                v[b, h, token, start : start + size] = rounded(v[b, h, token, start : start + size])
    return k, v

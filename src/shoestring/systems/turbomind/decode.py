"""The time of a decoded token with weights in four bits, beside bfloat16 in the same engine."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.compression import RoundToNearest, apply
from shoestring.errors import NoCompiler
from shoestring.generation.dense_cache import DenseCache
from shoestring.kernels.decode_step import LayerCache
from shoestring.kernels.dense_linear import dense_linear
from shoestring.kernels.linear_dispatch import DispatchedLinear
from shoestring.kernels.linear_kernel import LinearKernel
from shoestring.layers.packed_linear import PackedLinear
from shoestring.models.compiled_decoder import CompiledDecoder
from shoestring.models.decoder import Decoder
from shoestring.numbers.grouped_affine import ZeroPoint
from shoestring.systems.turbomind.claims import DECODING
from shoestring.yardstick.comparison import Row
from shoestring.yardstick.timing import InterleavedTimes, time_interleaved

BATCH = 8


def decode_rows(
    model: Decoder, windows: Int[Tensor, "windows tokens"], group: int, tokens: int, rounds: int
) -> tuple[list[Row], list[str]]:
    """Rows at batch 1 and 8, and notes. windows: real text; the last `tokens` of each are fed one by one.

    group: inputs that share a scale; the head has 8 bits. Without a compiler nothing is measured.
    """
    packed = _packed(model, group)
    try:
        one = _single_row(model, packed, windows[0], tokens, rounds)
        many = _batch_row(model, packed, windows[:BATCH], tokens, rounds)
    except NoCompiler as error:
        return [], [f"{claim.metric}: not measured, {error}" for claim in DECODING.values()]
    return [one, many], [
        f"decoding: {tokens} tokens of text after {windows.shape[1] - tokens}, fed in turn; 4 bits in groups "
        f"of {group}, head and table in 8"
    ]


def _packed(model: Decoder, group: int) -> Decoder:
    packed = copy.deepcopy(model)
    head = RoundToNearest(8, min(group, 32))
    recipe = {"lm_head": head, "*_proj": RoundToNearest(4, group, ZeroPoint.INTEGER)}
    if not model.cfg.tie_word_embeddings:
        recipe["model.embed_tokens"] = head
    apply(packed, recipe)
    return packed


@torch.inference_mode()
def _single_row(model: Decoder, packed: Decoder, ids: Int[Tensor, " n"], tokens: int, rounds: int) -> Row:
    def bfloat16(module: nn.Module) -> LinearKernel | None:
        return dense_linear(module.weight.bfloat16()) if isinstance(module, nn.Linear) else None

    variants = {"bfloat16": CompiledDecoder(model, bfloat16), "4 bits": CompiledDecoder(packed)}
    prompt = len(ids) - tokens
    cfg, works = model.cfg, {}
    for name, variant in variants.items():
        shape = cfg.num_key_value_heads, len(ids), cfg.head_dim
        room = [
            LayerCache(torch.zeros(shape), torch.zeros(shape), torch.zeros(len(ids), dtype=torch.int32))
            for _ in range(cfg.num_hidden_layers)
        ]
        variant.use(room)
        variant(ids[:prompt], 0)
        works[name] = _fed(variant, ids, prompt)
    timed = time_interleaved(works, rounds=rounds, warmup=1, min_sample_seconds=0)
    return DECODING[1].row(**_times(timed, "4 bits", "bfloat16", tokens), against="bfloat16, same step")


def _fed(step: CompiledDecoder, ids: Int[Tensor, " n"], prompt: int) -> Callable[[], None]:
    def decode() -> None:
        for at in range(prompt, len(ids)):
            step(ids[at : at + 1], at)

    return decode


class _Multiplied(nn.Module):
    """A linear layer whose product is that of a function."""

    def __init__(self, product: Callable[[Tensor], Tensor], dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self._product, self._dtype = product, dtype

    def forward(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        y = self._product(x.reshape(-1, x.shape[-1]).to(self._dtype))
        return y.reshape(*x.shape[:-1], -1).float()


@torch.inference_mode()
def _batch_row(
    model: Decoder, packed: Decoder, windows: Int[Tensor, "batch n"], tokens: int, rounds: int
) -> Row:
    """Layer by layer in float32, but for the products; bfloat16 by our kernel and by torch's."""

    def own(module: nn.Module) -> nn.Module:
        weight: Any = module.weight
        return _Multiplied(dense_linear(weight.bfloat16()))

    def torchs(module: nn.Module) -> nn.Module:
        weight: Any = module.weight
        half: Tensor = weight.bfloat16()
        return _Multiplied(lambda x: F.linear(x, half), torch.bfloat16)

    def four(module: nn.Module) -> nn.Module:
        weight: Any = module.packed
        linear = DispatchedLinear(weight.form, weight.stored(), weight.cols)
        return _Multiplied(linear)

    names = {"bfloat16, our kernel": own, "bfloat16, torch": torchs}
    variants = {name: _with_products(model, made, nn.Linear) for name, made in names.items()}
    variants["4 bits"] = _with_products(packed, four, PackedLinear)
    prompt, works = windows.shape[1] - tokens, {}
    for name, variant in variants.items():
        works[name] = _decoding(variant, windows, prompt)
    timed = time_interleaved(works, rounds=rounds, warmup=1, min_sample_seconds=0)
    best = min(names, key=timed.median)
    return DECODING[8].row(**_times(timed, "4 bits", best, tokens), against=best)


def _with_products(model: Decoder, made: Callable[[nn.Module], nn.Module], kind: type[nn.Module]) -> Decoder:
    """A copy whose linear layers multiply as `made` says."""
    changed = copy.deepcopy(model)
    for name, module in list(changed.named_modules()):
        if type(module) is kind:
            path, _, leaf = name.rpartition(".")
            setattr(changed.get_submodule(path), leaf, made(module))
    return changed


def _decoding(model: Decoder, windows: Int[Tensor, "batch n"], prompt: int) -> Callable[[], None]:
    cfg = model.cfg
    shape = cfg.num_hidden_layers, len(windows), cfg.num_key_value_heads, cfg.head_dim
    cache = DenseCache(*shape, capacity=windows.shape[1])
    model(windows[:, :prompt], cache=cache)
    start = cache.mark()

    def decode() -> None:
        for at in range(prompt, windows.shape[1]):
            model(windows[:, at : at + 1], cache=cache)
        cache.rollback(start)

    return decode


def _times(timed: InterleavedTimes, method: str, baseline: str, tokens: int) -> dict[str, Any]:
    return {
        "baseline": timed.median(baseline) / tokens,
        "method": timed.median(method) / tokens,
        "ratio": timed.ratio(method, baseline),
        "spread": timed.interval(method, baseline),
    }

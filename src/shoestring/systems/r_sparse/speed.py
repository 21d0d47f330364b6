"""The time of a decoded token with rows gathered, beside the same kernel on all rows and beside others."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.errors import NoCompiler
from shoestring.kernels.decode_step import LayerCache
from shoestring.kernels.dense_linear import dense_linear
from shoestring.kernels.linear_kernel import LinearKernel
from shoestring.kernels.row_gather import RowGroup, RowWeights, row_gather
from shoestring.layers.row_sparse_linear import (
    EVERY_INPUT,
    RowSparseLinear,
    bytes_read,
    reset_counters,
    row_sparse_kernel,
    row_sparse_layers,
)
from shoestring.models.compiled_decoder import CompiledDecoder
from shoestring.models.decoder import Decoder
from shoestring.systems.r_sparse.claims import END_TO_END, LINEARS, READ
from shoestring.yardstick.comparison import Row
from shoestring.yardstick.timing import time_interleaved

PROMPT = 64


@dataclass(frozen=True)
class SpeedSettings:
    """How many tokens are decoded, and how often everything is timed."""

    tokens: int = 128
    rounds: int = 5
    linear_rounds: int = 11


def speed_rows(
    model: Decoder, ids: Int[Tensor, " tokens"], settings: SpeedSettings
) -> tuple[list[Row], list[str]]:
    """Rows of speed and traffic of a model with row-sparse layers, and notes.

    ids: real text of PROMPT + settings.tokens tokens, all of which are decoded at batch 1; the prompt is
    outside the time. Without a compiler the claims about time are noted as not measured.
    """
    inputs = _recorded_inputs(model, ids[: PROMPT + 1])
    try:
        rows, notes = _linear_rows(model, inputs, settings)
        decoded, more = _decode_rows(model, ids, settings)
    except NoCompiler as error:
        reason = f"not measured, {error}"
        return [], [f"{claim.metric}: {reason}" for claim in (END_TO_END, LINEARS, READ)]
    return [*decoded, *rows], [*notes, *more]


def _all_rows(layer: RowSparseLinear) -> RowWeights:
    """The same kernel on the same matrix, nothing left out."""
    return RowWeights(layer.rows, EVERY_INPUT, bias=layer.bias)


@torch.inference_mode()
def _recorded_inputs(model: Decoder, ids: Int[Tensor, " tokens"]) -> dict[str, Tensor]:
    """What each row-sparse layer is given for the last token."""
    found: dict[str, Tensor] = {}
    handles = [
        layer.register_forward_pre_hook(lambda _, args, n=name: found.__setitem__(n, args[0][0, -1:].clone()))
        for name, layer in row_sparse_layers(model).items()
    ]
    try:
        model(ids[None])
    finally:
        for handle in handles:
            handle.remove()
    return found


def _linear_rows(
    model: Decoder, inputs: Mapping[str, Tensor], settings: SpeedSettings
) -> tuple[list[Row], list[str]]:
    layers = row_sparse_layers(model)
    xs = _shared([inputs[name] for name in layers])
    sparse = RowGroup([layer.weights for layer in layers.values()])
    dense = RowGroup([_all_rows(layer) for layer in layers.values()])
    plain = [(layer.weight.contiguous(), layer.bias) for layer in layers.values()]
    halves = [x.to(plain[0][0].dtype) for x in xs]

    def by_torch() -> list[Tensor]:
        return [F.linear(x, weight) for x, (weight, _) in zip(halves, plain, strict=True)]

    with torch.inference_mode():
        timed = time_interleaved(
            {
                "rows": lambda: row_gather(xs, sparse),
                "all rows": lambda: row_gather(xs, dense),
                "torch": by_torch,
            },
            rounds=settings.linear_rounds,
        )
    kept = sum(int(w.kept(x).sum()) * w.outputs for x, w in zip(xs, sparse.layers, strict=True))
    whole = sum(w.inputs * w.outputs for w in sparse.layers)
    rows = [
        LINEARS.row(**timed.figures("rows", "all rows")),
        Row(metric="time of the blocks' linear layers, against torch", kind="time", unit="s", better="lower",
            **timed.figures("rows", "torch"), against=f"torch linear, {plain[0][0].dtype}"),
        Row(metric="time of the blocks' linear layers, all rows", kind="time", unit="s", better="lower",
            **timed.figures("all rows", "torch"), against=f"torch linear, {plain[0][0].dtype}"),
    ]  # fmt: skip
    return rows, [f"the timed token of the linear layers keeps {kept / whole:.1%} of the columns"]


def _shared(xs: list[Tensor]) -> list[Tensor]:
    """Neighbours with equal inputs are given one tensor, as in a model."""
    out = xs[:1]
    for x in xs[1:]:
        out.append(out[-1] if torch.equal(x, out[-1]) else x)
    return out


def _decode_rows(
    model: Decoder, ids: Int[Tensor, " tokens"], settings: SpeedSettings
) -> tuple[list[Row], list[str]]:
    layers = row_sparse_layers(model)
    head = model.lm_head
    store = next(iter(layers.values())).rows.dtype
    head_kernel = dense_linear(head.weight.to(store))  # type: ignore[arg-type]

    def compiled(of_layer: Callable[[RowSparseLinear], LinearKernel | None]) -> CompiledDecoder:
        def kernel_of(module: nn.Module) -> LinearKernel | None:
            if module is head:
                return head_kernel
            return of_layer(module) if isinstance(module, RowSparseLinear) else None

        return CompiledDecoder(model, kernel_of)

    variants = {
        "rows": compiled(row_sparse_kernel),
        "all rows": compiled(lambda layer: _all_rows(layer).kernel),
        "plain": compiled(lambda layer: dense_linear(layer.weight.contiguous(), layer.bias)),
    }
    room = _room(model, PROMPT + settings.tokens)
    with torch.inference_mode():
        for variant in variants.values():
            variant.use(room)
        variants["plain"](ids[:PROMPT], 0)
        works = {name: _decoding(variant, ids, settings.tokens) for name, variant in variants.items()}
        timed = time_interleaved(works, rounds=settings.rounds, warmup=1, min_sample_seconds=0)
        reset_counters(model)
        works["rows"]()
    read = bytes_read(model) / settings.tokens
    whole = sum(_all_rows(layer).bytes_of(layer.in_features) for layer in layers.values())
    head_bytes = head_kernel.nbytes

    def per_token(method: str, against: str) -> dict[str, Any]:
        times = timed.figures(method, against)
        return times | {name: times[name] / settings.tokens for name in ("baseline", "method")}

    share = head_bytes / (head_bytes + whole)
    rows = [
        END_TO_END.row(**per_token("rows", "all rows")),
        Row(metric="time of a token, against the plain kernel", kind="time", unit="s", better="lower",
            **per_token("rows", "plain"), against="rows of W as they are, dot products"),
        READ.row(baseline=whole, method=read),
        Row(metric="bytes of all weights read a token", kind="compute", unit="B", better="lower",
            baseline=whole + head_bytes, method=read + head_bytes),
        Row(metric="bytes of block weights stored", kind="storage", unit="B", better="lower",
            baseline=whole, method=sum(layer.nbytes for layer in layers.values())),
    ]  # fmt: skip
    bound = (whole + head_bytes) / (read + head_bytes)
    return rows, [
        f"the head is {share:.0%} of the bytes of a dense step: by bytes a step is at best {bound:.2f}x",
        f"decoding: {settings.tokens} tokens of text after {PROMPT}, each fed in turn, batch 1, {store}",
    ]


def _decoding(variant: CompiledDecoder, ids: Int[Tensor, " tokens"], tokens: int) -> Callable[[], None]:
    def decode() -> None:
        for at in range(PROMPT, PROMPT + tokens):
            variant(ids[at : at + 1], at)

    return decode


def _room(model: Decoder, slots: int) -> list[LayerCache]:
    cfg = model.cfg
    shape = cfg.num_key_value_heads, slots, cfg.head_dim
    return [
        LayerCache(torch.zeros(shape), torch.zeros(shape), torch.zeros(slots, dtype=torch.int32))
        for _ in range(cfg.num_hidden_layers)
    ]

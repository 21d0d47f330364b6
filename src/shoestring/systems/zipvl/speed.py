"""The time of ZipVL's attention and of whole prompts, beside dense attention."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from shoestring.generation.decoder_runner import DecoderRunner, decoder_cache
from shoestring.generation.important_tokens import FixedShare, TokenChoice, TopMass
from shoestring.generation.tier_cache import tier_cache
from shoestring.generation.zipvl import ZipVL
from shoestring.generation.zipvl_options import ZipVLOptions, probe
from shoestring.layers.attention import attend
from shoestring.layers.attention_masks import Causal, KVView
from shoestring.layers.gathered_attention import gathered_attention
from shoestring.models.decoder import Decoder
from shoestring.models.decoder_step import Want
from shoestring.models.hooks import AttnPlan, Context
from shoestring.systems.zipvl.claims import OPERATOR_HALF, OPERATOR_OWN, PREFILL
from shoestring.yardstick.comparison import Row
from shoestring.yardstick.timing import time_interleaved, time_pair


@dataclass(frozen=True)
class SpeedSettings:
    """operator_tokens, prompt_tokens: how long; layers: whose attention is timed by itself."""

    operator_tokens: int = 4096
    prompt_tokens: int = 2048
    layers: tuple[int, ...] = (5, 15, 25)
    rounds: int = 5
    prompt_rounds: int = 3


@dataclass(frozen=True)
class Recorded:
    """Queries, keys and values of one layer, rotated."""

    layer: int
    q: Float[Tensor, "1 heads n dim"]
    k: Float[Tensor, "1 kv_heads n dim"]
    v: Float[Tensor, "1 kv_heads n dim"]
    pos: Int[Tensor, "1 n"]
    scale: float
    window: int | None

    def dense(self) -> Tensor:
        """Causal attention of all tokens."""
        at = self.pos[:, None]
        view = KVView(self.k, self.v, at)
        return attend(self.q, view, Causal(self.pos, at, newest=True), self.scale, self.window).out

    def sparse(self, choice: TokenChoice) -> Tensor:
        """Probe, choice and gathered attention."""
        options = ZipVLOptions(choice)
        attended = probe(self.q, self.k, self.pos, self.layer, self.scale, self.window, options)
        kept = choice.mark(attended)
        return gathered_attention(self.q, self.k, self.v, kept, self.pos, self.scale, self.window)

    def share(self, choice: TokenChoice) -> float:
        """Of the tokens that are important."""
        options = ZipVLOptions(choice)
        attended = probe(self.q, self.k, self.pos, self.layer, self.scale, self.window, options)
        return float(choice.mark(attended).float().mean())


class _Recorder:
    """A hook that keeps the queries of some layers."""

    def __init__(self, layers: Sequence[int]) -> None:
        self.found: dict[int, Tensor] = dict.fromkeys(layers, torch.empty(0))

    def attn_plan(self, layer: int, q: Tensor, pos: Tensor, ctx: Context) -> AttnPlan | None:
        """As `AttnPlanHook`."""
        if layer in self.found:
            self.found[layer] = q.contiguous()
        return None


@torch.inference_mode()
def record(model: Decoder, ids: Int[Tensor, " tokens"], layers: Sequence[int]) -> list[Recorded]:
    """What attention of these layers is given for a text."""
    recorder, cache = _Recorder(layers), decoder_cache(model, capacity=len(ids))
    model(ids[None], cache=cache, hooks=(recorder,), want=Want(logits=None))
    found = []
    for layer, q in recorder.found.items():
        view = cache.view(layer)
        k, v = view.k.clone(), view.v.clone()
        pos = torch.arange(len(ids))[None]
        found.append(Recorded(layer, q, k, v, pos, model.cfg.scale, model.cfg.windows[layer]))
    return found


@torch.inference_mode()
def operator_rows(
    model: Decoder, ids: Int[Tensor, " tokens"], settings: SpeedSettings
) -> tuple[list[Row], str]:
    """Rows of the attention operator, and the shares of tokens as a note."""
    half, own = FixedShare(0.5), TopMass()
    recorded = record(model, ids[: settings.operator_tokens], settings.layers)
    works: dict[str, Callable[[], object]] = {
        f"{name} {layer.layer}": work
        for layer in recorded
        for name, work in (
            ("dense", layer.dense),
            ("half", partial(layer.sparse, half)),
            ("own", partial(layer.sparse, own)),
        )
    }
    times = time_interleaved(works, rounds=settings.rounds, warmup=1)
    totals = {
        name: [
            sum(part) for part in zip(*(times.seconds[f"{name} {r.layer}"] for r in recorded), strict=True)
        ]
        for name in ("dense", "half")
    }
    ratios = sorted(a / b for a, b in zip(totals["half"], totals["dense"], strict=True))
    gains = [1 / times.ratio(f"own {r.layer}", f"dense {r.layer}") for r in recorded]
    rows = [
        OPERATOR_HALF.row(
            baseline=sorted(totals["dense"])[len(ratios) // 2],
            method=sorted(totals["half"])[len(ratios) // 2],
            ratio=ratios[len(ratios) // 2],
            spread=(ratios[0], ratios[-1]),
        ),
        OPERATOR_OWN.row(baseline=1, method=sum(gains) / len(gains)),
    ]
    shares = ", ".join(f"{r.share(own):.2f} ({g:.1f}x)" for r, g in zip(recorded, gains, strict=True))
    return rows, f"share of tokens that attend in layers {settings.layers}, and speed-up: {shares}"


def prompt_row(model: Decoder, ids: Int[Tensor, " tokens"], settings: SpeedSettings) -> Row:
    """The time of a whole prompt, compression of the cache included."""
    prompt = ids[None, : settings.prompt_tokens]

    def dense() -> None:
        DecoderRunner(model, decoder_cache(model, capacity=prompt.shape[1])).feed(prompt)

    def sparse() -> None:
        cache = tier_cache(model, capacity=prompt.shape[1])
        DecoderRunner(model, cache, selection=ZipVL()).feed(prompt)

    with torch.inference_mode():
        timed = time_pair(dense, sparse, rounds=settings.prompt_rounds, warmup=1)
    return PREFILL.row(
        baseline=timed.baseline_seconds, method=timed.method_seconds, ratio=timed.ratio, spread=timed.spread
    )

"""What a SeqBoat layer costs when a given share of the tokens attends."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from shoestring.layers.seqboat.attention_reach import Everywhere, Window
from shoestring.layers.seqboat.compression_index import CompressedPlaces
from shoestring.layers.seqboat.seqboat import SeqBoat
from shoestring.layers.seqboat.sparse_modular_activation import Decision, run_where_active
from shoestring.systems.seqboat.claims import LAYER_TIME, QUADRATIC, SERVING, UNIT_MEMORY, UNIT_TIME
from shoestring.yardstick.comparison import Row
from shoestring.yardstick.memory import LiveMemory
from shoestring.yardstick.timing import time_interleaved

SHARE = 0.25


@dataclass(frozen=True)
class CostSettings:
    """Sizes of the layer that is timed, and how often."""

    length: int = 4096
    d_model: int = 128
    window: int = 128
    rounds: int = 7


class ForcedRouter(nn.Module):
    """The same tokens each time, with weight 1, and the gradient of the weight worked out all the same."""

    def __init__(self, active: Bool[Tensor, "batch seq"]) -> None:
        super().__init__()
        self.active, self.activity = active, active.double().mean().item()

    def forward(self, logits: Tensor, mask: Tensor | None = None) -> Decision:
        """The decision. logits: only their gradient's way is kept open."""
        confidence = 1.0 + 0.0 * logits[..., 1:].to(torch.float32)
        return Decision(self.active, confidence * self.active.unsqueeze(-1))


def cost_rows(settings: CostSettings, seed: int) -> list[Row]:
    """Time and memory at 25 % activity beside 100 % and beside full attention, on random tokens."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, settings.length, settings.d_model, generator=generator)
    some = torch.rand(1, settings.length, generator=generator) < SHARE
    every = torch.ones_like(some)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sparse, dense = (routed_layer(settings, active) for active in (some, every))
        full = SeqBoat(settings.d_model, reach=Everywhere(), router=None)
    works = {
        "unit": unit_work(sparse, x, some),
        "unit, all": unit_work(dense, x, every),
        "layer": layer_work(sparse, x),
        "layer, all": layer_work(dense, x),
        "full": layer_work(full, x),
        "layer, forward": layer_work(sparse, x, backward=False),
        "full, forward": layer_work(full, x, backward=False),
    }
    timed = time_interleaved(works, rounds=settings.rounds)
    peaks = {name: peak_bytes(works[name]) for name in ("unit", "unit, all", "layer", "layer, all", "full")}
    return [
        UNIT_TIME.row(**timed.figures("unit", "unit, all"), against="100 % active"),
        LAYER_TIME.row(**timed.figures("layer", "layer, all"), against="100 % active"),
        UNIT_MEMORY.row(baseline=peaks["unit, all"], method=peaks["unit"], against="100 % active"),
        QUADRATIC.row(**timed.figures("layer", "full"), against="full attention"),
        Row(metric="time of a layer, 25 % active, forward alone", kind="time", unit="s", better="lower",
            **timed.figures("layer, forward", "full, forward"), against="full attention"),
        Row(metric="time of a layer, 100 % active", kind="time", unit="s", better="lower",
            **timed.figures("layer, all", "full"), against="full attention"),
        Row(metric="peak bytes of a layer, 25 % active", kind="memory", unit="B", better="lower",
            baseline=peaks["layer, all"], method=peaks["layer"], against="100 % active"),
        Row(metric="peak bytes of a layer, 25 % active, against full attention", kind="memory", unit="B",
            better="lower", baseline=peaks["full"], method=peaks["layer"], against="full attention"),
    ]  # fmt: skip


def gpu_rows(seed: int) -> list[Row]:
    """One layer in bfloat16 at 8,192 and 16,384 tokens, 25 % active, against fused attention everywhere."""
    rows = []
    for length in (8192, 16384):
        settings = CostSettings(length=length, d_model=512, window=1024, rounds=9)
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(1, length, settings.d_model, generator=generator).cuda()
        active = (torch.rand(1, length, generator=generator) < SHARE).cuda()
        sparse = routed_layer(settings, active).cuda()
        full = SeqBoat(settings.d_model, reach=Everywhere(), router=None).cuda()
        timed = time_interleaved(
            {"layer": _in_bfloat16(layer_work(sparse, x)), "full": _in_bfloat16(layer_work(full, x))},
            rounds=settings.rounds,
        )
        figures, against = timed.figures("layer", "full"), "fused full attention"
        metric = f"time of a layer on a GPU, {length:,} tokens"
        rows.append(
            SERVING.row(**figures, against=against)
            if metric == SERVING.metric
            else Row(metric=metric, kind="time", unit="s", better="lower", **figures, against=against)
        )
    return rows


def routed_layer(settings: CostSettings, active: Bool[Tensor, "batch seq"]) -> SeqBoat:
    """A layer in which these tokens attend."""
    layer = SeqBoat(settings.d_model, reach=Window(settings.window))
    layer.router = ForcedRouter(active)  # type: ignore[assignment]
    return layer


def unit_work(layer: SeqBoat, x: Tensor, active: Bool[Tensor, "batch seq"]) -> Callable[[], None]:
    """The attention unit with compress and extract, forward and backward."""
    unit = layer.attention
    assert unit is not None
    x = x.clone().requires_grad_()
    confidence = active.unsqueeze(-1).float().requires_grad_()

    def attend(h: Tensor, places: CompressedPlaces) -> Tensor:
        return unit(h, places.positions, None if places.is_full else places.filled)

    def work() -> None:
        out = run_where_active(attend, x, Decision(active, confidence))
        torch.autograd.grad(out.sum(), [x, confidence, *unit.parameters()])

    return work


def layer_work(layer: SeqBoat, x: Tensor, *, backward: bool = True) -> Callable[[], None]:
    """A whole layer, forward and, unless told not to, backward."""
    x = x.clone().requires_grad_()

    def work() -> None:
        with torch.set_grad_enabled(backward):
            out = layer(x)
        if backward:
            torch.autograd.grad(out.sum(), [x, *layer.parameters()])

    return work


def peak_bytes(work: Callable[[], object]) -> int:
    """The most that lives during `work` beyond what lived before."""
    with LiveMemory() as memory:
        work()
    return memory.peak_dynamic_bytes


def _in_bfloat16(work: Callable[[], None]) -> Callable[[], None]:
    def inside() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            work()

    return inside

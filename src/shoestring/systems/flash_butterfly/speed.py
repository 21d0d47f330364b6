"""Long convolutions timed: beside the direct sums, attention, a careless length, and three passes."""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from shoestring.kernels.fft_convolution import fft_convolve
from shoestring.kernels.fft_convolution_torch import fft_length
from shoestring.kernels.three_pass_convolution import ThreePassPlan, three_pass_convolve
from shoestring.systems.card import Claim
from shoestring.systems.flash_butterfly.claims import (
    ATTENTION,
    ATTENTION_STEPS,
    CHANNELS,
    CONV_STEPS,
    DIRECT,
    GPU,
    GPU_STEPS,
    LENGTH,
    ODD_STEPS,
)
from shoestring.yardstick.comparison import Row
from shoestring.yardstick.memory import LiveMemory
from shoestring.yardstick.timing import InterleavedTimes, time_interleaved

HEADS = 4


def speed_rows(scale: int, rounds: int, seed: int) -> list[Row]:
    """All rows on time; lengths are divided by `scale`."""
    draw = partial(_draw, generator=torch.Generator().manual_seed(seed))
    rows = [_direct_row(draw, CONV_STEPS // scale, rounds), _length_row(draw, ODD_STEPS // scale, rounds)]
    rows.append(_attention_row(draw, ATTENTION_STEPS // scale, max(3, rounds // 3)))
    rows += _three_pass_rows(draw, ATTENTION_STEPS // scale, rounds)
    rows += _training_rows(draw, CONV_STEPS // scale, rounds)
    if torch.cuda.is_available():
        rows.append(_gpu_row(draw, GPU_STEPS // scale, rounds))
    return rows


def direct_convolve(u: Tensor, kernel: Tensor) -> Tensor:
    """The sums themselves, by torch's convolution of each channel."""
    lags = kernel.shape[-1]
    return F.conv1d(F.pad(u, (lags - 1, 0)), kernel.flip(-1).unsqueeze(1), groups=kernel.shape[0])


def plain_fft_convolve(u: Tensor, kernel: Tensor, n: int) -> Tensor:
    """What a user writes: two transforms of n points and one back."""
    return torch.fft.irfft(torch.fft.rfft(u, n) * torch.fft.rfft(kernel, n), n)[..., : u.shape[-1]]


def _draw(steps: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return tuple(
        torch.randn(*shape, generator=generator) for shape in ((1, CHANNELS, steps), (CHANNELS, steps))
    )  # type: ignore[return-value]


Draw = Callable[[int], tuple[Tensor, Tensor]]


def _direct_row(draw: Draw, steps: int, rounds: int) -> Row:
    u, kernel = draw(steps)
    return _claimed(
        DIRECT,
        {"fft": partial(fft_convolve, u, kernel), "conv1d": partial(direct_convolve, u, kernel)},
        rounds,
    )


def _length_row(draw: Draw, steps: int, rounds: int) -> Row:
    u, kernel = draw(steps)
    careless = partial(plain_fft_convolve, u, kernel, 2 * steps - 1)
    return _claimed(
        LENGTH, {"fft": partial(fft_convolve, u, kernel), f"{2 * steps - 1} points": careless}, rounds
    )


@torch.no_grad()
def _attention_row(draw: Draw, steps: int, rounds: int) -> Row:
    u, kernel = draw(steps)
    q, k, v = (part.unflatten(1, (HEADS, -1)).mT.contiguous() for part in (u, u.roll(1, -1), u.roll(2, -1)))
    attend = partial(F.scaled_dot_product_attention, q, k, v, is_causal=True)
    works = {"fft": partial(fft_convolve, u, kernel), "attention": attend}
    return _claimed(ATTENTION, works, rounds, warmup=1)


def _three_pass_rows(draw: Draw, steps: int, rounds: int) -> list[Row]:
    """Rows of the sequence transformed by small matrices, as on a GPU, and by torch's own transform."""
    u, kernel = draw(steps)
    blocks = ThreePassPlan.of_blocks(steps, steps)
    library = ThreePassPlan(rows=blocks.rows, row_length=blocks.row_length)
    times = time_interleaved(
        {
            "small matrices": partial(three_pass_convolve, u, kernel, blocks),
            "torch.fft": partial(three_pass_convolve, u, kernel, library),
            "fft": partial(fft_convolve, u, kernel),
        },
        rounds=max(3, rounds // 3),
        warmup=1,
    )
    return [
        _row(f"time of three passes, rows by {name}", times, name, "fft")
        for name in ("small matrices", "torch.fft")
    ]


def _training_rows(draw: Draw, steps: int, rounds: int) -> list[Row]:
    """Forward and backward beside what a user writes, with a transform of the same length."""
    u, kernel = (x.requires_grad_() for x in draw(steps))

    def step(convolve: Callable[[Tensor, Tensor], Tensor]) -> object:
        return torch.autograd.grad(convolve(u, kernel).sum(), (u, kernel))

    plain = partial(plain_fft_convolve, n=fft_length(2 * steps - 1))
    times = time_interleaved(
        {"ours": partial(step, fft_convolve), "torch": partial(step, plain)}, rounds=rounds
    )
    peaks = []
    for convolve in (plain, fft_convolve):
        with LiveMemory(u, kernel) as memory:
            step(convolve)
        peaks.append(memory.peak_dynamic_bytes)
    memory_row = Row(
        metric="peak bytes, forward and backward, beside torch's own backward", kind="memory", unit="B",
        better="lower", baseline=peaks[0], method=peaks[1], against="torch",
    )  # fmt: skip
    return [
        _row("time, forward and backward, beside torch's own backward", times, "ours", "torch"),
        memory_row,
    ]


def _gpu_row(draw: Draw, steps: int, rounds: int) -> Row:
    u, kernel = (x.cuda() for x in draw(steps))
    plain = partial(plain_fft_convolve, u, kernel, 2 * steps)
    return _claimed(GPU, {"fft": partial(fft_convolve, u, kernel), "torch.fft": plain}, rounds)


def _claimed(claim: Claim, works: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 2) -> Row:
    method, baseline = works
    times = time_interleaved(works, rounds=rounds, warmup=warmup)
    return claim.row(
        baseline=times.median(baseline),
        method=times.median(method),
        ratio=times.ratio(method, baseline),
        spread=times.interval(method, baseline),
        against=baseline,
    )


def _row(metric: str, times: InterleavedTimes, method: str, baseline: str) -> Row:
    return Row(
        metric=metric, kind="time", unit="s", better="lower", baseline=times.median(baseline),
        method=times.median(method), ratio=times.ratio(method, baseline),
        spread=times.interval(method, baseline), against=baseline,
    )  # fmt: skip

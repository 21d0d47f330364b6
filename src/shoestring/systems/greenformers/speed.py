"""Where low rank wins and where Linformer does: one block of BERT-base at lengths from 128 to 4096."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from shoestring.compression.low_rank_chooser import (
    DENSE,
    LINFORMER,
    LOW_RANK,
    BlockShape,
    Choice,
    MeasuredClock,
    choose,
    crossover,
    dense_block,
    linformer_block,
)
from shoestring.models.transformer import (
    LinformerOptions,
    TransformerBlock,
    TransformerEncoder,
    TransformerOptions,
)
from shoestring.systems.greenformers.claims import GPU, LENGTHS, LONG, NOT_YET, SHORT, WEIGHTS
from shoestring.yardstick.comparison import Row
from shoestring.yardstick.timing import InterleavedTimes, time_interleaved

METHODS = {LOW_RANK: "rank 192", LINFORMER: "Linformer to 256"}
GPU_RANK = 96


@dataclass(frozen=True)
class SpeedSettings:
    """Sizes of the block, and how often it is timed. scale: what lengths are divided by, for a smoke run."""

    d_model: int = 768
    n_heads: int = 12
    rank: int = 192
    projected: int = 256
    tokens: int = 2048
    rounds: int = 7
    scale: int = 1


Works = dict[str, Callable[[], object]]


def speed_rows(settings: SpeedSettings, seed: int) -> tuple[list[Row], list[str]]:
    """Rows of time by length, of weights, and of how well the chooser foresees them; notes."""
    blocks = _blocks(settings, max(LENGTHS) // settings.scale)
    generator = torch.Generator().manual_seed(seed)
    clock = MeasuredClock()
    timed: dict[int, InterleavedTimes] = {}
    choices: dict[int, Choice] = {}
    for length in LENGTHS:
        n = length // settings.scale
        batch = max(1, settings.tokens // settings.scale // n)
        x = torch.randn(batch, n, settings.d_model, generator=generator)
        timed[length] = _times(blocks, x, settings.rounds)
        shape = BlockShape(length=n, d_model=settings.d_model, n_heads=settings.n_heads, batch=batch)
        choices[length] = choose(
            shape, rank=settings.rank, projected=settings.projected, clock=clock,
            max_length=max(LENGTHS) // settings.scale,
        )  # fmt: skip
    rows = [row for length in LENGTHS for row in _length_rows(timed[length], length)]
    return [*rows, *_memory_rows(settings, blocks), _foreseen(timed, choices)], _crossings(timed, choices)


def _blocks(settings: SpeedSettings, longest: int) -> dict[str, nn.Module]:
    plain = TransformerOptions(d_model=settings.d_model, n_heads=settings.n_heads, n_layers=1)
    line = LinformerOptions(max_length=longest, projected=settings.projected)
    options = {
        DENSE: plain,
        LOW_RANK: replace(plain, rank=settings.rank),
        LINFORMER: replace(plain, linformer=line),
    }
    return {name: TransformerBlock(one).eval() for name, one in options.items()}


def _times(blocks: Mapping[str, nn.Module], x: torch.Tensor, rounds: int) -> InterleavedTimes:
    works: Works = {name: lambda block=block: block(x) for name, block in blocks.items()}  # type: ignore[misc]
    with torch.inference_mode():
        return time_interleaved(works, rounds=rounds, warmup=1, min_sample_seconds=0)


def _length_rows(timed: InterleavedTimes, length: int) -> list[Row]:
    rows = []
    for method, claims in ((LOW_RANK, SHORT), (LINFORMER, NOT_YET | LONG)):
        values = timed.figures(method, DENSE)
        if length in claims:
            rows.append(claims[length].row(**values))
        else:
            metric = f"time of a block, {METHODS[method]}, {length} tokens"
            rows.append(Row(metric=metric, kind="time", unit="s", better="lower", **values))
    return rows


def _memory_rows(settings: SpeedSettings, blocks: Mapping[str, nn.Module]) -> list[Row]:
    """Weights of the blocks, and scores at the greatest length."""
    longest = max(LENGTHS) // settings.scale
    shape = BlockShape(length=longest, d_model=settings.d_model, n_heads=settings.n_heads)
    dense, line = dense_block(shape), linformer_block(shape, settings.projected)
    weights = {name: matrix_numbers(block) for name, block in blocks.items()}
    return [
        WEIGHTS.row(baseline=weights[DENSE], method=weights[LOW_RANK]),
        Row(metric="numbers in the matrices of a block, Linformer", kind="storage", unit="", better="lower",
            baseline=weights[DENSE], method=weights[LINFORMER]),
        Row(metric=f"bytes of all scores, {max(LENGTHS)} tokens, Linformer", kind="memory", unit="B",
            better="lower", baseline=dense.score_bytes(), method=line.score_bytes()),
    ]  # fmt: skip


def matrix_numbers(module: nn.Module) -> int:
    """Numbers in the matrices of a module: biases and norms are left out."""
    return sum(
        p.numel() for name, p in module.named_parameters() if "bias" not in name and "norm" not in name
    )


def _foreseen(timed: Mapping[int, InterleavedTimes], choices: Mapping[int, Choice]) -> Row:
    """How often the chooser names the block that turned out the fastest."""
    names = (DENSE, LOW_RANK, LINFORMER)
    hits = [
        choices[length].fastest(names) == min(names, key=timed[length].median) for length in timed
    ]  # fmt: skip
    return Row(
        metric="lengths where the chooser names the fastest block", kind="other", unit="%", better="higher",
        baseline=None, method=100 * sum(hits) / len(hits),
    )  # fmt: skip


def _crossings(timed: Mapping[int, InterleavedTimes], choices: Mapping[int, Choice]) -> list[str]:
    """From which length on Linformer is the faster, measured and foreseen."""
    notes = []
    for against in (DENSE, LOW_RANK):
        faster = [
            all(timed[n].median(LINFORMER) < timed[n].median(against) for n in LENGTHS[at:])
            for at in range(len(LENGTHS))
        ]
        found = LENGTHS[faster.index(True)] if any(faster) else None
        guess = crossover(choices, LINFORMER, against)
        notes.append(
            f"Linformer is faster than {against} from {found or 'no'} tokens on; the chooser says "
            f"{guess or 'no'}"
        )
    return notes


def gpu_rows(seed: int) -> list[Row]:
    """A training step of BERT-base, dense and of low rank, under bfloat16 autocast; needs CUDA."""
    bert = TransformerOptions(d_model=768, n_heads=12, n_layers=12)
    generator = torch.Generator("cuda").manual_seed(seed)
    x = torch.randn(32, 128, 768, device="cuda", generator=generator)
    works = {
        "dense": encoder_step(bert, x),
        "low rank": encoder_step(replace(bert, rank=GPU_RANK), x),
    }
    timed = time_interleaved(works, rounds=9, warmup=3, min_sample_seconds=0.2)
    return [GPU.row(**timed.figures("low rank", "dense"))]


def encoder_step(options: TransformerOptions, x: torch.Tensor) -> Callable[[], None]:
    """A training step of an encoder on `x`, whose loss means nothing, on the device of `x`."""
    model = TransformerEncoder(options).to(x.device)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(x.device.type, torch.bfloat16):
            loss = model(x).square().mean()
        loss.backward()
        optimizer.step()

    return step

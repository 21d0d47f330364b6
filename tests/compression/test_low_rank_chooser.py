"""The cost model counts what blocks do, and the chooser follows the clock that it is given."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from shoestring.compression.low_rank_chooser import (
    BOTH,
    DENSE,
    LINFORMER,
    LOW_RANK,
    Attention,
    BlockShape,
    MeasuredClock,
    Product,
    choose,
    crossover,
    dense_block,
    linformer_block,
    low_rank_block,
)
from shoestring.models.transformer import LinformerOptions, TransformerBlock, TransformerOptions
from shoestring.yardstick.flops import CostCounter

LONGEST, RANK, PROJECTED = 96, 12, 24


class Rate:
    """A clock by the operations alone."""

    def __init__(self, product_rate: float = 1e9, attention_rate: float = 1e9) -> None:
        self.product_rate, self.attention_rate = product_rate, attention_rate

    def product(self, work: Product) -> float:
        return work.flops / self.product_rate

    def attention(self, work: Attention) -> float:
        return work.flops / self.attention_rate


@pytest.mark.parametrize("length", [8, 24, 25, 96])
@pytest.mark.parametrize("d_ff", [None, 80])
def test_operations_are_those_a_profiler_counts(length, d_ff):
    shape = BlockShape(length=length, d_model=48, n_heads=4, d_ff=d_ff, batch=3)
    sizes = {"d_model": 48, "n_heads": 4, "n_layers": 1, "d_ff": d_ff}
    line = LinformerOptions(max_length=LONGEST, projected=PROJECTED)
    blocks = {
        DENSE: TransformerOptions(**sizes),
        LOW_RANK: TransformerOptions(**sizes, rank=RANK),
        LINFORMER: TransformerOptions(**sizes, linformer=line),
        BOTH: TransformerOptions(**sizes, linformer=line, rank=RANK),
    }
    choice = choose(shape, rank=RANK, projected=PROJECTED, max_length=LONGEST, clock=Rate())
    x = torch.randn(3, length, 48)
    for name, options in blocks.items():
        block = TransformerBlock(options).eval()
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            block(x)
        assert choice.costs[name].flops == pytest.approx(counter.get_total_flops(), rel=0.01), name
        with torch.no_grad(), CostCounter() as cost:
            block(x)
        assert choice.costs[name].flops == pytest.approx(cost.contraction_flops, rel=0.01), name
        matrices = sum(
            p.numel() for key, p in block.named_parameters() if "bias" not in key and "norm" not in key
        )
        assert choice.costs[name].weights == matrices, name


@given(n=st.integers(1, 60), heads=st.integers(1, 4), head_dim=st.integers(1, 8), r=st.integers(1, 9))
def test_the_formulas_of_the_paper(n, heads, head_dim, r):
    d, k = heads * head_dim, max(1, n // 2)
    shape = BlockShape(length=n, d_model=d, n_heads=heads)
    dense, thin, line = dense_block(shape), low_rank_block(shape, r), linformer_block(shape, k)
    assert dense.flops == 24 * n * d * d + 4 * n * n * d
    assert thin.flops == 36 * n * d * r + 4 * n * n * d
    assert line.flops <= 24 * n * d * d + 8 * n * k * d
    if n > k:
        assert line.flops == 20 * n * d * d + 4 * k * d * d + 8 * n * k * d
    assert (dense.weights, thin.weights, line.weights) == (12 * d * d, 18 * d * r, 12 * d * d + 2 * n * k)
    assert dense.score_bytes() == 4 * n * n * heads
    assert line.score_bytes(2) == 2 * n * k * heads
    assert thin.weight_bytes() == 4 * thin.weights


def test_short_inputs_get_low_rank_and_long_ones_linformer():
    choices = {
        n: choose(
            BlockShape(length=n, d_model=768, n_heads=12),
            rank=192,
            projected=256,
            max_length=8192,
            clock=Rate(),
        )
        for n in (128, 256, 512, 1024, 2048, 4096, 8192)
    }
    assert choices[128].fastest((DENSE, LOW_RANK, LINFORMER)) == LOW_RANK
    assert choices[8192].fastest((DENSE, LOW_RANK, LINFORMER)) == LINFORMER
    assert choices[8192].fastest() == BOTH
    # by operations alone: 24 d² + 4 n d  = 20 d² + 4 k d²/n + 8 k d, near n = 400
    assert crossover(choices, LINFORMER, DENSE) == 512
    later = crossover(choices)
    assert later is not None
    assert later > 512
    slow_attention = {
        n: choose(
            BlockShape(length=n, d_model=768, n_heads=12), rank=192, projected=256, max_length=8192,
            clock=Rate(attention_rate=1e8),
        )
        for n in choices
    }  # fmt: skip
    assert crossover(slow_attention) < later
    assert crossover({n: choices[n] for n in (128, 256)}) is None


def test_the_clock_times_a_shape_once(monkeypatch):
    clock = MeasuredClock(repeats=1)
    calls = []
    best = clock._best
    monkeypatch.setattr(clock, "_best", lambda run: calls.append(1) or best(run))
    one, many = clock.product(Product(64, 32, 48)), clock.product(Product(64, 32, 48, 3))
    assert 0 < one == pytest.approx(many / 3)
    assert clock.attention(Attention(2, 2, 16, 16, 8)) > 0
    clock.attention(Attention(2, 2, 16, 16, 8))
    assert len(calls) == 2


def test_sizes_that_cannot_be():
    with pytest.raises(ValueError, match="length=0 must be at least 1"):
        BlockShape(length=0, d_model=8, n_heads=2)
    with pytest.raises(ValueError, match="n_heads=3 must divide d_model=8"):
        BlockShape(length=1, d_model=8, n_heads=3)
    shape = BlockShape(length=16, d_model=8, n_heads=2)
    with pytest.raises(ValueError, match="projected=17 must be from 1 to max_length=16"):
        linformer_block(shape, 17)
    with pytest.raises(ValueError, match="length=16 is above max_length=12"):
        linformer_block(shape, 4, 12)
    with pytest.raises(ValueError, match="rank=0 must be at least 1"):
        low_rank_block(shape, 0)

"""What the Axial Transformer claims, and the bars that this project sets itself."""

from shoestring.systems.card import Claim

FACTOR = "O(N^2) to O(N^((d+1)/d)): 64x for one layer on a 64 x 64 grid"
ATTENTION = "256 features, 4 heads, a row and a column layer against one over all elements, fused kernels"


def _time(metric: str, text: str, setting: str, bar: float, paper_ratio: float | None = None) -> Claim:
    return Claim(
        text=text, figure=FACTOR, setting=setting, metric=metric, kind="time", unit="s", better="lower",
        paper_ratio=paper_ratio, bar=bar,
    )  # fmt: skip


TIME = {
    64: _time("time of attention, 64 x 64", "attention along lines costs little", ATTENTION, 1 / 6, 1 / 32),
    96: _time("time of attention, 96 x 96", "and saves more on larger grids", ATTENTION, 1 / 15, 1 / 48),
}
BLOCK = _time(
    "time of whole blocks, 64 x 64",
    "with projections and mlp, a row and a column block cost less than one full block",
    "256 features, 4 heads, hidden units as many as features",
    1 / 1.8,
)
MEMORY = Claim(
    text="scores that are stored take less memory",
    figure=FACTOR,
    setting="64 x 64, 256 features, 4 heads, products and softmax spelt out, forward",
    metric="peak bytes, scores explicit, 64 x 64",
    kind="memory",
    unit="B",
    better="lower",
    paper_ratio=1 / 32,
    bar=1 / 32,
)
SCORES = Claim(
    text="operations on scores shrink by (H + W) / (H W)",
    figure=FACTOR,
    setting="64 x 64, row and column, counted",
    metric="operations on scores, 64 x 64",
    kind="compute",
    unit="FLOP",
    better="lower",
    paper_ratio=1 / 32,
    bar=1 / 32,
)
SEMI_PARALLEL = Claim(
    text="most of the context is computed once a row when pictures are drawn",
    figure="position evaluations: H W (H Lo + W Li) instead of H^2 W^2 (Lo + Li), 28x fewer at 28 x 28",
    setting="28 x 28 of 16 values, 16 pictures at once, 64 features, 2 outer and 2 inner layers; the naive "
    "way is timed on some of the pixels, all of which cost the same",
    metric="time of a pixel, semi-parallel",
    kind="time",
    unit="s",
    better="lower",
    paper_ratio=1 / 28,
    bar=1 / 8,
)
STEPPED = Claim(
    text="keys and values of what is finished need not be computed again",
    figure="-",
    setting="the same, against semi-parallel",
    metric="time of a pixel, stepped",
    kind="time",
    unit="s",
    better="lower",
    bar=1 / 1.5,
)

DENSITY = "Fashion-MNIST at 14 x 14, 16 values, 64 features, 4 layers, the same seconds of training"


def _bits(metric: str, text: str, setting: str, bar: float) -> Claim:
    return Claim(
        text=text, figure="3.76 bits/dim on ImageNet-32, 3.44 on ImageNet-64", setting=setting, metric=metric,
        kind="quality", unit="bit", better="lower", bar=bar, bar_on="difference",
    )  # fmt: skip


FULL = _bits(
    "bits per dimension, against full attention",
    "nothing is lost against attention over everything",
    f"{DENSITY}; against a row-major transformer that sees everything before a pixel",
    0.02,
)
LOCAL = _bits(
    "bits per dimension, against local attention",
    "better than attention of the same cost that sees the nearest values only",
    f"{DENSITY}; against one that sees the 28 values before a pixel",
    -0.01,
)


def _gpu(metric: str, text: str, setting: str) -> Claim:
    return Claim(
        text=text, figure="-", setting=setting, metric=metric, kind="time", unit="s", better="lower",
        needs_gpu=True,
    )  # fmt: skip


GPU_SETTING = "64 x 64 RGB, 256 features, 8 heads, 6 layers, bfloat16, against row-major flash attention"
GPU_TRAINING = _gpu("time of a training picture, GPU", "large pictures train faster", GPU_SETTING)
GPU_SAMPLING = _gpu(
    "time of a drawn value, GPU", "large pictures are drawn faster", f"{GPU_SETTING} with a KV cache"
)

CLAIMS = (
    TIME[64], TIME[96], BLOCK, MEMORY, SCORES, SEMI_PARALLEL, STEPPED, FULL, LOCAL, GPU_TRAINING,
    GPU_SAMPLING,
)  # fmt: skip

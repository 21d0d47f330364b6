"""What R-Sparse claims, and the bars that this project sets itself for SmolLM2-135M on a processor."""

from shoestring.systems.card import Claim

MODEL = "SmolLM2-135M, 8 windows of 512 tokens of text not calibrated on, the last half decoded sparsely"
TARGET, LEVELS = 0.5, (0.25, 0.4, 0.5, 0.65)
"""Shares of weight reads that are saved."""


def _quality(metric: str, text: str, setting: str, bar: float, paper_ratio: float | None = None) -> Claim:
    return Claim(
        text=text,
        figure="comparable accuracy at 50 %",
        setting=setting,
        metric=metric,
        kind="quality",
        unit="",
        better="lower",
        paper_ratio=paper_ratio,
        bar=bar,
    )


PERPLEXITY_40 = _quality(
    "perplexity, 40 % of reads saved, columns alone",
    "half of the reads can go at little loss; small models have less to spare",
    f"{MODEL}; bar: our own",
    1.25,
)
PERPLEXITY_50 = _quality(
    "perplexity, 50 % of reads saved, searched shares",
    "the same at half of the reads, with the shares of columns and low rank searched",
    f"{MODEL}; bar: our own",
    1.6,
)
SEARCHED = _quality(
    "perplexity, 50 %, searched shares against columns alone",
    "low rank for the small inputs helps where columns alone do not do",
    "the same model and text",
    1.0,
)


def _against(name: str, level: str, setting: str) -> Claim:
    return Claim(
        text=f"better than {name} at equal sparsity",
        figure="better at equal sparsity",
        setting=setting,
        metric=f"ln perplexity ratio, {level}, against {name}",
        kind="quality",
        unit="",
        better="lower",
        bar=0.5,
    )


RELU = _against("ReLU-fication", "50 %", "SiLU replaced by ReLU, untrained: it skips what it happens to")
CHANCE = _against("inputs kept by chance", "50 %", "the control")
CATS = {
    level: _against("CATS", f"{level:.0%}".replace("%", " %"), "up and down skipped until the same is saved")
    for level in (0.25, 0.4)
}

MONOTONE = Claim(
    text="what is lost grows with what is saved",
    figure="-",
    setting="savings of 0, 25, 40, 50 and 65 %, columns alone; a step down of more than 0.5 % counts",
    metric="steps at which perplexity falls",
    kind="quality",
    unit="",
    better="lower",
    bar=0,
    bar_on="value",
)


def _realised(metric: str, text: str, setting: str, bar: float) -> Claim:
    return Claim(
        text=text, figure="-", setting=setting, metric=metric, kind="other", unit="%", better="lower",
        bar=bar, bar_on="value",
    )  # fmt: skip


REALISED_MEAN = _realised(
    "points off 50 %, dense inputs, worst projection",
    "constant thresholds keep the share that they were set for",
    "inputs kept, 16 windows from the whole of the unseen text, mean over the layers of a projection",
    1.0,
)
REALISED_LAYER = _realised(
    "points off 50 %, dense inputs, worst layer", "the same for every layer by itself", "as above", 5.0
)
REALISED_ALL = _realised(
    "points off 50 %, all layers sparse, worst projection",
    "the same once earlier layers shrink the inputs of later ones",
    "as above, columns alone",
    5.0,
)

END_TO_END = Claim(
    text="tokens come faster, end to end, at batch 1",
    figure="1.43x",
    setting="7B and 8B models on a GPU at 50 %; here SmolLM2-135M, bfloat16, 128 tokens decoded, against the "
    "same kernel reading all rows; the head, a fifth of the bytes, stays dense",
    metric="time of a token, end to end",
    kind="time",
    unit="s",
    better="lower",
    paper_ratio=1 / 1.43,
    bar=1 / 1.25,
)
LINEARS = Claim(
    text="the linear layers of the blocks by themselves",
    figure="1.43x",
    setting="all 210 layers on inputs of one decoded token, against the same kernel reading all rows",
    metric="time of the blocks' linear layers",
    kind="time",
    unit="s",
    better="lower",
    bar=1 / 1.5,
)
READ = Claim(
    text="half of the weight reads are saved",
    figure="50 %",
    setting="weights of the blocks read for a token, counted while decoding, searched shares",
    metric="bytes of block weights read a token",
    kind="compute",
    unit="B",
    better="lower",
    paper_ratio=0.5,
    bar=0.55,
)

CLAIMS = (
    PERPLEXITY_40, PERPLEXITY_50, SEARCHED, RELU, CHANCE, CATS[0.25], CATS[0.4], MONOTONE, REALISED_MEAN,
    REALISED_LAYER, REALISED_ALL, END_TO_END, LINEARS, READ,
)  # fmt: skip

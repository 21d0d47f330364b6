"""What Greenformers claims with the Low-Rank Transformer and Linformer, and the bars set here.

The thesis' own curves over lengths, and Linformer's 1.5x to 20x, could not be checked against the texts: they
are shown as claims and judge nothing; the bars are this project's.
"""

from shoestring.systems.card import Claim

LENGTHS = (128, 256, 512, 1024, 2048, 4096)
BLOCK = "one BERT-base block, float32, inference, 2048 tokens or one sequence, two cores"
SHARES = (0.75, 0.5, 0.25)
"""Of the rank from which a layer no longer shrinks."""


def _time(metric: str, text: str, figure: str, bar: float, better: str = "lower") -> Claim:
    return Claim(
        text=text, figure=figure, setting=BLOCK, metric=metric, kind="time", unit="s", better=better, bar=bar
    )  # fmt: skip


SHORT = {
    length: _time(
        f"time of a block, rank 192, {length} tokens",
        "at 512 tokens and below low rank is the faster",
        "better time and memory",
        1 / 1.6,
    )
    for length in (128, 256, 512)
}
NOT_YET = {
    length: _time(
        f"time of a block, Linformer to 256, {length} tokens (it loses)",
        "at short lengths Linformer is no gain, so the two cross",
        "crossover near 512",
        1.0,
        better="higher",
    )
    for length in (128, 256)
}
LONG = {
    length: _time(
        f"time of a block, Linformer to 256, {length} tokens",
        "at long sequences Linformer is the faster",
        "better time and memory; 1.5x at 512 to 20x at 64k",
        bar,
    )
    for length, bar in ((1024, 1 / 1.1), (4096, 1 / 2))
}
WEIGHTS = Claim(
    text="the model itself is smaller, which Linformer's is not",
    figure="large reduction, by the rank",
    setting="matrices of a BERT-base block at rank 192",
    metric="numbers in the matrices of a block, rank 192",
    kind="storage",
    unit="",
    better="lower",
    bar=0.375,
)
AWARE = {
    share: Claim(
        text="a trained model can be factored and used at once",
        figure="-",
        setting="all-MiniLM-L6-v2, ranks at this share of break-even, cosine to the dense embeddings of "
        "unseen sentences; bar: above plain SVD of the same ranks",
        metric=f"cosine to the dense embeddings, factors by known inputs, {share:.0%}".replace("%", " %"),
        kind="quality",
        unit="",
        better="higher",
        bar=1.0,
    )
    for share in SHARES
}
SMALLER = Claim(
    text="a low-rank model trained from scratch has less than half of the weights",
    figure="> 50 % fewer parameters",
    setting="speech recognition, AiShell and HKUST; here the blocks of a language model, d 256, rank 64",
    metric="parameters of the blocks, rank 64",
    kind="storage",
    unit="",
    better="lower",
    paper_ratio=0.5,
    bar=0.4,
)
STEP = Claim(
    text="and takes less time to train",
    figure="1.35x faster inference",
    setting="speech recognition, inference; here a training step of that language model",
    metric="time of a training step, rank 64",
    kind="time",
    unit="s",
    better="lower",
    paper_ratio=1 / 1.35,
    bar=0.65,
)
LOSS = Claim(
    text="and predicts as well",
    figure="lower error rate",
    setting="speech recognition; here nats a character on unseen text after equal steps",
    metric="loss on unseen text, rank 64",
    kind="quality",
    unit="nats",
    better="lower",
    bar=0.05,
    bar_on="difference",
)
ENERGY = Claim(
    text="building BERT-base costs a third less compute, money and emissions",
    figure="> 30 % (an estimate)",
    setting="BERT-base pre-training, by hours; here the language model, by the time of its steps",
    metric="energy of the training, rank 64",
    kind="energy",
    unit="J",
    better="lower",
    paper_ratio=0.7,
)
GPU = Claim(
    text="the same on a GPU",
    figure="> 30 % (an estimate)",
    setting="training step of BERT-base (12 blocks), bfloat16, 32 x 128 tokens, rank 96",
    metric="time of a training step of BERT-base, GPU",
    kind="time",
    unit="s",
    better="lower",
    paper_ratio=0.7,
    bar=0.7,
    needs_gpu=True,
)

CLAIMS = (
    *SHORT.values(), *NOT_YET.values(), *LONG.values(), WEIGHTS, *AWARE.values(), SMALLER, STEP, LOSS, ENERGY,
    GPU,
)  # fmt: skip

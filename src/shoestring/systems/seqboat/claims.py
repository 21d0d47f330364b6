"""What SeqBoat claims, and the bars that this project sets itself on a processor."""

from shoestring.systems.card import Claim

LAYER = "4,096 tokens, d_model 128, queries of 64, window 128, random activity"
RECALL = "128 tokens, window 64, 4 pairs in the first half, 32 questions in the second; 2 layers, d_model 64"


def _time(metric: str, text: str, figure: str, setting: str, bar: float) -> Claim:
    return Claim(
        text=text, figure=figure, setting=setting, metric=metric, kind="time", unit="s", better="lower",
        bar=bar,
    )  # fmt: skip


UNIT_TIME = _time(
    "time of the attention unit, 25 % active",
    "cost follows activation",
    "linear in the activated tokens",
    f"{LAYER}; against 100 % active, forward and backward; the ideal is .25",
    0.4,
)
LAYER_TIME = _time(
    "time of a whole layer, 25 % active",
    "the same of the layer, whose moving average runs on every token",
    "-",
    f"{LAYER}; against 100 % active, forward and backward",
    0.75,
)
UNIT_MEMORY = Claim(
    text="memory follows activation",
    figure="0.1x of a Transformer",
    setting=f"{LAYER}; the attention unit against 100 % active, forward and backward",
    metric="peak bytes of the attention unit, 25 % active",
    kind="memory",
    unit="B",
    better="lower",
    bar=0.45,
)
QUADRATIC = _time(
    "time of a layer, 25 % active, against full attention",
    "faster than attention everywhere",
    "about 6x a Transformer",
    f"{LAYER}; the same layer with full attention by torch's fused kernel, forward and backward",
    1 / 2.5,
)
ACCURACY = Claim(
    text="attention that skips what it does not need sees further than chunks",
    figure="87.6 against 85.66 on the Long Range Arena",
    setting=f"{RECALL}; accuracy on unseen sequences after equal steps, Mega-chunk of 64; chance is 25 %",
    metric="recall accuracy",
    kind="quality",
    unit="%",
    better="higher",
    bar=20.0,
    bar_on="difference",
)
LOSS = Claim(
    text="attention adds what a moving average alone lacks",
    figure="-",
    setting=f"{RECALL}; loss on unseen sequences",
    metric="recall loss, against the moving average alone",
    kind="quality",
    unit="nats",
    better="lower",
    bar=1.0,
)


def _activity(metric: str, text: str, bar: float) -> Claim:
    return Claim(
        text=text, figure="differs by task and layer", setting=RECALL, metric=metric, kind="compute", unit="",
        better="lower", bar=bar, bar_on="value",
    )  # fmt: skip


MEAN_ACTIVITY = _activity("share of tokens that attend, mean of the layers", "it learns to skip", 0.8)
LEAST_ACTIVITY = _activity("share of tokens that attend, lowest layer", "layers differ", 0.6)
STEP_TIME = _time(
    "time of a training step, against Mega-chunk",
    "a step costs no more than with chunks",
    "-",
    f"{RECALL}; batch 16, trained models, forward and backward",
    1.0,
)
SERVING = Claim(
    text="fast and small on a GPU at lengths where attention is dear",
    figure="about 6x a Transformer's speed",
    setting="16,384 tokens, d_model 512, window 1,024, 25 % active, bfloat16, against fused attention",
    metric="time of a layer on a GPU, 16,384 tokens",
    kind="time",
    unit="s",
    better="lower",
    paper_ratio=1 / 6,
    needs_gpu=True,
)

CLAIMS = (
    UNIT_TIME, LAYER_TIME, UNIT_MEMORY, QUADRATIC, ACCURACY, LOSS, MEAN_ACTIVITY, LEAST_ACTIVITY, STEP_TIME,
    SERVING,
)  # fmt: skip

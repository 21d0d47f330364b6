"""What the paper on long convolutions claims, and the bars that this project sets itself."""

from shoestring.systems.card import Claim

ATTENTION_STEPS = 16384
CONV_STEPS = 4096
ODD_STEPS = 8193
GPU_STEPS = 65536
CHANNELS = 256


def _time_claim(text: str, figure: str, setting: str, metric: str, bar: float | None) -> Claim:
    return Claim(
        text=text,
        figure=figure,
        setting=setting,
        metric=metric,
        kind="time",
        unit="s",
        better="lower",
        bar=bar,
    )


DIRECT = _time_claim(
    "a long convolution takes O(L log L)",
    "O(L log L)",
    f"bar: beside the direct convolution of torch, {CHANNELS} channels of {CONV_STEPS} steps, CPU",
    "time, beside the direct convolution",
    1 / 4,
)
ATTENTION = _time_claim(
    "a long convolution is much cheaper than attention on long sequences",
    "7.2x faster training than prior work on Path256",
    f"GPU, 64 K steps; bar: one convolution beside fused causal attention of 4 heads, {CHANNELS} features, "
    f"{ATTENTION_STEPS} steps, CPU",
    "time, beside causal attention",
    1 / 10,
)
LENGTH = _time_claim(
    "the length of the transform matters as much as the algorithm",
    "no figure: our own",
    f"bar: beside transforms of 2 L − 1 points, L = {ODD_STEPS}, {CHANNELS} channels, CPU",
    "time, beside a transform of 2L − 1 points",
    1 / 5,
)
GPU = Claim(
    text="the convolution is faster than that of PyTorch",
    figure="2.2x",
    setting=f"lengths of the Long Range Arena, GPU; bar: {GPU_STEPS} steps, torch's transforms of 2 L points",
    metric="time on a GPU, beside torch.fft",
    kind="time",
    unit="s",
    better="lower",
    paper_ratio=1 / 2.2,
    bar=1 / 1.5,
    needs_gpu=True,
)


def _accuracy_claim(text: str, figure: str, setting: str, metric: str, points: float) -> Claim:
    return Claim(
        text=text,
        figure=figure,
        setting=setting,
        metric=metric,
        kind="quality",
        unit="%",
        better="higher",
        bar=-points,
        bar_on="difference",
    )


AS_S4D = _accuracy_claim(
    "a freely learned kernel with a squash does what a state space does",
    "Long Range Arena: on par with state spaces; sequential CIFAR: 91.0 % random, 92.1 % geometric start, "
    "S4 91.1 to 91.8 % (unconfirmed)",
    "six layers of 512 features, GPU; bar: Fashion-MNIST pixel by pixel, two layers of 64 features, S4D",
    "accuracy, best squash, beside S4D",
    4.0,
)
AS_UNSQUASHED = _accuracy_claim(
    "the squash does not cost accuracy",
    "it recovers the quality of state spaces",
    "as above; bar: the same layers without it. Too small for the gain: the paper's sequences overfit",
    "accuracy, best squash, beside no squash",
    2.0,
)
WEIGHTS = Claim(
    text="learned butterflies in the place of MLPs make a Transformer smaller",
    figure="30 % fewer parameters",
    setting="WikiText-103, 125 M weights; bar: characters, 4 layers of 128 features",
    metric="weights of the Transformer",
    kind="storage",
    unit="",
    better="lower",
    paper_ratio=0.7,
    bar=0.75,
)
LOSS = Claim(
    text="and no worse",
    figure="perplexity 20.4 beside 20.6",
    setting="as above; bar: nats a character at equal steps",
    metric="validation loss",
    kind="quality",
    unit="nats",
    better="lower",
    bar=0.03,
    bar_on="difference",
)

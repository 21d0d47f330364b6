"""What SpAtten claims, and the bars that this project sets itself on a processor and in its cycle model."""

from shoestring.systems.card import Claim

DECODE = (
    "SmolLM2-135M, windows of 1024 tokens, the last 32 decoded; keys in 6 + 4 bits, values in 8, 0.3 of "
    "them read, half of the tokens after the last layer, steps and scales counted"
)
ENCODE = "all-MiniLM-L6-v2, windows of 256 tokens, 0.4 of them left in the last layer, not fine-tuned"
MODEL = "cycle model, shape and published schedule of GPT-2-medium, one query at 1024 tokens"

TRAFFIC_32 = Claim(
    text="pruning and progressive quantisation read far less memory",
    figure="10.0x less",
    setting=f"30 benchmarks with BERT and GPT-2, fp32 unpruned; here {DECODE}",
    metric="bits of keys and values read a token, against float32",
    kind="compute",
    unit="bit",
    better="lower",
    paper_ratio=1 / 10,
    bar=1 / 7,
)
TRAFFIC_16 = Claim(
    text="the same against a cache in float16; uniform 8 bits give half",
    figure="-",
    setting=DECODE,
    metric="bits of keys and values read a token, against float16",
    kind="compute",
    unit="bit",
    better="lower",
    bar=1 / 3.5,
)
PERPLEXITY = Claim(
    text="without loss of accuracy",
    figure="no accuracy loss",
    setting=(
        f"{DECODE}; ranked by the normalised sum, first token and last 16 protected; kept probabilities sum "
        "to 1, high bits stand for their middle; bar: our own"
    ),
    metric="perplexity of decoded tokens",
    kind="quality",
    unit="",
    better="lower",
    paper_ratio=1.0,
    bar=1.10,
)
RANDOM = Claim(
    text="importance is worth more than chance",
    figure="-",
    setting=DECODE,
    metric="perplexity of decoded tokens, against a random ranking",
    kind="quality",
    unit="",
    better="lower",
    bar=1.0,
)
ENCODER_TIME = Claim(
    text="tokens pruned from an encoder save their feed-forward work too",
    figure="1.9x fewer tokens",
    setting=ENCODE,
    metric="time of a batch of windows",
    kind="time",
    unit="s",
    better="lower",
    bar=1 / 1.25,
)
ENCODER_ACCURACY = Claim(
    text="at the same accuracy",
    figure="no accuracy loss",
    setting=f"{ENCODE}; which of 24 articles, logistic regression on pruned embeddings, in points",
    metric="points of probe accuracy",
    kind="quality",
    unit="%",
    better="higher",
    bar=-2.0,
    bar_on="difference",
)


def _above(name: str) -> Claim:
    return Claim(
        text=f"above a ranking {name}",
        figure="-",
        setting=ENCODE,
        metric=f"points of probe accuracy, against a ranking {name}",
        kind="quality",
        unit="%",
        better="higher",
        bar=0.0,
        bar_on="difference",
    )


ENCODER_RANDOM, ENCODER_INVERTED = _above("by chance"), _above("upside down")


def _modelled(metric: str, text: str, setting: str, bar: float | None, figure: str = "-") -> Claim:
    return Claim(
        text=text, figure=figure, setting=setting, metric=metric, kind="compute", unit="cycles",
        better="lower", bar=bar,
    )  # fmt: skip


CYCLES_MEMORY = _modelled(
    "memory cycles, modelled", "fewer cycles of memory",
    f"{MODEL}; keys 8 + 4 bits, 6 % of queries ask, 0.3 of the values; against 12 bits, unpruned", 1 / 3.5,
)  # fmt: skip
CYCLES_OVERLAPPED = _modelled(
    "all cycles, overlapped, modelled", "fewer cycles in all", f"{MODEL}; double buffers", 1 / 1.6
)
CYCLES_ADDED = _modelled(
    "all cycles, added up, modelled",
    "as the published model counts: the serial top-k eats the gain",
    MODEL,
    None,
)
TOP_K = _modelled(
    "cycles of the search of the k-th largest, 16 comparators against 1",
    "the top-k engine is parallel",
    "1024 values, k = 307, mean over random orders",
    1 / 8,
)
CLAIMS = (
    TRAFFIC_32, TRAFFIC_16, PERPLEXITY, RANDOM, ENCODER_TIME, ENCODER_ACCURACY, ENCODER_RANDOM,
    ENCODER_INVERTED, CYCLES_MEMORY, CYCLES_OVERLAPPED, CYCLES_ADDED, TOP_K,
)  # fmt: skip

"""What MPCache claims, and the bars that this project sets itself for SmolLM2-135M on a processor."""

from shoestring.systems.card import Claim

LENGTHS = (256, 512, 1024)
STEP = (
    "attention of one decoded token, real Q, K, V of a layer of SmolLM2-135M (3 heads of 64), 2 parties and "
    "a dealer over TCP; 3/8 of the prompt kept, ρ 0.5 and 0.2; the full cache's K and V are prepared once"
)
RIVALS = {
    "h2o": "H2O-like eviction",
    "sinks": "sinks and a window",
    "window": "a plain window",
    "chance": "clusters by chance",
}
LAN, WAN = (0.8e-3, 3e9), (80e-3, 1e8)
"""Round trip in seconds and bandwidth in bits per second: our constants."""
LARGE = "32 heads of 128, 2048 tokens"


def _bytes(tokens: int) -> Claim:
    return Claim(
        text="less to send, more so with a longer context",
        figure="3.39x to 8.37x",
        setting=f"{STEP}; {tokens} tokens, two layers of which the second uses the first one's choice",
        metric=f"bytes on the wire, {tokens} tokens, choice shared by two layers",
        kind="other",
        unit="B",
        better="lower",
        paper_ratio=1 / 3.39,
        bar=1 / 3.4,
    )


BYTES = {tokens: _bytes(tokens) for tokens in LENGTHS}
GROWTH = Claim(
    text="the saving grows with the context",
    figure="3.39x to 8.37x",
    setting=f"{STEP}; saving in bytes, choice shared by two layers",
    metric="saving in bytes, 1024 tokens against 256",
    kind="other",
    unit="",
    better="higher",
    bar=1.0,
)
ROUNDS = Claim(
    text="a choice costs rounds, which softmax over fewer tokens wins back",
    figure="-",
    setting=f"{STEP}; a layer that chooses by itself",
    metric="dependent rounds, 512 tokens",
    kind="other",
    unit="",
    better="lower",
)
ERROR = Claim(
    text="the result is that of the plain selection",
    figure="-",
    setting=f"{STEP}; worst difference from attention in float64 over the plainly chosen tokens",
    metric="largest error of the output, all lengths",
    kind="quality",
    unit="",
    better="lower",
    bar=2e-3,
    bar_on="value",
)
MODEL_ERROR = Claim(
    text="the cost model is exact",
    figure="-",
    setting=f"{STEP}; bytes counted by the sockets against those of the closed form, both methods, "
    "all lengths",
    metric="bytes that the cost model is off",
    kind="other",
    unit="B",
    better="lower",
    bar=0,
    bar_on="value",
)


def _latency(metric: str, setting: str, bar: float | None, paper_ratio: float | None = None) -> Claim:
    return Claim(
        text="a token comes sooner",
        figure="1.8x to 2.01x",
        setting=setting,
        metric=metric,
        kind="time",
        unit="s",
        better="lower",
        paper_ratio=paper_ratio,
        bar=bar,
    )


_FORMULA = "rounds x round trip + bytes / bandwidth + compute"
LATENCY_LAN = _latency(
    f"latency from the cost model, LAN, {LARGE}",
    f"{_FORMULA} (network alone), 0.8 ms and 3 Gb/s; 2 parties, a layer that chooses by itself",
    1 / 1.3,
    1 / 2.01,
)
LATENCY_WAN = _latency(f"latency from the cost model, WAN, {LARGE}", "the same at 80 ms and 100 Mb/s", None)
SMALL_LAN = _latency(
    "latency of a layer, LAN, 512 tokens",
    f"{_FORMULA} as measured; {STEP}; nearly all of it is rounds",
    None,
)
SMALL_WAN = _latency("latency of a layer, WAN, 512 tokens", "the same at 80 ms and 100 Mb/s", None)

TEXT = "SmolLM2-135M, continuations decoded token by token behind 1024 tokens of text, 40 % kept and ρ2 0.2"
PERPLEXITY = Claim(
    text="little is lost at a tenth of the cache",
    figure="comparable to the full cache",
    setting=TEXT,
    metric="perplexity of the continuation",
    kind="quality",
    unit="",
    better="lower",
    bar=1.3,
)


def _against(rival: str) -> Claim:
    return Claim(
        text=f"better than {RIVALS[rival]} at an equal number of tokens read",
        figure="consistently better",
        setting=TEXT,
        metric=f"perplexity, against {RIVALS[rival]}",
        kind="quality",
        unit="",
        better="lower",
        bar=1.0,
    )


AGAINST = {rival: _against(rival) for rival in RIVALS}


def _needle(rival: str) -> Claim:
    return Claim(
        text=f"finds more than {RIVALS[rival]}",
        figure="consistently better",
        setting="a four-digit code hidden in 1k to 2k tokens of text and asked for at the end; "
        "nats a token of the answer",
        metric=f"loss on the needle, against {RIVALS[rival]}",
        kind="quality",
        unit="nats",
        better="lower",
        bar=1.0,
    )


NEEDLE = {rival: _needle(rival) for rival in RIVALS}
CLAIMS = (
    *BYTES.values(), GROWTH, ROUNDS, ERROR, MODEL_ERROR, LATENCY_LAN, LATENCY_WAN, SMALL_LAN, SMALL_WAN,
    PERPLEXITY, *AGAINST.values(), *NEEDLE.values(),
)  # fmt: skip

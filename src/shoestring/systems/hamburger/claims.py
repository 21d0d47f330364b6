"""What HAMburger claims, and the bars that this project sets itself for a model of 3 M parameters."""

from shoestring.systems.card import Claim

JSON, PROSE = "JSON records", "Shakespeare"
LEVELS = (0.9, 0.8, 0.7, 0.6, 0.5)
"""Of confidence."""
CONFIDENCE = 0.8
SETTING = (
    "TinyLM, 6 layers of width 192 and 2 micro layers, trained on to emit groups; baseline: the same base "
    f"trained on for as many steps without groups; held-out prompts, greedy, confidence {CONFIDENCE}"
)


def _compression(text: str, bar: float) -> Claim:
    return Claim(
        text="one slot of the cache, and one pass through the base, holds several tokens",
        figure="up to 2x less",
        setting=f"{SETTING}; tokens of the response for each pass, which is what the cache shrinks by",
        metric=f"tokens per slot of the response, {text}",
        kind="memory",
        unit="",
        better="higher",
        paper_ratio=2.0,
        bar=bar,
        bar_on="value",
    )


COMPRESSION = {JSON: _compression(JSON, 1.6), PROSE: _compression(PROSE, 1.1)}
BYTES = Claim(
    text="less to store",
    figure="up to 2x less",
    setting=f"{SETTING}; keys, values and tables of prompt and response together, as allocated",
    metric="cache of a text, JSON records",
    kind="memory",
    unit="B",
    better="lower",
)
FIELDS = Claim(
    text="nothing is lost at a high confidence",
    figure="GSM8K .418 against .384 at 0.9, .382 at 0.8",
    setting=f"{SETTING}; share of the fields of held-out records that are exactly right",
    metric="fields that are right, JSON records",
    kind="quality",
    unit="%",
    better="higher",
    bar=-2.0,
    bar_on="difference",
)
SPEED = Claim(
    text="tokens come faster",
    figure="1.52x to 2.20x",
    setting=f"{SETTING}; both through compiled steps, a call for each token or group, with the number of "
    "threads that is best for each; one sequence, prompt not counted",
    metric="tokens a second, JSON records",
    kind="time",
    unit="",
    better="higher",
    paper_ratio=1.65,
    bar=1.25,
)
MONOTONE = Claim(
    text="the confidence trades quality for compression",
    figure="131 % at 0.9 to 183 % at 0.6 (GSM8K)",
    setting=f"{SETTING.rsplit(', ', 1)[0]}; confidence {', '.join(map(str, LEVELS))}, the geometric "
    "mean of the compressions of JSON records and Shakespeare, so that how long each is does not matter; the "
    "smallest ratio of one level's to that of the one before",
    metric="growth of compression with every step of confidence",
    kind="other",
    unit="",
    better="higher",
    bar=1.0,
    bar_on="value",
)
LOSS = Claim(
    text="what is written stays likely",
    figure="-",
    setting=f"{SETTING}; held-out Shakespeare read in groups of the model's own",
    metric="nats per token, Shakespeare",
    kind="quality",
    unit="nats",
    better="lower",
)
_LARGE = "SmolLM2-135M trained on its own continuations of the text, confidence 0.8"
LARGE_COMPRESSION = Claim(
    text="one slot holds several tokens of a real model's text",
    figure="131 % to 183 % (GSM8K)",
    setting=_LARGE,
    metric="tokens per slot of the response, SmolLM2-135M",
    kind="memory",
    unit="",
    better="higher",
    paper_ratio=1.5,
    bar=1.3,
    bar_on="value",
    needs_gpu=True,
)
LARGE_LOSS = Claim(
    text="what a real model writes stays likely under its base",
    figure="-",
    setting=f"{_LARGE}; perplexity of the outputs under the base, against the base's own greedy outputs",
    metric="perplexity of outputs under the base, SmolLM2-135M",
    kind="quality",
    unit="",
    better="lower",
    bar=1.05,
    needs_gpu=True,
)
LARGE_SPEED = Claim(
    text="tokens of a real model come faster",
    figure="1.52x to 2.20x",
    setting=f"{_LARGE}; module by module on the GPU, both",
    metric="tokens a second, SmolLM2-135M",
    kind="time",
    unit="",
    better="higher",
    paper_ratio=1.65,
    bar=1.2,
    needs_gpu=True,
)
CLAIMS = (
    *COMPRESSION.values(), BYTES, FIELDS, SPEED, MONOTONE, LOSS, LARGE_COMPRESSION, LARGE_LOSS, LARGE_SPEED,
)  # fmt: skip

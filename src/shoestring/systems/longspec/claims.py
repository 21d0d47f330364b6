"""What LongSpec claims, and the bars that this project sets itself for SmolLM2-135M on a processor."""

from shoestring.systems.card import Claim

SETTING = (
    "QMSum, GovReport, Multi-News, LCC, RepoBench-P; Vicuna-7B to Llama-3-8B-262k, greedy, trees of 68 nodes "
    "on a GPU; here SmolLM2-135M in float32, chains of 3, 64 tokens behind WikiText prompts of {} tokens"
)
SPEED = "against plain decoding by the same compiled step; both from one reading of the prompt"


def accepted(context: int) -> Claim:
    """Tokens of each pass."""
    return Claim(
        text="each pass of the target gives several tokens",
        figure="~3.5 (summaries), ~4 (code)",
        setting=SETTING.format(context),
        metric=f"tokens per pass, {context} tokens of context",
        kind="other",
        unit="",
        better="higher",
        paper_ratio=3.5,
        bar=2.3,
        bar_on="value",
    )


def speed(context: int) -> Claim:
    """Tokens per second."""
    return Claim(
        text="text comes faster, and is the same",
        figure="up to 2.67x (summaries), 3.26x (code)",
        setting=f"{SETTING.format(context)}; {SPEED}",
        metric=f"tokens per second, {context} tokens of context",
        kind="time",
        unit="",
        better="higher",
        paper_ratio=2.67,
        bar=1.2,
    )


SHORT, LONG = 1024, 4096
ACCEPTED = {context: accepted(context) for context in (SHORT, LONG)}
SPEEDS = {context: speed(context) for context in (SHORT, LONG)}
LONGER_NO_WORSE = Claim(
    text="a longer context takes nothing from the gain",
    figure="speed-up holds from 4k to 32k",
    setting="the ratio of tokens per second behind 4096 tokens over that behind 1024",
    metric="gain at 4096 tokens over gain at 1024",
    kind="time",
    unit="",
    better="higher",
    bar=1.0,
)
LOOKUP = Claim(
    text="a trained draft against looking up what followed the last few tokens before",
    figure="-",
    setting=SETTING.format(LONG) + "; the other draft is prompt lookup of measured length",
    metric=f"tokens per second against prompt lookup, {LONG} tokens of context",
    kind="time",
    unit="",
    better="higher",
)
PACKED = Claim(
    text="the same with packed weights of 4 bits, whose plain step is the fastest there is here",
    figure="-",
    setting="SmolLM2-135M as its file stores it, inputs in int8; chains of measured length, or none",
    metric=f"tokens per second with packed weights, {SHORT} tokens of context",
    kind="time",
    unit="",
    better="higher",
)
DRAFT_BYTES = Claim(
    text="the draft's cache does not grow with the context",
    figure="constant",
    setting="behind 4096 tokens, against one layer with a full cache; the target's last layer is not copied",
    metric="bytes of the draft's cache at 4096 tokens",
    kind="memory",
    unit="B",
    better="lower",
    bar=0.16,
)
HYBRID = Claim(
    text="the text without a mask and the tree with one, merged, is faster than one masked attention",
    figure="12.54 ms against 49.92 ms",
    setting="attention of a whole step of an 8B model on a GPU; here one layer of 9 heads of 64, 17 nodes "
    "behind 4096 tokens, against an explicit softmax with an additive mask on these rows",
    metric="time of tree attention",
    kind="time",
    unit="s",
    better="lower",
    paper_ratio=12.54 / 49.92,
    bar=0.9,
)
HYBRID_FUSED = Claim(
    text="and against the fused kernel with a mask over all keys",
    figure="-",
    setting="as above; torch's kernel for CPUs, on keys that lie in one piece",
    metric="time of tree attention, against the fused kernel with a mask",
    kind="time",
    unit="s",
    better="lower",
)
REPETITIVE = Claim(
    text="a copy of the target's last layer drafts after a minute of training",
    figure="-",
    setting="60 s of training from the copy; greedy text behind a passage said three times; full effort",
    metric="tokens per pass on repetitive text, after a minute of training",
    kind="other",
    unit="",
    better="higher",
    bar=1.3,
    bar_on="value",
)
GPU_SPEED = Claim(
    text="trees of the paper's shape on a GPU",
    figure="up to 3.26x",
    setting="16k to 32k tokens of context; here as many as the target has positions for",
    metric="tokens per second on a GPU, trees of 68 nodes",
    kind="time",
    unit="",
    better="higher",
    paper_ratio=3.26,
    bar=1.8,
    needs_gpu=True,
)

CLAIMS = (
    *ACCEPTED.values(),
    *SPEEDS.values(),
    LONGER_NO_WORSE,
    LOOKUP,
    PACKED,
    DRAFT_BYTES,
    HYBRID,
    HYBRID_FUSED,
    REPETITIVE,
    GPU_SPEED,
)

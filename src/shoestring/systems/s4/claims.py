"""What S4 claims, and the bars that this project sets itself on two cores."""

from shoestring.systems.card import Claim

FEATURES, D_STATE, TAPS = 64, 64, 4096
LAYERS, WIDTH, BATCH, TOKENS, CONTEXT = 4, 128, 16, 2048, 8192
DELAY_STEPS = 1000
_MODEL = f"{LAYERS} layers of width {WIDTH}, batch {BATCH}, as many parameters in both, untrained"
_TAPS = f"{FEATURES} features, state {D_STATE}, {TAPS} taps"

KERNEL_TIME = Claim(
    text="the kernel is computed much faster than by powers of the state matrix",
    figure="30x",
    setting=f"LSSL at state 512, GPU (unconfirmed); bar: {_TAPS}, forward, beside one dense step a tap",
    metric="time of the taps",
    kind="time",
    unit="s",
    better="lower",
    paper_ratio=1 / 30,
    bar=1 / 5,
)
KERNEL_MEMORY = Claim(
    text="and in much less memory",
    figure="400x less",
    setting=f"as above (unconfirmed); bar: {_TAPS}, forward and backward",
    metric="peak bytes of the taps and their gradient",
    kind="memory",
    unit="B",
    better="lower",
    paper_ratio=1 / 400,
    bar=0.1,
)
GENERATION = Claim(
    text="as a recurrence it generates text much faster than a Transformer",
    figure="60x",
    setting="WikiText-103, a large model on a GPU, 48 K against 0.8 K tokens/s without a cache; bar: "
    f"{_MODEL}, {TOKENS} tokens, without a cache",
    metric=f"time of {TOKENS} tokens, no KV cache",
    kind="time",
    unit="s",
    better="lower",
    paper_ratio=1 / 60,
    bar=1 / 10,
)
CACHED_GENERATION = Claim(
    text="also beside a Transformer that keeps its keys and values",
    figure="no figure: our own",
    setting=f"bar: {_MODEL}, at a context of {CONTEXT}",
    metric=f"time of a token, KV cache of {CONTEXT}",
    kind="time",
    unit="s",
    better="lower",
    bar=1 / 2,
)
STATE = Claim(
    text="its memory at generation is constant",
    figure="constant",
    setting=f"bar: {_MODEL}, its state beside a cache of {CONTEXT} tokens",
    metric="bytes of the state",
    kind="memory",
    unit="B",
    better="lower",
    bar=0.01,
)
FLAT = Claim(
    text="and so is its time per token",
    figure="constant",
    setting="bar: after 2000 tokens against after 100",
    metric="time of a token after 2000 tokens",
    kind="time",
    unit="s",
    better="lower",
    bar=1.2,
)
AS_TRANSFORMER = Claim(
    text="it reads pictures pixel by pixel better than a Transformer",
    figure="91.13 % on sequential CIFAR-10",
    setting="d = 512, 200 epochs on a GPU; bar: Fashion-MNIST of 14 x 14 pixels (28 x 28 at full), 6,000 "
    "pictures, as many parameters, the same wall-clock",
    metric="accuracy, pixel by pixel, beside a Transformer",
    kind="quality",
    unit="%",
    better="higher",
    bar=2.0,
    bar_on="difference",
)
AS_GRU = Claim(
    text="and than a gated recurrent network",
    figure="91.13 % on sequential CIFAR-10",
    setting="as above",
    metric="accuracy, pixel by pixel, beside a GRU",
    kind="quality",
    unit="%",
    better="higher",
    bar=0.0,
    bar_on="difference",
)
HIPPO = Claim(
    text="HiPPO is what lets it remember",
    figure="random matrices lose up to 15 points on sequential CIFAR-10",
    setting=f"bar: a signal repeated after half of {DELAY_STEPS} steps, beside a random stable matrix",
    metric="share of a delayed signal explained",
    kind="quality",
    unit="%",
    better="higher",
    bar=0.0,
    bar_on="difference",
)
CLAIMS = (
    KERNEL_TIME, KERNEL_MEMORY, GENERATION, CACHED_GENERATION, STATE, FLAT, AS_TRANSFORMER, AS_GRU, HIPPO,
)  # fmt: skip

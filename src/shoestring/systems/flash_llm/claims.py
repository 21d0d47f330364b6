"""What the paper on Flash-LLM claims, and the bars that this project sets itself."""

from shoestring.numbers.bitmap_matrix import bitmap_bits_per_entry
from shoestring.systems.card import Claim

ROW_STARTS = 1.005
"""Room for row starts and padding beside the bits of masks and values."""
PAPER_SPEEDUP = {0.7: 1.4, 0.8: 1.7, 0.9: 2.1}
"""Over cuBLAS on tensor cores, by sparsity."""


def time_metric(sparsity: float, tokens: int) -> str:
    return f"time, {tokens} {'token' if tokens == 1 else 'tokens'}, {sparsity:.0%} zeros"


def csr_metric(sparsity: float) -> str:
    return f"time beside CSR, 1 token, {sparsity:.0%} zeros"


def bytes_metric(sparsity: float) -> str:
    return f"stored bytes, {sparsity:.0%} zeros"


def _time_claim(sparsity: float, tokens: int, speedup: float) -> Claim:
    return Claim(
        text="a product with unstructured zeros is faster than the dense one",
        figure=f"{PAPER_SPEEDUP[sparsity]}x",
        setting="A100, shapes of LLMs, 8 to 64 tokens, against cuBLAS; bar: the better of torch's float32 "
        "and bfloat16 on a CPU, 8192 x 4096",
        metric=time_metric(sparsity, tokens),
        kind="time",
        unit="s",
        better="lower",
        paper_ratio=1 / PAPER_SPEEDUP[sparsity],
        bar=1 / speedup,
    )


def _csr_claim(sparsity: float, speedup: float) -> Claim:
    return Claim(
        text="at the sparsity of pruned language models it beats kernels that compute sparsely",
        figure="2.9x over Sputnik on average",
        setting="A100, 70 to 90 % zeros; bar: our own CSR kernel with 16-bit columns",
        metric=csr_metric(sparsity),
        kind="time",
        unit="s",
        better="lower",
        paper_ratio=1 / 2.9,
        bar=1 / speedup,
    )


def _bytes_claim(sparsity: float) -> Claim:
    return Claim(
        text="zeros are not stored",
        figure=f"{1 / (2 * (1 - sparsity)):.3g}x smaller (Tiled-CSL)",
        setting="against 16-bit dense; bar: 1 + 16 (1 − s) bits an entry, row starts and padding besides",
        metric=bytes_metric(sparsity),
        kind="storage",
        unit="B",
        better="lower",
        paper_ratio=2 * (1 - sparsity),
        bar=ROW_STARTS * bitmap_bits_per_entry(sparsity) / 16,
    )


TIMES = {
    (sparsity, tokens): _time_claim(sparsity, tokens, speedup)
    for sparsity, tokens, speedup in (
        (0.7, 1, 1.5),
        (0.8, 1, 1.8),
        (0.9, 1, 2.2),
        (0.8, 8, 1.3),
        (0.9, 8, 1.5),
    )
}
BESIDE_CSR = {0.5: _csr_claim(0.5, 2.0), 0.7: _csr_claim(0.7, 1.2)}
BYTES = {sparsity: _bytes_claim(sparsity) for sparsity in (0.5, 0.7, 0.8, 0.9)}
FORMULA = Claim(
    text="the size follows from shape and sparsity alone",
    figure="exact",
    setting="masks, values, row starts, 64 bytes of padding",
    metric="stored bytes off the size formula",
    kind="storage",
    unit="B",
    better="lower",
    bar=0,
    bar_on="value",
)
DECODING = Claim(
    text="a pruned model decodes faster than the dense one",
    figure="up to 3.8x tokens per GPU-second",
    setting="OPT-30B to 175B at 80 %, against DeepSpeed; bar: SmolLM2-135M at 70 %, head and table dense, "
    "against dense bfloat16 through the same compiled step",
    metric="time of a token, 70 % zeros",
    kind="time",
    unit="s",
    better="lower",
    paper_ratio=1 / 3.8,
    bar=1 / 1.3,
)
SAME_TEXT = Claim(
    text="the sparse kernels compute what the dense model with the same zeros does",
    figure="exact",
    setting="greedy text, float32 activations",
    metric="greedy tokens that differ from the masked dense model",
    kind="quality",
    unit="",
    better="lower",
    bar=0,
    bar_on="value",
)
WANDA_QUALITY = Claim(
    text="half of the weights can go at once, without training",
    figure="no figure (the paper prunes to 80 % with fine-tuning)",
    setting="SmolLM2-135M, Wanda, held-out text; 70 % and more need recovery tuning",
    metric="perplexity, Wanda, 50 % zeros",
    kind="quality",
    unit="",
    better="lower",
    bar=2.1,
)
WANDA_AGAINST_MAGNITUDE = Claim(
    text="what the weights multiply tells more than how large they are",
    figure="no figure",
    setting="as above, against the smallest weights of each layer",
    metric="perplexity, Wanda against magnitude, 50 % zeros",
    kind="quality",
    unit="",
    better="lower",
    bar=0.25,
)
CLAIMS = (
    *TIMES.values(), *BESIDE_CSR.values(), *BYTES.values(), FORMULA, DECODING, SAME_TEXT, WANDA_QUALITY,
    WANDA_AGAINST_MAGNITUDE,
)  # fmt: skip

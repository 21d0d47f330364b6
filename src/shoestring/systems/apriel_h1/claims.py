"""What Apriel-H1 claims, and the bars of this project.

Source: ServiceNow 2025, "Apriel-H1: Towards Efficient Enterprise Reasoning Models", article and slides.
"""

from shoestring.systems.card import Claim

RATE_60 = Claim(
    text="30 of 50 layers with states instead of keys and values: over twice the tokens a second",
    figure="2.1x",
    setting="vLLM, one GPU, outputs of 1-16k tokens; here 18 of 30 layers of SmolLM2-135M's shape, batch 8, "
    "context 8192, caches of noise, time of a token",
    metric="time of a token, 60 % Mamba, against attention",
    kind="time",
    unit="s",
    better="lower",
    paper_ratio=1 / 2.1,
    bar=1 / 1.8,
)
RATE_80 = Claim(
    text="40 of 50 layers: 3.4 times",
    figure="3.4x",
    setting="as above; here 24 of 30 layers",
    metric="time of a token, 80 % Mamba, against attention",
    kind="time",
    unit="s",
    better="lower",
    paper_ratio=1 / 3.4,
    bar=1 / 2.5,
)
RATE_CALL = Claim(
    text="a hybrid in one compiled call, as attention, instead of module by module",
    figure="none",
    setting="18 of 30 layers, batch 8, context 8192; the same model and cache",
    metric="time of a token, 60 % Mamba, against module by module",
    kind="time",
    unit="s",
    better="lower",
)
RATE_SHORT = Claim(
    text="the gain grows with the context",
    figure="1.89-2.09x by context",
    setting="18 of 30 layers, batch 8, context 2048",
    metric="time of a token at a quarter of the context",
    kind="time",
    unit="s",
    better="lower",
    paper_ratio=1 / 1.89,
)
RATE_SINGLE = Claim(
    text="and with the batch",
    figure="none",
    setting="18 of 30 layers, batch 1, context 8192",
    metric="time of a token of a single sequence",
    kind="time",
    unit="s",
    better="lower",
)
KEYS = Claim(
    text="only layers with attention hold keys and values",
    figure="20 of 50 layers",
    setting="18 of 30 layers with states, batch 8, context 8192; bar: 0.4 and 2 %",
    metric="bytes of keys and values",
    kind="memory",
    unit="B",
    better="lower",
    paper_ratio=0.4,
    bar=0.4 * 1.02,
)
CACHE = Claim(
    text="states are small beside them",
    figure="none",
    setting="the whole cache, states and tables included",
    metric="bytes of the cache",
    kind="memory",
    unit="B",
    better="lower",
)
HYBRID = Claim(
    text="half of the layers converted cost little quality",
    figure="average score .75 of .80 (H-25)",
    setting="reasoning benchmarks; here a teacher of 6 layers on Shakespeare's characters, 3 converted, "
    "nats a character held out",
    metric="loss of the hybrid, against the teacher",
    kind="quality",
    unit="",
    better="lower",
    bar=0.10,
    bar_on="difference",
)
ORDER = Claim(
    text="leaving layers out one by one tells which to convert",
    figure="qualitative",
    setting="3 of 6 layers, equal steps; the least important against the most important",
    metric="loss, converted by importance, against the worst order",
    kind="quality",
    unit="",
    better="lower",
    bar=0.0,
    bar_on="difference",
)
ORDER_RANDOM = Claim(
    text="the same against any order",
    figure="none",
    setting="as above, three layers drawn by the seed",
    metric="loss, converted by importance, against a random order",
    kind="quality",
    unit="",
    better="lower",
)
STAGED = Claim(
    text="converting in stages with probes beats converting at once",
    figure="qualitative",
    setting="3, 4, 5 of 6 layers in stages against 5 at once, equal steps of distillation, no batch twice",
    metric="loss, in stages, against at once",
    kind="quality",
    unit="",
    better="lower",
    bar=0.0,
    bar_on="difference",
)
WARM_START = Claim(
    text="mixers that start from attention's weights learn faster",
    figure="qualitative",
    setting="3 of 6 layers, equal steps",
    metric="loss, from attention's weights, against random ones",
    kind="quality",
    unit="",
    better="lower",
    bar=0.01,
    bar_on="difference",
)
DIRECTION = Claim(
    text="reverse divergence, for a student that keeps off what the teacher rules out",
    figure="qualitative",
    setting="3 of 6 layers, equal steps; a teacher this small is not confident, so no bar",
    metric="loss, reverse against forward divergence",
    kind="quality",
    unit="",
    better="lower",
)
FAMILY = {
    share: Claim(
        text=f"the family: {figure}",
        figure=figure,
        setting=f"SmolLM2-135M with {share} % of its attention replaced in stages, held-out text, full run",
        metric=f"perplexity, {share} % Mamba, against the teacher",
        kind="quality",
        unit="",
        better="lower",
    )
    for share, figure in ((25, "not published"), (50, ".75 of .80 (H-25)"), (75, ".69 of .80 (H-37)"))
}
RECALL = {
    share: Claim(
        text="recall survives, which perplexity would not show",
        figure="qualitative",
        setting=f"{share} % Mamba; repeated random tokens got right the second time, full run",
        metric=f"tokens recalled, {share} % Mamba",
        kind="quality",
        unit="%",
        better="higher",
    )
    for share in FAMILY
}
AVERAGE = Claim(
    text="after distillation and tuning the 30 of 50 hybrid scores as the teacher",
    figure=".78 of .80",
    setting="Apriel-Nemotron-15B-Thinker, average of reasoning benchmarks, 76.8B tokens",
    metric="average score of H-30 after tuning",
    kind="quality",
    unit="",
    better="higher",
    paper_ratio=0.78 / 0.80,
    needs_gpu=True,
)

CLAIMS = (
    RATE_60, RATE_80, RATE_CALL, RATE_SHORT, RATE_SINGLE, KEYS, CACHE, HYBRID, ORDER, ORDER_RANDOM,
    STAGED, WARM_START, DIRECTION, *FAMILY.values(), *RECALL.values(), AVERAGE,
)  # fmt: skip

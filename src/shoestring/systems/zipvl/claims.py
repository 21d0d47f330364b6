"""What ZipVL claims, and the bars that this project sets itself for SmolLM2-135M on a processor."""

from shoestring.systems.card import Claim

MODEL = "SmolLM2-135M on text"

OPERATOR_HALF = Claim(
    text="attention among the important tokens saves more than it costs to find them",
    figure="-77 to -82 % attention FLOPs",
    setting="LongVA-7B; here probe, choice and gathered attention of layers 5, 15 and 25 on real queries, "
    "keys and values of 4096 tokens, half of them kept, against causal SDPA on all",
    metric="time of attention, half of the tokens",
    kind="time",
    unit="s",
    better="lower",
    bar=1 / 2.0,
)
OPERATOR_OWN = Claim(
    text="the same with as many tokens as each layer needs, tau 0.975",
    figure="-77 to -82 % attention FLOPs",
    setting="as above; speed-up, mean over the three layers",
    metric="speed-up of attention, tau 0.975",
    kind="time",
    unit="",
    better="higher",
    bar=1.8,
)
PREFILL = Claim(
    text="prompts are read faster",
    figure="2.6x",
    setting="LongVA-7B at 128K tokens on a GPU; here a prompt of 2048, where attention is a quarter of the "
    "work, so that 1.25x is the most that sparse attention can give",
    metric="time of a prompt of 2048 tokens",
    kind="time",
    unit="s",
    better="lower",
    paper_ratio=1 / 2.6,
    bar=1 / 1.1,
)


def _needle(against: str, setting: str) -> Claim:
    return Claim(
        text=f"the adaptive choice keeps more of what is asked for than {against}",
        figure="52.4 against 51.1 (fixed ratio)",
        setting=f"Video-MME, LongVA-7B; here a code hidden in 1 to 2 thousand tokens, log-probability of its "
        f"digits; {setting}",
        metric=f"log-probability of the answer, against {against}",
        kind="quality",
        unit="nats",
        better="higher",
        bar=0,
        bar_on="difference",
    )


FIXED = _needle("a fixed ratio", "the same share of tokens in every layer, of the same mean for each prompt")
CHANCE = _needle("tokens by chance", "as many in each layer")
UPSIDE_DOWN = _needle("the ranking upside down", "as many in each layer")

BYTES = Claim(
    text="the cache shrinks to a quarter",
    figure="6.18x",
    setting="LLaMA3-8B on GSM8K, 28.6 % important; here prompts of 1024 tokens, tau 0.975, 4 and 2 bits, "
    "scales and tables included, against float16",
    metric="bytes of the KV cache",
    kind="memory",
    unit="B",
    better="lower",
    paper_ratio=1 / 6.18,
    bar=0.25,
)
TIERS = Claim(
    text="tiers alone cost little",
    figure="54.06 of 55.88 (GSM8K)",
    setting="LLaMA3-8B; here dense attention in the prompt, 64 tokens decoded behind it, pooled over windows",
    metric="perplexity, tiers alone",
    kind="quality",
    unit="",
    better="lower",
    bar=1.30,
)
TIERS_CHANCE = Claim(
    text="which tokens get more bits matters",
    figure="-",
    setting="the same windows, tiers of equal size by chance",
    metric="perplexity, tiers alone, against tiers by chance",
    kind="quality",
    unit="",
    better="lower",
    bar=1.0,
)

CLAIMS = (OPERATOR_HALF, OPERATOR_OWN, PREFILL, FIXED, CHANCE, UPSIDE_DOWN, BYTES, TIERS, TIERS_CHANCE)

"""What a small cache costs in quality: continuations and needles, MPCache against rivals with an equal
budget.

A prompt is read once, densely; every policy then works on its own copy of the cache.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from shoestring.data.needles import RecallPrompt
from shoestring.generation.clusters import ClusterOptions, RandomScores
from shoestring.generation.decoder_runner import decoder_cache
from shoestring.generation.evicting_cache import ByImportance, ByRecency, CachePolicy, Evicting
from shoestring.generation.importance import ColumnImportance
from shoestring.generation.mpcache import KeepShare, LastQueries, MPCache
from shoestring.generation.slot_cache import SlotCache
from shoestring.models.decoder import Decoder
from shoestring.models.decoder_step import Want
from shoestring.systems.mpcache.claims import AGAINST, NEEDLE, PERPLEXITY, RIVALS
from shoestring.yardstick.comparison import Number, Row
from shoestring.yardstick.decode_quality import decoded_scores

SINKS = 4


@dataclass(frozen=True)
class Prompted:
    """A prompt that has been read: its cache with column sums, its last queries, the logits that follow."""

    model: Decoder
    cache: SlotCache
    queries: LastQueries
    logits: Float[Tensor, "1 vocab"]

    @classmethod
    def read(cls, model: Decoder, ids: Sequence[int]) -> "Prompted":
        """Read a prompt."""
        cache, queries, sums = decoder_cache(model, capacity=len(ids) + 8), LastQueries(), ColumnImportance()
        sums.start(cache)
        with torch.inference_mode():
            out = model(
                torch.tensor([list(ids)]), cache=cache, hooks=(queries, sums), want=Want(logits="last")
            )
        assert out.logits is not None
        return cls(model, cache, queries, out.logits[:, -1])


class Continued:
    """Decoding behind a prompt that has been read, under a policy; a `Feeder` whose first feed is the
    prompt."""

    def __init__(self, prompted: Prompted, policy: CachePolicy | None) -> None:
        self.prompted, self.policy, self.cache = prompted, policy, prompted.cache.clone()
        self._started = False
        if policy is not None:
            policy.start(self.cache)

    def feed(self, ids: Int[Tensor, "1 n"]) -> Float[Tensor, "1 vocab"]:
        """The logits that follow."""
        if not self._started:
            self._started = True
            return self.prompted.logits
        hooks = () if self.policy is None else self.policy.hooks
        out = self.prompted.model(ids, cache=self.cache, hooks=hooks, want=Want(logits="last"))
        assert out.logits is not None
        if self.policy is not None:
            self.policy.after_step(self.cache)
        return out.logits[:, -1]

    def prompt_is_read(self) -> None:
        """The policy evicts."""
        if self.policy is not None:
            self.policy.after_prefill(self.cache)


@dataclass
class Losses:
    """Nats a token, and whether greedy decoding gives it all, of each window or needle; tokens that MPCache
    read at a step, per layer."""

    nll: list[float]
    hits: list[bool]
    read: list[float]

    @property
    def mean(self) -> float:
        """Over all of them."""
        return sum(self.nll) / len(self.nll)


OURS, PAIRS, DENSE = "ours", "pairs", "dense"


def losses(
    model: Decoder,
    tasks: Sequence[tuple[Sequence[int], Sequence[int]]],
    seed: int,
    *,
    clusters: ClusterOptions,
    static: KeepShare,
    pairs: bool,
) -> dict[str, Losses]:
    """Of each policy on (prompt, tokens that follow). pairs: also with a choice shared by two layers."""
    found: dict[str, Losses] = {}
    for prompt, tokens in tasks:
        prompted = Prompted.read(model, prompt)

        ours = MPCache(static, clusters, queries=prompted.queries)
        read = _judge(found, OURS, prompted, ours, tokens)
        rivals: dict[str, CachePolicy | None] = {DENSE: None, **_evicting(max(SINKS + 1, round(read)))}
        chance = RandomScores(seed)
        rivals["chance"] = MPCache(static, clusters, scorer=chance, queries=prompted.queries)
        if pairs:
            rivals[PAIRS] = MPCache(static, clusters, layer_group=2, queries=prompted.queries)
        for name, policy in rivals.items():
            _judge(found, name, prompted, policy, tokens)
    return found


def _evicting(budget: int) -> dict[str, CachePolicy]:
    """Rivals that hold as many tokens as MPCache reads."""
    return {
        "h2o": Evicting(ByImportance(), budget, protect_last=budget // 2),
        "sinks": Evicting(ByRecency(), budget, protect_first=SINKS),
        "window": Evicting(ByRecency(), budget),
    }


def _judge(
    found: dict[str, Losses], name: str, prompted: Prompted, policy: CachePolicy | None, tokens: Sequence[int]
) -> float:
    """Decode the tokens under a policy; tokens read at a step."""
    scores = decoded_scores(Continued(prompted, policy), [0], tokens)
    wanted = torch.tensor(list(tokens))
    entry = found.setdefault(name, Losses([], [], []))
    entry.nll.append(-scores.gather(1, wanted[:, None]).double().mean().item())
    entry.hits.append(bool((scores.argmax(1) == wanted).all()))
    steps = max(1, len(tokens) - 1) * prompted.cache.n_layers
    # A step also reads the token itself.
    entry.read.append(policy.attended / steps + 1 if isinstance(policy, MPCache) else math.nan)
    return entry.read[-1]


def text_rows(found: Mapping[str, Losses], prompt_tokens: int) -> list[Row]:
    """Rows of the continuations."""
    perplexity = {name: math.exp(losses.mean) for name, losses in found.items()}
    ours, dense = perplexity[OURS], perplexity[DENSE]
    rows = [PERPLEXITY.row(baseline=dense, method=ours)]
    rows += [
        AGAINST[name].row(baseline=perplexity[name], method=ours, against=RIVALS[name]) for name in RIVALS
    ]
    rows += [_perplexity(f"perplexity, {RIVALS[name]}", dense, perplexity[name]) for name in RIVALS]
    if PAIRS in perplexity:
        rows.append(_perplexity("perplexity, choice shared by two layers", dense, perplexity[PAIRS]))
    read = sum(found[OURS].read) / len(found[OURS].read)
    rows.append(
        Row(metric="tokens read at a step", kind="memory", unit="", better="lower", baseline=prompt_tokens,
            method=read)
    )  # fmt: skip
    return rows


def needle_rows(found: Mapping[str, Losses]) -> list[Row]:
    """Rows of the needles."""
    rows = [
        NEEDLE[name].row(baseline=found[name].mean, method=found[OURS].mean, against=RIVALS[name])
        for name in RIVALS
    ]
    for name in (OURS, *RIVALS):
        title = RIVALS.get(name, "MPCache")
        rows.append(
            Row(metric=f"needles found, {title}", kind="quality", unit="", better="higher",
                baseline=_rate(found[DENSE]), method=_rate(found[name]))
        )  # fmt: skip
    return rows


def as_tasks(prompts: Sequence[RecallPrompt]) -> list[tuple[Sequence[int], Sequence[int]]]:
    """Needles as (prompt, answer)."""
    return [(prompt.prompt, prompt.answer) for prompt in prompts]


def _perplexity(metric: str, baseline: Number, method: Number) -> Row:
    return Row(metric=metric, kind="quality", unit="", better="lower", baseline=baseline, method=method)


def _rate(losses: Losses) -> float:
    return sum(losses.hits) / len(losses.hits)

"""Choose the next token from logits: repetition penalty, temperature, top-k, top-p, min-p, then one draw.

The steps and their order are those of the transformers library, so that the same settings mean the same
distribution; the steps a setting leaves out cost nothing.

Source: Keskar et al. 2019, "CTRL", section 4.1 (penalty); Fan et al. 2018, "Hierarchical Neural Story
Generation", section 5.4 (top-k); Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration",
section 3.1 (top-p); Nguyen et al. 2024, "Min-p Sampling", section 3.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen; the default is greedy.

    temperature: 0 chooses the likeliest token, larger divides the logits. top_k: keep the k likeliest tokens
    (0: all). top_p: keep the smallest set of likeliest tokens that holds this much probability (1: all).
    min_p: keep tokens at least this fraction as likely as the likeliest (0: all). repetition_penalty: divides
    positive and multiplies negative logits of tokens that already occur (1: none).

    Raises: ValueError for a value outside its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature={self.temperature} must be 0 (greedy) or a positive number.")
        if self.top_k < 0:
            raise ValueError(f"top_k={self.top_k} must be 0 (no limit) or a number of tokens.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} must be above 0 and at most 1.")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p={self.min_p} must be between 0 and 1.")
        if not (math.isfinite(self.repetition_penalty) and self.repetition_penalty > 0):
            raise ValueError(
                f"repetition_penalty={self.repetition_penalty} must be a positive number; 1 is none."
            )

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always chosen."""
        return self.temperature == 0

    def scores(
        self, logits: Float[Tensor, "batch vocab"], seen: Int[Tensor, "batch tokens"] | None = None
    ) -> Float[Tensor, "batch vocab"]:
        """The logits after every step of these settings; tokens that may not be drawn are −inf.

        seen: the ids so far (prompt and output), needed with a repetition penalty only; ids outside the
        vocabulary (padding with −1) are ignored. Raises: ValueError if `seen` is needed and missing.
        """
        if self.repetition_penalty != 1:
            if seen is None:
                raise ValueError("repetition_penalty needs the tokens seen so far; pass seen=.")
            logits = penalise_repetition(logits, seen, self.repetition_penalty)
        if self.greedy:
            return logits
        logits = logits / self.temperature
        if self.top_k:
            logits = keep_top_k(logits, self.top_k)
        if self.top_p < 1:
            logits = keep_top_p(logits, self.top_p)
        return keep_min_p(logits, self.min_p) if self.min_p > 0 else logits

    def choose(
        self,
        logits: Float[Tensor, "batch vocab"],
        seen: Int[Tensor, "batch tokens"] | None = None,
        generator: torch.Generator | None = None,
    ) -> Int[Tensor, " batch"]:
        """The next token of each row; drawn with `generator` unless greedy.

        Raises: ValueError if a draw has no generator, or if the logits hold NaN.
        """
        scores = self.scores(logits, seen)
        if self.greedy:
            # max takes NaN for the largest, so one look at the winner finds any.
            largest, token = scores.max(-1)
            if any(map(math.isnan, largest.tolist())):
                raise ValueError("the logits hold NaN; no token can be chosen from them.")
            return token
        if generator is None:
            raise ValueError("a draw needs a generator; pass generator=torch.Generator().manual_seed(…).")
        probabilities = scores.float().softmax(-1)
        if torch.isnan(probabilities).any():
            raise ValueError("the logits hold NaN or are all −inf; no token can be drawn from them.")
        return torch.multinomial(probabilities, 1, generator=generator)[:, 0]


def penalise_repetition(
    logits: Float[Tensor, "batch vocab"], seen: Int[Tensor, "batch tokens"], penalty: float
) -> Float[Tensor, "batch vocab"]:
    """Make every token in `seen` less likely (penalty above 1), once however often it occurs."""
    vocab = logits.shape[-1]
    inside = (seen >= 0) & (seen < vocab)
    occurs = torch.zeros(logits.shape[0], vocab + 1, dtype=torch.bool, device=logits.device)
    occurs.scatter_(1, torch.where(inside, seen, vocab).long(), True)
    return torch.where(occurs[:, :vocab], torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def keep_top_k(logits: Float[Tensor, "batch vocab"], k: int) -> Float[Tensor, "batch vocab"]:
    """−inf for all tokens below the k-th largest logit; ties with it stay."""
    smallest = logits.topk(min(k, logits.shape[-1]), dim=-1).values[:, -1:]
    return logits.masked_fill(logits < smallest, -torch.inf)


def keep_top_p(logits: Float[Tensor, "batch vocab"], p: float) -> Float[Tensor, "batch vocab"]:
    """−inf for tokens outside the smallest set of likeliest ones whose probabilities sum to p or more."""
    ascending, order = logits.sort(dim=-1)
    # A token goes if it and all less likely ones together hold at most 1 − p; the likeliest always stays.
    gone = ascending.softmax(-1).cumsum(-1) <= 1 - p
    gone[:, -1] = False
    return logits.masked_fill(torch.empty_like(gone).scatter_(1, order, gone), -torch.inf)


def keep_min_p(logits: Float[Tensor, "batch vocab"], p: float) -> Float[Tensor, "batch vocab"]:
    """−inf for all tokens less than p times as likely as the likeliest."""
    probabilities = logits.softmax(-1)
    return logits.masked_fill(probabilities < p * probabilities.amax(-1, keepdim=True), -torch.inf)


def naive_scores(sampling: Sampling, logits: list[float], seen: list[int]) -> list[float]:
    """`Sampling.scores` of one row, token by token: the meaning of the settings."""
    scores = list(logits)
    for token in set(seen):
        if 0 <= token < len(scores):
            penalty = sampling.repetition_penalty
            scores[token] = scores[token] * penalty if scores[token] < 0 else scores[token] / penalty
    if sampling.greedy:
        return scores
    scores = [s / sampling.temperature for s in scores]
    if sampling.top_k:
        bound = sorted(scores, reverse=True)[min(sampling.top_k, len(scores)) - 1]
        scores = [s if s >= bound else -math.inf for s in scores]
    if sampling.top_p < 1:
        probabilities, held, kept = _softmax(scores), 0.0, set()
        for token in sorted(range(len(scores)), key=lambda t: -scores[t]):
            if held >= sampling.top_p:
                break
            held += probabilities[token]
            kept.add(token)
        scores = [s if t in kept else -math.inf for t, s in enumerate(scores)]
    probabilities = _softmax(scores)
    bound = sampling.min_p * max(probabilities)
    return [s if q >= bound else -math.inf for s, q in zip(scores, probabilities, strict=True)]


def _softmax(scores: list[float]) -> list[float]:
    largest = max(scores)
    weights = [math.exp(s - largest) for s in scores]
    return [w / sum(weights) for w in weights]

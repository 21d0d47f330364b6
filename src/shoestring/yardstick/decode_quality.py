"""How well a model predicts while it decodes: a prompt is read, then known tokens are fed one by one.

What changes a cache after the prompt, or step by step, shows here and not in one pass over a text.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor


@runtime_checkable
class Feeder(Protocol):
    """A model and the cache of one sequence, as the runners of `shoestring.generation` are."""

    def feed(self, ids: Int[Tensor, "1 n"]) -> Float[Tensor, "1 vocab"]:
        """Append tokens to the sequence; the logits of the token that follows."""
        ...

    def prompt_is_read(self) -> None:
        """Say that what is fed from now on is decoded tokens."""
        ...


@dataclass(frozen=True)
class DecodeQuality:
    """nll: nats of each token after the prompt, one row per window."""

    nll: Float[Tensor, "windows tokens"]

    @property
    def perplexity(self) -> float:
        """Pooled over all windows and tokens."""
        return math.exp(self.nll.mean().item())

    @property
    def by_window(self) -> list[float]:
        """The perplexity of each window."""
        return self.nll.mean(1).exp().tolist()

    def by_position(self, parts: int) -> list[float]:
        """The perplexity of `parts` stretches of equal length, the nearest to the prompt first.

        Raises: ValueError for more parts than tokens, or fewer than 1.
        """
        if not 1 <= parts <= self.nll.shape[1]:
            raise ValueError(f"parts={parts} must be 1 to {self.nll.shape[1]}, the tokens of a window.")
        return [part.mean().exp().item() for part in self.nll.tensor_split(parts, 1)]


@dataclass(frozen=True)
class RecallQuality:
    """Of each prompt the mean log-probability of the answer's tokens, and whether greedy decoding gives it."""

    log_probability: Float[Tensor, " prompts"]
    hit: tuple[bool, ...]

    @property
    def mean_log_probability(self) -> float:
        """Mean over the prompts, nats a token."""
        return self.log_probability.mean().item()

    @property
    def hit_rate(self) -> float:
        """The share of answers that are right."""
        return sum(self.hit) / len(self.hit)


@runtime_checkable
class Asked(Protocol):
    """A prompt with the one right answer."""

    @property
    def prompt(self) -> Sequence[int]: ...

    @property
    def answer(self) -> Sequence[int]: ...


@torch.inference_mode()
def decoded_scores(feeder: Feeder, prompt: Sequence[int], tokens: Sequence[int]) -> Float[Tensor, "n vocab"]:
    """Log-probabilities at each of `tokens`, fed one by one behind the prompt, which is fed at once.

    Raises: ValueError for an empty prompt, no tokens, or logits that are not finite.
    """
    if not len(prompt) or not len(tokens):
        raise ValueError(f"{len(prompt)} tokens of prompt and {len(tokens)} after it: give at least one each.")
    logits = feeder.feed(torch.tensor([list(prompt)]))
    feeder.prompt_is_read()
    rows = [logits[0]]
    rows += [feeder.feed(torch.tensor([[token]]))[0] for token in list(tokens)[:-1]]
    scores = torch.stack(rows).float()
    if not bool(torch.isfinite(scores).all()):
        raise ValueError("the model's logits are not finite; its weights may be damaged.")
    return scores.log_softmax(-1)


def decode_quality(
    make: Callable[[], Feeder], windows: Int[Tensor, "windows window"], prompt_tokens: int
) -> DecodeQuality:
    """Perplexity by teacher-forced decoding: of each window the first tokens are the prompt.

    make: a new feeder, with an empty cache, for each window.
    Raises: ValueError where the prompt leaves no token of a window, or there is no window.
    """
    if not len(windows) or not 1 <= prompt_tokens < windows.shape[1]:
        raise ValueError(
            f"prompt_tokens={prompt_tokens} of {tuple(windows.shape)} windows must leave a token to predict."
        )
    rows = []
    for window in windows:
        tokens = window[prompt_tokens:]
        scores = decoded_scores(make(), window[:prompt_tokens].tolist(), tokens.tolist())
        rows.append(-scores.gather(1, tokens[:, None])[:, 0].double())
    return DecodeQuality(torch.stack(rows))


def recall_quality(make: Callable[[], Feeder], prompts: Iterable[Asked]) -> RecallQuality:
    """How likely, and how often the likeliest, the answers of prompts are.

    An answer is what greedy decoding gives if each of its tokens is the likeliest behind those before it.
    Raises: ValueError for no prompts or an empty one.
    """
    means, hits = [], []
    for asked in prompts:
        answer = torch.tensor(list(asked.answer), dtype=torch.long)
        scores = decoded_scores(make(), asked.prompt, asked.answer)
        means.append(scores.gather(1, answer[:, None]).double().mean())
        hits.append(bool((scores.argmax(1) == answer).all()))
    if not means:
        raise ValueError("there are no prompts; give at least one.")
    return RecallQuality(torch.stack(means), tuple(hits))

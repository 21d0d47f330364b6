"""How well a model predicts when it decodes sparsely: its loss, or its distance from dense, on text."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.generation.decoder_runner import decoder_cache
from shoestring.layers.row_sparse_linear import row_sparse_layers, sparse_tail
from shoestring.models.decoder import Decoder
from shoestring.models.hooks import Context, Phase
from shoestring.yardstick.language_quality import without_cache


class TailLoss:
    """Mean negative log-likelihood, nats a token, of the tokens that the last `tail` of each window predict.

    The first part of a window is a prompt and goes through dense; the tail is fed as decoded tokens are: by
    masking, all at once, which gives what token by token gives. On a `Decoder` the prompt is run once, when
    this is made, and its keys and values serve every call; the layers must be dense in a prompt, as
    row-sparse ones and hooks that look at the phase are.

    windows: token ids (windows, window). batch: windows run at once.
    Raises: ValueError for a tail that leaves no prompt or predicts nothing.
    """

    def __init__(
        self, model: nn.Module, windows: Int[Tensor, "windows window"], tail: int, batch: int = 4
    ) -> None:
        if not 2 <= tail < windows.shape[1]:
            raise ValueError(f"tail={tail} must be 2 or more, and less than a window of {windows.shape[1]}.")
        self.model, self.tail = model, tail
        self._parts = windows.split(batch)
        self._prompts = [self._prompt(ids) for ids in self._parts] if isinstance(model, Decoder) else None

    @property
    def tokens(self) -> int:
        """Tokens that are predicted."""
        return sum(len(ids) for ids in self._parts) * (self.tail - 1)

    @torch.inference_mode()
    def windows(self, hooks: tuple[object, ...] = ()) -> Float[Tensor, " windows"]:
        """The mean loss of each window. hooks: for a `Decoder`, during the tail."""
        losses = []
        for index, ids in enumerate(self._parts):
            logits = self._tail(index, hooks).float()[:, :-1]
            targets = ids[:, -self.tail + 1 :]
            each = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
            losses.append(each.double().mean(1))
        return torch.cat(losses)

    def __call__(self, hooks: tuple[object, ...] = ()) -> float:
        """The mean over windows; infinite where the model gives no numbers."""
        mean = self.windows(hooks).mean().item()
        return math.inf if math.isnan(mean) else mean

    @torch.inference_mode()
    def _prompt(self, ids: Int[Tensor, "batch window"]) -> tuple[object, object]:
        assert isinstance(self.model, Decoder)
        cache = decoder_cache(self.model, batch=len(ids), capacity=ids.shape[1])
        self.model(ids[:, : -self.tail], cache=cache, ctx=Context(phase=Phase.PREFILL))
        return cache, cache.mark()

    def _tail(self, index: int, hooks: tuple[object, ...]) -> Float[Tensor, "batch tail vocabulary"]:
        ids = self._parts[index]
        sparse = bool(row_sparse_layers(self.model))
        if not isinstance(self.model, Decoder) or self._prompts is None:
            share = self.tail / ids.shape[1]
            if not sparse:
                return self.model(ids, **without_cache(self.model)).logits[:, -self.tail :]
            with sparse_tail(self.model, share):
                return self.model(ids, **without_cache(self.model)).logits[:, -self.tail :]
        cache, mark = self._prompts[index]
        context = Context(phase=Phase.DECODE)
        try:
            if not sparse:
                return self._fed(ids, cache, context, hooks)
            with sparse_tail(self.model, 1.0):
                return self._fed(ids, cache, context, hooks)
        finally:
            cache.rollback(mark)  # type: ignore[attr-defined]

    def _fed(self, ids: Tensor, cache: object, context: Context, hooks: tuple[object, ...]) -> Tensor:
        return self.model(ids[:, -self.tail :], cache=cache, ctx=context, hooks=hooks).logits


class TailDivergence(TailLoss):
    """Mean Kullback-Leibler divergence, nats a token, from the model as it is when this is made.

    What a search over shares is to minimise: every word of the vocabulary counts at every token, where the
    loss of the one word that came is mostly the luck of the text, so that far less text tells two settings
    apart. Source: Kullback and Leibler 1951, "On Information and Sufficiency".

    Arguments and errors are those of `TailLoss`.
    """

    def __init__(
        self, model: nn.Module, windows: Int[Tensor, "windows window"], tail: int, batch: int = 4
    ) -> None:
        super().__init__(model, windows, tail, batch)
        with torch.inference_mode():
            self._wanted = [self._log_p(index, ()) for index in range(len(self._parts))]

    @torch.inference_mode()
    def windows(self, hooks: tuple[object, ...] = ()) -> Float[Tensor, " windows"]:
        """The mean divergence of each window. hooks: for a `Decoder`, during the tail."""
        found = []
        for index, log_p in enumerate(self._wanted):
            log_q = self._log_p(index, hooks)
            found.append((log_p.exp() * (log_p - log_q)).sum(-1).double().mean(1))
        return torch.cat(found)

    def _log_p(self, index: int, hooks: tuple[object, ...]) -> Float[Tensor, "batch tail vocabulary"]:
        return self._tail(index, hooks).float().log_softmax(-1)

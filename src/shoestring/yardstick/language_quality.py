"""How well a language model predicts a text, and how far it has moved from another one.

The protocol is part of every result: windows of fixed length, each `stride` tokens after the last, that begin
with no context; every token of a window but the first `skip` is predicted from those before it, the mean is
over tokens. Results do not depend on how windows are batched. Names follow llama-perplexity: PPL,
ln(PPL ratio), KLD percentiles, RMS Δp, same top p.
"""

import hashlib
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from shoestring.yardstick.paired_difference import CONFIDENCE

Model = nn.Module | Callable[[Tensor], Any]
Progress = Callable[[int, int], None]

TOKENS_AT_ONCE = 512
"""Positions whose log-probabilities over the vocabulary are held in float32 at a time."""

PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)


@dataclass(frozen=True)
class Protocol:
    """What a figure was measured on. `text_sha256` is that of the token ids (int64, little-endian).

    stride: from the start of a window to that of the next. skip: tokens at the start of each window that are
    context alone. tokens: how many were predicted, each once.
    """

    window: int
    stride: int
    windows: int
    tokens: int
    text_sha256: str
    autocast: str | None
    skip: int = 1


@dataclass(frozen=True)
class Perplexity:
    """PPL = exp of the mean negative log-likelihood in nats a token.

    error: standard error of the mean negative log-likelihood, from the means of the windows (tokens within
    a window are not independent). interval: 95 %, of the perplexity. accuracy: share of tokens that the model
    ranks first.
    """

    ppl: float
    nll: float
    error: float
    interval: tuple[float, float]
    accuracy: float
    protocol: Protocol

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Divergence:
    """A model beside its original on the same tokens.

    ln_ratio: ln(PPL / PPL of the original), with its standard error, paired by window. kld: Kullback-Leibler
    divergence of the original's distribution to the model's, nats a token: mean with its standard error,
    percentiles, maximum. rms_dp: root mean square of the change in the probability of the true token.
    same_top: share of tokens where both rank the same token first.
    """

    model: Perplexity
    original: Perplexity
    ln_ratio: float
    ln_ratio_error: float
    kld: float
    kld_error: float
    kld_percentiles: dict[str, float]
    kld_max: float
    rms_dp: float
    same_top: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def perplexity(
    model: Model,
    windows: Int[Tensor, "windows window"],
    *,
    stride: int | None = None,
    batch_size: int = 1,
    autocast: torch.dtype | None = None,
    progress: Progress | None = None,
) -> Perplexity:
    """Perplexity of a causal language model on windows of token ids.

    model: maps ids (batch, window) to logits, or to an object with `.logits`; put in evaluation mode.
    stride: of windows that overlap (`token_windows(stride=…)`); the last `stride` tokens of each are counted,
    so that every one has at least window − stride tokens of context. By default windows are apart and all
    tokens but the first are counted.

    Raises: ValueError for windows without a token to predict or that do not overlap as `stride` says, or
    logits that are not finite.
    """
    _check(windows, batch_size)
    skip = _skip(windows, stride)
    means, hits = [], []
    for ids, (logits,) in _run([model], windows, batch_size, autocast, progress):
        for row in range(len(ids)):
            parts = []
            for target, (lp,) in _pieces(ids[row], [logits[row]], skip):
                parts.append(lp.gather(1, target[:, None]))
                hits.append(lp.argmax(-1) == target)
            means.append(-torch.cat(parts).double().mean().item())
    return _perplexity(means, hits, windows, stride, autocast)


def divergence(
    model: Model,
    original: Model,
    windows: Int[Tensor, "windows window"],
    *,
    stride: int | None = None,
    batch_size: int = 1,
    autocast: torch.dtype | None = None,
    progress: Progress | None = None,
) -> Divergence:
    """Compare a model with its original, both run side by side window by window (no logits are stored).

    Arguments and errors as `perplexity`.
    """
    options: dict[str, Any] = {
        "stride": stride, "batch_size": batch_size, "autocast": autocast, "progress": progress,
    }  # fmt: skip
    return divergences([model], original, windows, **options)[0]


def divergences(
    models: Sequence[Model],
    original: Model,
    windows: Int[Tensor, "windows window"],
    *,
    stride: int | None = None,
    batch_size: int = 1,
    autocast: torch.dtype | None = None,
    progress: Progress | None = None,
) -> list[Divergence]:
    """Compare several models with one original, which runs once for all of them.

    A model that is the original itself is not run a second time. Arguments and errors as `perplexity`.
    """
    _check(windows, batch_size)
    skip = _skip(windows, stride)
    others = [model for model in models if model is not original]
    sums = [_Comparing() for _ in models]
    for ids, logits in _run([original, *others], windows, batch_size, autocast, progress):
        outputs = iter(logits[1:])
        ours = [logits[0] if model is original else next(outputs) for model in models]
        for row in range(len(ids)):
            for sums_of_one, own in zip(sums, ours, strict=True):
                sums_of_one.add(ids[row], own[row], logits[0][row], skip)
    return [sums_of_one.result(windows, stride, autocast) for sums_of_one in sums]


class _Comparing:
    """What has been seen so far of a model beside its original."""

    def __init__(self) -> None:
        self.nll: tuple[list[float], list[float]] = ([], [])
        self.hits: tuple[list[Tensor], list[Tensor]] = ([], [])
        self.kld: list[Tensor] = []
        self.dp: list[Tensor] = []
        self.same: list[Tensor] = []

    def add(
        self,
        ids: Int[Tensor, " window"],
        logits: Float[Tensor, "window vocabulary"],
        original: Float[Tensor, "window vocabulary"],
        skip: int,
    ) -> None:
        """Take in one window, but for the targets of its first `skip` tokens."""
        ours, theirs, kld = [], [], []
        for target, (q, p) in _pieces(ids, [logits, original], skip):
            kld.append((p.exp() * (p - q)).sum(-1).double())
            ours.append(q.gather(1, target[:, None])[:, 0].double())
            theirs.append(p.gather(1, target[:, None])[:, 0].double())
            first, original_first = q.argmax(-1), p.argmax(-1)
            self.same.append(first == original_first)
            self.hits[0].append(first == target)
            self.hits[1].append(original_first == target)
        log_q, log_p = torch.cat(ours), torch.cat(theirs)
        self.nll[0].append(-log_q.mean().item())
        self.nll[1].append(-log_p.mean().item())
        self.dp.append(log_q.exp() - log_p.exp())
        self.kld.append(torch.cat(kld))

    def result(
        self, windows: Int[Tensor, "windows window"], stride: int | None, autocast: torch.dtype | None
    ) -> Divergence:
        """The figures over all windows."""
        everything = torch.cat(self.kld)
        ratio = [a - b for a, b in zip(*self.nll, strict=True)]
        return Divergence(
            model=_perplexity(self.nll[0], self.hits[0], windows, stride, autocast),
            original=_perplexity(self.nll[1], self.hits[1], windows, stride, autocast),
            ln_ratio=_mean(ratio),
            ln_ratio_error=_standard_error(ratio),
            kld=everything.mean().item(),
            kld_error=_standard_error([kld.mean().item() for kld in self.kld]),
            kld_percentiles={f"{p:g}": torch.quantile(everything, p / 100).item() for p in PERCENTILES},
            kld_max=everything.max().item(),
            rms_dp=torch.cat(self.dp).square().mean().sqrt().item(),
            same_top=torch.cat(self.same).double().mean().item(),
        )


def text_sha256(windows: Int[Tensor, "windows window"]) -> str:
    """A name for the tokens that a figure was measured on."""
    return hashlib.sha256(windows.cpu().to(torch.int64).contiguous().numpy().tobytes()).hexdigest()


def without_cache(model: Model) -> dict[str, bool]:
    """The argument that keeps a transformers decoder from building a cache nobody reads."""
    if not isinstance(model, nn.Module) or not hasattr(getattr(model, "config", None), "use_cache"):
        return {}
    # Other models may carry a transformers configuration too.
    parameters = inspect.signature(model.forward).parameters.values()
    takes = any(p.name == "use_cache" or p.kind is p.VAR_KEYWORD for p in parameters)
    return {"use_cache": False} if takes else {}


def _check(windows: Tensor, batch_size: int) -> None:
    if windows.shape[0] == 0 or windows.shape[1] < 2:
        raise ValueError(f"windows of shape {tuple(windows.shape)} hold no token to predict; give more text.")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be 1 or more.")


def _skip(windows: Tensor, stride: int | None) -> int:
    """Tokens at the start of a window that are not counted: the first has no context at all."""
    window = windows.shape[1]
    if stride is None:
        return 1
    if not 1 <= stride <= window:
        raise ValueError(f"stride={stride} must lie between 1 and the window of {window} tokens.")
    if not torch.equal(windows[1:, : window - stride], windows[:-1, stride:]):
        raise ValueError(f"the windows do not begin {stride} tokens apart; cut them with that stride.")
    return max(1, window - stride)


def _run(
    models: list[Model],
    windows: Tensor,
    batch_size: int,
    autocast: torch.dtype | None,
    progress: Progress | None,
) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """Batches of ids with the logits of every model; models return to the mode they were in."""
    modules = [m for m in models if isinstance(m, nn.Module)]
    modes = [m.training for m in modules]
    try:
        for module in modules:
            module.eval()
        for start in range(0, len(windows), batch_size):
            ids = windows[start : start + batch_size]
            with (
                torch.inference_mode(),
                torch.autocast(ids.device.type, autocast, enabled=autocast is not None),
            ):
                yield ids, [_logits(model, ids) for model in models]
            if progress is not None:
                progress(start + len(ids), len(windows))
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.train(mode)


def _logits(model: Model, ids: Tensor) -> Float[Tensor, "batch window vocabulary"]:
    output = model(ids, **without_cache(model))
    logits = getattr(output, "logits", output)
    if not isinstance(logits, Tensor) or logits.shape[:2] != ids.shape:
        raise ValueError("the model must map ids (batch, window) to logits (batch, window, vocabulary).")
    return logits


def _pieces(
    ids: Int[Tensor, " window"], logits: list[Float[Tensor, "window vocabulary"]], skip: int
) -> Iterator[tuple[Int[Tensor, " piece"], list[Float[Tensor, "piece vocabulary"]]]]:
    """Targets and log-probabilities in float32, a few positions at a time."""
    for start in range(skip - 1, len(ids) - 1, TOKENS_AT_ONCE):
        stop = min(start + TOKENS_AT_ONCE, len(ids) - 1)
        scores = [part[start:stop].float().log_softmax(-1) for part in logits]
        for score in scores:
            if not torch.isfinite(score[:, 0]).all():
                raise ValueError("the model's logits are not finite; its weights may be damaged.")
        yield ids[start + 1 : stop + 1], scores


def _perplexity(
    means: list[float],
    hits: list[Tensor],
    windows: Tensor,
    stride: int | None,
    autocast: torch.dtype | None,
) -> Perplexity:
    nll, error, skip = _mean(means), _standard_error(means), _skip(windows, stride)
    protocol = Protocol(
        window=windows.shape[1],
        stride=windows.shape[1] if stride is None else stride,
        windows=windows.shape[0],
        tokens=windows.shape[0] * (windows.shape[1] - skip),
        text_sha256=text_sha256(windows),
        autocast=None if autocast is None else str(autocast).removeprefix("torch."),
        skip=skip,
    )
    low, high = (math.exp(nll + side * CONFIDENCE * error) for side in (-1, 1))
    accuracy = torch.cat(hits).double().mean().item()
    return Perplexity(math.exp(nll), nll, error, (low, high), accuracy, protocol)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _standard_error(values: list[float]) -> float:
    """Of the mean; infinite for a single value, which says nothing of the spread."""
    if len(values) < 2:
        return math.inf
    mean = _mean(values)
    return math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))

"""BLEU of batches of token ids, a score for each sentence, without leaving the device.

score = BP · exp(Σ_n w_n log p_n), p_n = clipped n-gram matches / n-grams of the candidate, BP = 1 if the
candidate is no shorter than the reference of the nearest length (of two equally near, the shorter), else
exp(1 − r/c). A development metric: it depends on the tokenizer, and as a reward it can be won by length and
by copying frequent n-grams. Published figures need SacreBLEU on text.

Source: Papineni et al. 2002, "BLEU"; TensorBLEU (2025), here with sorted keys instead of a dense table, which
is exact and linear in the tokens; smoothing: Chen & Cherry 2014, section 3, under NLTK's names.
"""

import enum
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from shoestring.kernels.ngram_counting import count_matches

Counting = Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor]
"""`count_matches`, `count_matches_by_sorting` or `dense_matches`: all exact, of different cost."""


class Smoothing(enum.Enum):
    """What happens to an order without a match. Values are NLTK's names, or the released code's."""

    NONE = "method0"
    """The score is 0."""
    FLOOR = "method1"
    """The count of matches becomes `epsilon`."""
    ADD_K = "method2"
    """k is added to matches and n-grams of every order above the first."""
    EXP = "method3"
    """The q-th order without a match gets half of the share of the one before: 1 / (2^q · n-grams)."""
    RXLM_EXP = "rxlm_exp"
    """As the released code calls exponential smoothing: 1e-12."""


ALIASES = {"none": Smoothing.NONE, "floor": Smoothing.FLOOR, "add-k": Smoothing.ADD_K, "exp": Smoothing.EXP}


def named_smoothing(name: str) -> Smoothing:
    """A smoothing by NLTK's or SacreBLEU's name. Raises: ValueError listing the names."""
    if name in ALIASES:
        return ALIASES[name]
    try:
        return Smoothing(name)
    except ValueError:
        known = ", ".join([*(s.value for s in Smoothing), *ALIASES])
        raise ValueError(f"{name!r} is no smoothing; use one of {known}.") from None


@dataclass(frozen=True)
class Bleu:
    """The settings of a score: orders 1 to `max_n`, their weights (default: equal), smoothing, epsilon, k."""

    max_n: int = 4
    weights: tuple[float, ...] | None = None
    smoothing: Smoothing = Smoothing.FLOOR
    epsilon: float = 0.1
    k: float = 1.0

    def __post_init__(self) -> None:
        if self.max_n < 1:
            raise ValueError(f"max_n={self.max_n} is no order of n-grams; use 1 or more.")
        if self.weights is not None and len(self.weights) != self.max_n:
            raise ValueError(f"{len(self.weights)} weights were given for max_n={self.max_n} orders.")
        if self.weights is not None and abs(sum(self.weights) - 1) > 1e-6:
            warnings.warn(f"the weights sum to {sum(self.weights)}, not to 1.", stacklevel=3)

    @property
    def order_weights(self) -> tuple[float, ...]:
        """The weight of every order."""
        return self.weights or (1 / self.max_n,) * self.max_n


@dataclass(frozen=True)
class Counts:
    """n-grams matched and present, by sentence and order; lengths of candidates and their references."""

    matches: Int[Tensor, "batch max_n"]
    totals: Int[Tensor, "batch max_n"]
    candidate_length: Int[Tensor, " batch"]
    reference_length: Int[Tensor, " batch"]


def sentence_bleu(
    candidates: Tensor,
    references: Tensor,
    *,
    pad_id: int,
    settings: Bleu = Bleu(),
    lengths: tuple[Tensor, Tensor] | None = None,
    counting: Counting = count_matches,
) -> Float[Tensor, " batch"]:
    """BLEU of every candidate against its references, float32; equal to NLTK's `sentence_bleu`.

    candidates: ids (batch, tokens). references: (batch, references, tokens), or (batch, tokens) for one each.
    pad_id fills the ends of rows; a reference of nothing but pads is left out. lengths: of candidates
    (batch,) and references (batch, refs), where the pad is also a real token. counting: how n-grams are
    counted. Where no unigram matches the score is 0 whatever the smoothing, as in NLTK.

    Raises: ValueError or TypeError as `count`.
    """
    return score(
        count(
            candidates, references, pad_id=pad_id, max_n=settings.max_n, lengths=lengths, counting=counting
        ),
        settings,
    )


def corpus_bleu(
    candidates: Tensor,
    references: Tensor,
    *,
    pad_id: int,
    settings: Bleu = Bleu(),
    lengths: tuple[Tensor, Tensor] | None = None,
    counting: Counting = count_matches,
) -> float:
    """One BLEU over all sentences: counts and lengths are added up first; arguments as `sentence_bleu`.

    A candidate shorter than n adds no n-gram, as in SacreBLEU; an order that nobody has counts as one n-gram
    without a match, as in NLTK. 0 for an empty batch.
    """
    counts = count(
        candidates, references, pad_id=pad_id, max_n=settings.max_n, lengths=lengths, counting=counting
    )
    if len(counts.totals) == 0:
        return 0.0
    summed = Counts(
        counts.matches.sum(0, keepdim=True),
        counts.totals.sum(0, keepdim=True),
        counts.candidate_length.sum(0, keepdim=True),
        counts.reference_length.sum(0, keepdim=True),
    )
    return score(summed, settings, torch.float64).item()


def count(
    candidates: Tensor,
    references: Tensor,
    *,
    pad_id: int,
    max_n: int = 4,
    lengths: tuple[Tensor, Tensor] | None = None,
    counting: Counting = count_matches,
) -> Counts:
    """The counts that every score is made of.

    Raises: TypeError for ids that are not integer tensors; ValueError for batches or devices that differ, ids
    below 0 other than the pad, a pad inside a sentence (with its row), a row without any reference, lengths
    that do not fit the rows, or max_n < 1.
    """
    if max_n < 1:
        raise ValueError(f"max_n={max_n} is no order of n-grams; use 1 or more.")
    candidates, references = _checked(candidates, references)
    if lengths is None:
        held = _lengths(candidates, pad_id, "candidate"), _lengths(references, pad_id, "reference")
    else:
        held = _given(lengths[0], candidates, "candidates"), _given(lengths[1], references, "references")
    candidate_length, reference_lengths = held
    _check_ids(candidates, candidate_length)
    _check_ids(references, reference_lengths)
    if len(candidates) == 0:
        empty = torch.zeros(0, max_n, dtype=torch.int64, device=candidates.device)
        return Counts(empty, empty, candidate_length, candidate_length)
    if (absent := (reference_lengths == 0).all(1)).any():
        raise ValueError(f"row {int(absent.nonzero()[0])} has no reference: all its tokens are pads.")
    matches = counting(candidates, candidate_length, references, reference_lengths, max_n)
    orders = torch.arange(max_n, device=candidates.device)
    totals = (candidate_length[:, None] - orders).clamp(min=0)
    return Counts(matches, totals, candidate_length, _nearest(candidate_length, reference_lengths))


def score(counts: Counts, settings: Bleu, dtype: torch.dtype = torch.float32) -> Float[Tensor, " batch"]:
    """BLEU from counts, computed in float64 and given as `dtype`."""
    matches, totals = counts.matches.double(), counts.totals.double().clamp(min=1)
    c, r = counts.candidate_length.double(), counts.reference_length.double()
    logs = _smoothed(matches, totals, settings).log()
    weights = torch.tensor(settings.order_weights, dtype=torch.float64, device=logs.device)
    brevity = torch.where(c >= r, torch.ones_like(c), (1 - r / c.clamp(min=1)).exp())
    mean = torch.where(weights > 0, weights * logs, torch.zeros_like(logs)).sum(1)
    value = brevity * mean.exp()
    return torch.where((c == 0) | (counts.matches[:, 0] == 0), torch.zeros_like(value), value).to(dtype)


def pad_batch(rows: Sequence[Sequence[int]], pad_id: int) -> Int[Tensor, "batch tokens"]:
    """Ragged lists of ids as one tensor, filled up with `pad_id`."""
    width = max(map(len, rows), default=0)
    return torch.tensor([[*row, *[pad_id] * (width - len(row))] for row in rows], dtype=torch.int64).reshape(
        len(rows), width
    )


def pad_references(rows: Sequence[Sequence[Sequence[int]]], pad_id: int) -> Int[Tensor, "batch refs tokens"]:
    """Ragged lists of references, (batch, references, tokens), filled up with `pad_id`."""
    most = max(map(len, rows), default=0)
    width = max((len(reference) for row in rows for reference in row), default=0)
    padded = torch.full((len(rows), most, width), pad_id, dtype=torch.int64)
    for i, row in enumerate(rows):
        for j, reference in enumerate(row):
            padded[i, j, : len(reference)] = torch.tensor(reference, dtype=torch.int64)
    return padded


def dense_matches(
    candidates: Int[Tensor, "batch tokens"],
    candidate_length: Int[Tensor, " batch"],
    references: Int[Tensor, "batch refs tokens_r"],
    reference_lengths: Int[Tensor, "batch refs"],
    max_n: int,
) -> Int[Tensor, "batch max_n"]:
    """Clipped matches as published: distinct rows of n tokens, and a dense table (batch, distinct) of counts.

    Exact, and the reference for the sorted form; its memory is batch times distinct n-grams.
    Source: TensorBLEU (2025), sections 3.2 to 3.4.
    """
    batch, refs = reference_lengths.shape
    matches = torch.zeros(batch, max_n, dtype=torch.int64, device=candidates.device)
    for n in range(1, max_n + 1):
        parts = [_windows(candidates, candidate_length, n)]
        parts += [_windows(references[:, j], reference_lengths[:, j], n) for j in range(refs)]
        grams = torch.cat([g for g, _ in parts])
        if grams.numel() == 0:
            continue
        distinct, inverse = grams.unique(dim=0, return_inverse=True)
        table = []
        for (_, rows), ids in zip(parts, inverse.split([len(g) for g, _ in parts]), strict=True):
            keys = rows * len(distinct) + ids
            table.append(keys.bincount(minlength=batch * len(distinct)).view(batch, -1))
        clip = torch.stack(table[1:]).amax(0)
        matches[:, n - 1] = torch.minimum(table[0], clip).sum(1)
    return matches


def _windows(ids: Tensor, length: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The n-grams (count, n) inside the rows' lengths, and the row of each."""
    if ids.shape[1] < n:
        return ids.new_zeros(0, n), ids.new_zeros(0)
    grams = ids.unfold(1, n, 1)
    valid = torch.arange(grams.shape[1], device=ids.device) < (length - n + 1)[:, None]
    rows = torch.arange(len(ids), device=ids.device)[:, None].expand_as(valid)
    return grams[valid], rows[valid]


def _smoothed(matches: Tensor, totals: Tensor, settings: Bleu) -> Tensor:
    p = matches / totals
    zero = matches == 0
    match settings.smoothing:
        case Smoothing.NONE:
            return p
        case Smoothing.FLOOR:
            return torch.where(zero, settings.epsilon / totals, p)
        case Smoothing.ADD_K:
            added = (matches + settings.k) / (totals + settings.k)
            return torch.cat([p[:, :1], added[:, 1:]], 1)
        case Smoothing.EXP:
            rank = zero.long().cumsum(1)
            return torch.where(zero, 1 / (2.0**rank * totals), p)
        case Smoothing.RXLM_EXP:
            return torch.where(zero, torch.full_like(p, 1e-12), p)


def _nearest(candidate: Int[Tensor, " batch"], references: Int[Tensor, "batch refs"]) -> Tensor:
    """The reference length nearest to each candidate's; of two, the shorter. Empty ones do not count."""
    distance = (references - candidate[:, None]).abs()
    longest = references.amax() + candidate.amax() + 1
    ranked = torch.where(references == 0, longest * (longest + 1), distance * (longest + 1) + references)
    return references.gather(1, ranked.argmin(1, keepdim=True))[:, 0]


def _checked(candidates: Tensor, references: Tensor) -> tuple[Tensor, Tensor]:
    for what, ids in (("candidates", candidates), ("references", references)):
        if not isinstance(ids, Tensor):
            raise TypeError(f"{what} are a {type(ids).__name__}; make tensors of lists by pad_batch.")
        if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
            raise TypeError(f"{what} are {ids.dtype}, not token ids; cast to an integer type explicitly.")
    if candidates.device != references.device:
        raise ValueError(f"candidates are on {candidates.device}, references on {references.device}.")
    if candidates.dim() != 2 or references.dim() not in (2, 3):
        raise ValueError(
            f"candidates {tuple(candidates.shape)} must be (batch, tokens), references "
            f"{tuple(references.shape)} (batch, references, tokens) or (batch, tokens)."
        )
    if len(candidates) != len(references):
        raise ValueError(f"{len(candidates)} candidates, but references for {len(references)}.")
    references = references[:, None] if references.dim() == 2 else references
    return candidates.long(), references.long()


def _lengths(ids: Tensor, pad_id: int, what: str) -> Tensor:
    """Tokens before the first pad. Raises: ValueError if a token follows a pad."""
    real = ids != pad_id
    length = real.sum(-1)
    places = torch.arange(ids.shape[-1], device=ids.device)
    if (torn := (real != (places < length[..., None])).any(-1)).any():
        row = int(torn.nonzero()[0][0])
        raise ValueError(
            f"{what} in row {row} has a pad ({pad_id}) inside the sentence; pads must trail, or give lengths."
        )
    return length


def _given(length: Tensor, ids: Tensor, what: str) -> Tensor:
    """Lengths that the caller states: one for each row, from 0 to its width, else memory is read past it."""
    rows, width = tuple(ids.shape[:-1]), ids.shape[-1]
    if tuple(length.shape) != rows or length.device != ids.device or length.is_floating_point():
        raise ValueError(
            f"lengths of {what} are {tuple(length.shape)} of {length.dtype} on {length.device}; give "
            f"integers {rows} on {ids.device}, one for each row."
        )
    if bool((wrong := (length < 0) | (length > width)).any()):
        raise ValueError(
            f"length {int(length[wrong][0])} of {what} is out of range: rows have 0 to {width} tokens."
        )
    return length.long()


def _check_ids(ids: Tensor, length: Tensor) -> None:
    inside = torch.arange(ids.shape[-1], device=ids.device) < length[..., None]
    if bool((low := (ids < 0) & inside).any()):
        raise ValueError(f"token id {int(ids[low][0])} is negative; ids are 0 or more.")

"""Clipped n-gram matches of sentences: by sorting on any device, or compiled on the CPU."""

import ctypes
import functools
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from shoestring.errors import NoCompiler
from shoestring.kernels.costs import Cost, states_cost
from shoestring.kernels.native import load_library
from shoestring.notices import notice_fallback
from shoestring.numbers.segments import extend_ngrams, renumber, run_lengths


def _cost(
    candidates: Tensor,
    candidate_length: Tensor,
    references: Tensor,
    reference_lengths: Tensor,
    max_n: int,
) -> Cost:
    """One lookup for each n-gram of each order; the ids are read, the matches written."""
    orders = torch.arange(max_n, device=candidates.device)
    lengths = torch.cat([candidate_length.reshape(-1), reference_lengths.reshape(-1)])
    ngrams = int((lengths[:, None] - orders).clamp(min=0).sum())
    read = sum(part.nbytes for part in (candidates, candidate_length, references, reference_lengths))
    return Cost(ngrams, read + 8 * len(candidates) * max_n)


@states_cost(_cost)
def count_matches(
    candidates: Int[Tensor, "batch tokens"],
    candidate_length: Int[Tensor, " batch"],
    references: Int[Tensor, "batch refs tokens_r"],
    reference_lengths: Int[Tensor, "batch refs"],
    max_n: int,
) -> Int[Tensor, "batch max_n"]:
    """Σ over n-grams of min(count in the candidate, largest count in a reference), by sentence and order n.

    Only the first `length` tokens of a row count. Compiled on the CPU; elsewhere, and without a compiler
    (said once), `count_matches_by_sorting`.
    """
    arguments = candidates, candidate_length, references, reference_lengths
    if any(part.device.type != "cpu" for part in arguments):
        return count_matches_by_sorting(*arguments, max_n)
    try:
        library = _library()
    except NoCompiler as error:
        notice_fallback("n-gram counting", f"sorted in torch instead of compiled: {error}")
        return count_matches_by_sorting(*arguments, max_n)
    held = [part.long().contiguous() for part in arguments]
    batch, refs, ref_width = references.shape
    matches = torch.zeros(batch, max_n, dtype=torch.int64)
    sizes = [batch, candidates.shape[1], refs, ref_width, max_n]
    pointers = [part.data_ptr() for part in (*held, matches)]
    if library.count_matches(*map(ctypes.c_int64, sizes), *map(ctypes.c_void_p, pointers)):
        raise MemoryError(f"no memory to count n-grams of {batch} sentences of {sum(sizes[1:4])} tokens.")
    return matches


def count_matches_by_sorting(
    candidates: Int[Tensor, "batch tokens"],
    candidate_length: Int[Tensor, " batch"],
    references: Int[Tensor, "batch refs tokens_r"],
    reference_lengths: Int[Tensor, "batch refs"],
    max_n: int,
) -> Int[Tensor, "batch max_n"]:
    """The same by sorting keys (sentence, n-gram, source): linear memory, whatever the vocabulary."""
    batch, refs, _ = references.shape
    tokens, row, source, remaining = _flat(candidates, candidate_length, references, reference_lengths)
    matches = torch.zeros(batch, max_n, dtype=torch.int64, device=tokens.device)
    ids, distinct = renumber(tokens)
    tokens = ids
    for n in range(1, max_n + 1):
        if n > 1:
            # The n-gram at a place continues with the token n − 1 further on, where the row is long enough.
            keep = remaining[: len(ids)] >= n
            places = keep.nonzero()[:, 0]
            grown, distinct = extend_ngrams(ids[places], distinct, tokens[places + n - 1])
            ids = torch.zeros_like(ids)
            ids[places] = grown
        else:
            places = torch.arange(len(ids), device=ids.device)
        if len(places) == 0:
            break
        key = (row[places] * max(distinct, 1) + ids[places]) * (refs + 1) + source[places]
        matches[:, n - 1] = _clipped(key, refs, max(distinct, 1), batch)
    return matches


def _clipped(key: Tensor, refs: int, distinct: int, batch: int) -> Tensor:
    """Σ min(candidate's count, largest reference's count) of each sentence."""
    keys, counts = run_lengths(key)
    group, is_candidate = keys // (refs + 1), keys % (refs + 1) == 0
    groups, inverse = torch.unique_consecutive(group, return_inverse=True)
    zeros = torch.zeros(len(groups), dtype=torch.int64, device=key.device)
    own = zeros.scatter_add(0, inverse[is_candidate], counts[is_candidate])
    most = zeros.scatter_reduce(0, inverse[~is_candidate], counts[~is_candidate], "amax")
    total = torch.zeros(batch, dtype=torch.int64, device=key.device)
    return total.index_add_(0, groups // distinct, torch.minimum(own, most))


def _flat(
    candidates: Tensor, candidate_length: Tensor, references: Tensor, reference_lengths: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All tokens within their rows' lengths, one after the other; of each its sentence, its source (0 for the
    candidate, else the reference's number) and how many tokens of its row are left, itself included."""
    batch, refs, _ = references.shape
    device = candidates.device
    parts = []
    for source in range(refs + 1):
        ids = candidates if source == 0 else references[:, source - 1]
        length = candidate_length if source == 0 else reference_lengths[:, source - 1]
        left = length[:, None] - torch.arange(ids.shape[1], device=device)
        valid = left > 0
        rows = torch.arange(batch, device=device)[:, None].expand_as(valid)
        parts.append((ids[valid], rows[valid], torch.full_like(rows[valid], source), left[valid]))
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))  # type: ignore[return-value]


@functools.cache
def _library() -> ctypes.CDLL:
    return load_library(Path(__file__).with_suffix(".c"))

"""All tokens of one group of a HAMburger in one compiled call: the structs of `decode_group.h`.

A group is embedded as the mean of its tokens and what attention of one query finds among them; a stop head of
three linear maps says after each token whether the group ends. Neither's weights are those of a decoder.
"""

import ctypes
import functools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from shoestring.kernels.costs import cost_is_wanted, count_cost
from shoestring.kernels.decode_step import DecodeStep, cannot_store
from shoestring.kernels.dense_linear import FLAGS, STORAGE_KINDS, dense_linear
from shoestring.kernels.linear_kernel import aligned_room
from shoestring.kernels.native import load_library

_NO_LOGITS, _NO_STOP, _MICRO_CANNOT_STORE, _CANNOT_STORE = -1, -2, -3, -4


@dataclass(frozen=True)
class GroupMerge:
    """query and out: (hidden, hidden) with biases. key_value: (2 hidden, 1.5 hidden), both maps one over the
    other, whose last columns meet `places`, (most tokens of a group, hidden / 2)."""

    query: Float[Tensor, "hidden hidden"]
    query_bias: Float[Tensor, " hidden"]
    key_value: Float[Tensor, "both wide"]
    key_value_bias: Float[Tensor, " both"]
    out: Float[Tensor, "hidden hidden"]
    out_bias: Float[Tensor, " hidden"]
    places: Float[Tensor, "tokens half"]
    heads: int


@dataclass(frozen=True)
class GroupStop:
    """What stands behind the first map of the stop head, which is part of both decoders' heads."""

    second: Float[Tensor, "hidden hidden"]
    second_bias: Float[Tensor, " hidden"]
    last: Float[Tensor, "1 hidden"]
    last_bias: Float[Tensor, " 1"]


class _Model(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("base", "micro", "embedding")),
        *(
            (name, ctypes.c_int64)
            for name in ("embedding_kind", "vocabulary", "features", "most_tokens", "merge_heads")
        ),
        *(
            (name, ctypes.c_void_p)
            for name in (
                "merge_query", "merge_key_value", "merge_out", "merge_places", "stop_second", "stop_last",
            )
        ),
    )  # fmt: skip


class _Call(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("fed", "ends")),
        *((name, ctypes.c_int64) for name in ("n_fed", "n_ends", "start", "most")),
        ("confidence", ctypes.c_double),
        *(
            (name, ctypes.c_void_p)
            for name in ("tokens", "base_logits", "micro_logits", "base_room", "micro_room", "room")
        ),
    )


class DecodeGroup:
    """Base and micro decoder as one function of (a group, cache) -> the next group, each token the likeliest.

    base: with taps for the features, ascending, the state after the final norm last. micro: with a cache for
    the features and all tokens of a group. Both heads give the logits of the vocabulary, then the first map
    of the stop head. embedding: float32, bfloat16 or float16, of the vocabulary.

    Raises: ValueError where sizes do not fit; TypeError for another type of embedding; NoCompiler.
    """

    def __init__(
        self,
        base: DecodeStep,
        micro: DecodeStep,
        features: int,
        embedding: Float[Tensor, "vocab hidden"],
        merge: GroupMerge,
        stop: GroupStop,
    ) -> None:
        if embedding.dtype not in STORAGE_KINDS:
            raise TypeError(f"an embedding of {embedding.dtype}; use one of {list(STORAGE_KINDS)}.")
        _check(base, micro, features, embedding, merge)
        self._library, self.base, self.micro, self.features = _library(), base, micro, features
        embedding, hidden = embedding.detach().contiguous(), embedding.shape[1]
        kernels = (
            dense_linear(merge.query, merge.query_bias),
            dense_linear(merge.key_value[:, :hidden].contiguous()),
            dense_linear(merge.out, merge.out_bias),
            dense_linear(stop.second, stop.second_bias),
            dense_linear(stop.last, stop.last_bias),
        )
        at_places = (
            merge.places.float() @ merge.key_value[:, hidden:].float().T + merge.key_value_bias.float()
        )
        self.most_tokens = len(at_places)
        self._alive = (embedding, at_places, kernels)
        query, key_value, out, second, last = (kernel.address for kernel in kernels)
        self._model = _Model(
            base.address, micro.address, embedding.data_ptr(), STORAGE_KINDS[embedding.dtype],
            len(embedding), features, self.most_tokens, merge.heads,
            query, key_value, out, at_places.data_ptr(), second, last,
        )  # fmt: skip
        self._tokens = (ctypes.c_int64 * self.most_tokens)()
        self._room, self._threads = aligned_room(0), 0
        self._call = _Call(
            tokens=ctypes.addressof(self._tokens),
            base_logits=base.logits.data_ptr(),
            micro_logits=micro.logits.data_ptr(),
        )
        self._ends: tuple[tuple[int, ...], Any] = ((), None)

    def __call__(
        self,
        fed: Sequence[int],
        start: int,
        shift: int,
        most: int,
        ends: Collection[int] = (),
        confidence: float | None = None,
    ) -> list[int]:
        """Feed a group to slot `start`, at the position `shift` later; the next group.

        It has at most `most` tokens and ends with one of `ends`, or where the trust in a further token,
        1 − p_stop, is below `confidence`; None: where an end is likelier than not. The logits of its first
        token are left in `base.logits`, those of the last, if it has several, in `micro.logits`, and its
        features in the taps.

        Raises: ValueError for groups that are empty or too large, tokens outside the vocabulary, a slot that
        the cache has no room for, logits or a stop head that give NaN, or a cache that cannot hold the keys.
        """
        vocab = self._model.vocabulary
        if not 1 <= len(fed) <= self.most_tokens or not 1 <= most <= self.most_tokens:
            raise ValueError(
                f"a group of {len(fed)} tokens fed and {most} wanted; both are 1 to {self.most_tokens}."
            )
        if not 0 <= min(fed) <= max(fed) < vocab:
            raise ValueError(f"tokens {list(fed)} are not all in a vocabulary of {vocab}.")
        if start >= self.base.capacity or self.micro.capacity < self.features + self.most_tokens - 1:
            raise ValueError(f"the caches have no room for slot {start} and a group after it.")
        threads, call = torch.get_num_threads(), self._call
        self._make_rooms(threads)
        tokens = (ctypes.c_int64 * len(fed))(*fed)
        call.fed, call.n_fed = ctypes.addressof(tokens), len(fed)
        call.ends, call.n_ends = self._address(ends), len(ends)
        call.start, call.most = start, most
        call.confidence = -1.0 if confidence is None else confidence
        self.base.shift_positions(shift)
        found = self._library.decode_group(ctypes.addressof(self._model), ctypes.addressof(call), threads)
        if found < 0:
            raise ValueError(_meaning(found))
        if cost_is_wanted():
            flops, n_bytes = self._cost(start, len(fed), found)
            with count_cost("decode_group", flops=flops, bytes=n_bytes):
                pass
        return self._tokens[:found]

    def _make_rooms(self, threads: int) -> None:
        call = self._call
        call.base_room = self.base.room(1, threads)
        self.micro.room(1, threads)
        call.micro_room = self.micro.room(self.features + 1, threads)
        if threads > self._threads:
            self._room = aligned_room(self._library.group_room(ctypes.addressof(self._model), threads))
            call.room, self._threads = self._room.data_ptr(), threads

    def _address(self, ends: Collection[int]) -> int | None:
        """Of these tokens as an array, which is made anew only where they are others than the last time."""
        if (key := tuple(ends)) != self._ends[0]:
            self._ends = (key, (ctypes.c_int64 * len(key))(*key))
        return ctypes.addressof(self._ends[1]) if key else None

    def _cost(self, start: int, fed: int, found: int) -> tuple[int, int]:
        """Operations and bytes of the base's pass, all micro steps, merging, and the stop head."""
        _, _, (query, key_value, out, second, last) = self._alive
        flops, n_bytes = self.base.cost(start + 1)
        for step in range(found - 1):
            rows = self.features + 1 if step == 0 else 1
            more_flops, more_bytes = self.micro.cost(self.features + 1 + step)
            flops, n_bytes = flops + rows * more_flops, n_bytes + more_bytes
        used = [*([query, out, *[key_value] * fed] if fed > 1 else ()), *[second, last] * found]
        return flops + sum(2 * k.inputs * k.outputs for k in used), n_bytes + sum(k.nbytes for k in {*used})


def _meaning(code: int) -> str:
    if code == _NO_LOGITS:
        return "the logits hold NaN; no token can be chosen from them."
    if code == _NO_STOP:
        return "the stop head gives NaN; check the model's weights."
    if code == _MICRO_CANNOT_STORE:
        return "keys or values of the micro decoder are not finite; check the model's weights for NaN."
    return cannot_store(_CANNOT_STORE - code)


def _check(base: DecodeStep, micro: DecodeStep, features: int, embedding: Tensor, merge: GroupMerge) -> None:
    vocab, hidden = embedding.shape
    for name, step in (("base", base), ("micro", micro)):
        shape = step.shape
        if (shape.hidden_size, shape.vocab_size) != (hidden, vocab + hidden):
            raise ValueError(
                f"the {name} decoder maps {shape.hidden_size} to {shape.vocab_size} numbers; it should map "
                f"{hidden} to a vocabulary of {vocab} and {hidden} of the stop head."
            )
    if base.taps != features:
        raise ValueError(f"the base has {base.taps} taps for {features} features; call set_taps first.")
    if hidden % merge.heads or merge.key_value.shape != (2 * hidden, hidden + merge.places.shape[1]):
        raise ValueError(
            f"merging with {merge.heads} heads and keys and values {tuple(merge.key_value.shape)} does not "
            f"fit a width of {hidden}."
        )


@functools.cache
def _library() -> ctypes.CDLL:
    library = load_library(Path(__file__).with_name("decode_step.c"), extra_flags=FLAGS)
    pointer, size, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    library.decode_group.argtypes = [pointer, pointer, number]
    library.decode_group.restype = size
    library.group_room.argtypes = [pointer, number]
    library.group_room.restype = size
    return library

"""Many sequences through a compiled decoder in one call, over keys and values in blocks: `decode_batch.h`."""

import ctypes
import functools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from shoestring.kernels.cached_attention import CacheRows, StoredRows
from shoestring.kernels.costs import cost_is_wanted, count_cost
from shoestring.kernels.decode_mamba import LayerState, StateFields
from shoestring.kernels.decode_step import PROMPT_TOKENS, DecodeStep, check_place
from shoestring.kernels.dense_linear import FLAGS
from shoestring.kernels.linear_kernel import aligned_copy, aligned_room
from shoestring.kernels.native import load_library


@dataclass(frozen=True)
class BatchSequence:
    """Of one sequence: rows for positions and slots start … start + tokens − 1, and the blocks of all its
    slots, in order. wants_logits: of its last row. sample: whose states are its own, in a hybrid.
    """

    start: int
    tokens: int
    blocks: Sequence[int]
    wants_logits: bool = True
    sample: int = 0


class _Layer(ctypes.Structure):
    _fields_ = (("keys", CacheRows), ("values", CacheRows), ("states", StateFields))


class _Memory(ctypes.Structure):
    _fields_ = (("layers", ctypes.c_void_p), ("slots", ctypes.c_int64))


_SEQUENCE = np.dtype(
    [(name, np.int64) for name in ("first_row", "tokens", "start", "wants_logits", "blocks", "sample")]
)


class DecodeBatch:
    """A decoder as one function of (embeddings of many sequences, blocks) -> logits.

    layers: keys and values of each layer, rows (block · kv_head, slot, …), all in blocks of as many tokens;
    of a layer with a mixer, its states, a sample for each sequence. The angles of `step` must reach all
    positions.

    Raises: ValueError or TypeError where keys, values or states do not fit the decoder; NoCompiler.
    """

    def __init__(
        self, step: DecodeStep, layers: Sequence[tuple[StoredRows, StoredRows] | LayerState]
    ) -> None:
        parts = [part for layer in layers if not isinstance(layer, LayerState) for part in layer]
        # Without any attention nothing is kept in blocks, and one has room for all tokens.
        self.step, self.slots = step, parts[0].rows.shape[1] if parts else sys.maxsize
        _check(step, layers, self.slots)
        blocks = min((part.rows.shape[0] for part in parts), default=0)
        self.n_blocks = blocks // step.shape.num_key_value_heads
        self._library, self._alive, self._parts = _library(), tuple(layers), parts
        self.samples = min(
            (len(layer.ssm) for layer in layers if isinstance(layer, LayerState)), default=None
        )
        """Sequences whose states there is room for; None where no layer keeps any."""
        self._layers = (_Layer * len(layers))()
        for to, layer in zip(self._layers, layers, strict=True):
            if isinstance(layer, LayerState):
                to.states = layer.struct
            else:
                to.keys, to.values = (part.struct for part in layer)
        self._memory = _Memory(ctypes.addressof(self._layers), self.slots)
        self._room = self._logits = aligned_room(0)

    @property
    def slot_bytes(self) -> int:
        """Bytes of keys and values of one token in all layers, grids included."""
        heads = self.step.shape.num_key_value_heads
        return heads * sum(part.row_bytes for part in self._parts)

    def __call__(
        self, x: Float[Tensor, "rows hidden"], sequences: Sequence[BatchSequence]
    ) -> Float[Tensor, "wanted vocab"]:
        """Run the rows of all sequences, one sequence after the other; logits of those that want them.

        x: float32 embeddings of up to `PROMPT_TOKENS` rows. The logits are a window on a buffer that the next
        call overwrites.

        Raises: ValueError for rows that do not fit the sequences, blocks that are not there or too few of
        them, samples that are not there or two sequences with the same, or keys and values without codes
        (NaN, infinite, or beyond float16; states have gone on then, as blocks may have).
        """
        self._check_sequences(x.shape[0], sequences)
        tables = np.concatenate([np.asarray(s.blocks, dtype=np.int32) for s in sequences])
        ends = np.cumsum([0, *(len(s.blocks) for s in sequences)])
        rows = np.cumsum([0, *(s.tokens for s in sequences)])
        described = np.array(
            [
                (row, s.tokens, s.start, s.wants_logits, tables.ctypes.data + 4 * end, s.sample)
                for row, end, s in zip(rows, ends, sequences, strict=False)
            ],
            dtype=_SEQUENCE,
        )
        owners = np.repeat(np.arange(len(sequences), dtype=np.int32), [s.tokens for s in sequences])
        logits, vocab = sum(s.wants_logits for s in sequences), self.step.shape.vocab_size
        threads, n_rows, x = torch.get_num_threads(), x.shape[0], aligned_copy(x)
        self._reserve(n_rows, logits)
        flops, n_bytes = self._cost(sequences) if cost_is_wanted() else (0, 0)
        with count_cost("decode_batch", flops=flops, bytes=n_bytes):
            refused = self._library.decode_batch(
                self.step.address, ctypes.addressof(self._memory), x.data_ptr(), described.ctypes.data,
                len(sequences), owners.ctypes.data, n_rows, self._logits.data_ptr(), self._room.data_ptr(),
                threads,
            )  # fmt: skip
        if refused:
            raise ValueError(
                "keys or values hold NaN, infinite numbers or some beyond float16: no codes for them."
            )
        return self._logits.view(torch.float32)[: logits * vocab].view(logits, vocab)

    def _check_sequences(self, rows: int, sequences: Sequence[BatchSequence]) -> None:
        if not sequences or rows != sum(s.tokens for s in sequences) or rows > PROMPT_TOKENS:
            raise ValueError(
                f"{rows} rows for sequences of {[s.tokens for s in sequences]} tokens; "
                f"give a row for each, at most {PROMPT_TOKENS}."
            )
        self._check_samples([s.sample for s in sequences])
        for number, s in enumerate(sequences):
            if s.tokens < 1 or s.start < 0:
                raise ValueError(
                    f"sequence {number} has {s.tokens} tokens from {s.start} on; at least 1 from 0."
                )
            if not self._parts:
                continue
            if len(s.blocks) * self.slots < s.start + s.tokens:
                raise ValueError(
                    f"sequence {number} has {len(s.blocks)} blocks of {self.slots} tokens for "
                    f"{s.start + s.tokens} tokens; give it one for each."
                )
            if not 0 <= min(s.blocks) <= max(s.blocks) < self.n_blocks:
                raise ValueError(f"sequence {number} names blocks outside the {self.n_blocks} there are.")

    def _check_samples(self, samples: list[int]) -> None:
        if self.samples is None:
            return
        if len(set(samples)) < len(samples) or not 0 <= min(samples) <= max(samples) < self.samples:
            raise ValueError(
                f"samples {samples} must be different ones, each one of the {self.samples} with states."
            )

    def _reserve(self, rows: int, logits: int) -> None:
        needed = room_bytes(self.step, rows)
        if self._room.numel() < needed:
            self._room = aligned_room(needed)
        if self._logits.numel() < 4 * logits * self.step.shape.vocab_size:
            self._logits = aligned_room(4 * logits * self.step.shape.vocab_size)

    def _cost(self, sequences: Sequence[BatchSequence]) -> tuple[int, int]:
        """Multiply-adds of every row's layers and attention, and of wanted logits; weights once, and the
        slots that each sequence sees.
        """
        return self.step.batch_cost([(s.start, s.tokens, s.wants_logits) for s in sequences], self.slot_bytes)


def room_bytes(step: DecodeStep, rows: int) -> int:
    """Bytes of working memory that a call of so many rows takes, on `torch.get_num_threads()` threads."""
    return int(_library().decode_batch_room(step.address, rows, torch.get_num_threads()))


def _check(
    step: DecodeStep, layers: Sequence[tuple[StoredRows, StoredRows] | LayerState], slots: int
) -> None:
    for number, (mixer, layer) in enumerate(zip(step.mixers, layers, strict=True)):
        if isinstance(layer, LayerState):
            check_place(number, mixer, layer)
            continue
        check_place(number, mixer, None)
        for part in layer:
            _check_part(step, number, part, slots)


def _check_part(step: DecodeStep, number: int, part: StoredRows, slots: int) -> None:
    heads, dim = step.shape.num_key_value_heads, step.shape.head_dim
    rows, held, channels = part.rows.shape[0], part.rows.shape[1], part.head_dim
    if rows % heads or (held, channels) != (slots, dim) or not part.rows.is_contiguous():
        raise ValueError(
            f"layer {number}: rows of {channels} channels, {tuple(part.rows.shape)}, do not fit "
            f"(blocks · {heads}, {slots}, {dim}), contiguous."
        )


@functools.cache
def _library() -> ctypes.CDLL:
    library = load_library(Path(__file__).with_name("decode_step.c"), extra_flags=FLAGS)
    pointer, size, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    library.decode_batch.argtypes = [*[pointer] * 4, size, pointer, size, pointer, pointer, number]
    library.decode_batch.restype = number
    library.decode_batch_room.argtypes = [pointer, size, number]
    library.decode_batch_room.restype = size
    return library

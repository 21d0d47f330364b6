"""All layers of a decoder in one compiled call: the structs of `decode_step.c` and what keeps them alive."""

import ctypes
import functools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from shoestring.kernels.cached_attention import CacheRows, StoredRows
from shoestring.kernels.costs import cost_is_wanted, count_cost
from shoestring.kernels.decode_mamba import LayerState, StateFields, StepMixer
from shoestring.kernels.dense_linear import FLAGS
from shoestring.kernels.linear_kernel import LinearKernel, aligned_copy, aligned_room
from shoestring.kernels.native import load_library

MOST_TOKENS = 8
"""Tokens of one call whose logits can be had."""
PROMPT_TOKENS = 192
"""Tokens of one call; more are cut into blocks of as many."""


@dataclass(frozen=True)
class StepShape:
    """Sizes of a decoder, by the names of `DecoderConfig`. gelu: the gate is GELU (tanh) instead of SiLU."""

    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    rms_norm_eps: float
    scale: float
    gelu: bool


@dataclass(frozen=True)
class StepLayer:
    """One layer: its linear maps, gains of norms (float32, offset included; None: no such norm), its window
    (None: all positions) and which of the tables of angles it uses.

    mamba: a mixer in place of attention; q, k and o are then its projections to z, x, B and C, to the input
    of the step sizes, and back, and v is None."""

    q: LinearKernel
    k: LinearKernel
    v: LinearKernel | None
    o: LinearKernel
    gate: LinearKernel
    up: LinearKernel
    down: LinearKernel
    before_attention: Tensor
    after_attention: Tensor | None
    before_mlp: Tensor
    after_mlp: Tensor | None
    q_norm: Tensor | None
    k_norm: Tensor | None
    window: int | None
    angles: int
    mamba: StepMixer | None = None

    @property
    def kernels(self) -> list[LinearKernel]:
        """Its linear maps."""
        maps = (self.q, self.k, self.v, self.o, self.gate, self.up, self.down)
        return [kernel for kernel in maps if kernel is not None]

    @property
    def weights(self) -> int:
        """Numbers in their matrices."""
        return sum(kernel.inputs * kernel.outputs for kernel in self.kernels)

    @property
    def nbytes(self) -> int:
        """Bytes that a token reads of it."""
        mixer = 0 if self.mamba is None else self.mamba.nbytes
        return mixer + sum(kernel.nbytes for kernel in self.kernels)


@dataclass(frozen=True)
class LayerCache:
    """Where one layer keeps what it has seen: keys and values, with grids where they are codes, as in
    `StoredRows`; positions (capacity) int32."""

    keys: Tensor
    values: Tensor
    positions: Tensor
    key_grids: Tensor | None = None
    value_grids: Tensor | None = None


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("q", "k", "v", "o", "gate", "up", "down")),
        *(
            (name, ctypes.c_void_p)
            for name in ("before_attention", "after_attention", "before_mlp", "after_mlp", "q_norm", "k_norm")
        ),
        *((name, ctypes.c_void_p) for name in ("cosines", "sines")),
        *((name, CacheRows) for name in ("keys", "values")),
        ("positions", ctypes.c_void_p),
        ("capacity", ctypes.c_int64),
        ("window", ctypes.c_int64),
        ("mamba", ctypes.c_void_p),
        ("states", StateFields),
    )


class _Model(ctypes.Structure):
    _fields_ = (
        *(
            (name, ctypes.c_int64)
            for name in (
                "hidden", "intermediate", "heads", "kv_heads", "head_dim", "n_layers", "activation",
            )
        ),
        ("epsilon", ctypes.c_float),
        ("scale", ctypes.c_float),
        ("layers", ctypes.c_void_p),
        ("final_norm", ctypes.c_void_p),
        ("head", ctypes.c_void_p),
        ("shift", ctypes.c_int64),
        ("tapped", ctypes.c_void_p),
        ("taps", ctypes.c_void_p),
        ("rounded", ctypes.c_int64),
    )  # fmt: skip


class DecodeStep:
    """A decoder as one function of (embeddings, cache) -> logits, up to `PROMPT_TOKENS` tokens a call.

    final_norm: None where what the last layer gives goes to the head as it is. rounded: attention of prompts
    may round what it multiplies to bfloat16, as it does on a processor with matrix tiles.
    Raises: ValueError where a kernel's sizes are not those of `shape`; NoCompiler.
    """

    def __init__(
        self, shape: StepShape, layers: Sequence[StepLayer], final_norm: Tensor | None, head: LinearKernel,
        rounded: bool = False,
    ) -> None:  # fmt: skip
        _check(shape, layers, head)
        self.shape, self._library = shape, _library()
        self._alive = (tuple(layers), final_norm, head)
        self._layers = (_Layer * len(layers))()
        for to, layer in zip(self._layers, layers, strict=True):
            for name in ("q", "k", "v", "o", "gate", "up", "down"):
                kernel = getattr(layer, name)
                setattr(to, name, None if kernel is None else kernel.address)
            to.mamba = None if layer.mamba is None else layer.mamba.address
            for name in (
                "before_attention", "after_attention", "before_mlp", "after_mlp", "q_norm", "k_norm"
            ):  # fmt: skip
                gain = getattr(layer, name)
                setattr(to, name, None if gain is None else gain.data_ptr())
            to.window = layer.window or 0
        self._model = _Model(
            shape.hidden_size, shape.intermediate_size, shape.num_attention_heads, shape.num_key_value_heads,
            shape.head_dim, len(layers), int(shape.gelu), shape.rms_norm_eps, shape.scale,
            ctypes.addressof(self._layers),
            None if final_norm is None else final_norm.data_ptr(), head.address, rounded=int(rounded),
        )  # fmt: skip
        self.weight_bytes = head.nbytes + sum(layer.nbytes for layer in layers)
        self._room = aligned_room(0)
        self._logits = aligned_room(4 * MOST_TOKENS * shape.vocab_size).view(torch.float32)
        self._known: set[tuple[int, int]] = set()
        self._tapped: tuple[Tensor, ...] = ()
        self._cache: tuple[LayerCache | LayerState, ...] = ()
        self._token_bytes, self._capacity = 0, 0

    @property
    def address(self) -> int:
        """Where the struct `decode_model` is, for other functions of the same library."""
        return ctypes.addressof(self._model)

    @property
    def tensors(self) -> list[Tensor]:
        """The weights that a call reads, as the kernels hold them."""
        layers, _, head = self._alive
        return head.tensors + [t for layer in layers for kernel in layer.kernels for t in kernel.tensors]

    @property
    def mixers(self) -> list[StepMixer | None]:
        """Of every layer, its mixer; None where it has attention."""
        return [layer.mamba for layer in self._alive[0]]

    def set_angles(self, tables: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Cosines and signed sines, each (positions, head_dim) float32, for every kind of layer."""
        for to, layer in zip(self._layers, self._alive[0], strict=True):
            cosines, sines = tables[layer.angles]
            to.cosines, to.sines = cosines.data_ptr(), sines.data_ptr()
        self._tables = tuple(tables)

    def set_taps(self, layers: Sequence[int]) -> Float[Tensor, "taps hidden"]:
        """Copy the last token's state after these layers out of every call from now on, in their order; the
        number of layers itself stands for the state after the final norm, which there is with logits only.

        Gives the buffer that calls fill. Raises: ValueError for layers that do not ascend or are not there.
        """
        most = self._model.n_layers
        if list(layers) != sorted(set(layers)) or not all(0 <= layer <= most for layer in layers):
            raise ValueError(f"taps {list(layers)} must ascend from 0 to {most}, the final norm, at most.")
        tapped = torch.zeros(most + 1, dtype=torch.uint8)
        tapped[list(layers)] = 1
        taps = torch.zeros(len(layers), self.shape.hidden_size)
        self._tapped = tapped, taps
        self._model.tapped, self._model.taps = tapped.data_ptr(), taps.data_ptr()
        return taps

    def set_cache(self, caches: Sequence[LayerCache | LayerState]) -> None:
        """Where keys and values are, or the states of a mixer; to be called again whenever that changes.

        Raises: as `StoredRows`, `StepMixer.check_state`; TypeError for states where a layer has attention or
        the reverse.
        """
        dim, capacities, token_bytes = self.shape.head_dim, [], 0
        for number, (to, mixer, cache) in enumerate(zip(self._layers, self.mixers, caches, strict=True)):
            if isinstance(cache, LayerState):
                check_place(number, mixer, cache)
                to.states = cache.struct
                continue
            check_place(number, mixer, None)
            keys = StoredRows(cache.keys, dim, cache.key_grids)
            values = StoredRows(cache.values, dim, cache.value_grids)
            to.keys, to.values, to.positions = keys.struct, values.struct, cache.positions.data_ptr()
            to.capacity = cache.keys.shape[1]
            capacities.append(cache.keys.shape[1])
            token_bytes = keys.token_bytes + values.token_bytes
        # States have room for any number of tokens.
        self._capacity = min(capacities, default=sys.maxsize)
        self._cache, self._token_bytes = tuple(caches), token_bytes

    def __call__(
        self, x: Float[Tensor, "tokens hidden"], start: int, logit_rows: int = 1, shift: int = 0
    ) -> Float[Tensor, "logit_rows vocab"]:
        """Run tokens whose slots are start, start + 1, …; the logits of the last `logit_rows`.

        x: float32 embeddings. shift: by how much their positions run ahead of their slots: so many tokens
        before them are not in the cache, which then has no layer with a window. The logits are a window on a
        buffer that the next call overwrites. The cache must have room for the tokens and the tables their
        positions.

        Raises: ValueError for more tokens than `PROMPT_TOKENS`, more logits than `MOST_TOKENS`, a shift with
        a window, a cache without room for them, or keys and values that its codes cannot hold.
        """
        tokens = x.shape[0]
        if not 1 <= tokens <= PROMPT_TOKENS or not 0 <= logit_rows <= min(tokens, MOST_TOKENS):
            raise ValueError(
                f"{tokens} tokens in one step, logits of {logit_rows}; it takes 1 to {PROMPT_TOKENS} "
                f"tokens and gives logits of up to {MOST_TOKENS}."
            )
        if shift and any(layer.window for layer in self._alive[0]):
            raise ValueError(f"shift={shift} with a window, which is counted in slots; use shift=0.")
        if not self._cache or start + tokens > self._capacity:
            raise ValueError(f"the cache has no room for slots {start} to {start + tokens - 1}.")
        self.shift_positions(shift)
        threads, x = torch.get_num_threads(), aligned_copy(x)
        room = self.room(tokens, threads)
        flops, n_bytes = self.cost(start + tokens) if cost_is_wanted() else (0, 0)
        with count_cost("decode_step", flops=tokens * flops, bytes=n_bytes):
            refused = self._library.decode_step(
                self.address, x.data_ptr(), tokens, start, self._logits.data_ptr(), logit_rows, room, threads
            )
        if refused:
            raise ValueError(cannot_store(refused - 1))
        vocab = self.shape.vocab_size
        return self._logits[: logit_rows * vocab].view(logit_rows, vocab)

    @property
    def capacity(self) -> int:
        """Slots that there is room for; 0 without a cache."""
        return self._capacity if self._cache else 0

    @property
    def taps(self) -> int:
        """How many states calls copy out."""
        return int(self._tapped[0].sum()) if self._tapped else 0

    @property
    def logits(self) -> Float[Tensor, " numbers"]:
        """The buffer that calls fill, one row of logits after the other."""
        return self._logits

    def shift_positions(self, shift: int) -> None:
        """By how much the positions of the next call run ahead of slots."""
        self._model.shift = shift

    def room(self, tokens: int, threads: int) -> int:
        """Address of a room for calls of so many tokens, and of all asked for before; good until more is
        asked for."""
        if (tokens, threads) not in self._known:
            needed = self._library.decode_room(self.address, tokens, threads)
            if self._room.numel() < needed:
                self._room = aligned_room(needed)
            self._known.add((tokens, threads))
        return self._room.data_ptr()

    def batch_cost(self, sequences: Sequence[tuple[int, int, bool]], slot_bytes: int) -> tuple[int, int]:
        """Operations and bytes of a call for sequences of (start, tokens, wants logits): a multiply-add for
        every weight and row, and for every channel of the keys and values that a row of a query head sees.
        """
        _, _, head = self._alive
        attention, row_flops = self._attention, self._row_flops
        inner = self.shape.num_attention_heads * self.shape.head_dim
        flops = n_bytes = 0
        for start, tokens, wants_logits in sequences:
            flops += tokens * row_flops + 2 * wants_logits * head.inputs * head.outputs
            for layer in attention:
                seen = [min(slots, layer.window or slots) for slots in range(start + 1, start + tokens + 1)]
                flops += 4 * inner * sum(seen)
                n_bytes += slot_bytes * min(start + tokens, seen[-1] + tokens - 1) // len(attention)
        return flops, self.weight_bytes + n_bytes

    def cost(self, slots: int) -> tuple[int, int]:
        """Operations and bytes of one token over so many slots: a multiply-add for every weight, and for
        every channel of every key and value that is seen, of each query head; weights, keys and values."""
        _, _, head = self._alive
        seen = sum(min(slots, layer.window or slots) for layer in self._attention)
        inner = self.shape.num_attention_heads * self.shape.head_dim
        flops = self._row_flops + 2 * head.inputs * head.outputs + 4 * inner * seen
        return flops, self.weight_bytes + seen * self._token_bytes

    @property
    def _attention(self) -> list[StepLayer]:
        return [layer for layer in self._alive[0] if layer.mamba is None]

    @property
    def _row_flops(self) -> int:
        """Of a token: the weights of all layers, and what mixers do."""
        mixers = sum(mixer.flops for mixer in self.mixers if mixer is not None)
        return mixers + 2 * sum(layer.weights for layer in self._alive[0])


def cannot_store(layer: int) -> str:
    """What to say where a step gave keys or values that a cache refuses."""
    return (
        f"keys or values of layer {layer} are not finite or beyond what a grid in float16 holds (±65504); "
        "use a cache in full precision, and check the model's weights for NaN."
    )


def check_place(number: int, mixer: StepMixer | None, state: LayerState | None) -> None:
    """That a layer with a mixer gets a state that fits, and one with attention none.

    Raises: TypeError where it does not; ValueError, as `StepMixer.check_state`.
    """
    if (mixer is None) != (state is None):
        wants, gets = ("a state", "keys and values") if state is None else ("keys and values", "a state")
        raise TypeError(f"layer {number} keeps {wants}, and is given {gets}.")
    if mixer is not None and state is not None:
        mixer.check_state(state)


def _check(shape: StepShape, layers: Sequence[StepLayer], head: LinearKernel) -> None:
    hidden, wide = shape.hidden_size, shape.intermediate_size
    inner, shared = (n * shape.head_dim for n in (shape.num_attention_heads, shape.num_key_value_heads))
    mlp = {"gate": (hidden, wide), "up": (hidden, wide), "down": (wide, hidden)}
    found: dict[tuple[str, tuple[int, int]], LinearKernel] = {}
    for i, layer in enumerate(layers):
        expected = {"q": (hidden, inner), "k": (hidden, shared), "v": (hidden, shared)}
        if (mixer := layer.mamba) is not None:
            expected = {"q": (hidden, mixer.mixed), "k": (hidden, mixer.rank)}
            if (mixer.inner, mixer.shared) != (inner, shared):
                raise ValueError(
                    f"the mixer of layer {i} has {mixer.inner} channels from {mixer.shared}; "
                    f"the heads have {inner} and {shared}."
                )
        for name, sizes in {**expected, "o": (inner, hidden), **mlp}.items():
            found[(f"{name} of layer {i}", sizes)] = getattr(layer, name)
    found[("the head", (hidden, shape.vocab_size))] = head
    for (name, sizes), kernel in found.items():
        if (kernel.inputs, kernel.outputs) != sizes:
            raise ValueError(
                f"{name} maps {kernel.inputs} to {kernel.outputs} numbers; "
                f"it should map {sizes[0]} to {sizes[1]}."
            )


@functools.cache
def _library() -> ctypes.CDLL:
    library = load_library(Path(__file__).with_suffix(".c"), extra_flags=FLAGS)
    pointer, size, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    library.decode_step.argtypes = [pointer, pointer, size, size, pointer, size, pointer, number]
    library.decode_step.restype = size
    library.decode_room.argtypes = [pointer, size, number]
    library.decode_room.restype = size
    return library

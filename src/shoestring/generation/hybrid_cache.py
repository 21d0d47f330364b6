"""A cache for hybrids: keys and values of layers with attention, states of constant size of the others."""

from collections.abc import Mapping, Sequence
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Int
from torch import Tensor

from shoestring.generation.slot_cache import LayerStore, Mark, SlotCache
from shoestring.generation.slot_table import SlotTable
from shoestring.generation.step_cache import StepCache
from shoestring.layers.state import State, clone_state, reorder_state, state_bytes
from shoestring.models.protocols import CacheCannot


class StateStore:
    """The state of one layer, {} where it needs none; to a `SlotCache` a layer without slots."""

    def __init__(self, table: SlotTable, state: State) -> None:
        self.table, self.state = table, state

    @property
    def nbytes(self) -> dict[str, int]:
        """Bytes of the state, and of the table of slots, which is empty."""
        return {"states": state_bytes(self.state), "tables": self.table.nbytes}

    @property
    def read_bits(self) -> tuple[int, int]:
        """No keys and no values."""
        return 0, 0

    def append(self, k: Tensor, v: Tensor, pos: Tensor, store: Tensor | None) -> Tensor:
        raise CacheCannot("append", "this layer keeps a state, no keys and values; use set_state")

    def keys_values(self) -> tuple[Tensor, Tensor]:
        raise CacheCannot("view", "this layer keeps a state, no keys and values; use state")

    def gather(self, keep: Tensor) -> None:
        raise CacheCannot("evict", "this layer keeps a state, in which the tokens are mixed")

    def truncate(self, counts: Tensor) -> None:
        """Nothing: there are no slots, and the cache puts the state back itself."""

    def permute(self, start: Tensor, order: Tensor) -> None:
        raise CacheCannot("compact", "this layer keeps a state, in which the tokens are mixed")

    def reorder(self, samples: Tensor) -> None:
        self.table.reorder(samples)
        self.state = reorder_state(self.state, samples)

    def clone(self) -> "StateStore":
        return StateStore(self.table.clone(), clone_state(self.state))


class HybridCache(StepCache):
    """Keys and values in the stores of another cache, and states beside them.

    attention: an empty cache with a layer for every layer with attention, in their order; None without any.
    states: by layer of the decoder, for all its other layers, the state before the first token; {} for one
    that mixes nothing.

    A mark remembers the states by reference, which is exact and takes no copy, because a new state is a new
    tensor (`own_states` makes copies of what marks hold); until the mark is forgotten they stay in memory.
    What would take single tokens out of a state raises `CacheCannot`: roll back to a mark and feed the tokens
    again.

    Raises: ValueError where the layers do not add up, or there are neither keys nor states.
    """

    def __init__(self, attention: SlotCache | None, states: Mapping[int, State]) -> None:
        given = [] if attention is None else list(attention.layers)
        places = {(len(t), t.device) for state in states.values() for t in state.values()}
        places |= {(store.table.batch, store.table.device) for store in given}
        layers = range(len(given) + len(states))
        if len(places) != 1 or not set(states) <= set(layers):
            raise ValueError(
                f"{len(given)} layers with attention and states of layers {sorted(states)}, of batches "
                f"and on devices {sorted(map(str, places))}, do not make one cache."
            )
        ((batch, device),) = places
        heads, head_dim = (1, 1) if attention is None else (attention.n_kv_heads, attention.head_dim)
        keys = iter(given)
        stores: list[LayerStore] = [
            StateStore(SlotTable(batch, heads, device), states[layer]) if layer in states else next(keys)
            for layer in layers
        ]
        super().__init__(stores, heads, head_dim)
        self._exact_tokens = None if attention is None else attention.exact_tokens
        self._snapshots: WeakKeyDictionary[Mark, dict[int, State]] = WeakKeyDictionary()
        self._own: dict[int, State] = {}

    @property
    def step_layers(self) -> list[LayerStore]:
        """The layers that hold keys and values."""
        return [store for store in self.layers if not isinstance(store, StateStore)]

    @property
    def exact_tokens(self) -> int | None:
        """As of the cache of keys and values."""
        return self._exact_tokens

    def state(self, layer: int) -> State:
        """The state of a layer after all tokens so far; to be read only, and good until the cache changes.

        Raises: CacheCannot for a layer with keys and values.
        """
        return self._state_store(layer).state

    def own_states(self) -> dict[int, State]:
        """The states by layer, contiguous and held by nobody but this cache: its caller may overwrite them,
        once for all tokens that it claims. Good until the next mark, rollback or `set_state`."""
        held = [state for states in self._snapshots.values() for state in states.values()]
        for layer, store in self._state_stores():
            mine = store.state is self._own.get(layer) and not any(state is store.state for state in held)
            if not mine:
                form = torch.contiguous_format
                store.state = {name: t.clone(memory_format=form) for name, t in store.state.items()}
                self._own[layer] = store.state
        return {layer: store.state for layer, store in self._state_stores()}

    def give_back(self, n: int) -> None:
        """Raises: CacheCannot; roll back to a mark instead."""
        raise CacheCannot("give slots back", "the states have seen their tokens; roll back to a mark")

    def set_state(self, layer: int, state: State, pos: Int[Tensor, "batch n"]) -> None:
        """Replace it by the state after tokens at logical positions `pos`, −1 where there is none.

        Raises: as `state`; ValueError for a state of another form.
        """
        store = self._state_store(layer)
        if {n: t.shape for n, t in state.items()} != {n: t.shape for n, t in store.state.items()}:
            raise ValueError(f"layer {layer}: the state has other names or shapes than the one it replaces.")
        self._advance(pos)
        store.state = state

    def evict(self, layer: int, keep: Tensor) -> None:
        """As `SlotCache.evict`. Raises: CacheCannot for a layer with a state."""
        self._refuse("evict", layer)
        super().evict(layer, keep)

    def recompress(self, layer: int, slots: Tensor, tier: int) -> None:
        """Raises: CacheCannot."""
        self._refuse("recompress", layer)
        super().recompress(layer, slots, tier)

    def compact(self, layer: int | None, order: Tensor) -> None:
        """As `SlotCache.compact` of one layer. Raises: CacheCannot for one with a state, or all layers."""
        for index in range(self.n_layers) if layer is None else [layer]:
            self._refuse("compact", index)
        super().compact(layer, order)

    def mark(self) -> Mark:
        """As `SlotCache.mark`, the states included."""
        mark = super().mark()
        self._snapshots[mark] = {layer: store.state for layer, store in self._state_stores()}
        return mark

    def rollback(self, mark: Mark) -> None:
        """As `SlotCache.rollback`; states are those at the mark, bit for bit."""
        super().rollback(mark)
        for layer, store in self._state_stores():
            store.state = self._snapshots[mark][layer]

    def keep_path(self, mark: Mark, path: Tensor) -> None:
        """As `SlotCache.keep_path`. Raises: CacheCannot where a layer has a state."""
        if any(store.state for _, store in self._state_stores()):
            raise CacheCannot(
                "keep a path",
                "a layer keeps a state, in which the tokens are mixed; roll back to the mark and feed "
                "again what is to stay",
            )
        super().keep_path(mark, path)

    def reorder(self, samples: Int[Tensor, " new_batch"]) -> None:
        """As `SlotCache.reorder`, the states and those of marks included."""
        super().reorder(samples)
        for mark, states in self._snapshots.items():
            self._snapshots[mark] = {layer: reorder_state(state, samples) for layer, state in states.items()}

    def clone(self) -> "HybridCache":
        """A copy that shares no storage; marks stay with the original."""
        other = super().clone()
        assert isinstance(other, HybridCache)
        other._exact_tokens, other._snapshots = self._exact_tokens, WeakKeyDictionary()
        other._own = {}
        return other

    def _state_stores(self) -> Sequence[tuple[int, StateStore]]:
        return [(i, store) for i, store in enumerate(self.layers) if isinstance(store, StateStore)]

    def _state_store(self, layer: int) -> StateStore:
        store = self.layers[layer]
        if not isinstance(store, StateStore):
            raise CacheCannot("give a state", f"layer {layer} keeps keys and values")
        return store

    def _refuse(self, operation: str, layer: int) -> None:
        if isinstance(self.layers[layer], StateStore):
            raise CacheCannot(
                operation,
                f"layer {layer} keeps a state, in which the tokens are mixed; roll back to a mark and feed "
                "again what is to stay",
            )

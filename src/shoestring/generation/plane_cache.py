"""A KV cache whose keys are codes in two planes: attention reads the high bits, and the low ones on demand.

Source: Wang et al. 2021, "SpAtten", section III-D. Every token and head has a step of its own, so that a
larger value that comes later makes no old plane wrong.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from shoestring.generation.slot_cache import POS, LayerStore, SlotCache
from shoestring.generation.slot_table import SlotTable
from shoestring.generation.step_cache import ColumnStore
from shoestring.models.protocols import Traffic
from shoestring.numbers.bit_planes import STEP_BITS, BitPlanes, encode_symmetric
from shoestring.numbers.packing import pack_bits, packed_bytes, unpack_bits

K, K_LOW, K_STEP, V, V_STEP = "k", "k low bits", "k step", "v", "v step"


@dataclass(frozen=True)
class PlaneFormat:
    """How keys and values are stored. keys: planes, None: in full. value_bits: 2 to 16, None: in full.

    Raises: ValueError for other value_bits.
    """

    keys: BitPlanes | None = BitPlanes(6, 4)  # noqa: RUF009  (frozen)
    value_bits: int | None = 8

    def __post_init__(self) -> None:
        if self.value_bits is not None and not 2 <= self.value_bits <= 16:
            raise ValueError(f"value_bits={self.value_bits} must be from 2 to 16, or None.")


@dataclass
class PlaneTraffic(Traffic):
    """Bits read, by what they are; a `view` counts in k_bits and v_bits only, which hold everything."""

    k_msb_bits: int = 0
    k_lsb_bits: int = 0
    v_row_bits: int = 0
    step_bits: int = 0
    queries: int = 0
    """Query heads that attended, one for each new token."""
    refetches: int = 0
    """Those that asked for the low bits."""

    def count_parts(self, msb: int, lsb: int, rows: int, k_steps: int, v_steps: int) -> None:
        """Add reads by part."""
        self.count(msb + lsb + k_steps, rows + v_steps)
        self.k_msb_bits += msb
        self.k_lsb_bits += lsb
        self.v_row_bits += rows
        self.step_bits += k_steps + v_steps


@dataclass(frozen=True)
class PlaneView:
    """Some slots of a layer, decoded as they are asked for. Nothing is counted in `traffic`: `count` does it.

    pos, valid: as in `KVView`. Bits are those of one slot of one KV head.
    """

    store: "PlaneStore"
    slots: Int[Tensor, "batch m"] | None
    pos: Int[Tensor, "batch rows m"]
    valid: Bool[Tensor, "batch rows m"] | None

    def coarse_keys(self, *, mid: bool = False) -> Float[Tensor, "batch heads m dim"]:
        """Keys by their high bits alone."""
        planes = self.store.form.keys
        if planes is None:
            return self.keys()
        codes = planes.coarse(planes.unpack_msb(self._read(K), self.store.head_dim), mid=mid)
        return self._scaled(codes, K_STEP)

    def keys(self) -> Float[Tensor, "batch heads m dim"]:
        """Keys by both planes."""
        planes = self.store.form.keys
        if planes is None:
            return self._read(K)
        return self._scaled(planes.unpack(self._read(K), self._read(K_LOW), self.store.head_dim), K_STEP)

    def values(self) -> Float[Tensor, "batch heads m dim"]:
        """Values."""
        bits = self.store.form.value_bits
        if bits is None:
            return self._read(V)
        codes = unpack_bits(self._read(V), bits, self.store.head_dim).int() - (1 << (bits - 1))
        return self._scaled(codes, V_STEP)

    def _read(self, name: str) -> Tensor:
        data = self.store.table.read(name)
        if self.slots is None:
            return data
        index = self.slots.clamp(min=0)[:, None].expand(-1, data.shape[1], -1)
        index = index.reshape(*index.shape, *[1] * (data.ndim - 3))
        return data.gather(2, index.expand(-1, -1, -1, *data.shape[3:]))

    def _scaled(self, codes: Tensor, step: str) -> Tensor:
        return codes.to(self.store.dtype) * self._read(step).to(self.store.dtype)[..., None]


class PlaneStore(ColumnStore):
    """Keys and values of one layer as columns of its slot table. dtype: in which they are given back."""

    view_type = PlaneView

    def __init__(self, table: SlotTable, form: PlaneFormat, head_dim: int, dtype: torch.dtype) -> None:
        super().__init__(table)
        self.form, self.head_dim, self.dtype = form, head_dim, dtype

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that this store fills."""
        keys = (K,) if self.form.keys is None else (K, K_LOW, K_STEP)
        return (*keys, *((V,) if self.form.value_bits is None else (V, V_STEP)), POS)

    @property
    def nbytes(self) -> dict[str, int]:
        """Bytes of every tensor's storage, by part."""
        sizes = {name: column.data.untyped_storage().nbytes() for name, column in self.table.columns.items()}
        held = {
            "k": sizes[K] + sizes.get(K_LOW, 0),
            "v": sizes[V],
            "scales": sizes.get(K_STEP, 0) + sizes.get(V_STEP, 0),
        }
        return {**held, "tables": self.table.nbytes - sum(held.values())}

    @property
    def slot_bits(self) -> tuple[int, int, int, int, int]:
        """Bits of a slot of one head: high and low bits of the key, its step, the value, its step."""
        full, planes, bits = self.dtype.itemsize * 8, self.form.keys, self.form.value_bits
        msb = full if planes is None else planes.msb_bits
        lsb = 0 if planes is None else planes.lsb_bits
        dim = self.head_dim
        return (
            msb * dim, lsb * dim, STEP_BITS * (planes is not None),
            (full if bits is None else bits) * dim, STEP_BITS * (bits is not None),
        )  # fmt: skip

    @property
    def read_bits(self) -> tuple[int, int]:
        """Bits of all keys and of all values in use, steps included."""
        msb, lsb, k_step, value, v_step = self.slot_bits
        slots = self.table.slots(K)
        return slots * (msb + lsb + k_step), slots * (value + v_step)

    def append(self, k: Tensor, v: Tensor, pos: Tensor, store: Tensor | None) -> Tensor:
        """Round and store. Raises: ValueError where a value is not finite."""
        values = {POS: pos[:, None], K: k, V: v}
        planes, bits = self.form.keys, self.form.value_bits
        if planes is not None:
            codes, values[K_STEP] = encode_symmetric(k, planes.bits, "cached keys")
            values[K], values[K_LOW] = planes.pack(codes)
        if bits is not None:
            codes, values[V_STEP] = encode_symmetric(v, bits, "cached values")
            values[V] = pack_bits(codes + (1 << (bits - 1)), bits)
        return self.table.append(pos.shape[1], store, **values)

    def keys_values(self) -> tuple[Tensor, Tensor]:
        """All keys and values, by both planes; decoded at every call."""
        view = self.view_type(self, None, self.table.read(POS), None)
        return view.keys(), view.values()

    def clone(self) -> "PlaneStore":
        return PlaneStore(self.table.clone(), self.form, self.head_dim, self.dtype)


class PlaneCache(SlotCache):
    """A cache of tokens in a `PlaneFormat`; evicting, reordering and taking back round nothing again.

    `view` gives keys by both planes; `planes` gives them one at a time. dtype: in which they are given.
    capacity: tokens to allocate per sample at once. Raises: ValueError for sizes below 1.
    """

    traffic: PlaneTraffic
    decodes_on_read = True
    """Whether a slot that is not read saves the work of decoding it."""

    def __init__(
        self,
        n_layers: int,
        batch: int,
        n_kv_heads: int,
        head_dim: int,
        form: PlaneFormat = PlaneFormat(),
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        capacity: int = 0,
    ) -> None:
        layers: list[LayerStore] = [
            plane_store(batch, n_kv_heads, head_dim, form, dtype=dtype, device=device, capacity=capacity)
            for _ in range(n_layers)
        ]
        super().__init__(layers, n_kv_heads, head_dim)
        self.traffic = PlaneTraffic()

    def planes(self, layer: int, slots: Int[Tensor, "batch m"] | None = None) -> PlaneView:
        """All slots of a layer, or those named (−1: none), the same of every head; counts nothing."""
        store = self.layers[layer]
        assert isinstance(store, PlaneStore)
        pos, valid = store.table.read(POS), store.table.valid()
        if slots is None:
            return store.view_type(store, None, pos, valid)
        self._check_slots(layer, slots[:, None], "planes")
        index = slots.clamp(min=0)[:, None].expand(-1, pos.shape[1], -1)
        missing = bool((slots < 0).any())
        return store.view_type(store, slots, pos.gather(2, index), (slots >= 0)[:, None] if missing else None)

    def count_reads(self, layer: int, key_slots: int, low_slots: int, value_slots: int) -> None:
        """Note in `traffic` of how many slots of KV heads the high bits, low bits and values are read."""
        store = self.layers[layer]
        assert isinstance(store, PlaneStore)
        msb, lsb, k_step, value, v_step = store.slot_bits
        self.traffic.count_parts(
            key_slots * msb, low_slots * lsb, value_slots * value, key_slots * k_step, value_slots * v_step
        )

    def clone(self) -> "PlaneCache":
        """A copy that shares no storage; marks and traffic stay with the original."""
        other = super().clone()
        assert isinstance(other, PlaneCache)
        other.traffic = PlaneTraffic()
        return other


def plane_store(
    batch: int,
    n_heads: int,
    head_dim: int,
    form: PlaneFormat,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    capacity: int,
) -> PlaneStore:
    """An empty store of one layer."""
    table = SlotTable(batch, n_heads, device, capacity)
    planes, bits = form.keys, form.value_bits
    if planes is None:
        table.add_column(K, (head_dim,), dtype, per_head=True)
    else:
        high, low = planes.plane_bytes(head_dim)
        table.add_column(K, (high,), torch.uint8, per_head=True)
        table.add_column(K_LOW, (low,), torch.uint8, per_head=True)
        table.add_column(K_STEP, (), torch.float16, per_head=True)
    if bits is None:
        table.add_column(V, (head_dim,), dtype, per_head=True)
    else:
        table.add_column(V, (packed_bytes(head_dim, bits),), torch.uint8, per_head=True)
        table.add_column(V_STEP, (), torch.float16, per_head=True)
    table.add_column(POS, (), torch.int32, per_head=False)
    return PlaneStore(table, form, head_dim, dtype)

"""A `PlaneCache` that holds the numbers its planes stand for: the same answers and the same count of bits
read, without decoding at every step. For experiments; what it holds in memory is more.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from shoestring.generation.plane_cache import (
    K,
    PlaneCache,
    PlaneFormat,
    PlaneStore,
    PlaneTraffic,
    PlaneView,
    V,
)
from shoestring.generation.slot_cache import POS, LayerStore, SlotCache
from shoestring.generation.slot_table import SlotTable
from shoestring.numbers.bit_planes import encode_symmetric

COARSE = "k by high bits"


@dataclass(frozen=True)
class DecodedView(PlaneView):
    """Some slots of a layer, decoded when they were stored."""

    def coarse_keys(self, *, mid: bool = False) -> Float[Tensor, "batch heads m dim"]:
        """Keys by their high bits alone. Raises: ValueError for another `mid` than they were stored with."""
        store = self.store
        assert isinstance(store, DecodedStore)
        if store.form.keys is None:
            return self._read(K)
        if mid != store.mid:
            raise ValueError(f"keys were decoded with mid={store.mid}; make the cache with mid={mid}.")
        return self._read(COARSE)

    def keys(self) -> Float[Tensor, "batch heads m dim"]:
        """Keys by both planes."""
        return self._read(K)

    def values(self) -> Float[Tensor, "batch heads m dim"]:
        """Values."""
        return self._read(V)


class DecodedStore(PlaneStore):
    """Decoded keys, by both planes and by the high one, and values of one layer."""

    view_type = DecodedView

    def __init__(
        self, table: SlotTable, form: PlaneFormat, head_dim: int, dtype: torch.dtype, mid: bool
    ) -> None:
        super().__init__(table, form, head_dim, dtype)
        self.mid = mid

    @property
    def columns(self) -> tuple[str, ...]:
        return (K, V, POS) if self.form.keys is None else (K, COARSE, V, POS)

    def append(self, k: Tensor, v: Tensor, pos: Tensor, store: Tensor | None) -> Tensor:
        """Round and store. Raises: ValueError where a value is not finite."""
        values = {POS: pos[:, None], K: k, V: v}
        planes, bits = self.form.keys, self.form.value_bits
        if planes is not None:
            codes, step = encode_symmetric(k, planes.bits, "cached keys")
            values[K] = self._decoded(codes, step)
            values[COARSE] = self._decoded(planes.coarse(planes.split(codes)[0], mid=self.mid), step)
        if bits is not None:
            values[V] = self._decoded(*encode_symmetric(v, bits, "cached values"))
        return self.table.append(pos.shape[1], store, **values)

    def clone(self) -> "DecodedStore":
        return DecodedStore(self.table.clone(), self.form, self.head_dim, self.dtype, self.mid)

    @property
    def nbytes(self) -> dict[str, int]:
        """Bytes of every tensor's storage, by part."""
        sizes = {name: column.data.untyped_storage().nbytes() for name, column in self.table.columns.items()}
        held = {"k": sizes[K] + sizes.get(COARSE, 0), "v": sizes[V], "scales": 0}
        return {**held, "tables": self.table.nbytes - sum(held.values())}

    def _decoded(self, codes: Tensor, step: Tensor) -> Tensor:
        return codes.to(self.dtype) * step.to(self.dtype)[..., None]


class DecodedPlaneCache(PlaneCache):
    """A cache of tokens rounded to a `PlaneFormat`. mid: see `BitPlanes.coarse`; the others: `PlaneCache`.

    Raises: ValueError for sizes below 1.
    """

    decodes_on_read = False

    def __init__(
        self,
        n_layers: int,
        batch: int,
        n_kv_heads: int,
        head_dim: int,
        form: PlaneFormat = PlaneFormat(),  # noqa: B008  (frozen)
        *,
        mid: bool = False,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        capacity: int = 0,
    ) -> None:
        layers: list[LayerStore] = []
        for _ in range(n_layers):
            table = SlotTable(batch, n_kv_heads, device, capacity)
            for name in (K, V) if form.keys is None else (K, COARSE, V):
                table.add_column(name, (head_dim,), dtype, per_head=True)
            table.add_column(POS, (), torch.int32, per_head=False)
            layers.append(DecodedStore(table, form, head_dim, dtype, mid))
        SlotCache.__init__(self, layers, n_kv_heads, head_dim)
        self.traffic = PlaneTraffic()

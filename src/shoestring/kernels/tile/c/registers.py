"""How register tensors are held in C.

A tensor whose lanes all differ is an array of vectors: a vector for each slot where elements have 32 bits,
otherwise the words of each lane's bit string. A tensor that is the same in all lanes of each group is an
array of scalars, which an operation with vectors broadcasts. Groups of threads follow one another.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from shoestring.kernels.tile.layout import RegisterLayout
from shoestring.kernels.tile.tensor import Tensor
from shoestring.kernels.tile.types import DataType


@dataclass(frozen=True)
class Held:
    """A register tensor in C: `name[groups * count]`.

    `places`: C expressions of the indices of the registers, where they are not numbered one after another:
    scalars that are read where they lie in memory.
    """

    name: str
    dtype: DataType
    layout: RegisterLayout
    lanes: int
    uniform: bool
    places: tuple[str, ...] = ()

    @property
    def bits(self) -> int:
        return self.dtype.bits

    @property
    def slots(self) -> int:
        return self.layout.local_size

    @property
    def groups(self) -> int:
        return self.layout.threads // self.lanes

    @property
    def count(self) -> int:
        """Registers of one group."""
        return -(-self.slots * self.bits // 32)

    @property
    def c_type(self) -> str:
        if self.uniform:
            return {"f32": "float", "i32": "int32_t"}.get(self.dtype.name, "uint32_t")
        return "vf" if self.dtype.name == "f32" else "vi"

    @property
    def indices(self) -> Int[np.ndarray, "groups lanes slots rank"]:
        table = self.layout.index_table
        return table.reshape(self.groups, self.lanes, self.slots, self.layout.rank)

    def register(self, group: int, number: int) -> str:
        place = group * self.count + number
        return f"{self.name}[{self.places[place] if self.places else place}]"


def hold(name: str, tensor: Tensor, lanes: int) -> Held:
    """Decide how a tensor is held."""
    layout = tensor.registers
    by_group = layout.index_table.reshape(-1, lanes, layout.local_size, layout.rank)
    uniform = bool((by_group == by_group[:, :1]).all())
    return Held(name, tensor.dtype, layout, lanes, uniform)

"""C for any processor and any number of lanes."""

from shoestring.kernels.tile.c.isa import Isa, table_of
from shoestring.kernels.tile.types import DataType


class Portable(Isa):
    """A loop over the lanes for each step; codes are looked up in a table."""

    name = "portable"
    header = "portable.h"
    features: frozenset[str] = frozenset()
    lanes = None
    flags = ("-O1", "-Wno-psabi")  # at -O3 compilers unroll every loop over lanes, and take a minute for it

    def funnel(self, low: str, high: str, shift: int) -> str:
        return f"vi_or(vi_shr({low}, {shift}), vi_shl({high}, {32 - shift}))"

    def decodes_from_top(self, dtype: DataType) -> bool:
        return False

    def decoder(self, dtype: DataType) -> list[str]:
        look_up = f"values[U(code[t]) & {(1 << dtype.bits) - 1}]"
        return [table_of(dtype, "values"), "vf out;", f"EACH_LANE out[t] = {look_up};", "return out;"]

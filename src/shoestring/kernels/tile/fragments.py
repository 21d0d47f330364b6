"""Fragments of matrix instructions: which thread holds what of the operands, and when a fast load applies.

Source: NVIDIA PTX ISA 8.7, sections "mma.m16n8k16" and "ldmatrix"; Tilus (2025), section 4.
"""

from dataclasses import dataclass

from shoestring.errors import LayoutError
from shoestring.kernels.tile.layout import RegisterLayout, column_local, local, spatial

MMA_M16N8K16_A = column_local(2, 2).spatial(8, 4).local(1, 2)
MMA_M16N8K16_B = local(2, 1).column_spatial(4, 8).local(2, 1)
MMA_M16N8K16_C = local(2, 1).spatial(8, 4).local(1, 2)


@dataclass(frozen=True)
class MatrixAtom:
    """One multiply-accumulate step of a group of threads: c (m, n) += a (m, k) · b (k, n)."""

    name: str
    a: RegisterLayout
    b: RegisterLayout
    c: RegisterLayout

    @property
    def threads(self) -> int:
        return self.c.threads


MMA_M16N8K16 = MatrixAtom("mma.m16n8k16", MMA_M16N8K16_A, MMA_M16N8K16_B, MMA_M16N8K16_C)
"""The tensor-core step of f16 or bf16 operands with a float32 accumulator, of a warp of 32 threads."""

FMA = MatrixAtom("fma", local(1, 1), local(1, 1), local(1, 1))
"""Every thread multiplies what it holds: vector lanes of a processor, or the plain units of a GPU."""


def ldmatrix_part(layout: RegisterLayout, bits: int) -> RegisterLayout:
    """What remains of a register layout once the tile of `ldmatrix`, 8 rows of 16 bytes, is divided off.

    Raises: LayoutError, with both layouts, where `ldmatrix` cannot load it; ValueError for elements that are
    not whole parts of four bytes.
    """
    if bits not in (8, 16, 32):
        raise ValueError(f"ldmatrix moves elements of 8, 16 or 32 bits, not {bits}")
    return layout / spatial(8, 4).local(1, 32 // bits)


def can_ldmatrix(layout: RegisterLayout, bits: int) -> bool:
    """Whether `ldmatrix` can load a register tensor of this layout."""
    if bits not in (8, 16, 32):
        return False
    try:
        ldmatrix_part(layout, bits)
    except LayoutError:
        return False
    return True

"""Which instruction set a program is rendered for: the best that this processor has, or a named one."""

import functools
import platform
from collections.abc import Mapping

from shoestring.errors import ProgramError
from shoestring.kernels.tile.c.avx2 import Avx2
from shoestring.kernels.tile.c.avx512 import Avx512
from shoestring.kernels.tile.c.isa import Isa
from shoestring.kernels.tile.c.portable import Portable
from shoestring.kernels.tile.target import AVX2, AVX512, Target

ISAS: Mapping[str, Isa] = {
    isa.name: isa
    for isa in (Avx512(vbmi2=True, vnni=True), Avx512(vbmi2=True), Avx512(vbmi2=False), Avx2(), Portable())
}
"""All instruction sets by name, best first."""


def choose_isa(target: Target, name: str | None = None) -> Isa:
    """The instruction set called `name`, or the best one here, whose vectors have the lanes of `target`.

    Raises: ProgramError for an unknown name, one that this processor lacks, or vectors of another width.
    """
    if name is None:
        return next(isa for isa in ISAS.values() if _fits(isa, target) and isa.features <= features_here())
    if name not in ISAS:
        raise ProgramError(f"unknown instruction set {name!r}; there are {', '.join(ISAS)}")
    isa = ISAS[name]
    if not _fits(isa, target):
        raise ProgramError(
            f"{name} has vectors of {isa.lanes} lanes, target {target.name} groups of {target.group}; "
            f"prepare the program, and pack its weights, for groups of {isa.lanes}"
        )
    lacking = isa.features - features_here()
    if lacking:
        raise ProgramError(f"this processor lacks {', '.join(sorted(lacking))}, which {name} needs")
    return isa


def target_here() -> Target:
    """The target whose groups fill this processor's widest vectors."""
    return AVX512 if ISAS["avx512f"].features <= features_here() else AVX2


def _fits(isa: Isa, target: Target) -> bool:
    return isa.lanes in (None, target.group)


@functools.cache
def features_here() -> frozenset[str]:
    """Flags of this processor; none where the system does not list them."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return frozenset()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            line = next(line for line in file if line.startswith("flags"))
    except (OSError, StopIteration):
        return frozenset()
    return frozenset(line.split(":", 1)[1].split())

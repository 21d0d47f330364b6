"""Where shared tensors lie in a block's on-chip memory: tensors that do not live at the same time share room.

Source: Tilus (2025), section 7 (shared memory planning).
"""

from collections.abc import Iterator
from dataclasses import dataclass

from shoestring.errors import ProgramError
from shoestring.kernels.tile.ir import AllocateShared, FreeShared, Instruction, Program, Tensor

ALIGNMENT_BYTES = 128


@dataclass(frozen=True)
class SharedPlan:
    """Byte offset of every shared tensor, and the bytes that a block needs."""

    offsets: dict[str, int]
    total_bytes: int


def shared_bytes(tensor: Tensor) -> int:
    """Bytes of a shared tensor, rounded up to the alignment."""
    size = (tensor.memory.size * tensor.dtype.bits + 7) // 8
    return -(-size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def plan_shared_memory(program: Program) -> SharedPlan:
    """First fit in program order, a tensor's room being free again after its FreeShared.

    Raises: ProgramError for a tensor freed twice or never allocated.
    """
    live: dict[str, tuple[int, int]] = {}
    offsets: dict[str, int] = {}
    total = 0
    for instruction in _memory_steps(program):
        if isinstance(instruction, FreeShared):
            if live.pop(instruction.source.name, None) is None:
                raise ProgramError(f"{program.name}: {instruction} frees what is not allocated")
            continue
        assert isinstance(instruction, AllocateShared)
        size, start = shared_bytes(instruction.out), 0
        for low, high in sorted(live.values()):
            if start + size <= low:
                break
            start = max(start, high)
        live[instruction.out.name] = (start, start + size)
        offsets[instruction.out.name] = start
        total = max(total, start + size)
    return SharedPlan(offsets, total)


def _memory_steps(program: Program) -> Iterator[Instruction]:
    return (i for i in program.instructions() if isinstance(i, AllocateShared | FreeShared))

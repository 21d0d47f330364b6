"""From a program as written to one that a back end can turn into code."""

from dataclasses import dataclass

from shoestring.kernels.tile.inference import infer_layouts
from shoestring.kernels.tile.ir import Program
from shoestring.kernels.tile.shared_memory import SharedPlan, plan_shared_memory
from shoestring.kernels.tile.target import Target
from shoestring.kernels.tile.verify import verify


@dataclass(frozen=True)
class PreparedProgram:
    """A program whose layouts are all known and that passed every check for `target`."""

    program: Program
    target: Target
    shared: SharedPlan


def prepare(program: Program, target: Target) -> PreparedProgram:
    """Infer the layouts left open, check the program, place its shared tensors.

    Raises: LayoutError or ProgramError naming the tensor or instruction, with the layouts that do not fit.
    """
    whole = infer_layouts(program, target)
    verify(whole, target)
    return PreparedProgram(whole, target, plan_shared_memory(whole))

"""Compiled tile programs, called like functions."""

import ctypes
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from shoestring.errors import NoCompiler, ProgramError
from shoestring.kernels.costs import cost_is_wanted, count_cost
from shoestring.kernels.native import load_library
from shoestring.kernels.tile import interpreter
from shoestring.kernels.tile.c.arguments import Binder, Buffer, address, as_numpy, nbytes, workspace
from shoestring.kernels.tile.c.choice import choose_isa
from shoestring.kernels.tile.c.emitter import DEFAULT_PREFETCH, Prefetch
from shoestring.kernels.tile.c.renderer import Rendered, render, workspaces
from shoestring.kernels.tile.c.work import flops_of
from shoestring.kernels.tile.ir import Program, Tensor
from shoestring.kernels.tile.prepare import prepare
from shoestring.kernels.tile.target import Target
from shoestring.notices import notice_fallback

FLAGS = ("-ffp-contract=off", "-fno-strict-aliasing")
"""Multiply-adds where the program says Dot and nowhere else, so that every instruction set rounds alike;
registers are looked at as floats and as words."""


@dataclass(frozen=True)
class CompiledProgram:
    """Call it with a program's parameters by name; buffers are changed in place.

    `rendered`: the C text. `library`: None where there is no compiler; then the interpreter runs, slowly.
    """

    program: Program
    isa: str
    rendered: Rendered
    library: ctypes.CDLL | None

    def __call__(self, **arguments: "int | Buffer") -> None:
        """Run all blocks on `torch.get_num_threads()` threads.

        Raises: ProgramError for arguments that do not fit, or what went wrong inside.
        """
        scalars, buffers = self._binder.bind(arguments)
        if not cost_is_wanted():
            self._run(scalars, buffers)
            return
        moved = sum(map(nbytes, buffers.values()))
        with count_cost(self.program.name, flops=flops_of(self.program, scalars), bytes=moved):
            self._run(scalars, buffers)

    @functools.cached_property
    def _binder(self) -> Binder:
        return Binder(self.program)

    @functools.cached_property
    def _workspaces(self) -> list[Tensor]:
        return workspaces(self.program)

    @functools.cached_property
    def function(self) -> Callable[..., int]:
        """The compiled program: parameters and workspaces in their order, then the number of threads; it
        returns 0, or 1 + the index in `rendered.failures`."""
        assert self.library is not None
        function = self.library[self.program.name]
        scalars = {p.name for p in self.program.scalars}
        function.argtypes = [
            *(ctypes.c_int64 if p.name in scalars else ctypes.c_void_p for p in self.program.params),
            *(ctypes.c_void_p for _ in self._workspaces),
            ctypes.c_int,
        ]
        return function

    def _run(self, scalars: Mapping[str, int], buffers: Mapping[str, Buffer]) -> None:
        if self.library is None:
            kinds = {p.name: p.dtype for p in self.program.pointers}
            arrays = {name: as_numpy(buffer, kinds[name]) for name, buffer in buffers.items()}
            interpreter.run(self.program, {**scalars, **arrays})
            return
        spaces = [workspace(tensor, scalars) for tensor in self._workspaces]
        values = [
            scalars[name] if name in scalars else address(buffers[name])
            for name in (p.name for p in self.program.params)
        ]
        values += [address(space) for space in spaces]
        code = self.function(*values, torch.get_num_threads())
        if code:
            raise ProgramError(self.rendered.failures[code - 1])


def compile_program(
    program: Program, target: Target, isa: str | None = None, *, prefetch: Prefetch = DEFAULT_PREFETCH
) -> CompiledProgram:
    """Prepare `program` for `target`, render it in C and compile it.

    `isa`: the name of an instruction set; by default the best one here with vectors of `target.group` lanes.
    Without a compiler the interpreter stands in, and a notice says so.

    Raises: LayoutError or ProgramError naming the instruction that is not legal or has no C form, or for an
    instruction set that is unknown or not here.
    """
    chosen = choose_isa(target, isa)
    prepared = prepare(program, target)
    rendered = render(prepared, chosen, prefetch=prefetch)
    try:
        library = load_library(rendered.text, extra_flags=FLAGS + chosen.flags)
    except NoCompiler as error:
        notice_fallback(f"tile program {program.name}", f"the interpreter instead of compiled C ({error})")
        library = None
    return CompiledProgram(prepared.program, chosen.name, rendered, library)

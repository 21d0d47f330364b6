"""A prepared tile program as one CUDA C source."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoestring.errors import LayoutError
from shoestring.kernels.tile import ir
from shoestring.kernels.tile.cuda import compute, memory
from shoestring.kernels.tile.cuda.casts import cast, values_table
from shoestring.kernels.tile.cuda.emitter import Emitter, Held
from shoestring.kernels.tile.expressions import Expr
from shoestring.kernels.tile.ir import Body, Instruction, Program, Statement, Tensor, Var
from shoestring.kernels.tile.prepare import PreparedProgram

_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class CudaKernel:
    """CUDA C text and how to launch it: `text`, of which `device` is the part that only a GPU understands.

    The function has the program's name. It takes the parameters in their order (scalars as int, so extents
    stay below 2^31), then `workspaces`, zeroed buffers. A launch has one block for each place of `grid`, all
    in x, the last axis fastest, of `threads` threads, with `shared_bytes` of dynamic shared memory.
    """

    program: Program
    device: str
    body: str
    grid: tuple[Expr, ...]
    threads: int
    shared_bytes: int
    workspaces: tuple[Tensor, ...]

    @property
    def text(self) -> str:
        return f"{self.device}\n{self.body}"


def render(prepared: PreparedProgram) -> CudaKernel:
    """The program in CUDA C, for compute capability 8.0 or later.

    Raises: ProgramError or LayoutError naming the instruction that has no CUDA form.
    """
    e, program = Emitter(prepared), prepared.program
    workspaces = [step.out for step in program.instructions() if isinstance(step, ir.AllocateGlobal)]
    _body(e, program.body)
    body = "\n".join([_header("prelude.cuh"), *map(values_table, e.tables.values()), *_kernel(e, workspaces)])
    return CudaKernel(
        program,
        _header("device.cuh"),
        body,
        program.grid,
        program.threads,
        prepared.shared.total_bytes,
        tuple(workspaces),
    )


def _header(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")


def _body(e: Emitter, body: Body) -> None:
    for statement in body:
        _statement(e, statement)


def _statement(e: Emitter, statement: Statement) -> None:
    if isinstance(statement, ir.For):
        name, end = e.names[statement.variable.name], e.fresh("end")
        e.line(f"const int {end} = {e.scalar(statement.extent)};")
        with e.block(f"for (int {name} = 0; {name} < {end}; {name}++)"):
            _body(e, statement.body)
    elif isinstance(statement, ir.While):
        with e.block(f"while ({e.scalar(statement.condition)})"):
            _body(e, statement.body)
    elif isinstance(statement, ir.If):
        with e.block(f"if ({e.scalar(statement.condition)})"):
            _body(e, statement.then)
        if statement.otherwise:
            with e.block("else"):
                _body(e, statement.otherwise)
    else:
        assert isinstance(statement, Instruction)
        _instruction(e, statement)


def _instruction(e: Emitter, step: Instruction) -> None:
    if isinstance(step, ir.FreeShared | ir.AllocateGlobal):
        return
    if type(step) not in _STEPS:
        raise e.refuse(step, "has no CUDA form; run the program in the interpreter")
    before = len(e.lines)
    try:
        _STEPS[type(step)](e, step)
    except LayoutError as error:
        raise LayoutError(f"{e.program.name}: {step}: {error}") from None
    if len(e.lines) > before:
        comment = str(step).replace("*/", "* /").replace("\n", " ")
        e.lines.insert(before, f"{'    ' * e.depth}/* {comment} */")


def _set_scalar(e: Emitter, step: ir.SetScalar) -> None:
    e.line(f"{e.names[step.variable.name]} = {e.scalar(step.value)};")


def _block_indices(e: Emitter, step: ir.BlockIndices) -> None:
    """The last axis counts fastest: the blocks that share a tile of the result run close together."""
    e.line("int place = blockIdx.x;")
    axes = list(zip(step.variables, e.program.grid, strict=True))
    for variable, extent in reversed(axes):
        e.line(f"{e.names[variable.name]} = place % ({e.scalar(extent)});")
        e.line(f"place /= {e.scalar(extent)};")


def _kernel(e: Emitter, workspaces: list[Tensor]) -> list[str]:
    program = e.program
    parameters = [
        f"const int {e.names[p.name]}"
        if isinstance(p, Var)
        else f"{memory.c_element(p.dtype)} *{e.names[p.name]}"
        for p in program.params
    ]
    parameters += [f"{memory.c_element(t.dtype)} *{e.names[t.name]}" for t in workspaces]
    scalars = {
        variable.name
        for step in program.instructions()
        for variable in (
            step.variables if isinstance(step, ir.BlockIndices)
            else (step.variable,) if isinstance(step, ir.SetScalar) else ()
        )
    }  # fmt: skip
    return [
        f'extern "C" __global__ void __launch_bounds__({program.threads})',
        f"{program.name}({', '.join(parameters)}) {{",
        "    extern __shared__ __align__(128) unsigned char shared[];",
        "    const int thread = threadIdx.x;",
        *(f"    int {e.names[name]} = 0;" for name in sorted(scalars)),
        *_registers(e),
        *e.lines,
        "}",
        "",
    ]


def _registers(e: Emitter) -> list[str]:
    lines = []
    for name, held in e.held.items():
        if held.name != e.names[name]:
            continue
        lines.append(f"    {held.c_type} {held.name}[{held.count}]; /* {_described(held)} */")
    return lines


def _described(held: Held) -> str:
    return f"{held.dtype}[{', '.join(map(str, held.layout.shape))}] {held.layout!r}"


def _line(text: str) -> Callable[[Emitter, Any], None]:
    return lambda e, _: e.line(text)


def _wait(e: Emitter, step: ir.CopyAsyncWaitGroup) -> None:
    e.line(f"wait_copies<{step.pending}>();")


_STEPS: Mapping[type[Instruction], Callable[[Emitter, Any], None]] = {
    ir.BlockIndices: _block_indices,
    ir.SetScalar: _set_scalar,
    ir.Exit: _line("return;"),
    ir.ViewGlobal: memory.view_global,
    ir.AllocateShared: memory.allocate_shared,
    ir.LoadGlobal: memory.load,
    ir.LoadShared: memory.load,
    ir.StoreGlobal: memory.store,
    ir.StoreShared: memory.store,
    ir.CopyAsync: memory.copy_async,
    ir.CopyAsyncCommitGroup: _line("commit_copies();"),
    ir.CopyAsyncWaitGroup: _wait,
    ir.Synchronize: _line("__syncthreads();"),
    ir.LockSemaphore: memory.lock,
    ir.ReleaseSemaphore: memory.release,
    ir.AllocateRegister: compute.allocate_register,
    ir.View: compute.view,
    ir.Transpose: compute.move,
    ir.Squeeze: compute.move,
    ir.Unsqueeze: compute.move,
    ir.Assign: compute.assign,
    ir.Cast: cast,
    ir.Unary: compute.unary,
    ir.Elementwise: compute.elementwise,
    ir.ElementwiseScalar: compute.elementwise_scalar,
    ir.Dot: compute.dot,
}

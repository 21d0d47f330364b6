"""A prepared tile program as one C source: a function for a block, and one that runs all blocks."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from shoestring.errors import LayoutError
from shoestring.kernels.tile import ir
from shoestring.kernels.tile.c import compute, memory
from shoestring.kernels.tile.c.casts import cast, limits_table
from shoestring.kernels.tile.c.emitter import DEFAULT_PREFETCH, Emitter, Prefetch
from shoestring.kernels.tile.c.isa import Isa, table_of
from shoestring.kernels.tile.c.memory import c_element
from shoestring.kernels.tile.c.registers import Held
from shoestring.kernels.tile.c.scalars import c_of
from shoestring.kernels.tile.expressions import Const, variables_of
from shoestring.kernels.tile.ir import Body, Instruction, Program, Statement, Var
from shoestring.kernels.tile.prepare import PreparedProgram


@dataclass(frozen=True)
class Rendered:
    """C text. `failures`: what went wrong where the kernel returns 1 + index, 0 meaning success."""

    text: str
    failures: tuple[str, ...]


def render(prepared: PreparedProgram, isa: Isa, *, prefetch: Prefetch = DEFAULT_PREFETCH) -> Rendered:
    """The program in C for `isa`.

    The function has the program's name; it takes the parameters in their order (scalars as int64_t), then the
    workspaces that the program allocates, then the number of threads. `prefetch`: how far loads are announced
    ahead.

    Raises: ProgramError or LayoutError naming the instruction that cannot be rendered.
    """
    e = Emitter(prepared, isa, prefetch)
    _check_structure(e)
    _body(e, prepared.program.body)
    signature = _parameters(prepared.program, e.names)
    block = _block_function(e, signature)
    return Rendered(
        "\n".join([_head(e), isa.preamble(e.lanes), *_tables(e), *block, *_entry(e, signature)]),
        tuple(e.failures),
    )


def _body(e: Emitter, body: Body) -> None:
    for statement in body:
        _statement(e, statement)


def _statement(e: Emitter, statement: Statement) -> None:
    if isinstance(statement, ir.For):
        name, end = e.names[statement.variable.name], e.fresh("end")
        e.line(f"const int64_t {end} = {e.scalar(statement.extent)};")
        with e.block(f"for (int64_t {name} = 0; {name} < {end}; {name}++)"):
            e.loops.append(statement.variable.name)
            e.inner_turns.append(_turns_inside(statement.body))
            _body(e, statement.body)
            e.loops.pop()
            e.inner_turns.pop()
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


def _turns_inside(body: Body) -> int:
    """Turns of the loops in a body, as far as constants tell; 1 without a loop."""
    turns = [
        s.extent.value * _turns_inside(s.body)
        for s in body
        if isinstance(s, ir.For) and isinstance(s.extent, Const)
    ]
    return max([1, *turns])


def _instruction(e: Emitter, step: Instruction) -> None:
    if isinstance(step, _NOTHING_TO_DO):
        return
    if type(step) not in _STEPS:
        raise e.refuse(step, "has no C form; run the program in the interpreter")
    before = len(e.lines)
    try:
        _STEPS[type(step)](e, step)
    except LayoutError as error:
        raise LayoutError(f"{e.program.name}: {step}: {error}") from None
    if len(e.lines) > before or any(t.name in e.lazy for t in step.writes):
        waits = " where it is used" if any(t.name in e.lazy for t in step.writes) else ""
        e.lines.insert(before, f"{'    ' * e.depth}/* {_comment(str(step))}{waits} */")


def _comment(text: str) -> str:
    return text.replace("*/", "* /").replace("\n", " ")


def _set_scalar(e: Emitter, step: ir.SetScalar) -> None:
    e.line(f"{e.names[step.variable.name]} = {e.scalar(step.value)};")


def _block_indices(e: Emitter, step: ir.BlockIndices) -> None:
    for axis, variable in enumerate(step.variables):
        e.line(f"{e.names[variable.name]} = grid_at_{axis};")


def _exit(e: Emitter, step: ir.Exit) -> None:
    e.line("return 0;")


def _check_structure(e: Emitter) -> None:
    """Refuse what C scoping cannot express: a loop variable that is changed, or read after its loop."""

    def walk(body: Body, ended: set[str], running: set[str]) -> None:
        for statement in body:
            used: set[str] = set()
            if isinstance(statement, Instruction):
                used = {name for expr in statement.expressions for name in variables_of(expr)}
                if isinstance(statement, ir.SetScalar) and statement.variable.name in running | ended:
                    raise e.refuse(statement, "changes a loop variable; use a scalar of its own")
            elif isinstance(statement, ir.For):
                used = set(variables_of(statement.extent))
            elif isinstance(statement, ir.If | ir.While):
                used = set(variables_of(statement.condition))
            if used & ended:
                raise e.refuse(statement, f"reads {sorted(used & ended)[0]!r} after its loop")
            inner = {statement.variable.name} if isinstance(statement, ir.For) else set()
            for part in ir.bodies_of(statement):
                walk(part, ended, running | inner)
            ended |= inner

    walk(e.program.body, set(), set())


def workspaces(program: Program) -> list[ir.Tensor]:
    """The buffers that the program allocates, in order."""
    found = [step.out for step in program.instructions() if isinstance(step, ir.AllocateGlobal)]
    return list({tensor.name: tensor for tensor in found}.values())


def _parameters(program: Program, names: Mapping[str, str]) -> list[tuple[str, str]]:
    """(C type, name) of each parameter but the number of threads."""
    parameters = [
        ("int64_t", names[p.name]) if isinstance(p, Var) else (f"{c_element(p.dtype)} *", names[p.name])
        for p in program.params
    ]
    return parameters + [(f"{c_element(t.dtype)} *", names[t.name]) for t in workspaces(program)]


def _block_function(e: Emitter, signature: list[tuple[str, str]]) -> list[str]:
    axes = range(len(e.program.grid))
    head = ", ".join(
        [f"const {kind} {name}" if kind == "int64_t" else f"{kind}const {name}" for kind, name in signature]
        + [f"const int64_t grid_at_{axis}" for axis in axes]
        + ["unsigned char *const shared"]
    )
    declared = [
        f"    int64_t {e.names[name]} = 0;"
        for name in dict.fromkeys(
            v.name
            for step in e.program.instructions()
            for v in (step.variables if isinstance(step, ir.BlockIndices) else ())
        )
    ]
    declared += [
        f"    int64_t {e.names[name]} = 0;"
        for name in dict.fromkeys(
            step.variable.name for step in e.program.instructions() if isinstance(step, ir.SetScalar)
        )
    ]
    registers = []
    for name, held in e.held.items():
        if name in e.lazy or held.name != e.names[name]:
            continue
        shape = ", ".join(map(str, held.layout.shape))
        same = ", the same in all lanes" if held.uniform else ""
        if held.places:
            registers += _pointer(held)
            continue
        text = f"    {held.c_type} {held.name}[{held.groups * held.count}];"
        registers.append(f"{text} /* {held.dtype}[{shape}] {held.layout!r}{same} */")
    return [
        "/* One block; 0, or the number of what went wrong. */",
        f"static int {e.program.name}_block({head}) {{",
        "    (void)shared;",
        *declared,
        *registers,
        *e.lines,
        "    return 0;",
        "}",
        "",
    ]


def _pointer(held: Held) -> list[str]:
    """Declarations of scalars that are read where they lie: pointer, strides, and a copy for an edge."""
    steps = ", ".join(f"{held.name}_step{dim}" for dim in range(held.layout.rank))
    return [
        f"    const {held.c_type} *{held.name}; /* {held.dtype}{list(held.layout.shape)}, in memory */",
        f"    int64_t {steps};",
        f"    {held.c_type} {held.name}_edge[{held.slots}];",
    ]


def _entry(e: Emitter, signature: list[tuple[str, str]]) -> list[str]:
    program, total = e.program, e.prepared.shared.total_bytes
    head = ", ".join([f"{kind}{'' if kind.endswith('*') else ' '}{name}" for kind, name in signature])
    grid = [
        f"    const int64_t grid_{axis} = most({c_of(extent, e.names)}, 0);"
        for axis, extent in enumerate(program.grid)
    ]
    axes = range(len(program.grid))
    blocks = " * ".join(f"grid_{axis}" for axis in axes) or "1"
    places = []
    for axis in axes:
        inner = " * ".join(f"grid_{a}" for a in axes if a > axis)
        part = f"block / ({inner})" if inner else "block"
        places.append(part if axis == 0 else f"{part} % grid_{axis}")
    arguments = ", ".join([*(name for _, name in signature), *places, "shared"])
    own = f"aligned_alloc(128, {-(-total // 128) * 128})" if total else "NULL"
    memory_failure = len(e.failures) + 1
    e.failures.append(f"{program.name}: no memory for {total} bytes of a block's shared tensors")
    return [
        f"int {program.name}({head}{', ' if head else ''}int threads) {{",
        *grid,
        f"    const int64_t blocks = {blocks};",
        "    int failure = 0;",
        "    #pragma omp parallel num_threads(threads)",
        "    {",
        f"        unsigned char *shared = {own};",
        "        ENTER_KERNEL;",
        "        #pragma omp for schedule(monotonic: guided)",  # threads do not wake all at once
        "        for (int64_t block = 0; block < blocks; block++) {",
        f"            const int code = {'!shared ? ' + str(memory_failure) + ' : ' if total else ''}"
        f"{program.name}_block({arguments});",
        "            if (code) {",
        "                #pragma omp atomic write",
        "                failure = code;",
        "            }",
        "        }",
        "        LEAVE_KERNEL;",
        "        free(shared);",
        "    }",
        "    return failure;",
        "}",
        "",
    ]


def _head(e: Emitter) -> str:
    threads = f"{e.program.threads} threads, {e.lanes} to a vector"
    return f"/* {e.program.name} for {e.isa.name}: a block has {threads}. */"


def _tables(e: Emitter) -> list[str]:
    lines = []
    for name, dtype in e.decoders.items():
        lines += [table_of(dtype, f"values_{name}"), f"static inline vf decode_{name}(vi code) {{"]
        lines += [f"    {line}" for line in e.isa.decoder(dtype)]
        lines += ["}", ""]
    for name, dtype in e.pair_decoders.items():
        lines += [f"static inline vi decode_pair_{name}(vi code) {{"]
        lines += [f"    {line}" for line in e.isa.pair_decoder(dtype) or ()]
        lines += ["}", ""]
    for name, table in e.byte_tables.items():  # repeated: what an index has above the code does not matter
        entries = ", ".join(map(str, np.resize(table, 64).tolist()))
        lines.append(f"static const uint8_t {name}[64] = {{{entries}}};")
    return lines + [limits_table(dtype) for dtype in e.encoders.values()]


_NOTHING_TO_DO = (
    ir.CopyAsyncCommitGroup,
    ir.CopyAsyncWaitGroup,
    ir.Synchronize,
    ir.FreeShared,
    ir.AllocateGlobal,
)
"""A block runs its instructions one after another for all threads, and copies land at once."""

_STEPS: Mapping[type[Instruction], Callable[[Emitter, Any], None]] = {
    ir.BlockIndices: _block_indices,
    ir.SetScalar: _set_scalar,
    ir.Exit: _exit,
    ir.ViewGlobal: memory.view_global,
    ir.AllocateShared: memory.allocate_shared,
    ir.LoadGlobal: memory.load,
    ir.LoadShared: memory.load,
    ir.StoreGlobal: memory.store,
    ir.StoreShared: memory.store,
    ir.CopyAsync: memory.copy_async,
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
    ir.Reduce: compute.reduce,
    ir.Dot: compute.dot,
}

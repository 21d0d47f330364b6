"""Every check that a tile program must pass before code is made from it.

An error names the instruction and prints the layouts that do not fit.
"""

from collections.abc import Callable, Mapping
from typing import Any

from shoestring.errors import LayoutError, ProgramError
from shoestring.kernels.tile import ir
from shoestring.kernels.tile.alignment import choose_atom, slots_of_operand
from shoestring.kernels.tile.analysis import Range, range_of, vector_of
from shoestring.kernels.tile.expressions import Const, Expr, variables_of
from shoestring.kernels.tile.ir import Body, Instruction, Program, Space, Tensor, Window
from shoestring.kernels.tile.layout import RegisterLayout
from shoestring.kernels.tile.memory_layout import SharedLayout
from shoestring.kernels.tile.shared_memory import plan_shared_memory
from shoestring.kernels.tile.target import Target

_SPACES: Mapping[type[Instruction], Mapping[str, Space]] = {
    ir.ViewGlobal: {"out": Space.GLOBAL},
    ir.AllocateGlobal: {"out": Space.GLOBAL},
    ir.AllocateShared: {"out": Space.SHARED},
    ir.FreeShared: {"source": Space.SHARED},
    ir.LoadGlobal: {"source": Space.GLOBAL},
    ir.StoreGlobal: {"out": Space.GLOBAL},
    ir.LoadShared: {"source": Space.SHARED},
    ir.StoreShared: {"out": Space.SHARED},
    ir.CopyAsync: {"out": Space.SHARED, "source": Space.GLOBAL},
    ir.LockSemaphore: {"at": Space.GLOBAL},
    ir.ReleaseSemaphore: {"at": Space.GLOBAL},
}
"""Where operands live that are not in registers."""


def verify(program: Program, target: Target) -> None:
    """Check `program`, all of whose layouts are filled in, for `target`.

    Raises: ProgramError or LayoutError with the instruction and the reason.
    """
    if program.threads % target.group or not 0 < program.threads <= target.max_threads:
        raise ProgramError(
            f"{program.name}: {program.threads} threads; {target.name} runs 1 to "
            f"{target.max_threads // target.group} groups of {target.group}"
        )
    _Verifier(program, target).body(program.body)
    needed = plan_shared_memory(program).total_bytes
    if needed > target.shared_bytes:
        raise ProgramError(
            f"{program.name}: needs {needed} bytes of shared memory at once, {target.name} gives a block "
            f"{target.shared_bytes}; use fewer stages or smaller tiles"
        )


class _Verifier:
    """Walks a program; `defined` and `ranges` are what holds at the present statement."""

    def __init__(self, program: Program, target: Target) -> None:
        self.program = program
        self.target = target
        self.defined: set[str] = set()
        self.allocated: set[str] = set()
        self.scalars = {p.name for p in program.scalars}
        self.ranges: dict[str, Range] = {}
        for extent in program.grid:
            self.expression(extent, "grid")

    # Statements

    def body(self, body: Body) -> None:
        for statement in body:
            if isinstance(statement, ir.For):
                self.expression(statement.extent, statement)
                self.scalars.add(statement.variable.name)
                if isinstance(statement.extent, Const):
                    self.ranges[statement.variable.name] = (0, max(statement.extent.value - 1, 0))
                self._branch(statement.body)
            elif isinstance(statement, ir.While):
                self.expression(statement.condition, statement)
                self._branch(statement.body)
            elif isinstance(statement, ir.If):
                self.expression(statement.condition, statement)
                after = [self._branch(part) for part in (statement.then, statement.otherwise)]
                self.defined |= after[0] & after[1]
            else:
                assert isinstance(statement, Instruction)
                self._instruction(statement)

    def _branch(self, body: Body) -> set[str]:
        """Check statements that may not run: what they define is forgotten, and returned."""
        before, allocated = set(self.defined), set(self.allocated)
        self.body(body)
        after = self.defined
        self.defined, self.allocated = before, allocated
        return after

    def _instruction(self, step: Instruction) -> None:
        for expr in step.expressions:
            self.expression(expr, step)
        if isinstance(step, ir.BlockIndices):
            self._block_indices(step)
        if isinstance(step, ir.SetScalar):
            self.scalars.add(step.variable.name)
            self.ranges.pop(step.variable.name, None)
        spaces = _SPACES.get(type(step), {})
        for role, tensor in step.operands.items():
            self._operand(step, role, tensor, spaces.get(role, Space.REGISTER))
        try:
            check = _CHECKS.get(type(step))
            if check is not None:
                check(self, step)
        except LayoutError as error:
            raise LayoutError(f"{self.program.name}: {step}: {error}") from None
        for tensor in step.writes:
            target = self.allocated if isinstance(step, ir.AllocateRegister) else self.defined
            target.add(tensor.name)
        if isinstance(step, ir.AllocateRegister) and step.init is not None:
            self.defined.add(step.out.name)
        if isinstance(step, ir.FreeShared):
            self.defined.discard(step.source.name)

    def _block_indices(self, step: ir.BlockIndices) -> None:
        if len(step.variables) != len(self.program.grid):
            self._fail(step, f"{len(step.variables)} indices of a grid of {len(self.program.grid)} axes")
        for variable, extent in zip(step.variables, self.program.grid, strict=True):
            self.scalars.add(variable.name)
            if isinstance(extent, Const):
                self.ranges[variable.name] = (0, extent.value - 1)

    def expression(self, expr: Expr, where: object) -> None:
        """Variables must have a value by now."""
        unknown = sorted(variables_of(expr) - self.scalars)
        if unknown:
            raise ProgramError(f"{self.program.name}: {where}: {unknown[0]!r} has no value here")

    # Operands

    def _operand(self, step: Instruction, role: str, tensor: Tensor, space: Space) -> None:
        if tensor.space is not space:
            self._fail(step, f"{role} must be in {space.value} memory, not {tensor}")
        if space is Space.REGISTER:
            self._register(step, tensor)
        if space is Space.SHARED and not isinstance(tensor.layout, SharedLayout):
            self._fail(step, f"{tensor} has no layout; run infer_layouts first")
        if space is Space.SHARED and tensor.memory.shape != tensor.extents:
            self._fail(step, f"{tensor} has the layout {tensor.memory}")
        if space is Space.SHARED and tensor.dtype.bits % 8:
            self._fail(step, f"{tensor}: shared elements are whole bytes; keep it packed as u8")
        reads = role != "out" or (isinstance(step, ir.StoreGlobal | ir.StoreShared | ir.CopyAsync))
        if reads and tensor.name not in self.defined:
            known = tensor.name in self.allocated
            self._fail(step, f"{tensor.name} is {'never written' if known else 'not defined'} before this")

    def _register(self, step: Instruction, tensor: Tensor) -> None:
        if not isinstance(tensor.layout, RegisterLayout):
            self._fail(step, f"{tensor} has no layout; run infer_layouts first")
        layout = tensor.registers
        if layout.threads != self.program.threads:
            self._fail(
                step,
                f"{tensor} is spread over {layout.threads} threads, the block has {self.program.threads}",
            )
        if layout.shape != tensor.extents:
            self._fail(step, f"{tensor} has a layout of shape {list(layout.shape)}")
        word, bits = self.target.word_bits, layout.local_size * tensor.dtype.bits
        if tensor.dtype.is_narrow and bits % word:
            self._fail(
                step,
                f"{tensor}: {layout.local_size} slots × {tensor.dtype.bits} bits = {bits} bits are not whole "
                f"words of {word} bits on {self.target.name}",
            )

    def _bounds(self, step: Instruction, window: Window, shape: tuple[int, ...]) -> None:
        """No access to shared memory may leave it; one to global memory may not miss it altogether."""
        tensor = window.tensor
        if len(window.dims) != len(shape):
            self._fail(step, f"a tile of shape {list(shape)} along {len(window.dims)} dimensions of {tensor}")
        size = dict(zip(window.dims, shape, strict=True))
        for dim, (offset, extent) in enumerate(zip(window.offsets, tensor.shape, strict=True)):
            known = range_of(offset, self.ranges)
            if known is None or not isinstance(extent, Const):
                continue
            last = known[1] + size.get(dim, 1) - 1
            if tensor.space is Space.SHARED and (known[0] < 0 or last >= extent.value):
                self._fail(step, f"reaches {known[0]} .. {last} along dimension {dim} of {tensor}")
            if known[0] >= extent.value or known[1] + size.get(dim, 1) <= 0:
                self._fail(step, f"lies wholly outside dimension {dim} of {tensor}: offset {offset}")

    # One check for each instruction that has more to say

    def load(self, step: ir.LoadGlobal | ir.LoadShared) -> None:
        self._same_type(step, step.out, step.source.tensor)
        self._bounds(step, step.source, step.out.extents)

    def store(self, step: ir.StoreGlobal | ir.StoreShared) -> None:
        self._same_type(step, step.source, step.out.tensor)
        self._bounds(step, step.out, step.source.extents)
        if self.target.parallel_stores and not vector_of(step).unit_bytes:
            self._fail(
                step,
                f"threads of {self.target.name} would write parts of one byte of {step.out.tensor}; "
                "store whole bytes (View as u8, or Cast)",
            )

    def copy_async(self, step: ir.CopyAsync) -> None:
        self._same_type(step, step.out.tensor, step.source.tensor)
        self._bounds(step, step.out, step.shape)
        self._bounds(step, step.source, step.shape)

    def view(self, step: ir.View) -> None:
        old, new = step.source.registers, step.out.registers
        had, has = old.local_size * step.source.dtype.bits, new.local_size * step.out.dtype.bits
        if old.threads != new.threads or had != has:
            raise LayoutError(
                f"a View keeps threads and bits: {step.source.dtype} {old!r} has {old.threads} threads × "
                f"{had} bits, {step.out.dtype} {new!r} has {new.threads} × {has}"
            )
        writer = new.thread_table.reshape(-1)[new.flat_table[:, 0]]
        if (old.flat_table != old.flat_table[writer]).any():
            raise LayoutError(
                f"threads that hold copies under {new!r} hold different elements under {old!r}; "
                "a View cannot make them equal"
            )

    def cast(self, step: ir.Cast) -> None:
        self._same_shape(step, step.source)
        slots_of_operand(step.out.registers, step.source.registers)
        old, new = step.source.dtype, step.out.dtype
        between_codes = old.is_unsigned and new.is_unsigned
        if old.is_narrow and new.is_narrow and not between_codes:
            self._fail(step, f"{old} cannot be cast to {new} directly; go through f32")

    def same(self, step: ir.Assign | ir.Unary | ir.ElementwiseScalar) -> None:
        self._same_type(step, step.source, step.out)
        self._same_shape(step, step.source)
        slots_of_operand(step.out.registers, step.source.registers)
        if not isinstance(step, ir.Assign):
            self._computes(step, step.source)

    def elementwise(self, step: ir.Elementwise) -> None:
        for operand in (step.a, step.b):
            self._same_type(step, operand, step.out)
            slots_of_operand(step.out.registers, operand.registers)
        self._computes(step, step.out)

    def reduce(self, step: ir.Reduce) -> None:
        self._same_type(step, step.source, step.out)
        self._computes(step, step.source)
        if not 0 <= step.dim < len(step.source.shape):
            self._fail(step, f"dimension {step.dim} of {step.source}")
        if step.op not in ("sum", "max", "min"):
            self._fail(step, f"unknown reduction {step.op!r}; there are sum, max, min")
        self._same_layout(step.source.registers.reduce([step.dim], keepdims=True), step.out)

    def transpose(self, step: ir.Transpose) -> None:
        self._same_type(step, step.source, step.out)
        self._same_layout(step.source.registers.permute(step.dims), step.out)

    def squeeze(self, step: ir.Squeeze) -> None:
        self._same_type(step, step.source, step.out)
        self._same_layout(step.source.registers.squeeze(step.dims), step.out)

    def unsqueeze(self, step: ir.Unsqueeze) -> None:
        self._same_type(step, step.source, step.out)
        self._same_layout(step.source.registers.unsqueeze(step.dims), step.out)

    def dot(self, step: ir.Dot) -> None:
        a, b, c = step.a, step.b, step.c
        (m, k), (k2, n) = a.extents, b.extents
        if k != k2 or c.extents != (m, n) or step.out.extents != (m, n):
            self._fail(step, f"a {a.extents} · b {b.extents} does not give {c.extents}")
        for operand in (a, b, c):
            self._computes(step, operand)
        self._same_type(step, c, step.out)
        self._same_layout(c.registers, step.out)
        choose_atom(self.target.atoms(a.dtype, b.dtype, c.dtype), a.registers, b.registers, c.registers)

    def semaphore(self, step: ir.LockSemaphore | ir.ReleaseSemaphore) -> None:
        if step.at.tensor.dtype.name != "i32" or step.at.dims:
            self._fail(step, f"a semaphore is one i32, not part of {step.at.tensor}")

    def wait(self, step: ir.CopyAsyncWaitGroup) -> None:
        if step.pending < 0:
            self._fail(step, f"{step.pending} groups cannot be pending")

    def _same_type(self, step: Instruction, a: Tensor, b: Tensor) -> None:
        if a.dtype != b.dtype:
            self._fail(step, f"{a} and {b} differ in type; Cast one of them")

    def _same_shape(self, step: Any, source: Tensor) -> None:
        if step.out.extents != source.extents:
            self._fail(step, f"{source} and {step.out} differ in shape")

    def _same_layout(self, expected: RegisterLayout, tensor: Tensor) -> None:
        if expected != tensor.registers:
            raise LayoutError(f"{tensor.name} must have the layout {expected!r}, not {tensor.registers!r}")

    def _computes(self, step: Any, tensor: Tensor) -> None:
        if tensor.dtype.is_narrow:
            self._fail(
                step, f"{tensor}: {tensor.dtype} is for storage; Cast it to f16, bf16, f32 or i32 first"
            )
        op = getattr(step, "op", None)
        table = {ir.Unary: ir.UNARY, ir.Elementwise: ir.BINARY, ir.ElementwiseScalar: ir.BINARY}.get(
            type(step)
        )
        if table is not None and op not in table:
            self._fail(step, f"unknown operation {op!r}; there are {', '.join(table)}")
        if not tensor.dtype.is_float and op not in (*ir.BINARY, "neg", "abs", "sum"):
            self._fail(step, f"{op or 'Dot'} needs floats, not {tensor.dtype}")
        if not tensor.dtype.is_float and op == "div":
            self._fail(step, "integers are not divided; Cast to f32, or use a scalar expression")

    def _fail(self, step: object, reason: str) -> None:
        raise ProgramError(f"{self.program.name}: {step}: {reason}")


_CHECKS: Mapping[type[Instruction], Callable[[_Verifier, Any], None]] = {
    ir.LoadGlobal: _Verifier.load,
    ir.LoadShared: _Verifier.load,
    ir.StoreGlobal: _Verifier.store,
    ir.StoreShared: _Verifier.store,
    ir.CopyAsync: _Verifier.copy_async,
    ir.CopyAsyncWaitGroup: _Verifier.wait,
    ir.View: _Verifier.view,
    ir.Cast: _Verifier.cast,
    ir.Assign: _Verifier.same,
    ir.Unary: _Verifier.same,
    ir.ElementwiseScalar: _Verifier.same,
    ir.Elementwise: _Verifier.elementwise,
    ir.Reduce: _Verifier.reduce,
    ir.Transpose: _Verifier.transpose,
    ir.Squeeze: _Verifier.squeeze,
    ir.Unsqueeze: _Verifier.unsqueeze,
    ir.Dot: _Verifier.dot,
    ir.LockSemaphore: _Verifier.semaphore,
    ir.ReleaseSemaphore: _Verifier.semaphore,
}

"""Collects the CUDA text of a program, and knows how each thread holds its part of a register tensor."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from shoestring.errors import ProgramError
from shoestring.kernels.tile import ir
from shoestring.kernels.tile.c.scalars import c_names, c_of
from shoestring.kernels.tile.expressions import Expr
from shoestring.kernels.tile.ir import Body, Program, Space, Tensor
from shoestring.kernels.tile.layout import RegisterLayout
from shoestring.kernels.tile.prepare import PreparedProgram
from shoestring.kernels.tile.types import DataType


@dataclass(frozen=True)
class Held:
    """A thread's part of a register tensor: `name[count]`, floats, integers, or words of a bit string."""

    name: str
    dtype: DataType
    layout: RegisterLayout

    @property
    def bits(self) -> int:
        return self.dtype.bits

    @property
    def slots(self) -> int:
        return self.layout.local_size

    @property
    def count(self) -> int:
        return -(-self.slots * self.bits // 32)

    @property
    def c_type(self) -> str:
        return {"f32": "float", "i32": "int32_t"}.get(self.dtype.name, "uint32_t")

    def word(self, number: int) -> str:
        """C expression: word `number` as bits."""
        text = f"{self.name}[{number}]"
        return {"f32": f"__float_as_uint({text})", "i32": f"(uint32_t){text}"}.get(self.dtype.name, text)

    def from_bits(self, word: str) -> str:
        """C expression: what is held where a word has these bits."""
        return {"f32": f"__uint_as_float({word})", "i32": f"(int32_t)({word})"}.get(self.dtype.name, word)


class Emitter:
    """The text of one program. `tables`: the types whose values are looked up in constant memory."""

    def __init__(self, prepared: PreparedProgram) -> None:
        self.prepared = prepared
        self.program: Program = prepared.program
        self.lines: list[str] = []
        self.depth = 1
        self.tables: dict[str, DataType] = {}
        tensors = self.program.tensors()
        names = [p.name for p in self.program.params] + variables_of(self.program.body) + list(tensors)
        self.names = c_names(dict.fromkeys(names))
        self.held: dict[str, Held] = {
            name: Held(self.names[name], tensor.dtype, tensor.registers)
            for name, tensor in tensors.items()
            if tensor.space is Space.REGISTER
        }
        writes = [t.name for step in self.program.instructions() for t in step.writes]
        self._once = {name for name in writes if writes.count(name) == 1}
        self._fresh = 0

    def line(self, text: str) -> None:
        self.lines.append("    " * self.depth + text)

    @contextmanager
    def block(self, head: str) -> Iterator[None]:
        self.line(f"{head} {{" if head else "{")
        self.depth += 1
        yield
        self.depth -= 1
        self.line("}")

    def scalar(self, expr: Expr) -> str:
        return c_of(expr, self.names)

    def fresh(self, stem: str) -> str:
        self._fresh += 1
        return f"t_{stem}{self._fresh}"

    def refuse(self, step: object, reason: str) -> ProgramError:
        return ProgramError(f"{self.program.name}: {step}: {reason}")

    def register(self, tensor: Tensor) -> Held:
        return self.held[tensor.name]

    def rename(self, out: Tensor, source: Tensor) -> bool:
        """From here on `out` is the registers of `source`; False where either changes, or kinds differ."""
        old, new = self.held[source.name], self.held[out.name]
        if {out.name, source.name} - self._once or old.c_type != new.c_type:
            return False
        self.held[out.name] = replace(new, name=old.name)
        return True

    def code(self, held: Held, slot: int) -> str:
        """C expression: the code in a slot of at most 16 bits, without noise."""
        word, start = divmod(slot * held.bits, 32)
        low, end, mask = held.word(word), start + held.bits, (1 << held.bits) - 1
        if end > 32:
            return f"(__funnelshift_r({low}, {held.word(word + 1)}, {start}) & {mask:#x}u)"
        shifted = f"{low} >> {start}" if start else low
        return f"({shifted})" if end == 32 and start else f"(({shifted}) & {mask:#x}u)"

    def value(self, held: Held, slot: int) -> str:
        """C expression: the value in a slot of 16 or 32 bits; i32 as an integer, floats as float."""
        if held.bits == 32:
            return f"{held.name}[{slot}]"
        return f"from_{held.dtype.name}({self.code(held, slot)})"

    def pair(self, held: Held, first: int, second: int) -> str:
        """C expression: two slots of 16 bits as one word."""
        (a, x), (b, y) = divmod(first, 2), divmod(second, 2)
        if first == second:
            return f"twice_{'high' if x else 'low'}({held.word(a)})"
        if (x, y) == (0, 1) and a == b:
            return held.word(a)
        return f"pair_of({held.word(a)}, {x}, {held.word(b)}, {y})"

    def put(self, held: Held, values: list[str]) -> None:
        """Write a value, a float or an integer, to every slot of 16 or 32 bits."""
        if held.bits == 32:
            for number, text in enumerate(values):
                self.line(f"{held.name}[{number}] = {text};")
            return
        codes = [f"to_{held.dtype.name}({text})" for text in values]
        for word in range(held.count):
            upper = f" | {codes[2 * word + 1]} << 16" if 2 * word + 1 < len(codes) else ""
            self.line(f"{held.name}[{word}] = {codes[2 * word]}{upper};")


def variables_of(body: Body) -> list[str]:
    """Names of the scalar variables that a body introduces."""
    found: list[str] = []
    for statement in body:
        if isinstance(statement, ir.SetScalar):
            found.append(statement.variable.name)
        if isinstance(statement, ir.BlockIndices):
            found.extend(v.name for v in statement.variables)
        if isinstance(statement, ir.For):
            found.append(statement.variable.name)
        for part in ir.bodies_of(statement):
            found.extend(variables_of(part))
    return found

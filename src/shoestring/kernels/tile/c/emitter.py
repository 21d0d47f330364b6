"""Collects the C text of a program, and knows where the value of every register slot is found."""

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import UInt8

from shoestring.errors import ProgramError
from shoestring.kernels.tile import ir
from shoestring.kernels.tile.alignment import slots_of_operand
from shoestring.kernels.tile.c.isa import Bias, Isa
from shoestring.kernels.tile.c.pairs import Pairs, can_pair, together
from shoestring.kernels.tile.c.registers import Held, hold
from shoestring.kernels.tile.c.scalars import c_names, c_of
from shoestring.kernels.tile.expressions import Const, Expr
from shoestring.kernels.tile.ir import Body, Instruction, Program, Space, Tensor, Window
from shoestring.kernels.tile.prepare import PreparedProgram
from shoestring.kernels.tile.types import DataType


@dataclass(frozen=True)
class Prefetch:
    """How far ahead loads from memory are announced: `turns` of an innermost loop, 0 for not at all.

    `locality`: 3 into the nearest cache, 2 into the next, as GCC's __builtin_prefetch counts. `far`: turns
    ahead that they are also announced to the next cache, 0 for not. The nearest one waits for few lines at
    once, the next for many: both together keep memory busy while the processor computes.

    Raises: ValueError for negative turns, another locality, or a `far` that is not beyond `turns`.
    """

    turns: int = 16
    locality: int = 2
    far: int = 0

    def __post_init__(self) -> None:
        if self.turns < 0 or self.locality not in (1, 2, 3):
            raise ValueError(f"{self}: turns are at least 0, the locality is 1, 2 or 3")
        if self.far and self.far <= self.turns:
            raise ValueError(f"{self}: far is 0 or more than turns={self.turns}")


DEFAULT_PREFETCH = Prefetch()
OUTER_TURNS = 4
"""A turn of a group of inputs takes about as long as memory takes to answer, or half as long."""

Slot = Callable[[int, int], str]
"""C text of the value in (group, slot)."""


@dataclass
class Uses:
    """The instructions that write and read a tensor, each with the number of the body it stands in."""

    writers: list[tuple[Instruction, int]] = field(default_factory=list)
    readers: list[tuple[Instruction, int]] = field(default_factory=list)


class Emitter:
    """The text of one program, and what has been decided about it.

    `lazy`: tensors that are computed where they are used, slot by slot; `waiting_for`: the codes of those
    that are nothing but values. `pairs`: where set, codes of the open block of C may be decoded in pairs;
    `biased`: they may become floats that are too large.
    `loops`: the variables of the loops around what is rendered. `inner_turns`: for each of them the turns of
    the loops inside, where known.
    """

    def __init__(self, prepared: PreparedProgram, isa: Isa, prefetch: Prefetch) -> None:
        self.prepared = prepared
        self.program: Program = prepared.program
        self.isa = isa
        self.prefetch = prefetch
        self.lanes = prepared.target.group
        self.lines: list[str] = []
        self.depth = 1
        self.loops: list[str] = []
        self.inner_turns: list[int] = []
        self.decoders: dict[str, DataType] = {}
        self.pair_decoders: dict[str, DataType] = {}
        self.byte_tables: dict[str, UInt8[np.ndarray, " codes"]] = {}
        self.pairs: Pairs | None = None
        self.biased = False
        self.encoders: dict[str, DataType] = {}
        self.failures: list[str] = []
        self.lazy: dict[str, Slot] = {}
        self.waiting_for: dict[str, Tensor] = {}
        self.uses: Mapping[str, Uses] = _uses_of(self.program)
        tensors = self.program.tensors()
        names = [p.name for p in self.program.params] + _variables_of(self.program.body) + list(tensors)
        self.names = c_names(dict.fromkeys(names))
        self.held: dict[str, Held] = {
            name: hold(self.names[name], tensor, self.lanes)
            for name, tensor in tensors.items()
            if tensor.space is Space.REGISTER
        }
        self.in_place = _read_in_place(self.program.body, self.uses, self.held)
        for name in self.in_place:
            held = self.held[name]
            steps = [f"{held.name}_step{dim}" for dim in range(held.layout.rank)]
            self.held[name] = replace(held, places=_places(held, steps))
        self._fresh = 0

    # Text

    def line(self, text: str) -> None:
        self.lines.append("    " * self.depth + text)

    @contextmanager
    def block(self, head: str) -> Iterator[None]:
        self.line(f"{head} {{" if head else "{")
        self.depth += 1
        yield
        self.depth -= 1
        self.line("}")

    @contextmanager
    def codes_in_pairs(self) -> Iterator[None]:
        """Until the end of the block of C that is open, codes may be decoded in pairs."""
        self.pairs = Pairs(self)
        yield
        self.pairs = None

    @contextmanager
    def codes_with_bias(self) -> Iterator[None]:
        """Codes become floats that are too large by the surplus of `bias_of`."""
        self.biased = True
        yield
        self.biased = False

    def scalar(self, expr: Expr) -> str:
        return c_of(expr, self.names)

    def fresh(self, stem: str) -> str:
        self._fresh += 1
        return f"t_{stem}{self._fresh}"

    def failure(self, step: Instruction, reason: str) -> int:
        """The code that the kernel returns where `reason` holds."""
        self.failures.append(f"{self.program.name}: {step}: {reason}")
        return len(self.failures)

    def refuse(self, step: object, reason: str) -> ProgramError:
        return ProgramError(f"{self.program.name}: {step}: {reason}")

    # What may wait

    def written_once(self, *tensors: Tensor) -> bool:
        return all(len(self.uses[t.name].writers) == 1 for t in tensors)

    def may_wait(self, step: Instruction, out: Tensor, *, cheap: bool = False) -> bool:
        """Whether `out` can be computed where it is used: in one place of the same body, once for each slot,
        from operands that nothing changes meanwhile. cheap: or as the scalars of a matrix step, often."""
        uses = self.uses[out.name]
        if len(uses.readers) != 1 or not self.written_once(out, *step.reads):
            return False
        (_, here), (reader, there) = uses.writers[0], uses.readers[0]
        scalars = cheap and self.held[out.name].uniform and isinstance(reader, ir.Dot) and reader.b != out
        return here == there and (scalars or _takes_each_slot_once(reader, out))

    def wait(self, out: Tensor, slot: Slot, codes: Tensor | None = None) -> None:
        """Leave `out` to be computed where it is used; codes: of which it is nothing but the values."""
        self.lazy[out.name] = slot
        if codes is not None:
            self.waiting_for[out.name] = codes

    def rename(self, out: Tensor, source: Tensor) -> None:
        """From here on `out` is the registers of `source`."""
        old = self.held[source.name]
        self.held[out.name] = replace(self.held[out.name], name=old.name, places=old.places)

    def is_read_in_place(self, step: Instruction) -> bool:
        """Whether what a load brings is left where it lies in memory."""
        return any(t.name in self.in_place for t in step.writes)

    def announcements(self) -> list[tuple[int, int]]:
        """(turns of the loop around, locality) of what is announced ahead: in time as far as in an innermost
        loop.

        Outside of innermost loops turns are at least `OUTER_TURNS`: such loads are far apart, so that the
        processor foresees none of them, and few, so that asking early displaces nothing.
        """
        ahead = self.prefetch
        if not self.loops or not ahead.turns:
            return []
        inner = self.inner_turns[-1]
        if inner > 1:
            return [(max(-(-ahead.turns // inner), OUTER_TURNS), ahead.locality)]
        return [(ahead.turns, ahead.locality), *[(ahead.far, 2)] * bool(ahead.far)]

    # Values

    def register(self, tensor: Tensor) -> Held:
        return self.held[tensor.name]

    def value(self, tensor: Tensor, group: int, slot: int, *, uniform: bool = False) -> str:
        """What a slot stands for: i32 as an integer, all other types as float; a scalar if `uniform`."""
        held = self.held[tensor.name]
        if tensor.name in self.lazy:
            text = self.lazy[tensor.name](group, slot)
        elif held.uniform:
            text = self._uniform_value(held, group, slot)
        else:
            text = self._vector_value(held, group, slot)
        if uniform and not held.uniform:
            raise AssertionError(f"{held} is read as if all lanes were equal")
        if held.uniform and not uniform:
            return f"{'vi' if held.dtype.name == 'i32' else 'vf'}_set1({text})"
        return text

    def field(self, held: Held, group: int, slot: int) -> str:
        """The code in a slot at the low end of a word of noise."""
        word, start = divmod(slot * held.bits, 32)
        low = held.register(group, word)
        if start == 0:
            return low
        if start + held.bits <= 32:
            return f"vi_shr({low}, {start})"
        return self.isa.funnel(low, held.register(group, word + 1), start)

    def field_at_top(self, held: Held, group: int, slot: int) -> str:
        """The code in a slot at the high end of a word, noise below it."""
        word, start = divmod(slot * held.bits, 32)
        low, beyond = held.register(group, word), start + held.bits - 32
        if beyond <= 0:
            return f"vi_shl({low}, {-beyond})" if beyond else low
        return self.isa.funnel(low, held.register(group, word + 1), beyond)

    def bias_of(self, tensor: Tensor) -> Bias | None:
        """How the values of a tensor may be had with a surplus; None where it is no mere cast of codes."""
        codes = self.waiting_for.get(tensor.name)
        if codes is None or self.held[codes.name].uniform:
            return None
        return self.isa.bias(codes.dtype)

    def _biased_value(self, held: Held, group: int, slot: int, bias: Bias) -> str:
        word, start = divmod(slot * held.bits, 32)
        shift, low = start - bias.at, held.register(group, word)
        if start + held.bits > 32:
            low = self.isa.funnel(low, held.register(group, word + 1), shift)
        elif shift:
            low = f"vi_shr({low}, {shift})" if shift > 0 else f"vi_shl({low}, {-shift})"
        return f"vi_as_float(vi_and_xor({low}, {bias.keep:#x}, {bias.flip:#x}))"

    def _vector_value(self, held: Held, group: int, slot: int) -> str:
        if held.bits == 32:
            return held.register(group, slot)
        if held.dtype.name == "f16":
            return f"vf_from_half({self.field(held, group, slot)})"
        if held.dtype.name == "bf16":
            word = held.register(group, slot // 2)
            upper = f"vi_and({word}, vi_set1(0xffff0000))" if slot % 2 else f"vi_shl({word}, 16)"
            return f"vi_as_float({upper})"
        bias = self.isa.bias(held.dtype) if self.biased else None
        if bias is not None:
            return self._biased_value(held, group, slot, bias)
        if self.pairs and self._decodes_pairs(held):
            return self.pairs.value(held, group, slot)
        self.decoders[held.dtype.name] = held.dtype
        field = self.field_at_top if self.isa.decodes_from_top(held.dtype) else self.field
        return f"decode_{held.dtype.name}({field(held, group, slot)})"

    def _decodes_pairs(self, held: Held) -> bool:
        return not held.uniform and can_pair(held) and self.isa.pair_decoder(held.dtype) is not None

    def order_of_use(self, tensor: Tensor, slots: Sequence[int]) -> list[int]:
        """Indices of `slots` of an operand in the order in which their values need the fewest registers."""
        codes = self.waiting_for.get(tensor.name)
        if codes is None or not self._decodes_pairs(self.held[codes.name]):
            return list(range(len(slots)))
        places = slots_of_operand(tensor.registers, codes.registers)
        return together([places[slot] for slot in slots], codes.dtype.bits)

    def _uniform_value(self, held: Held, group: int, slot: int) -> str:
        if held.bits == 32:
            return held.register(group, slot)
        if 32 % held.bits == 0:
            word, start = divmod(slot * held.bits, 32)
            code = f"((uint32_t){held.register(group, word)} >> {start} & {(1 << held.bits) - 1:#x}u)"
        else:
            code = f"get_field({held.name} + {group * held.count}, 1, {slot}, {held.bits})"
        if held.dtype.name == "f16":
            return f"half_to_float({code})"
        if held.dtype.name == "bf16":
            return f"bits_float({code} << 16)"
        self.decoders[held.dtype.name] = held.dtype
        return f"values_{held.dtype.name}[{code}]"

    def operand(self, needed: Tensor, tensor: Tensor) -> Slot:
        """The value that each slot of `needed` finds in `tensor`, scalar where `needed` is uniform."""
        slots = slots_of_operand(needed.registers, tensor.registers)
        uniform = self.held[needed.name].uniform
        return lambda group, slot: self.value(tensor, group, slots[slot], uniform=uniform)

    def put(self, out: Tensor, slot: Slot) -> None:
        """Write a value to every slot of a tensor of 16 or 32 bits.

        A step in place reads the slots of a register before it writes that register, and no later ones.
        """
        held = self.held[out.name]
        for group in range(held.groups):
            texts = [slot(group, number) for number in range(held.slots)]
            if held.bits == 16:
                self._put_halves(held, group, texts)
                continue
            for number, text in enumerate(texts):
                self.line(f"{held.register(group, number)} = {text};")

    def _put_halves(self, held: Held, group: int, texts: list[str]) -> None:
        codes = [self._half_code(held, text) for text in texts]
        for word in range(held.count):
            text = codes[2 * word]
            if 2 * word + 1 < len(codes):
                upper = codes[2 * word + 1]
                text = f"{text} | {upper} << 16" if held.uniform else f"vi_or({text}, vi_shl({upper}, 16))"
            self.line(f"{held.register(group, word)} = {text};")

    def _half_code(self, held: Held, text: str) -> str:
        brain = held.dtype.name == "bf16"
        if held.uniform:
            return f"{'float_to_brain' if brain else 'float_to_half'}({text})"
        return f"vi_brain({text})" if brain else f"vi_half({text})"


def _takes_each_slot_once(reader: Instruction, tensor: Tensor) -> bool:
    if isinstance(reader, ir.Cast):
        return reader.out.dtype.name in ("f32", "i32")
    if isinstance(reader, ir.Dot):
        return reader.b is tensor or reader.b == tensor
    if isinstance(reader, ir.Elementwise):
        both = reader.a.name == reader.b.name
        return not both and reader.out.dtype.bits == 32 and tensor.extents == reader.out.extents
    return isinstance(reader, ir.Reduce | ir.Unary | ir.ElementwiseScalar) and tensor.dtype.bits == 32


def _places(held: Held, steps: list[str]) -> tuple[str, ...]:
    """Indices of the slots of a tile in memory whose dimensions have the strides called `steps`."""
    terms = [
        [f"{at} * {step}" for at, step in zip(index, steps, strict=True) if at]
        for index in held.layout.index_table[0].tolist()
    ]
    return tuple(" + ".join(parts) or "0" for parts in terms)


def _read_in_place(body: Body, uses: Mapping[str, Uses], held: Mapping[str, Held]) -> set[str]:
    """Rows of scalars that need no copy: loaded once, and used by matrix steps of the same body, which
    compute at once, before anything is stored."""
    found: set[str] = set()
    for number, statement in enumerate(body):
        for part in ir.bodies_of(statement):
            found |= _read_in_place(part, uses, held)
        if not isinstance(statement, ir.LoadGlobal) or len(uses[statement.out.name].writers) > 1:
            continue
        tile = held[statement.out.name]
        # rows that lie a power of two apart would push one another out of the cache: they are copied together
        one_run = tile.layout.shape[-1] == tile.slots or _is_one_run(statement.source, tile.layout.shape)
        in_order = tile.layout.flat_table[0].tolist() == list(range(tile.slots))
        if not (tile.uniform and tile.bits == 32 and tile.groups == 1 and one_run and in_order):
            continue
        quiet = list(itertools.takewhile(lambda s: isinstance(s, _QUIET), body[number + 1 :]))
        readers = _readers_of_bits(statement.out, uses)
        if all(isinstance(r, ir.Dot) and r.b.name != statement.out.name and r in quiet for r in readers):
            found.add(statement.out.name)
    return found


def _readers_of_bits(tensor: Tensor, uses: Mapping[str, Uses]) -> list[Instruction]:
    """Who reads a tensor, or what it is viewed or cast as."""
    found: list[Instruction] = []
    for reader, _ in uses[tensor.name].readers:
        found += _readers_of_bits(reader.out, uses) if isinstance(reader, ir.View | ir.Cast) else [reader]
    return found


def _is_one_run(window: Window, shape: Sequence[int]) -> bool:
    """Whether a tile of `shape` lies in memory without a gap, as far as constants tell."""
    strides = [window.tensor.strides[dim] for dim in window.dims]
    return strides == [Const(math.prod(shape[dim + 1 :])) for dim in range(len(shape))]


_QUIET = (ir.LoadGlobal, ir.LoadShared, ir.AllocateRegister, ir.View, ir.Cast, ir.Elementwise, ir.Dot)
"""Instructions that change no memory."""


def _uses_of(program: Program) -> Mapping[str, Uses]:
    uses: dict[str, Uses] = defaultdict(Uses)
    bodies = 0

    def walk(body: Body) -> None:
        nonlocal bodies
        number, bodies = bodies, bodies + 1
        for statement in body:
            if isinstance(statement, Instruction):
                for tensor in statement.writes:
                    uses[tensor.name].writers.append((statement, number))
                for tensor in statement.reads:
                    uses[tensor.name].readers.append((statement, number))
            for part in ir.bodies_of(statement):
                walk(part)

    walk(program.body)
    return uses


def _variables_of(body: Body) -> list[str]:
    found: list[str] = []
    for statement in body:
        if isinstance(statement, ir.SetScalar):
            found.append(statement.variable.name)
        if isinstance(statement, ir.BlockIndices):
            found.extend(v.name for v in statement.variables)
        if isinstance(statement, ir.For):
            found.append(statement.variable.name)
        for part in ir.bodies_of(statement):
            found.extend(_variables_of(part))
    return found

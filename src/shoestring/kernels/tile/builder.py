"""A small language for writing tile programs: every call appends an instruction and returns its result."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from shoestring.errors import ProgramError
from shoestring.kernels.tile import ir
from shoestring.kernels.tile.expressions import Expr, Var, expression
from shoestring.kernels.tile.ir import Pointer, Program, Space, Statement, Tensor, Window
from shoestring.kernels.tile.layout import RegisterLayout
from shoestring.kernels.tile.memory_layout import SharedLayout
from shoestring.kernels.tile.types import DataType, data_type

Extent = Expr | int
Type = DataType | str


def _type(dtype: Type) -> DataType:
    return data_type(dtype) if isinstance(dtype, str) else dtype


class Builder:
    """Collects a program. Tensors get their names from `name=` or are numbered.

    Example:
        k = Builder("double", threads=32)
        n, x = k.scalar("n"), k.pointer("x", "f32")
        k.grid(ceil_div(n, 128))
        (block,) = k.block_indices()
        data = k.view_global(x, [n])
        tile = k.load_global(data, [block * 128], shape=[128])
        k.store_global(data, k.mul(tile, 2.0), [block * 128])
        program = k.build()
    """

    def __init__(self, name: str, *, threads: int) -> None:
        self.name = name
        self.threads = threads
        self._params: list[Var | Pointer] = []
        self._grid: tuple[Expr, ...] = ()
        self._bodies: list[list[Statement]] = [[]]
        self._names: set[str] = set()

    # Parameters, grid and structure

    def scalar(self, name: str, *, divisible_by: int = 1) -> Var:
        """An integer parameter."""
        variable = Var(self._claim(name), divisible_by)
        self._params.append(variable)
        return variable

    def pointer(self, name: str, dtype: Type) -> Pointer:
        """A buffer parameter."""
        pointer = Pointer(self._claim(name), _type(dtype))
        self._params.append(pointer)
        return pointer

    def grid(self, *extents: Extent) -> None:
        """Number of blocks along each axis."""
        self._grid = tuple(map(expression, extents))

    def block_indices(self) -> tuple[Var, ...]:
        """The block's place in the grid, one variable for each axis."""
        variables = tuple(Var(self._claim(f"block_{axis}")) for axis in "xyz"[: len(self._grid)])
        self._append(ir.BlockIndices(variables))
        return variables

    def set_scalar(self, name: str, value: Extent) -> Var:
        """A new scalar variable; give it another value with `update`."""
        variable = Var(self._claim(name))
        self._append(ir.SetScalar(variable, expression(value)))
        return variable

    def update(self, variable: Var, value: Extent) -> None:
        self._append(ir.SetScalar(variable, expression(value)))

    @contextmanager
    def loop(self, name: str, extent: Extent) -> Iterator[Var]:
        """for name in range(extent)"""
        variable = Var(self._claim(name))
        with self._block() as body:
            yield variable
        self._append(ir.For(variable, expression(extent), tuple(body)))

    @contextmanager
    def when(self, condition: Extent) -> Iterator[None]:
        with self._block() as body:
            yield
        self._append(ir.If(expression(condition), tuple(body)))

    @contextmanager
    def otherwise(self) -> Iterator[None]:
        """The other branch of the `when` just before."""
        last = self._bodies[-1][-1] if self._bodies[-1] else None
        if not isinstance(last, ir.If) or last.otherwise:
            raise ProgramError(f"{self.name}: `otherwise` must follow a `when`")
        with self._block() as body:
            yield
        self._bodies[-1][-1] = ir.If(last.condition, last.then, tuple(body))

    @contextmanager
    def loop_while(self, condition: Extent) -> Iterator[None]:
        with self._block() as body:
            yield
        self._append(ir.While(expression(condition), tuple(body)))

    def build(self) -> Program:
        return Program(self.name, self.threads, self._grid, tuple(self._params), tuple(self._bodies[0]))

    # Memory

    def view_global(
        self,
        pointer: Pointer,
        shape: Sequence[Extent],
        *,
        strides: Sequence[Extent] | None = None,
        name: str | None = None,
    ) -> Tensor:
        """The buffer as a tensor, row-major unless `strides` (in elements) say otherwise."""
        extents = tuple(map(expression, shape))
        if strides is None:
            steps = [expression(1)]
            for extent in reversed(extents[1:]):
                steps.append(expression(extent * steps[-1]))
            strides = steps[::-1] if extents else []
        out = Tensor(
            self._claim(name or f"{pointer.name}_view"),
            pointer.dtype,
            extents,
            Space.GLOBAL,
            strides=tuple(map(expression, strides)),
        )
        self._append(ir.ViewGlobal(out, pointer))
        return out

    def allocate_global(self, dtype: Type, shape: Sequence[Extent], *, name: str | None = None) -> Tensor:
        extents = tuple(map(expression, shape))
        steps = [expression(1)]
        for extent in reversed(extents[1:]):
            steps.append(expression(extent * steps[-1]))
        out = Tensor(
            self._fresh(name, "workspace"),
            _type(dtype),
            extents,
            Space.GLOBAL,
            strides=tuple(steps[::-1]),
        )
        self._append(ir.AllocateGlobal(out))
        return out

    def allocate_shared(
        self,
        dtype: Type,
        shape: Sequence[int],
        *,
        layout: SharedLayout | None = None,
        name: str | None = None,
    ) -> Tensor:
        extents = tuple(map(expression, shape))
        out = Tensor(self._fresh(name, "shared"), _type(dtype), extents, Space.SHARED, layout)
        self._append(ir.AllocateShared(out))
        return out

    def free_shared(self, tensor: Tensor) -> None:
        self._append(ir.FreeShared(tensor))

    def allocate_register(
        self,
        dtype: Type,
        shape: Sequence[int],
        *,
        layout: RegisterLayout | None = None,
        init: int | float | None = None,
        name: str | None = None,
    ) -> Tensor:
        out = self._register(_type(dtype), shape, layout, name)
        self._append(ir.AllocateRegister(out, None if init is None else float(init)))
        return out

    def load_global(
        self,
        source: Tensor,
        offsets: Sequence[Extent],
        *,
        shape: Sequence[int],
        dims: Sequence[int] | None = None,
        layout: RegisterLayout | None = None,
        name: str | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """The tile of `shape` at `offsets`; it runs along the last dimensions of the source, or `dims`."""
        out = out or self._register(source.dtype, shape, layout, name)
        self._append(ir.LoadGlobal(out, _window(source, offsets, len(shape), dims)))
        return out

    def store_global(
        self,
        target: Tensor,
        source: Tensor,
        offsets: Sequence[Extent],
        *,
        dims: Sequence[int] | None = None,
    ) -> None:
        self._append(ir.StoreGlobal(_window(target, offsets, len(source.shape), dims), source))

    def load_shared(
        self,
        source: Tensor,
        offsets: Sequence[Extent] | None = None,
        *,
        shape: Sequence[int] | None = None,
        dims: Sequence[int] | None = None,
        layout: RegisterLayout | None = None,
        name: str | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """The tile of `shape` at `offsets`; the whole tensor by default."""
        extents = source.extents if shape is None else shape
        out = out or self._register(source.dtype, extents, layout, name)
        starts = [0] * len(source.shape) if offsets is None else offsets
        self._append(ir.LoadShared(out, _window(source, starts, len(extents), dims)))
        return out

    def store_shared(
        self,
        target: Tensor,
        source: Tensor,
        offsets: Sequence[Extent] | None = None,
        *,
        dims: Sequence[int] | None = None,
    ) -> None:
        starts = [0] * len(target.shape) if offsets is None else offsets
        self._append(ir.StoreShared(_window(target, starts, len(source.shape), dims), source))

    def copy_async(
        self,
        target: Tensor,
        source: Tensor,
        target_offsets: Sequence[Extent],
        offsets: Sequence[Extent],
        *,
        shape: Sequence[int],
    ) -> None:
        """Start copying the tile of `shape` at `offsets` of a global tensor to shared memory."""
        self._append(
            ir.CopyAsync(
                _window(target, target_offsets, len(shape), None),
                _window(source, offsets, len(shape), None),
                tuple(shape),
            )
        )

    def commit_group(self) -> None:
        self._append(ir.CopyAsyncCommitGroup())

    def wait_group(self, pending: int) -> None:
        self._append(ir.CopyAsyncWaitGroup(pending))

    def synchronize(self) -> None:
        self._append(ir.Synchronize())

    # Registers

    def view(
        self,
        source: Tensor,
        dtype: Type,
        shape: Sequence[int],
        *,
        layout: RegisterLayout | None = None,
        name: str | None = None,
    ) -> Tensor:
        """The same bits as tensor of `dtype` and `shape`."""
        out = self._register(_type(dtype), shape, layout, name)
        self._append(ir.View(out, source))
        return out

    def cast(self, source: Tensor, dtype: Type, *, name: str | None = None) -> Tensor:
        out = self._register(_type(dtype), source.extents, None, name)
        self._append(ir.Cast(out, source))
        return out

    def dot(self, a: Tensor, b: Tensor, c: Tensor, *, out: Tensor | None = None) -> Tensor:
        """c + a · b; `out=c` accumulates in place."""
        out = out or self._register(c.dtype, c.extents, None, None)
        self._append(ir.Dot(out, a, b, c))
        return out

    def unary(self, op: str, source: Tensor, *, out: Tensor | None = None) -> Tensor:
        out = out or self._register(source.dtype, source.extents, None, None)
        self._append(ir.Unary(out, op, source))
        return out

    def elementwise(
        self, op: str, a: Tensor, b: Tensor | Extent | float, *, out: Tensor | None = None
    ) -> Tensor:
        """op(a, b); `b` is a tensor, a number or a scalar expression."""
        if not isinstance(b, Tensor):
            out = out or self._register(a.dtype, a.extents, None, None)
            self._append(ir.ElementwiseScalar(out, op, a, b if isinstance(b, Expr) else float(b)))
            return out
        if out is None:
            if len(a.shape) != len(b.shape):
                raise ProgramError(f"{op}: {a} and {b} differ in rank; unsqueeze one of them")
            shape = [max(m, n) for m, n in zip(a.extents, b.extents, strict=True)]
            out = self._register(a.dtype, shape, None, None)
        self._append(ir.Elementwise(out, op, a, b))
        return out

    def add(self, a: Tensor, b: Tensor | Extent | float, *, out: Tensor | None = None) -> Tensor:
        return self.elementwise("add", a, b, out=out)

    def sub(self, a: Tensor, b: Tensor | Extent | float, *, out: Tensor | None = None) -> Tensor:
        return self.elementwise("sub", a, b, out=out)

    def mul(self, a: Tensor, b: Tensor | Extent | float, *, out: Tensor | None = None) -> Tensor:
        return self.elementwise("mul", a, b, out=out)

    def reduce(self, op: str, source: Tensor, dim: int) -> Tensor:
        shape = [1 if d == dim else n for d, n in enumerate(source.extents)]
        out = self._register(source.dtype, shape, None, None)
        self._append(ir.Reduce(out, op, source, dim))
        return out

    def transpose(self, source: Tensor, dims: Sequence[int]) -> Tensor:
        out = self._register(source.dtype, [source.extents[d] for d in dims], None, None)
        self._append(ir.Transpose(out, source, tuple(dims)))
        return out

    def squeeze(self, source: Tensor, dims: Sequence[int]) -> Tensor:
        shape = [n for d, n in enumerate(source.extents) if d not in dims]
        out = self._register(source.dtype, shape, None, None)
        self._append(ir.Squeeze(out, source, tuple(dims)))
        return out

    def unsqueeze(self, source: Tensor, dims: Sequence[int]) -> Tensor:
        sizes = iter(source.extents)
        shape = [1 if d in dims else next(sizes) for d in range(len(source.shape) + len(dims))]
        out = self._register(source.dtype, shape, None, None)
        self._append(ir.Unsqueeze(out, source, tuple(dims)))
        return out

    def assign(self, target: Tensor, source: Tensor) -> None:
        self._append(ir.Assign(target, source))

    # Between blocks, and for people

    def lock_semaphore(self, semaphores: Tensor, offsets: Sequence[Extent], value: Extent) -> None:
        self._append(ir.LockSemaphore(_window(semaphores, offsets, 0, None), expression(value)))

    def release_semaphore(self, semaphores: Tensor, offsets: Sequence[Extent], value: Extent) -> None:
        self._append(ir.ReleaseSemaphore(_window(semaphores, offsets, 0, None), expression(value)))

    def print(self, source: Tensor, caption: str = "") -> None:
        self._append(ir.Print(source, caption))

    def exit(self) -> None:
        self._append(ir.Exit())

    # Bookkeeping

    def _append(self, statement: Statement) -> None:
        self._bodies[-1].append(statement)

    @contextmanager
    def _block(self) -> Iterator[list[Statement]]:
        body: list[Statement] = []
        self._bodies.append(body)
        yield body
        self._bodies.pop()

    def _register(
        self, dtype: DataType, shape: Sequence[int], layout: RegisterLayout | None, name: str | None
    ) -> Tensor:
        extents = tuple(map(expression, shape))
        return Tensor(self._fresh(name, "r"), dtype, extents, Space.REGISTER, layout)

    def _fresh(self, name: str | None, stem: str) -> str:
        if name is not None:
            return self._claim(name)
        number = 0
        while f"{stem}{number}" in self._names:
            number += 1
        return self._claim(f"{stem}{number}")

    def _claim(self, name: str) -> str:
        if not name.isidentifier():
            raise ProgramError(f"{self.name}: {name!r} is no name; letters, digits and _ only")
        if name in self._names:
            raise ProgramError(f"{self.name}: two things are called {name!r}")
        self._names.add(name)
        return name


def _window(tensor: Tensor, offsets: Sequence[Extent], rank: int, dims: Sequence[int] | None) -> Window:
    along = range(len(tensor.shape) - rank, len(tensor.shape)) if dims is None else dims
    return Window(tensor, tuple(map(expression, offsets)), tuple(along))

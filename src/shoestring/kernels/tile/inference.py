"""Fill in the layouts that a program leaves open, from those that it fixes.

Rules run in order of how much they know; after every success the search starts again from the strongest
rule, and instructions that have some layout already come before those that have none.

Source: Tilus (2025), section 7.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from shoestring.errors import LayoutError
from shoestring.kernels.tile import ir
from shoestring.kernels.tile.alignment import operand_a, operand_b
from shoestring.kernels.tile.analysis import contiguous_elements, registers_of, window_of
from shoestring.kernels.tile.fragments import FMA, MatrixAtom, can_ldmatrix
from shoestring.kernels.tile.ir import Instruction, Program, Space, Tensor, with_tensors
from shoestring.kernels.tile.layout import RegisterLayout, auto_local_spatial, local, spatial
from shoestring.kernels.tile.memory_layout import SharedLayout, row_major, swizzled_row_major
from shoestring.kernels.tile.target import Target

Layout = RegisterLayout | SharedLayout
Known = dict[str, Layout]


def infer_layouts(program: Program, target: Target) -> Program:
    """The program with every register and shared layout filled in.

    Raises: LayoutError naming a tensor whose layout follows from nothing.
    """
    return with_tensors(program, _Inference(program, target).filled)


class _Inference:
    def __init__(self, program: Program, target: Target) -> None:
        self.program = program
        self.target = target
        self.instructions = list(program.instructions())
        self.names = [frozenset(t.name for t in (*i.writes, *i.reads)) for i in self.instructions]
        self.known: Known = {}
        self.open: dict[str, Tensor] = {}
        for name, tensor in program.tensors().items():
            if tensor.space is Space.GLOBAL:
                continue
            if tensor.layout is None:
                self.open[name] = tensor
            else:
                self.known[name] = tensor.layout
        while self.open:
            self._step()

    def filled(self, tensor: Tensor) -> Tensor:
        if tensor.space is Space.GLOBAL:
            return tensor
        return replace(tensor, layout=self.known[tensor.name])

    def _step(self) -> None:
        waiting = [i for i, names in enumerate(self.names) if not names.isdisjoint(self.open)]
        waiting.sort(key=lambda i: self.names[i].isdisjoint(self.known))
        ranked = [self.instructions[i] for i in waiting]
        for kinds, rule in _RULES:
            for instruction in ranked:
                if isinstance(instruction, kinds) and self._learn(rule(self, instruction)):
                    return
        stuck = next(iter(self.open.values()))
        raise LayoutError(
            f"{self.program.name}: the layout of {stuck} follows from nothing; give it one where it is made"
        )

    def _learn(self, found: Known) -> bool:
        new = {name: layout for name, layout in found.items() if name in self.open}
        for name, layout in new.items():
            if layout.shape != self.open[name].extents:
                raise LayoutError(
                    f"{self.program.name}: {self.open[name]} would get {layout} of shape {list(layout.shape)}"
                )
            self.known[name] = layout
            del self.open[name]
        return bool(new)

    def registers(self, tensor: Tensor) -> RegisterLayout | None:
        layout = self.known.get(tensor.name)
        return layout if isinstance(layout, RegisterLayout) else None

    # Rules: each returns what follows from what is known, nothing being an answer too

    def dot(self, dot: ir.Dot) -> Known:
        c = self.registers(dot.c) or self.registers(dot.out)
        if c is None:
            if self.registers(dot.a) or self.registers(dot.b):
                return {}
            c = self._default_accumulator(dot)
        k = dot.a.extents[1]
        atom = self._atom_for(dot, c, k)
        outer = c / atom.c
        steps = k // atom.a.shape[1]
        return {
            dot.c.name: c,
            dot.out.name: c,
            dot.a.name: operand_a(outer, steps) * atom.a,
            dot.b.name: operand_b(outer, steps) * atom.b,
        }

    def _atom_for(self, dot: ir.Dot, c: RegisterLayout, k: int) -> MatrixAtom:
        for atom in self.target.atoms(dot.a.dtype, dot.b.dtype, dot.c.dtype):
            try:
                c / atom.c
            except LayoutError:
                continue
            if k % atom.a.shape[1] == 0:
                return atom
        return FMA

    def _default_accumulator(self, dot: ir.Dot) -> RegisterLayout:
        """Fragments of the best matrix step, its groups spread as squarely as can be."""
        (m, k), (_, n) = dot.a.extents, dot.b.extents
        for atom in self.target.atoms(dot.a.dtype, dot.b.dtype, dot.c.dtype):
            rows, columns = atom.c.shape
            if m % rows or n % columns or k % atom.a.shape[1] or self.program.threads % atom.threads:
                continue
            groups = self.program.threads // atom.threads
            if atom is FMA:
                return auto_local_spatial(groups, [m, n])
            across = max(d for d in _divisors(groups) if d * d <= groups and (m // rows) % d == 0)
            if (n // columns) % (groups // across) == 0:
                outer = spatial(across, groups // across)
                inner = [m // rows // across, n // columns // (groups // across)]
                return local(*inner) * outer * atom.c
        raise LayoutError(
            f"{self.program.name}: {self.program.threads} threads cannot share {dot.c} of {dot}"
        )

    def elementwise(self, step: ir.Elementwise) -> Known:
        found: Known = {}
        out = self.registers(step.out)
        for operand in (step.a, step.b):
            layout = self.registers(operand)
            if out is not None and layout is None:
                reduced = [d for d, n in enumerate(operand.extents) if n == 1 and step.out.extents[d] != 1]
                found[operand.name] = out.reduce(reduced, keepdims=True)
            if out is None and layout is not None and operand.extents == step.out.extents:
                found[step.out.name] = layout
        return found

    def same(self, step: ir.Cast | ir.Unary | ir.ElementwiseScalar | ir.Assign) -> Known:
        layout = self.registers(step.out) or self.registers(step.source)
        return {} if layout is None else {step.out.name: layout, step.source.name: layout}

    def access(self, step: ir.LoadGlobal | ir.StoreGlobal | ir.LoadShared | ir.StoreShared) -> Known:
        """Wide runs for each thread where memory allows it, the threads along what is left."""
        tensor, window = registers_of(step), window_of(step)
        if tensor.name not in self.open:
            return {}
        shape, threads = tensor.extents, self.program.threads
        share = max(math.prod(shape) // threads, 1)
        runs = [1] * len(shape)
        for tile_dim, dim in enumerate(window.dims):
            if window.tensor.space is Space.GLOBAL:
                run = contiguous_elements(window, dim)
            else:
                run = shape[tile_dim] if dim == len(window.tensor.shape) - 1 else 1
            run = math.gcd(run, 128 // tensor.dtype.bits, share, shape[tile_dim])
            if run > 1:
                runs[tile_dim] = run
                break
        outer = auto_local_spatial(threads, [n // run for n, run in zip(shape, runs, strict=True)])
        return {tensor.name: outer * local(*runs)}

    def reduction(self, step: ir.Reduce) -> Known:
        layout = self.registers(step.source)
        return {} if layout is None else {step.out.name: layout.reduce([step.dim], keepdims=True)}

    def transpose(self, step: ir.Transpose) -> Known:
        source, out = self.registers(step.source), self.registers(step.out)
        if source is not None:
            return {step.out.name: source.permute(step.dims)}
        inverse = sorted(range(len(step.dims)), key=lambda d: step.dims[d])
        return {} if out is None else {step.source.name: out.permute(inverse)}

    def squeeze(self, step: ir.Squeeze) -> Known:
        source, out = self.registers(step.source), self.registers(step.out)
        if source is not None:
            return {step.out.name: source.squeeze(step.dims)}
        return {} if out is None else {step.source.name: out.unsqueeze(step.dims)}

    def unsqueeze(self, step: ir.Unsqueeze) -> Known:
        source, out = self.registers(step.source), self.registers(step.out)
        if source is not None:
            return {step.out.name: source.unsqueeze(step.dims)}
        return {} if out is None else {step.source.name: out.squeeze(step.dims)}

    def view(self, step: ir.View) -> Known:
        """Bytes under a known layout: each thread's bytes lie as they do in a packed tile."""
        out = self.registers(step.out)
        bits = 0 if out is None else out.local_size * step.out.dtype.bits
        if out is None or bits % 8 or step.source.dtype.bits != 8 or len(step.source.shape) != 1:
            return {}
        return {step.source.name: flat_bytes(out.threads, bits // 8, self.target.flat_bytes)}

    def allocate(self, step: ir.AllocateRegister) -> Known:
        return {step.out.name: auto_local_spatial(self.program.threads, step.out.extents)}

    def shared(self, step: ir.AllocateShared) -> Known:
        """Swizzled where a matrix load reads it, plain row-major elsewhere."""
        shape, bits = step.out.extents, step.out.dtype.bits
        for load in self.instructions:
            if isinstance(load, ir.LoadShared) and load.source.tensor.name == step.out.name:
                layout = self.registers(load.out)
                if layout is not None and layout.rank == 2 and can_ldmatrix(layout, bits):
                    return {step.out.name: swizzled_row_major(*shape, bits=bits)}
        return {step.out.name: row_major(*shape)}


def flat_bytes(threads: int, count: int, most: int) -> RegisterLayout:
    """`count` bytes of each thread as a flat tile: runs of gcd(count, most) bytes, thread after thread.

    On a GPU `most` = 16 makes every load as wide as it can be; on a processor `most` = 4 puts dword d of
    lane t at byte (d·T + t)·4, so that every load is one full vector.
    """
    run = math.gcd(count, most)
    return local(count // run).spatial(threads).local(run)


def _divisors(number: int) -> Sequence[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


_RULES: list[tuple[tuple[type[Instruction], ...], Callable[[_Inference, Any], Known]]] = [
    ((ir.Dot,), _Inference.dot),
    ((ir.Elementwise,), _Inference.elementwise),
    ((ir.Cast, ir.Unary, ir.ElementwiseScalar), _Inference.same),
    ((ir.View,), _Inference.view),
    ((ir.LoadGlobal,), _Inference.access),
    ((ir.Reduce,), _Inference.reduction),
    ((ir.Transpose,), _Inference.transpose),
    ((ir.Squeeze,), _Inference.squeeze),
    ((ir.Unsqueeze,), _Inference.unsqueeze),
    ((ir.Assign,), _Inference.same),
    ((ir.StoreGlobal,), _Inference.access),
    ((ir.LoadShared, ir.StoreShared), _Inference.access),
    ((ir.AllocateRegister,), _Inference.allocate),
    ((ir.AllocateShared,), _Inference.shared),
]
"""Strongest first. The rules of an instruction only see instructions of their kinds."""

"""How much arithmetic a launch of a tile program is."""

import math
from collections.abc import Mapping

from shoestring.kernels.tile import ir
from shoestring.kernels.tile.expressions import evaluate
from shoestring.kernels.tile.ir import Body, Program


def flops_of(program: Program, scalars: Mapping[str, int]) -> int:
    """Operations of all blocks, each counted as the first: a multiply-add is two, tiles at an edge are whole.

    While loops, whose turns nobody knows, count one turn.
    """
    blocks = math.prod(max(evaluate(extent, scalars), 0) for extent in program.grid)
    return blocks * _body(program.body, dict(scalars)) if blocks else 0


def _body(body: Body, values: dict[str, int]) -> int:
    total = 0
    for statement in body:
        if isinstance(statement, ir.BlockIndices):
            values.update((v.name, 0) for v in statement.variables)
        elif isinstance(statement, ir.SetScalar):
            values[statement.variable.name] = evaluate(statement.value, values)
        elif isinstance(statement, ir.For):
            values[statement.variable.name] = 0
            total += max(evaluate(statement.extent, values), 0) * _body(statement.body, values)
        elif isinstance(statement, ir.If):
            chosen = statement.then if evaluate(statement.condition, values) else statement.otherwise
            total += _body(chosen, values)
        elif isinstance(statement, ir.While):
            total += _body(statement.body, values)
        elif isinstance(statement, ir.Dot):
            total += 2 * math.prod(statement.c.extents) * statement.a.extents[1]
        elif isinstance(statement, ir.Elementwise | ir.ElementwiseScalar | ir.Unary):
            total += math.prod(statement.out.extents)
        elif isinstance(statement, ir.Reduce):
            total += math.prod(statement.source.extents)
    return total

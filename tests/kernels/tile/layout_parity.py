"""What the package `tilus` says of random layouts, stored so that no test needs the package.

Run it where tilus==0.2.0 and cuda-bindings are installed: python tests/kernels/tile/layout_parity.py
"""

import json
import random
from pathlib import Path

TABLE = Path(__file__).parent / "layout_parity.json"
PRIMITIVES = ("local", "spatial", "column_local", "column_spatial")
CASES = 150


def unified(layout):
    """Shape, modes, and the two lists, as plain lists: what both implementations write a layout as."""
    return [
        [int(n) for n in part]
        for part in (layout.shape, layout.mode_shape, layout.spatial_modes, layout.local_modes)
    ]


def draw_case(draw):
    """Factors of a composition, most of them small: [(primitive, shape), …]."""
    factors, size = [], 1
    for _ in range(draw.randint(1, 4)):
        shape = [draw.choice([1, 2, 3, 4]) for _ in range(2)]
        if size * shape[0] * shape[1] > 1500:
            break
        size *= shape[0] * shape[1]
        factors.append((draw.choice(PRIMITIVES), shape))
    return factors


def expected(factors, draw):
    """The package's answers for one composition."""
    from tilus.ir.layout import ops

    parts = [getattr(ops, name)(*shape) for name, shape in factors]
    layout = parts[0]
    for part in parts[1:]:
        layout = layout * part
    kept = draw.randrange(2)
    reduced = ops.reduce(layout, [kept])
    threads, slots = int(layout.spatial_size), int(layout.local_size)
    places = []
    for _ in range(4):
        thread, slot = draw.randrange(threads), draw.randrange(slots)
        index = layout.get_global(spatial_index=thread, local_index=slot)
        places.append([thread, slot, [int(x) for x in index]])
    return {
        "factors": factors,
        "whole": unified(layout),
        "quotient": unified(layout / parts[-1]),
        "reduced_dim": kept,
        "reduced": unified(reduced),
        "concat": unified(ops.concat(layout, reduced)),
        "permuted": unified(ops.permute(layout, [1, 0])),
        "flat": unified(ops.reshape(layout, [int(layout.shape[0]) * int(layout.shape[1])])),
        "places": places,
    }


if __name__ == "__main__":
    source = random.Random(0)
    rows = [json.dumps(expected(draw_case(source), source), separators=(",", ":")) for _ in range(CASES)]
    TABLE.write_text("[\n" + ",\n".join(rows) + "\n]\n")

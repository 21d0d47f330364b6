"""Random damage to files of weights: blind, and aimed at the numbers that say where things are."""

import json
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from .gguf_bytes import ARRAY, STRING, Gguf, Written

Mutation = Callable[[random.Random, bytearray, list[tuple[int, int]]], bytearray]
EDGES = (
    0,
    1,
    2,
    3,
    4,
    7,
    8,
    31,
    32,
    255,
    65536,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**32,
    2**62,
    2**63 - 1,
    2**63,
    2**64 - 1,
)


def flip_bits(rng: random.Random, data: bytearray, _: Any) -> bytearray:
    for _ in range(rng.choice((1, 1, 2, 8))):
        place = rng.randrange(min(len(data), rng.choice((64, 512, len(data)))))
        data[place] ^= 1 << rng.randrange(8)
    return data


def cut(rng: random.Random, data: bytearray, _: Any) -> bytearray:
    return data[: rng.randrange(len(data))]


def lie(rng: random.Random, data: bytearray, numbers: list[tuple[int, int]]) -> bytearray:
    """One or two numbers set to an edge value, to the file's own size, or off by a little."""
    for _ in range(rng.choice((1, 1, 2))):
        if not numbers:
            return flip_bits(rng, data, None)
        place, size = rng.choice(numbers)
        old = int.from_bytes(data[place : place + size], "little")
        value = rng.choice(
            (
                rng.choice(EDGES),
                len(data),
                len(data) - place,
                old + rng.choice((-32, -8, -1, 1, 8, 32)),
                old * 2,
            )
        )
        data[place : place + size] = (value % (1 << 8 * size)).to_bytes(size, "little")
    return data


def swap(rng: random.Random, data: bytearray, numbers: list[tuple[int, int]]) -> bytearray:
    """Two numbers of one size change places."""
    size = rng.choice((4, 8))
    places = [place for place, held in numbers if held == size]
    if len(places) < 2:
        return flip_bits(rng, data, None)
    a, b = rng.sample(places, 2)
    data[a : a + size], data[b : b + size] = data[b : b + size], data[a : a + size]
    return data


def splice(rng: random.Random, data: bytearray, _: Any) -> bytearray:
    """Some bytes are dropped, doubled, copied elsewhere, or new ones come in."""
    start = rng.randrange(len(data))
    piece = data[start : start + rng.choice((1, 4, 8, 24, 100))]
    kind = rng.randrange(4)
    if kind == 0:
        return data[:start] + data[start + len(piece) :]
    place = start if kind == 1 else rng.randrange(len(data))
    new = piece if kind < 3 else rng.randbytes(len(piece))
    return data[:place] + new + data[place:]


BLIND: tuple[Mutation, ...] = (flip_bits, cut, lie, swap, splice)


def damaged_gguf(rng: random.Random, base: Gguf, written: Written) -> bytes:
    """A file like `base`: its bytes damaged, or its content changed and written with the right lengths."""
    if rng.random() < 0.35:
        return bytes(_changed(rng, base).write().data)
    data = bytearray(written.data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if data:
            data = rng.choice(BLIND)(rng, data, [n for n in written.numbers if sum(n) <= len(data)])
    return bytes(data)


def _changed(rng: random.Random, base: Gguf) -> Gguf:
    pairs, tensors = list(base.pairs), list(base.tensors)
    for _ in range(rng.choice((1, 1, 2))):
        what = rng.randrange(9)
        if what == 0:
            pairs.insert(rng.randrange(len(pairs)), rng.choice(pairs))
        elif what == 1:
            tensors.insert(rng.randrange(len(tensors)), rng.choice(tensors))
        elif what == 2:
            pairs.pop(rng.randrange(len(pairs)))
        elif what == 3:
            tensors.pop(rng.randrange(len(tensors)))
        elif what == 4:
            rng.shuffle(tensors)
        else:
            index = rng.randrange(len(pairs if what < 7 else tensors))
            if what < 7:
                pairs[index] = _other_value(rng, pairs[index])
            else:
                tensors[index] = _other_tensor(rng, tensors[index], [t.name for t in tensors])
    return base.but(pairs=tuple(pairs), tensors=tuple(tensors))


def _other_value(rng: random.Random, pair: tuple[str, int, Any]) -> tuple[str, int, Any]:
    key, kind, value = pair
    if kind == ARRAY and value[1] and rng.random() < 0.7:
        inner, items = value[0], list(value[1])
        index = rng.randrange(len(items))
        if rng.random() < 0.5:
            items[index] = rng.choice(items)
        elif rng.random() < 0.5:
            items.pop(index)
        elif inner == STRING:
            items[index] = rng.choice(
                ("", " ", "$A", "a:1", "\ud800".encode("utf-8", "surrogatepass"), "\0", "é" * 50)
            )
        return key, kind, (inner, items)
    return rng.choice(
        [
            (key, STRING, rng.choice(("", "llama", "gpt2", "default", b"\xff\xfe", "x" * 300, "$A", "\n"))),
            (key, 4, rng.choice([v for v in EDGES if v < 2**32])),
            (key, 10, rng.choice(EDGES)),
            (key, 11, -rng.choice(EDGES[:-2])),
            (key, 6, rng.choice((0.0, -1.0, 1e30, float("inf"), float("nan"), 1.0))),
            (key, 7, True),
            (key, ARRAY, (4, [1, 2, 3])),
            (key, ARRAY, (STRING, ["a", "b"])),
            (rng.choice((key, "", key * 3, "general.alignment")), kind, value),
        ]
    )


def _other_tensor(rng: random.Random, tensor: Any, names: list[str]) -> Any:
    return rng.choice(
        [
            replace(
                tensor,
                name=rng.choice(
                    [*names, "", "blk.0.", "blk.01.attn_q.weight", "blk.99999999999.attn_q.weight"]
                ),
            ),
            replace(tensor, kind=rng.choice((*range(42), 2**31, 2**32 - 1))),
            replace(tensor, dims=tuple(rng.choice((*tensor.dims, *EDGES)) for _ in tensor.dims)),
            replace(tensor, dims=tensor.dims[::-1]),
            replace(tensor, dims=(*tensor.dims, 1)),
            replace(tensor, dims=()),
            replace(tensor, offset=rng.choice((*EDGES, 64, 128, 1024))),
            replace(tensor, data=tensor.data[: len(tensor.data) // 2]),
        ]
    )


def damaged_safetensors(rng: random.Random, header: dict[str, Any], body: bytes) -> bytes:
    """A file of this header and body: the JSON's values changed, its text damaged, or the bytes."""
    if rng.random() < 0.6:
        text = damaged_json(rng, header)
        length = len(text) if rng.random() < 0.9 else rng.choice((*EDGES, len(text) + 1, len(text) - 1))
        if rng.random() < 0.2:
            body = bytes(rng.choice((cut, splice))(rng, bytearray(body), []))
        return (length % 2**64).to_bytes(8, "little") + text + body
    text = json.dumps(header).encode()
    data = bytearray(len(text).to_bytes(8, "little") + text + body)
    return bytes(rng.choice(BLIND)(rng, data, [(0, 8)]))


def damaged_json(rng: random.Random, document: Any) -> bytes:
    """JSON of the document with one to three places changed, or damaged text."""
    document = json.loads(json.dumps(document))
    for _ in range(rng.choice((1, 1, 2, 3))):
        document = _change_json(rng, document, [])
    text = json.dumps(document)
    kind = rng.randrange(12)
    if kind == 0:
        text = text.replace(":", rng.choice((",", "::", ":[")), 1)
    elif kind == 1:
        text = (
            rng.choice(("[" * 3000, '{"a":' * 3000, "1" * 5000, "NaN", "", " ", "[1e999]", "\ud800")) + text
        )
    elif kind == 2 and isinstance(document, dict) and document:
        name = rng.choice(list(document))
        text = f"{{{json.dumps(name)}: {json.dumps(document[name])}, {text[1:]}"
    elif kind == 3:
        return bytes(
            rng.choice((flip_bits, cut, splice))(rng, bytearray(text.encode("utf-8", "replace")), [])
        )
    return text.encode("utf-8", "surrogatepass")


def _change_json(rng: random.Random, value: Any, path: list[Any]) -> Any:
    if isinstance(value, dict) and value and rng.random() < 0.9:
        name = rng.choice(list(value))
        kind = rng.random()
        if kind < 0.08:
            value.pop(name)
        elif kind < 0.16:
            value[rng.choice(("", "x" * 200, "__metadata__", name + ".", "../x", "\ud800"))] = value[name]
        elif kind < 0.24:
            value[name] = value[rng.choice(list(value))]
        else:
            value[name] = _change_json(rng, value[name], [*path, name])
        return value
    if isinstance(value, list) and value and rng.random() < 0.9:
        index = rng.randrange(len(value))
        kind = rng.random()
        if kind < 0.1:
            value.pop(index)
        elif kind < 0.2:
            value.insert(index, rng.choice(value))
        else:
            value[index] = _change_json(rng, value[index], path)
        return value
    if isinstance(value, int) and not isinstance(value, bool) and rng.random() < 0.7:
        return rng.choice((value + 1, value - 1, value * 2, -value, value + 8, *EDGES, 10**30, 10**400))
    return rng.choice(
        (None, True, False, 0, -1, 1.5, "", "F32", "F4", "BF16", "I64", "x", [], {}, [0], [[]], 2**63, "../a")
    )

"""Random sequences of cache operations against a plain list of tuples."""

import random
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from .cache_kinds import HEAD_DIM, KINDS

LAYERS, BATCH, HEADS = 2, 3, 2


@dataclass
class ListCache:
    """Per layer, sample and head a list of (key seed, position, tokens): what a cache means."""

    rows: dict = field(
        default_factory=lambda: {
            (layer, b, h): [] for layer in range(LAYERS) for b in range(BATCH) for h in range(HEADS)
        }
    )
    next_pos: list = field(default_factory=lambda: [0] * BATCH)
    marks: list = field(default_factory=list)

    def append(self, layer, tokens, pos, store):
        for (at, b, _), row in self.rows.items():
            if at == layer:
                row.extend((t, p) for t, p, s in zip(tokens[b], pos[b], store[b], strict=True) if s)
        self.next_pos = [max([n, *[p + 1 for p in ps]]) for n, ps in zip(self.next_pos, pos, strict=True)]

    def evict(self, layer, keep):
        for (at, b, h), row in self.rows.items():
            if at != layer:
                continue
            kept = [i for i in keep[b][h if len(keep[b]) > 1 else 0] if i >= 0]
            for counts, _ in self.marks:
                counts[at, b, h] = sum(i < counts[at, b, h] for i in kept)
            row[:] = [row[i] for i in kept]

    def mark(self):
        self.marks.append(({key: len(row) for key, row in self.rows.items()}, list(self.next_pos)))

    def rollback(self, index):
        counts, self.next_pos = self.marks[index]
        self.next_pos = list(self.next_pos)
        for key, row in self.rows.items():
            del row[counts[key] :]
        del self.marks[index + 1 :]

    def compact(self, layers, order):
        counts, _ = self.marks[-1]
        for (at, b, h), row in self.rows.items():
            if at in layers:
                start = counts[at, b, h]
                row[start:] = [row[start + i] for i in order[b] if i >= 0]

    def reorder(self, samples):
        self.rows = {(at, b, h): list(self.rows[at, samples[b], h]) for at, b, h in self.rows}
        self.next_pos = [self.next_pos[s] for s in samples]
        self.marks = [
            ({(at, b, h): counts[at, samples[b], h] for at, b, h in counts}, [n[s] for s in samples])
            for counts, n in self.marks
        ]


def values(tokens: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values that name their token and head: key = token + head/4 in every channel, value = −key."""
    base = torch.tensor(tokens, dtype=torch.float32)[:, None, :, None]
    k = (base + torch.arange(HEADS)[None, :, None, None] / 4).expand(-1, -1, -1, HEAD_DIM).contiguous()
    return k, -k


class Run:
    """One random run of a cache and the list side by side."""

    def __init__(self, kind, seed):
        self.random, self.kind = random.Random(seed), kind
        self.cache = kind.make(LAYERS, BATCH, HEADS, HEAD_DIM, capacity=self.random.choice([0, 0, 30]))
        self.cache.side.add("name", dtype=torch.float32, fill=-1)
        self.model, self.marks, self.token = ListCache(), [], 0

    def append(self, size=9):
        n = self.random.randint(1, size)
        tokens = [[self.token + i + 100 * b for i in range(n)] for b in range(BATCH)]
        pos = [[start + i for i in range(n)] for start in self.model.next_pos]
        self.token += n
        # A step goes through all layers; some tokens are stored in one layer and not in the other.
        for layer in range(LAYERS):
            store = [[self.random.random() < 0.8 for _ in range(n)] for _ in range(BATCH)]
            masked = self.random.random() < 0.3
            if not masked:
                store = [[True] * n for _ in range(BATCH)]
            k, v = values(tokens)
            slots = self.cache.append(layer, k, v, torch.tensor(pos), torch.tensor(store) if masked else None)
            assert slots.shape[-1] == n
            self.model.append(layer, tokens, pos, store)
            self.write_side(layer, slots, tokens)

    def write_side(self, layer, slots, tokens):
        side = self.cache.side["name"][layer]
        slots = slots if slots.ndim == 3 else slots[:, None].expand(-1, side.shape[1], -1)
        for b in range(BATCH):
            for row in range(slots.shape[1]):
                for i, slot in enumerate(slots[b, row].tolist()):
                    if slot >= 0:
                        side[b, row, slot] = tokens[b][i]

    def evict(self):
        layer, per_head = self.random.randrange(LAYERS), self.random.random() < 0.4
        keep = []
        for b in range(BATCH):
            lengths = [len(self.model.rows[layer, b, h]) for h in range(HEADS)]
            heads = [[i for i in range(n) if self.random.random() < 0.8] for n in lengths]
            keep.append(
                heads if per_head else [[i for i in range(min(lengths)) if self.random.random() < 0.8]]
            )
        width = max(len(row) for rows in keep for row in rows)
        keep = [[row + [-1] * (width - len(row)) for row in rows] for rows in keep]
        index = torch.tensor(keep, dtype=torch.long).reshape(BATCH, HEADS if per_head else 1, width)
        self.cache.evict(layer, index if per_head else index[:, 0])
        self.model.evict(layer, keep)

    def mark(self):
        self.marks.append(self.cache.mark())
        self.model.mark()

    def rollback(self):
        if self.marks:
            index = self.random.randrange(len(self.marks))
            self.cache.rollback(self.marks[index])
            self.model.rollback(index)
            del self.marks[index + 1 :]

    def compact(self):
        if not self.marks:
            return
        layer = self.random.choice([None, *range(LAYERS)])
        layers = list(range(LAYERS)) if layer is None else [layer]
        counts, _ = self.model.marks[-1]
        order = []
        for b in range(BATCH):
            since = min(
                len(row) - counts[key]
                for key, row in self.model.rows.items()
                if key[0] in layers and key[1] == b
            )
            order.append(self.random.sample(range(since), self.random.randint(0, since)))
        width = max(len(row) for row in order)
        order = [row + [-1] * (width - len(row)) for row in order]
        self.cache.compact(layer, torch.tensor(order, dtype=torch.long).reshape(BATCH, width))
        self.model.compact(layers, order)

    def reorder(self):
        samples = [self.random.randrange(BATCH) for _ in range(BATCH)]
        self.cache.reorder(torch.tensor(samples))
        self.model.reorder(samples)

    def clone(self):
        # The original goes on being written to: the clone must not see it.
        other = self.cache.clone()
        self.cache.append(0, *values([[9999]] * BATCH), torch.zeros(BATCH, 1, dtype=torch.long))
        self.cache, self.marks, self.model.marks = other, [], []

    def check(self):
        assert self.cache.next_pos.tolist() == self.model.next_pos
        for layer in range(LAYERS):
            lengths = [[len(self.model.rows[layer, b, h]) for h in range(HEADS)] for b in range(BATCH)]
            assert self.cache.length(layer).tolist() == [max(heads) for heads in lengths]
            view, side = self.cache.view(layer), self.cache.side["name"][layer]
            for b in range(BATCH):
                for h in range(HEADS):
                    self.check_row(view, side, b, h, self.model.rows[layer, b, h])

    def check_row(self, view, side, b, h, row):
        shared = h if view.pos.shape[1] > 1 else 0
        valid = [True] * len(row) + [False] * (view.k.shape[2] - len(row))
        assert (valid if view.valid is None else view.valid[b, shared].tolist()) == valid
        assert view.pos[b, shared, : len(row)].tolist() == [p for _, p in row]
        assert side[b, shared, : len(row)].tolist() == [t for t, _ in row]
        if not row:
            return
        expected = torch.tensor([t + h / 4 for t, _ in row])[:, None].expand(-1, HEAD_DIM)
        # A group may have held any keys so far; every regrouping may round once more, by half a step.
        spread = self.token + 100 * BATCH
        bound = 0 if self.kind.exact else 4 * self.kind.step * spread + 0.5
        assert (view.k[b, h, : len(row)] - expected).abs().max() <= bound
        # The channels of a value are equal here: only its float16 offset rounds.
        torch.testing.assert_close(
            view.v[b, h, : len(row)], -expected, rtol=0 if self.kind.exact else 1e-3, atol=0
        )


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@given(seed=st.integers(0, 10**6), steps=st.integers(1, 14))
def test_operations_mean_what_they_do_to_a_list(kind, seed, steps):
    run = Run(kind, seed)
    run.append()
    for _ in range(steps):
        run.random.choice(
            [
                run.append,
                run.append,
                run.evict,
                run.mark,
                run.mark,
                run.rollback,
                run.compact,
                run.reorder,
                run.clone,
            ]
        )()
        run.check()

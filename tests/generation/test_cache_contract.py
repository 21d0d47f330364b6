"""What every KV cache must keep, whatever it stores: the contract tests of `cache_kinds.KINDS`."""

import functools

import pytest
import torch

from shoestring.models.protocols import CacheCannot, KVCache

from .cache_kinds import EXACT, HEAD_DIM, KINDS, noise
from .tiny_decoder import HEAD_DIM as DECODER_HEAD_DIM
from .tiny_decoder import KV_HEADS, LAYERS, VOCAB, TinyDecoder

TOLERANCE = {torch.float32: 5e-4, torch.float64: 1e-9}
PROMPT = torch.randint(VOCAB, (1, 23), generator=torch.Generator().manual_seed(1))

every = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
exact = pytest.mark.parametrize("kind", EXACT, ids=lambda kind: kind.name)


def new_cache(kind, batch=1, dtype=torch.float32, capacity=0):
    return kind.make(LAYERS, batch, KV_HEADS, DECODER_HEAD_DIM, dtype=dtype, capacity=capacity)


def span(start, stop, batch=1):
    return torch.arange(start, stop).expand(batch, -1)


def greedy(decoder, cache, ids, steps, chunk=1000):
    """Ids and logits of every position, with a prompt in chunks and then `steps` greedy tokens."""
    logits, at = [], 0
    while ids.shape[1] < PROMPT.shape[1] + steps or at < ids.shape[1]:
        stop = min(at + (chunk if at < PROMPT.shape[1] else 1), max(PROMPT.shape[1], at + 1))
        if cache is None:
            logits = [decoder.forward(ids[:, :stop], span(0, stop))]
        else:
            logits.append(decoder.forward(ids[:, at:stop], span(at, stop), cache))
        at = stop
        if at == ids.shape[1] and ids.shape[1] < PROMPT.shape[1] + steps:
            ids = torch.cat([ids, logits[-1][:, -1:].argmax(-1)], dim=1)
    return ids, torch.cat(logits, dim=1)


@functools.cache
def without_cache(dtype):
    return greedy(TinyDecoder(dtype), None, PROMPT, 64)


@every
def test_it_is_a_cache(kind):
    assert isinstance(new_cache(kind), KVCache)


@exact
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_neutral_element(kind, dtype):
    decoder = TinyDecoder(dtype)
    ids, logits = greedy(decoder, new_cache(kind, dtype=dtype), PROMPT, 64)
    expected_ids, expected = without_cache(dtype)
    assert len(set(ids[0, 23:].tolist())) > 8, "the output must not be one token"
    assert torch.equal(ids, expected_ids)
    torch.testing.assert_close(logits, expected, rtol=0, atol=TOLERANCE[dtype])


@exact
@pytest.mark.parametrize("chunk", [7, 1])
def test_chunks_of_a_prompt_make_no_difference(kind, chunk):
    decoder = TinyDecoder()
    whole, chunked = new_cache(kind), new_cache(kind)
    _, expected = greedy(decoder, whole, PROMPT, 10)
    _, logits = greedy(decoder, chunked, PROMPT, 10, chunk)
    torch.testing.assert_close(logits, expected, rtol=0, atol=TOLERANCE[torch.float32])
    for layer in range(LAYERS):
        one, other = whole.view(layer), chunked.view(layer)
        assert torch.equal(one.pos, other.pos)
        torch.testing.assert_close(other.k, one.k, rtol=0, atol=1e-4)
        torch.testing.assert_close(other.v, one.v, rtol=0, atol=1e-4)


@every
@pytest.mark.parametrize("chunk", [1, 5, 16])
def test_what_is_stored_does_not_depend_on_the_chunks_it_came_in(kind, chunk):
    k, v = noise(2, 2, 61, HEAD_DIM, seed=1), noise(2, 2, 61, HEAD_DIM, seed=2)
    views = []
    for size in (61, chunk):
        cache = kind.make(1, 2, 2, HEAD_DIM)
        for at in range(0, 61, size):
            stop = min(at + size, 61)
            cache.append(0, k[:, :, at:stop], v[:, :, at:stop], span(at, stop, 2))
        views.append(cache.view(0))
    assert torch.equal(views[0].k, views[1].k)
    assert torch.equal(views[0].v, views[1].v)
    assert torch.equal(views[0].pos, views[1].pos)


@exact
def test_a_ragged_batch_is_three_runs(kind):
    decoder, lengths = TinyDecoder(), [23, 9, 1]
    ids = torch.randint(VOCAB, (3, 23), generator=torch.Generator().manual_seed(5))
    store = torch.arange(23) < torch.tensor(lengths)[:, None]
    # Padding stands at the end with positions of its own: it is not stored.
    batch = new_cache(kind, batch=3)
    together = decoder.forward(ids, span(0, 23, 3), batch, store)
    steps = torch.randint(VOCAB, (3, 6), generator=torch.Generator().manual_seed(6))
    pos = torch.tensor(lengths)[:, None] + torch.arange(6)
    later = torch.cat(
        [decoder.forward(steps[:, i : i + 1], pos[:, i : i + 1], batch) for i in range(6)], dim=1
    )
    for sample, length in enumerate(lengths):
        alone = new_cache(kind)
        first = decoder.forward(ids[sample : sample + 1, :length], span(0, length), alone)
        rest = [
            decoder.forward(steps[sample : sample + 1, i : i + 1], span(length + i, length + i + 1), alone)
            for i in range(6)
        ]
        assert batch.length(0)[sample] == length + 6
        torch.testing.assert_close(together[sample, :length], first[0], rtol=0, atol=5e-4)
        torch.testing.assert_close(later[sample], torch.cat(rest, dim=1)[0], rtol=0, atol=5e-4)


@every
@pytest.mark.parametrize("capacity", [0, 40, 100])
def test_bytes_are_those_of_all_storages(kind, capacity):
    cache = kind.make(2, 3, 2, HEAD_DIM, capacity=capacity)
    cache.side.add("importance", per_head=True)
    for at in range(0, 70, 10):
        for layer in range(2):
            cache.append(layer, noise(3, 2, 10, HEAD_DIM), noise(3, 2, 10, HEAD_DIM), span(at, at + 10, 3))
    storages = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors_in(cache.layers)
    }
    assert cache.nbytes() == pytest.approx(sum(storages.values()), rel=0.01)
    assert cache.nbytes() == cache.nbytes(0) + cache.nbytes(1) == sum(cache.parts().values())


def tensors_in(thing, seen=None):
    """Every tensor that an object graph of this library holds."""
    seen = set() if seen is None else seen
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, torch.Tensor):
        yield thing
    elif isinstance(thing, dict | list | tuple):
        for item in thing.values() if isinstance(thing, dict) else thing:
            yield from tensors_in(item, seen)
    elif type(thing).__module__.startswith("shoestring"):
        yield from tensors_in(vars(thing), seen)


@every
def test_evicting_frees_memory_and_selecting_only_saves_traffic(kind):
    cache = kind.make(1, 1, 2, HEAD_DIM)
    cache.append(0, noise(1, 2, 400, HEAD_DIM), noise(1, 2, 400, HEAD_DIM), span(0, 400))
    held = cache.nbytes()
    cache.view(0)
    whole = cache.traffic.k_bits + cache.traffic.v_bits
    select = torch.arange(0, 400, 10).expand(1, 2, -1)
    view = cache.view(0, select)
    assert view.pos.tolist() == select.tolist()
    part = cache.traffic.k_bits + cache.traffic.v_bits - whole
    assert part == pytest.approx(whole / 10, rel=1e-3)
    assert cache.nbytes() == held
    before = cache.view(0).k.clone()
    cache.evict(0, select[:, 0])
    assert cache.nbytes() < held / 2
    assert cache.view(0).pos.tolist() == [[list(range(0, 400, 10))]]
    if kind.exact:
        assert torch.equal(cache.view(0).k, before[:, :, ::10])


@every
def test_tokens_that_are_not_stored_count_for_the_position_only(kind):
    cache = kind.make(1, 2, 2, HEAD_DIM)
    store = torch.tensor([[True, False, True], [False, False, False]])
    slots = cache.append(0, noise(2, 2, 3, HEAD_DIM), noise(2, 2, 3, HEAD_DIM), span(4, 7, 2), store)
    assert slots.tolist() == [[0, -1, 1], [-1, -1, -1]]
    assert cache.next_pos.tolist() == [7, 7]
    assert cache.length(0).tolist() == [2, 0]
    assert cache.view(0).valid.tolist() == [[[True, True]], [[False, False]]]


@every
def test_slots_may_stand_for_several_tokens(kind):
    cache = kind.make(1, 1, 2, HEAD_DIM)
    cache.append(0, noise(1, 2, 4, HEAD_DIM), noise(1, 2, 4, HEAD_DIM), torch.tensor([[2, 3, 6, 7]]))
    assert cache.slot_tokens(0).tolist() == [[[1, 1, 1, 1]]]
    cache.slot_tokens(0)[0, 0, 2] = 3
    cache.evict(0, torch.tensor([[0, 2]]))
    assert cache.view(0).n_tokens.tolist() == [[[1, 3]]]
    assert (cache.next_pos.tolist(), cache.length(0).tolist()) == ([8], [2])


@every
@pytest.mark.parametrize(
    ("operation", "message"),
    [
        (lambda c: c.append(0, noise(1, 3, 2, HEAD_DIM), noise(1, 3, 2, HEAD_DIM), span(0, 2)), "do not fit"),
        (lambda c: c.append(0, noise(1, 2, 2, 8), noise(1, 2, 2, 8), span(0, 2)), "do not fit"),
        (lambda c: c.evict(0, torch.tensor([[0, 9]])), "slot 9 is not held; there are \\[5\\]"),
        (lambda c: c.evict(0, torch.tensor([[2, 1]])), "must ascend"),
        (lambda c: c.evict(0, torch.tensor([[1, 1]])), "must ascend"),
        (lambda c: c.evict(0, torch.tensor([[0, -1, 3]])), "must ascend"),
        (lambda c: c.view(0, torch.tensor([[[7], [0]]])), "slot 7 is not held"),
        (lambda c: c.view(0, torch.zeros(1, 3, 1, dtype=torch.long)), "heads=2"),
        (lambda c: c.compact(None, torch.tensor([[0]])), "compact needs a mark"),
        (lambda c: c.rollback(c.clone().mark()), "mark is of another cache"),
        (lambda c: c.reorder(torch.tensor([1])), "not in a batch of 1"),
        (lambda c: (c.side.add("x"), c.side.add("x")), "'x' exists already"),
    ],
)
def test_what_does_not_fit_is_refused(kind, operation, message):
    cache = kind.make(1, 1, 2, HEAD_DIM)
    cache.append(0, noise(1, 2, 5, HEAD_DIM), noise(1, 2, 5, HEAD_DIM), span(0, 5))
    with pytest.raises(ValueError, match=message):
        operation(cache)


@every
def test_compacting_more_than_there_is_since_the_mark_is_refused(kind):
    cache = kind.make(1, 1, 2, HEAD_DIM)
    cache.append(0, noise(1, 2, 5, HEAD_DIM), noise(1, 2, 5, HEAD_DIM), span(0, 5))
    mark = cache.mark()
    cache.append(0, noise(1, 2, 2, HEAD_DIM), noise(1, 2, 2, HEAD_DIM), span(5, 7))
    with pytest.raises(ValueError, match="there are \\[2\\]"):
        cache.compact(0, torch.tensor([[2]]))
    cache.rollback(mark)
    assert cache.next_pos.tolist() == [5]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.tiers], ids=lambda kind: kind.name)
def test_there_are_no_tiers(kind):
    cache = kind.make(1, 1, 2, HEAD_DIM)
    with pytest.raises(CacheCannot, match="cannot recompress"):
        cache.recompress(0, torch.zeros(1, 1, dtype=torch.long), 4)


@every
@pytest.mark.parametrize(
    ("sizes", "message"), [((0, 1, 1), "n_layers"), ((1, 0, 1), "batch=0"), ((1, 1, 0), "heads=0")]
)
def test_caches_of_nothing_are_refused(kind, sizes, message):
    with pytest.raises(ValueError, match=message):
        kind.make(*sizes, HEAD_DIM)

"""Importance beside a cache, and policies that free slots by a ranking."""

import pytest
import torch
from tests.models.families import VOCAB, make

from shoestring.generation.decode import generate
from shoestring.generation.decoder_runner import DecoderRunner, decoder_cache
from shoestring.generation.evicting_cache import (
    ByChance,
    ByImportance,
    ByRecency,
    CachePolicy,
    Evicting,
    Inverted,
)
from shoestring.generation.importance import IMPORTANCE, ROWS, ColumnImportance, naive_importance
from shoestring.models.decoder import Decoder
from shoestring.models.hooks import AttnPlan
from shoestring.models.protocols import HookConflict

PROMPT = torch.randint(VOCAB, (1, 23), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def decoder():
    return Decoder.from_transformers(make("llama", scale=12.0)).double().requires_grad_(False)


class Probabilities:
    """Every probability, pass by pass, of one layer."""

    def __init__(self, layer):
        self.layer, self.seen = layer, []

    def attn_plan(self, layer, q, pos, ctx):
        def attend(call):
            view, mask = call.read()
            k = view.k.repeat_interleave(q.shape[1] // view.k.shape[1], 1)
            seen = mask.seen(slice(0, q.shape[2]), slice(0, k.shape[2]))
            self.seen.append((q @ k.mT * call.scale).masked_fill(~seen, -torch.inf).softmax(-1)[0])
            return call.default()

        return AttnPlan(attend=attend) if layer == self.layer else None


@pytest.mark.parametrize("chunk", [23, 7, 1])
def test_importance_is_the_sum_of_all_probabilities(decoder, chunk):
    cache, sums, watch = decoder_cache(decoder), ColumnImportance(), Probabilities(2)
    sums.start(cache)
    for at in range(0, 23, chunk):
        decoder(PROMPT[:, at : at + chunk], cache=cache, hooks=[sums, watch])
    expected = naive_importance(watch.seen, decoder.cfg.num_key_value_heads, 23)
    torch.testing.assert_close(cache.side[IMPORTANCE][2][0].double(), expected, rtol=1e-5, atol=1e-5)
    assert cache.side[ROWS][2][0, 0].tolist() == list(range(23, 0, -1))
    assert torch.equal(sums.of(cache, 2, normalised=True), cache.side[IMPORTANCE][2] / cache.side[ROWS][2])


def test_importance_follows_the_slots(decoder):
    cache, sums = decoder_cache(decoder), ColumnImportance()
    sums.start(cache)
    decoder(PROMPT, cache=cache, hooks=[sums])
    before = cache.side[IMPORTANCE][1].clone()
    cache.evict(1, torch.tensor([[0, 5, 22]]))
    assert torch.equal(cache.side[IMPORTANCE][1], before[:, :, [0, 5, 22]])


def test_importance_of_selected_slots_is_refused(decoder):
    class Select:
        def attn_plan(self, layer, q, pos, ctx):
            return AttnPlan(select=torch.zeros(1, decoder.cfg.num_key_value_heads, 1, dtype=torch.long))

    cache, sums = decoder_cache(decoder), ColumnImportance()
    sums.start(cache)
    decoder(PROMPT, cache=cache, hooks=[sums])
    with pytest.raises(HookConflict, match="read 2 slots of 24"):
        decoder(PROMPT[:, :1], cache=cache, hooks=[sums, Select()])
    with pytest.raises(HookConflict, match="pass a cache"):
        decoder(PROMPT, hooks=[sums])


RANKINGS = {
    "importance": lambda: ByImportance(),
    "normalised": lambda: ByImportance(normalised=True, per_head=False),
    "window": ByRecency,
    "chance": ByChance,
    "inverted": lambda: Inverted(ByImportance()),
}


@pytest.mark.parametrize("name", RANKINGS)
def test_a_policy_that_keeps_everything_changes_nothing(decoder, name):
    policy = Evicting(RANKINGS[name](), 1000)
    assert isinstance(policy, CachePolicy)
    expected = generate(decoder, PROMPT[0].tolist(), max_new_tokens=20, stop_tokens=())
    found = generate(decoder, PROMPT[0].tolist(), max_new_tokens=20, stop_tokens=(), selection=policy)
    assert found.tokens == expected.tokens


@pytest.mark.parametrize("name", RANKINGS)
def test_every_layer_keeps_its_number(decoder, name):
    policy = Evicting(RANKINGS[name](), [12, 0.5, 8, 6], protect_first=2, protect_last=3, slack=2)
    runner = DecoderRunner(decoder, selection=policy)
    runner.feed(PROMPT[:, :9])
    runner.feed(PROMPT[:, 9:])
    runner.prompt_is_read()
    lengths = [int(runner.cache.length(layer)) for layer in range(4)]
    assert lengths == [12, 12, 8, 6]
    for step in range(5):
        runner.feed(PROMPT[:, step : step + 1])
        for layer, count in enumerate([12, 12, 8, 6]):
            view = runner.cache.view(layer)
            assert count <= view.k.shape[2] <= count + 2
            for row in view.pos[0].tolist():
                assert row == sorted(row)
                assert {0, 1, *range(21 + step, 24 + step)} <= set(row)
    assert runner.cache.next_pos.tolist() == [28]


def test_the_highest_ranked_slots_stay(decoder):
    cache, ranking = decoder_cache(decoder), ByImportance(per_head=False)
    policy = Evicting(ranking, 6, protect_last=2)
    policy.start(cache)
    decoder(PROMPT, cache=cache, hooks=policy.hooks)
    scores = ranking.scores(cache, 3)[0, 0].clone()
    scores[21:] = torch.inf
    policy.after_prefill(cache)
    assert cache.view(3).pos[0, 0].tolist() == sorted(scores.topk(6).indices.tolist())


def test_sinks_and_a_window(decoder):
    policy = Evicting(ByRecency(), 7, protect_first=3)
    runner = DecoderRunner(decoder, selection=policy)
    runner.feed(PROMPT)
    runner.prompt_is_read()
    runner.feed(PROMPT[:, :1])
    assert runner.cache.view(0).pos.tolist() == [[[0, 1, 2, 20, 21, 22, 23]]]


def test_chance_is_seeded(decoder):
    def tokens(seed):
        policy = Evicting(ByChance(seed), 8)
        found = generate(decoder, PROMPT[0].tolist(), max_new_tokens=12, stop_tokens=(), selection=policy)
        return found.tokens

    assert tokens(0) == tokens(0)
    assert len({tuple(tokens(seed)) for seed in range(4)}) > 1


def test_an_evicted_cache_holds_fewer_bytes(decoder):
    prompt = PROMPT.repeat(1, 8)[0].tolist()
    whole = generate(decoder, prompt, max_new_tokens=4, stop_tokens=())
    policy = Evicting(ByImportance(), 0.25)
    part = generate(decoder, prompt, max_new_tokens=4, stop_tokens=(), selection=policy)
    assert part.cache_bytes < whole.cache_bytes / 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Evicting(ByRecency(), 0.0), "keep=0.0 of layer 0 is a share"),
        (lambda: Evicting(ByRecency(), [3, 0]), "keep=0 of layer 1 is a count"),
        (lambda: Evicting(ByRecency(), 3, slack=-1), "slack=-1"),
        (lambda: ColumnImportance(0.0), "decay=0.0"),
    ],
)
def test_settings_out_of_range_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_policy_that_does_not_fit_is_refused(decoder):
    cache = decoder_cache(decoder)
    with pytest.raises(ValueError, match="keep has 2 numbers for a cache of 4 layers"):
        Evicting(ByRecency(), [3, 3]).after_prefill(cache)
    with pytest.raises(ValueError, match="before after_prefill"):
        Evicting(ByRecency(), 3).after_step(cache)
    with pytest.raises(ValueError, match="activation_bits=32"):
        generate(decoder, [1], selection=Evicting(ByImportance(), 3), activation_bits=8)
    with pytest.raises(TypeError, match="selection needs a Decoder"):
        generate(make("llama"), [1], selection=Evicting(ByRecency(), 3))

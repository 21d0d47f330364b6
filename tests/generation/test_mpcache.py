"""MPCache as a policy: what stays after the prompt, what is read at a step, and who shares a choice."""

import math

import pytest
import torch
from tests.models.families import VOCAB, make

from shoestring.generation.clusters import ClusterOptions, mpcache_select
from shoestring.generation.decode import generate
from shoestring.generation.decoder_runner import DecoderRunner, decoder_cache
from shoestring.generation.evicting_cache import CachePolicy
from shoestring.generation.mpcache import KeepAbove, KeepShare, LastQueries, MPCache
from shoestring.models.decoder import Decoder
from shoestring.models.hooks import AttnPlan
from shoestring.notices import record_fallbacks

SMALL = ClusterOptions(coarse=4, fine=2)
ALL = ClusterOptions(rho_coarse=1.0, rho_fine=1.0, coarse=4, fine=2)
PROMPT = torch.randint(VOCAB, (1, 40), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def decoder():
    return Decoder.from_transformers(make("llama", scale=12.0)).double().requires_grad_(False)


class Watch:
    """Queries and keys of every layer, pass by pass."""

    def __init__(self):
        self.q, self.read = {}, {}

    def attn_plan(self, layer, q, pos, ctx):
        self.q.setdefault(layer, []).append(q)

        def attend(call):
            view, _ = call.read()
            self.read[layer] = view.pos
            return call.default()

        return AttnPlan(attend=attend)


def started(decoder, policy, chunk=40, watch=None):
    runner = DecoderRunner(decoder, hooks=() if watch is None else (watch,), selection=policy)
    for at in range(0, 40, chunk):
        runner.feed(PROMPT[:, at : at + chunk])
    runner.prompt_is_read()
    return runner


@pytest.mark.parametrize("chunk", [40, 7, 13])
def test_last_queries_see_the_whole_prompt(decoder, chunk):
    """B against every probability at once, whatever the chunks."""
    cache, queries, watch = decoder_cache(decoder), LastQueries(), Watch()
    for at in range(0, 40, chunk):
        decoder(PROMPT[:, at : at + chunk], cache=cache, hooks=(queries, watch))
    for layer in range(decoder.cfg.num_hidden_layers):
        q, k = torch.cat(watch.q[layer], 2)[0], cache.view(layer).k[0]
        k = k.repeat_interleave(q.shape[0] // k.shape[0], 0)
        scores = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(torch.ones(40, 40).triu(1).bool(), -torch.inf)
        torch.testing.assert_close(
            queries.attention(layer, cache.view(layer).k), scores.softmax(-1).mean(0)[-8:]
        )


def test_static_rules():
    attention = torch.tensor([[0.5, 0.2, 0.3, 0.0], [0.1, 0.2, 0.2, 0.5]])
    # Sums are 0.6, 0.4, 0.5 and 0.5: of equal ones the earlier stays.
    assert KeepShare(0.5).keep(attention).tolist() == [True, False, True, False]
    assert KeepShare(0.51).keep(attention).tolist() == [True, False, True, True]
    assert KeepShare(0.25).keep(attention).tolist() == [True, False, False, False]
    assert KeepAbove(0.3).keep(attention).tolist() == [True, False, True, True]
    assert KeepAbove(0.0).keep(attention).all()


def test_the_prompt_shrinks_to_its_share_and_generated_tokens_stay(decoder):
    runner = started(decoder, MPCache(KeepShare(0.4), SMALL))
    lengths = [int(runner.cache.length(layer)) for layer in range(decoder.cfg.num_hidden_layers)]
    assert lengths == [16] * len(lengths)
    for step in range(5):
        runner.feed(PROMPT[:, step : step + 1])
    pos = runner.cache.view(0).pos[0, 0].tolist()
    assert pos[-5:] == list(range(40, 45))
    assert len(pos) == 21
    assert runner.cache.next_pos.tolist() == [45]


def test_a_step_reads_what_the_rules_say(decoder):
    watch = Watch()
    policy = MPCache(KeepShare(0.9), SMALL)
    runner = started(decoder, policy)
    kept = [runner.cache.view(layer).k.clone() for layer in range(decoder.cfg.num_hidden_layers)]
    places = [runner.cache.view(layer).pos.clone() for layer in range(decoder.cfg.num_hidden_layers)]
    runner.hooks += (watch,)
    runner.feed(PROMPT[:, :1])
    for layer, k in enumerate(kept):
        q = watch.q[layer][0][0, :, 0].unflatten(0, (k.shape[1], -1)).sum(1)
        mask = mpcache_select(q, k[0], SMALL)
        for head in range(k.shape[1]):
            expected = [*places[layer][0, 0][mask[head]].tolist(), 40]
            assert watch.read[layer][0, head].tolist() == expected
    assert policy.selections == len(kept)


@pytest.mark.parametrize(
    "policy", [MPCache(KeepShare(1.0), ALL), MPCache(None, ALL), MPCache(KeepAbove(0.0), ALL)]
)
def test_a_policy_that_keeps_everything_changes_nothing(decoder, policy):
    assert isinstance(policy, CachePolicy)
    expected = generate(decoder, PROMPT[0].tolist(), max_new_tokens=64, stop_tokens=())
    found = generate(decoder, PROMPT[0].tolist(), max_new_tokens=64, stop_tokens=(), selection=policy)
    assert found.tokens == expected.tokens
    dense, ours = DecoderRunner(decoder), started(decoder, policy)
    dense.feed(PROMPT)
    for step in range(9):
        ids = PROMPT[:, step : step + 1]
        torch.testing.assert_close(ours.feed(ids), dense.feed(ids), rtol=1e-9, atol=1e-9)


def test_layers_of_a_group_share_a_choice(decoder):
    layers = decoder.cfg.num_hidden_layers
    for group, dense in ((1, 0), (2, 0), (3, 1)):
        policy, watch = MPCache(KeepShare(1.0), SMALL, layer_group=group, dense_layers=dense), Watch()
        runner = started(decoder, policy)
        runner.hooks += (watch,)
        runner.feed(PROMPT[:, :1])
        assert policy.selections == math.ceil((layers - dense) / group)
        for layer in range(layers):
            if layer < dense:
                assert watch.read[layer].shape[2] == 41
            elif (layer - dense) % group:
                assert torch.equal(watch.read[layer], watch.read[layer - 1])
            else:
                assert watch.read[layer].shape[2] < 41


def test_a_group_of_one_is_no_sharing(decoder):
    settings = {"max_new_tokens": 12, "stop_tokens": ()}
    one = generate(decoder, PROMPT[0].tolist(), selection=MPCache(clusters=SMALL, layer_group=1), **settings)
    other = generate(decoder, PROMPT[0].tolist(), selection=MPCache(clusters=SMALL), **settings)
    assert one.tokens == other.tokens


def test_steps_of_several_tokens_read_everything(decoder):
    runner, watch = started(decoder, MPCache(KeepShare(1.0), SMALL)), Watch()
    runner.hooks += (watch,)
    runner.feed(PROMPT[:, :3])
    assert watch.read[0].shape[2] == 43
    runner.feed(PROMPT[:, :1])
    assert watch.read[0].shape[2] < 43


def test_few_tokens_are_all_read_and_that_is_said(decoder):
    with record_fallbacks() as said:
        runner = started(decoder, MPCache(KeepShare(0.4)))
    assert said == ["MPCache: 16 tokens are fewer than two clusters of 32; all of them are read"]
    watch = Watch()
    runner.hooks += (watch,)
    runner.feed(PROMPT[:, :1])
    assert watch.read[0].shape[2] == 17


def test_bad_input_is_refused(decoder):
    for make_bad, message in (
        (lambda: KeepShare(0.0), "share=0.0"),
        (lambda: KeepShare(1.2), "share=1.2"),
        (lambda: KeepAbove(-0.1), "threshold=-0.1"),
        (lambda: MPCache(layer_group=0), "layer_group=0"),
        (lambda: MPCache(dense_layers=-1), "dense_layers=-1"),
        (lambda: MPCache(KeepAbove(), layer_group=2), "use KeepShare with layer_group > 1"),
    ):
        with pytest.raises(ValueError, match=message):
            make_bad()
    policy = MPCache(clusters=SMALL)
    with pytest.raises(ValueError, match="one sequence at a time, not from 2"):
        policy.after_prefill(decoder_cache(decoder, batch=2))

"""SpAtten on a small decoder: neutral, exact at its ends, and what it prunes."""

from itertools import pairwise

import pytest
import torch
from tests.models.families import VOCAB, make

from shoestring.generation.decode import generate
from shoestring.generation.decoder_runner import DecoderRunner, decoder_cache
from shoestring.generation.evicting_cache import CachePolicy
from shoestring.generation.plane_cache import PlaneFormat
from shoestring.generation.spatten import (
    HeadUnit,
    ProgressiveAttention,
    Pruning,
    SpAtten,
    count_schedule,
    linear_schedule,
)
from shoestring.generation.spatten.policy import InvertedRank, RandomRank
from shoestring.layers.attention import attend
from shoestring.layers.attention_masks import Explicit
from shoestring.models.decoder import Decoder
from shoestring.models.decoder_step import Want
from shoestring.models.hooks import AttnPlan, Phase
from shoestring.models.protocols import HookConflict
from shoestring.numbers.bit_planes import BitPlanes

PROMPT = torch.randint(VOCAB, (1, 23), generator=torch.Generator().manual_seed(1))
FULL = PlaneFormat(None, None)
OFF = ProgressiveAttention(theta=0.0, v_keep=1.0)
LAST = Want(logits="last")


@pytest.fixture(scope="module")
def decoder():
    return Decoder.from_transformers(make("llama", scale=12.0)).double().requires_grad_(False)


def run(decoder, policy, form=FULL, steps=5, watch=()):
    """Logits of decoded steps with fixed tokens after the prompt."""
    cache = policy.cache(decoder, form)
    policy.start(cache)
    hooks = [*policy.hooks, *watch]
    decoder(PROMPT, cache=cache, hooks=hooks, want=LAST)
    tokens = PROMPT[:, :steps]
    found = [decoder(tokens[:, i : i + 1], cache=cache, hooks=hooks, want=LAST).logits for i in range(steps)]
    return torch.cat(found, 1), cache


@pytest.mark.parametrize("family", ["llama", "gemma 3"])
@pytest.mark.parametrize("pruning", Pruning)
def test_neutral_element(family, pruning):
    model = Decoder.from_transformers(make(family, scale=12.0 if family == "llama" else 3.0)).double()
    model.requires_grad_(False)
    layers = model.cfg.num_hidden_layers
    policy = SpAtten(
        count_schedule([1000] * layers), count_schedule([100] * layers, "heads"),
        prompt_tokens=count_schedule([1000] * layers), attention=OFF, pruning=pruning,
    )  # fmt: skip
    assert isinstance(policy, CachePolicy)
    plain, ours = DecoderRunner(model), DecoderRunner(model, policy.cache(model, FULL), selection=policy)
    expected, found = plain.feed(PROMPT), ours.feed(PROMPT)
    ours.prompt_is_read()
    for _ in range(64):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
        token = expected.argmax(-1, keepdim=True)
        expected, found = plain.feed(token), ours.feed(token)


class Quantised:
    """Plain attention over keys that are read as given: what one pass should be."""

    def __init__(self, coarse):
        self.coarse = coarse

    def attn_plan(self, layer, q, pos, ctx):
        def one_pass(call):
            view, mask = call.read()
            planes = call.cache.planes(layer)
            k = planes.coarse_keys() if self.coarse else planes.keys()
            view = type(view)(k, planes.values(), view.pos, view.valid)
            return attend(call.q, view, mask, call.scale, call.window, None, call.need)

        return AttnPlan(attend=one_pass) if ctx.phase is Phase.DECODE else None


@pytest.mark.parametrize(("theta", "coarse"), [(0.0, True), (1.0, False)])
def test_theta_at_its_ends_is_plain_attention_over_stored_keys(decoder, theta, coarse):
    form = PlaneFormat(BitPlanes(4, 4), 8)
    policy = SpAtten(attention=ProgressiveAttention(theta=theta, v_keep=1.0))
    found, cache = run(decoder, policy, form)
    expected_cache = policy.cache(decoder, form)
    decoder(PROMPT, cache=expected_cache, want=LAST)
    expected = [
        decoder(PROMPT[:, i : i + 1], cache=expected_cache, hooks=[Quantised(coarse)], want=LAST).logits
        for i in range(5)
    ]
    torch.testing.assert_close(found, torch.cat(expected, 1), rtol=0, atol=1e-9)
    asked = cache.traffic.refetches / cache.traffic.queries
    assert asked == theta


def test_scores_are_conserved(decoder):
    """Dropped tokens included: heads × layers × live rows."""
    sums = []

    class Watch:
        def post_layer(self, layer, x_in, x_out, ctx):
            sums.append((x_out.shape[1], float(policy.scores.sums.sum())))
            return x_out

    policy = SpAtten(prompt_tokens=count_schedule([23, 20, 12, 9]), tokens=count_schedule([23, 12, 8, 5]))
    policy.protect_last = 2
    run(decoder, policy, watch=[Watch()], steps=3)
    rows = 0
    for live, total in sums:
        rows += live
        assert total == pytest.approx(decoder.cfg.num_attention_heads * rows, rel=1e-6)
    assert [live for live, _ in sums[:4]] == [23, 20, 12, 9]


class Watch:
    """Live tokens and heads of every layer of every pass."""

    def __init__(self, policy):
        self.policy, self.tokens, self.heads = policy, [], []

    def post_layer(self, layer, x_in, x_out, ctx):
        if ctx.phase is Phase.DECODE:
            if layer == 0:
                self.tokens.append([])
                self.heads.append([])
            self.tokens[-1].append(set(self.policy.live[0].nonzero()[:, 0].tolist()))
            self.heads[-1].append(set(self.policy.live_heads[0].nonzero()[:, 0].tolist()))
        return x_out


@pytest.mark.parametrize("pruning", Pruning)
@pytest.mark.parametrize("unit", HeadUnit)
@pytest.mark.parametrize("rank", [None, InvertedRank(), RandomRank(3)])
def test_what_is_pruned_does_not_come_back_within_a_step(decoder, pruning, unit, rank):
    counts, heads = [20, 14, 9, 6], [4, 4, 2, 2] if unit is HeadUnit.KV_GROUP else [4, 3, 2, 1]
    policy = SpAtten(
        count_schedule(counts), count_schedule(heads, "heads"), pruning=pruning, head_unit=unit, rank=rank,
        protect_first=1, protect_last=3, normalised=True,
    )  # fmt: skip
    watch = Watch(policy)
    _, cache = run(decoder, policy, PlaneFormat(), watch=[watch])
    for step, (tokens, live_heads) in enumerate(zip(watch.tokens, watch.heads, strict=True)):
        if pruning is Pruning.SELECT or rank is None:
            assert [len(t) for t in tokens] == counts
        # What an earlier step freed in a layer cannot stand in for what this step drops before it.
        assert all(len(t) <= count for t, count in zip(tokens, counts, strict=True))
        assert [len(h) for h in live_heads] == heads
        for layer in range(4):
            assert {0, 21 + step, 22 + step, 23 + step} <= tokens[layer]
            if layer:
                assert tokens[layer] <= tokens[layer - 1]
                assert live_heads[layer] <= live_heads[layer - 1]
    lengths = [int(cache.length(layer)) for layer in range(4)]
    assert lengths == ([len(t) for t in watch.tokens[-1]] if pruning is Pruning.EVICT else [28] * 4)


def test_pruned_is_masked(decoder):
    """Dense attention with dropped tokens hidden from the layer on at which they were dropped."""
    policy = SpAtten(count_schedule([23, 12, 8, 5]), attention=OFF, protect_last=2)
    watch = Watch(policy)
    found, _ = run(decoder, policy, watch=[watch])
    step = iter(watch.tokens)

    class Hide:
        def attn_plan(self, layer, q, pos, ctx):
            if ctx.phase is not Phase.DECODE:
                return None
            if layer == 0:
                self.live = next(step)
            marks = torch.tensor([[[[p in self.live[layer] for p in range(int(pos) + 1)]]]])
            return AttnPlan(mask=Explicit(marks))

    cache, hide = decoder_cache(decoder), Hide()
    decoder(PROMPT, cache=cache, want=LAST)
    expected = [decoder(PROMPT[:, i : i + 1], cache=cache, hooks=[hide]).logits for i in range(5)]
    torch.testing.assert_close(found, torch.cat(expected, 1), rtol=0, atol=1e-9)


def test_a_dropped_prompt_token_is_masked_from_then_on(decoder):
    counts = [23, 15, 9, 4]
    policy = SpAtten(prompt_tokens=count_schedule(counts), protect_last=2)
    cache = policy.cache(decoder, FULL)
    policy.start(cache)
    found = decoder(PROMPT, cache=cache, hooks=policy.hooks, want=LAST).logits
    kept = [set(cache.view(layer).pos[0, 0].tolist()) for layer in range(4)]
    assert [len(k) for k in kept] == counts
    assert all({0, 21, 22} <= later <= earlier for earlier, later in pairwise(kept))

    class Hide:
        def attn_plan(self, layer, q, pos, ctx):
            causal = torch.ones(23, 23, dtype=torch.bool).tril()
            return AttnPlan(
                mask=Explicit((causal & torch.tensor([p in kept[layer] for p in range(23)]))[None, None])
            )

    expected = decoder(PROMPT, hooks=[Hide()], want=LAST).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def test_traffic_is_the_closed_form(decoder):
    """Σ over layers and KV heads of (n_k M + refetch n_k L + n_v bits) d; refetch: any head asks."""
    form = PlaneFormat(BitPlanes(5, 3), 7)
    counts = [23, 12, 8, 5]
    policy = SpAtten(count_schedule(counts), attention=ProgressiveAttention(theta=0.6, v_keep=0.3))
    policy.protect_last = 2
    seen = []

    class See:
        def post_attn(self, layer, out, stats, ctx):
            if ctx.phase is Phase.DECODE:
                t = ctx.cache.traffic
                seen.append(
                    (layer, t.k_msb_bits, t.k_lsb_bits, t.v_row_bits, t.k_bits + t.v_bits, t.step_bits)
                )
            return out

    run(decoder, policy, form, steps=3, watch=[See()])
    kv, d = decoder.cfg.num_key_value_heads, decoder.cfg.head_dim
    lows = set()
    for before, after in pairwise(seen):
        layer, step = after[0], seen.index(after) // 4
        msb, lsb, rows, total, steps = (b - a for a, b in zip(before[1:], after[1:], strict=True))
        n_k = min(24 + step, counts[layer])
        assert total == msb + lsb + rows + steps
        assert msb == kv * n_k * 5 * d
        assert lsb % (n_k * 3 * d) == 0
        lows.add(lsb // (n_k * 3 * d))
        group = decoder.cfg.num_attention_heads // kv
        n_v = max(1, int(0.3 * n_k))
        assert kv * n_v * 7 * d <= rows <= kv * min(n_k, group * n_v) * 7 * d
    assert lows <= set(range(kv + 1))
    assert len(lows) > 1, "some groups must ask and some not"


def test_a_batch_is_single_runs(decoder):
    policy = SpAtten(count_schedule([20, 14, 9, 6]), normalised=True, protect_last=3)
    ids = torch.randint(VOCAB, (2, 23), generator=torch.Generator().manual_seed(5))
    rows = []
    for batch in (ids, ids[:1], ids[1:]):
        cache = policy.cache(decoder, batch=len(batch))
        policy.start(cache)
        decoder(batch, cache=cache, hooks=policy.hooks, want=LAST)
        steps = [decoder(batch[:, i : i + 1], cache=cache, hooks=policy.hooks).logits for i in range(3)]
        rows.append(torch.cat(steps, 1))
    torch.testing.assert_close(rows[0], torch.cat(rows[1:]), rtol=0, atol=1e-9)


def test_a_fork_goes_on_by_itself(decoder):
    policy = SpAtten(count_schedule([20, 14, 9, 6]), protect_last=3)
    cache = policy.cache(decoder)
    policy.start(cache)
    decoder(PROMPT, cache=cache, hooks=policy.hooks, want=LAST)
    other, copy = policy.fork(), cache.clone()
    first = decoder(PROMPT[:, :1], cache=copy, hooks=other.hooks).logits
    assert torch.equal(first, decoder(PROMPT[:, :1], cache=cache, hooks=policy.hooks).logits)
    assert copy.traffic.queries == 16


def test_generate_takes_it(decoder):
    policy = SpAtten(linear_schedule(4, 24, 0.5), pruning=Pruning.EVICT, normalised=True)
    found = generate(
        decoder,
        PROMPT[0].tolist(),
        max_new_tokens=6,
        stop_tokens=(),
        selection=policy,
        cache=policy.cache(decoder),
    )
    assert len(found.tokens) == 6


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda d: SpAtten().start(decoder_cache(d)), TypeError, "pass cache=SpAtten.cache"),
        (lambda d: SpAtten(protect_last=-1), ValueError, "protect_last=-1"),
        (
            lambda d: SpAtten(count_schedule([3, 3])).start(SpAtten.cache(d)),
            ValueError,
            "2 layers, the model has 4",
        ),
        (lambda d: ProgressiveAttention(theta=1.5), ValueError, "theta=1.5"),
        (lambda d: ProgressiveAttention(v_keep=0.0), ValueError, "v_keep=0.0"),
        (lambda d: ProgressiveAttention(query_bits=1), ValueError, "query_bits=1"),
        (lambda d: PlaneFormat(None, 1), ValueError, "value_bits=1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(decoder, call, error, message):
    with pytest.raises(error, match=message):
        call(decoder)


def test_dropped_tokens_have_no_logits(decoder):
    policy = SpAtten(prompt_tokens=count_schedule([23, 20, 12, 9]))
    cache = policy.cache(decoder)
    policy.start(cache)
    with pytest.raises(ValueError, match="dropped tokens have no logits; use decode mode"):
        decoder(PROMPT, cache=cache, hooks=policy.hooks)
    decoder(PROMPT, cache=cache, hooks=policy.hooks, want=LAST)
    with pytest.raises(ValueError, match="read it in one pass"):
        decoder(PROMPT, cache=cache, hooks=policy.hooks, want=LAST)


def test_nan_is_named(decoder):
    policy = SpAtten()
    cache = policy.cache(decoder, FULL)
    policy.start(cache)
    decoder(PROMPT, cache=cache, hooks=policy.hooks, want=LAST)
    cache.layers[2].table.columns["k"].data[0, 1, 3] = torch.nan
    with pytest.raises(FloatingPointError, match="layer 2, head 2"):
        decoder(PROMPT[:, :1], cache=cache, hooks=policy.hooks)


def test_statistics_for_others_are_refused(decoder):
    class Ask:
        def attn_plan(self, layer, q, pos, ctx):
            return AttnPlan(need=frozenset({"rowmax"}))

    policy = SpAtten()
    cache = policy.cache(decoder)
    policy.start(cache)
    decoder(PROMPT, cache=cache, hooks=policy.hooks, want=LAST)
    with pytest.raises(HookConflict, match="gives no 'rowmax'"):
        decoder(PROMPT[:, :1], cache=cache, hooks=[policy, Ask()])

"""ZipVL in a decoder: neutral settings, what each layer keeps, blocks while decoding, bad input."""

import functools

import pytest
import torch

from shoestring.generation.decode import generate
from shoestring.generation.decoder_runner import DecoderRunner, decoder_cache
from shoestring.generation.important_tokens import TopMass
from shoestring.generation.tier_cache import tier_cache
from shoestring.generation.tier_group import CodedGroup
from shoestring.generation.zipvl import ZipVL
from shoestring.generation.zipvl_options import ZipVLOptions, probe
from shoestring.layers.attention_masks import Full
from shoestring.layers.rotary import Rope
from shoestring.models.decoder import Decoder
from shoestring.models.decoder_config import DecoderConfig
from shoestring.models.decoder_step import Want
from shoestring.models.hooks import AttnPlan
from shoestring.models.protocols import HookConflict
from shoestring.numbers.tier_format import TierFormat, group_bytes

VOCAB, HEADS, KV_HEADS, DIM = 64, 4, 2, 16
PROMPT = torch.randint(VOCAB, (1, 120), generator=torch.Generator().manual_seed(1))
NEUTRAL = ZipVLOptions(TopMass(1.0), TierFormat(16, 16))
SHORT_BLOCKS = ZipVLOptions(TopMass(0.8, least=4), least=4, block_tokens=20)


@functools.cache
def decoder(dtype=torch.float32):
    """Three layers, the last one with a sliding window; attention neither flat nor on one token."""
    cfg = DecoderConfig(
        vocab_size=VOCAB, hidden_size=48, intermediate_size=96, num_hidden_layers=3,
        num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, head_dim=DIM, windows=(None, None, 9),
        ropes=(Rope(), Rope(), Rope()),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    model = Decoder(cfg).requires_grad_(False).eval()
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 3 / parameter.shape[1] ** 0.5)
    return model.to(dtype)


def read(options, ids=PROMPT, pos=None, want=Want(logits="last"), model=None):  # noqa: B008
    """A prompt in a new cache."""
    model = model or decoder()
    cache, policy = tier_cache(model, batch=len(ids)), ZipVL(options)
    policy.start(cache)
    out = model(ids, pos, cache=cache, hooks=policy.hooks, want=want)
    policy.after_prefill(cache)
    return cache, policy, out


def decoded(options, steps, model, drafts=False):
    """Greedy tokens behind the prompt, and all their logits."""
    cache, policy, out = read(options, model=model)
    logits, ids = [out.logits[:, -1]], []
    for _ in range(steps):
        ids.append(logits[-1].argmax(-1, keepdim=True))
        if drafts:
            mark = cache.mark()
            model(torch.full((1, 3), 7), cache=cache, hooks=policy.hooks)
            cache.rollback(mark)
        out = model(ids[-1], cache=cache, hooks=policy.hooks)
        policy.after_step(cache)
        logits.append(out.logits[:, -1])
    return torch.cat(ids, 1), torch.cat(logits), cache


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-4), (torch.float64, 1e-9)])
@pytest.mark.parametrize("per", ["layer", "kv_head"])
def test_neutral_element(dtype, tolerance, per):
    model = decoder(dtype)
    ids, logits, cache = decoded(ZipVLOptions(TopMass(1.0), TierFormat(16, 16), per=per), 64, model)
    expected = model(torch.cat([PROMPT, ids], 1)).logits[0, PROMPT.shape[1] - 1 :]
    assert len(set(ids[0].tolist())) > 8, "the output must not be one token"
    torch.testing.assert_close(logits, expected, rtol=0, atol=tolerance)
    assert torch.equal(ids[0], expected[:-1].argmax(-1))
    assert cache.length(0).tolist() == [184]


def test_every_token_is_important_at_tau_1():
    _, policy, _ = read(NEUTRAL)
    assert policy.kept == {0: 1.0, 1: 1.0, 2: 1.0}


def test_layers_keep_different_numbers_of_tokens():
    kept = {tau: read(ZipVLOptions(TopMass(tau)))[1].kept for tau in (0.7, 0.96, 0.975)}
    assert len(set(kept[0.975].values())) >= 2
    assert all(0 < share <= 1 for share in kept[0.975].values())


@pytest.mark.parametrize("per", ["layer", "kv_head"])
def test_probing_all_rows_gives_the_whole_attention(per):
    q, k = (torch.randn(1, h, 50, DIM, generator=torch.Generator().manual_seed(h)) for h in (HEADS, KV_HEADS))
    pos = torch.arange(50)[None]
    seen = probe(q, k, pos, 0, 0.25, None, ZipVLOptions(probe="all", per=per))
    assert seen.mass.shape[0] == (1 if per == "layer" else KV_HEADS)
    torch.testing.assert_close(seen.mass.sum(-1), torch.full((len(seen.mass),), 50.0), rtol=0, atol=1e-4)
    assert seen.counts.tolist() == list(range(50, 0, -1))
    keys = k.repeat_interleave(HEADS // KV_HEADS, 1)
    own = (q[0, :, -1:] @ keys[0].transpose(1, 2) * 0.25).softmax(-1)[:, 0, -1]
    expected = own.mean(0, keepdim=True) if per == "layer" else own.unflatten(0, (KV_HEADS, -1)).mean(1)
    torch.testing.assert_close(seen.normalised[:, -1], expected)


def test_uniform_attention_needs_what_the_closed_form_says():
    n, tau = 50, 0.8
    q, k = torch.randn(1, HEADS, n, DIM), torch.zeros(1, KV_HEADS, n, DIM)
    seen = probe(q, k, torch.arange(n)[None], 0, 1.0, None, ZipVLOptions(probe="all"))
    mass = [sum(1 / (i + 1) for i in range(j, n)) for j in range(n)]
    torch.testing.assert_close(seen.mass[0], torch.tensor(mass), rtol=1e-5, atol=0)
    needed = next(p for p in range(1, n + 1) if sum(mass[:p]) >= tau * n)
    assert TopMass(tau).needed(seen.mass).tolist() == [needed]


def test_a_window_counts_the_rows_that_see_a_key():
    q, k = torch.randn(1, HEADS, 60, DIM), torch.randn(1, KV_HEADS, 60, DIM)
    seen = probe(q, k, torch.arange(60)[None], 0, 1.0, 9, ZipVLOptions(probe="all"))
    assert seen.counts.tolist() == [min(9, 60 - j) for j in range(60)]


def test_rows_that_are_not_important_pass_by_the_residual():
    found = {}

    class Watch:
        def post_attn(self, layer, out, stats, ctx):
            found[layer] = out
            return out

    model, policy = decoder(), ZipVL()
    cache = tier_cache(model)
    policy.start(cache)
    model(PROMPT, cache=cache, hooks=(policy, Watch()), want=Want(logits="last"))
    for layer, out in found.items():
        zero = (out[0] == 0).all(0).all(-1)
        assert float(1 - zero.float().mean()) == pytest.approx(policy.kept[layer])
        assert not bool(zero[-1])


def test_tiers_alone_leave_the_prompt_as_it_is():
    _, policy, out = read(ZipVLOptions(sparse=False), want=Want(logits="all"))
    torch.testing.assert_close(out.logits, decoder()(PROMPT).logits, rtol=0, atol=5e-4)
    assert max(policy.kept.values()) < 1


def test_tokens_are_compressed_a_hundred_at_a_time():
    cache = tier_cache(decoder())
    generate(
        decoder(), PROMPT[0].tolist(), max_new_tokens=251, cache=cache, selection=ZipVL(), stop_tokens=()
    )
    for layer in range(3):
        store = cache.store(layer)
        assert store.tail.counts.tolist() == [[50]]
        blocks = [group for group in store.groups[0] if int(group.slots.min()) >= 120]
        assert sum(len(group.slots) for group in blocks) == 200
        assert all(isinstance(group, CodedGroup) for group in blocks)
        held = sum(len(g.slots) for g in store.groups[0])
        assert sorted(torch.cat([g.slots for g in store.groups[0]]).tolist()) == list(range(held))
        channels, parts = KV_HEADS * DIM, cache.parts(layer)
        codes = sum(group_bytes(g.bits, len(g.slots), channels) for g in store.groups[0])
        vectors = 2 * channels * len({id(g.c) for g in store.groups[0]})
        assert parts["k"] + parts["v"] + parts["scales"] == codes + vectors
        assert {g.bits for g in store.groups[0]} <= {2, 4}


def test_few_unimportant_tokens_are_stored_like_the_others():
    cache, policy, _ = read(ZipVLOptions(TopMass(0.9999)))
    for layer in range(3):
        bits = {group.bits: len(group.slots) for group in cache.store(layer).groups[0]}
        left = round(120 * (1 - policy.kept[layer]))
        assert bits == ({4: 120} if left < 32 else {4: 120 - left, 2: left})


def test_unimportant_tokens_are_dropped():
    cache, policy, _ = read(ZipVLOptions(TopMass(0.8), low="drop"))
    for layer in range(3):
        count = round(120 * policy.kept[layer])
        assert cache.length(layer).tolist() == [count]
        assert cache.view(layer).pos[0, 0, -1] == 119
    assert cache.next_pos.tolist() == [120]
    _, _, cache = decoded(ZipVLOptions(TopMass(0.8, 4), low="drop", least=4, block_tokens=20), 45, decoder())
    assert cache.view(0).pos[0, 0].diff().min() > 0
    assert cache.store(0).tail.counts.tolist() == [[5]]


def test_drafts_that_are_taken_back_leave_no_trace():
    plain, logits, _ = decoded(SHORT_BLOCKS, 30, decoder())
    drafted, other, _ = decoded(SHORT_BLOCKS, 30, decoder(), drafts=True)
    assert torch.equal(plain, drafted)
    torch.testing.assert_close(other, logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("sparse", [True, False])
def test_a_ragged_batch_is_three_runs(sparse):
    options = ZipVLOptions(TopMass(0.9, 8), sparse=sparse, least=8)
    lengths, model = [120, 70, 9], decoder()
    ids = PROMPT.expand(3, -1)
    pos = torch.arange(120).expand(3, -1)
    pos = pos.masked_fill(pos >= torch.tensor(lengths)[:, None], -1)
    cache, policy, out = read(options, ids, pos)
    step = model(PROMPT[:, :1].expand(3, -1), cache=cache, hooks=policy.hooks).logits
    for sample, length in enumerate(lengths):
        alone, own, first = read(options, PROMPT[:, :length])
        torch.testing.assert_close(out.logits[sample, -1], first.logits[0, -1], rtol=0, atol=5e-4)
        then = model(PROMPT[:, :1], cache=alone, hooks=own.hooks).logits
        torch.testing.assert_close(step[sample], then[0], rtol=0, atol=5e-4)


def test_a_short_prompt_stays_as_it_is():
    cache, policy, out = read(ZipVLOptions(), PROMPT[:, :31])
    torch.testing.assert_close(out.logits[:, -1], decoder()(PROMPT[:, :31]).logits[:, -1], rtol=0, atol=5e-4)
    assert policy.kept == {0: 1.0, 1: 1.0, 2: 1.0}
    assert cache.view(0).k.shape[2] == 31


def test_a_policy_serves_one_sequence_after_the_other():
    policy, model = ZipVL(), decoder()
    first, second = (
        generate(model, PROMPT[0].tolist(), max_new_tokens=5, cache=tier_cache(model), selection=policy)
        for _ in range(2)
    )
    assert first.tokens == second.tokens


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"per": "head"}, "per='head'; use 'layer' or 'kv_head'"),
        ({"low": "evict"}, "low='evict'; use 'quantise' or 'drop'"),
        ({"probe": 0}, "probe=0"),
        ({"probe": "some"}, "probe='some'"),
        ({"block_tokens": 0}, "block_tokens=0"),
        ({"low": "drop", "per": "kv_head"}, "use per='layer'"),
    ],
)
def test_settings_that_are_none_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ZipVLOptions(**settings)


def test_more_probe_rows_than_tokens_are_all_with_a_warning():
    with pytest.warns(UserWarning, match="probe=500 rows of a prompt of 120 tokens: all are taken"):
        read(ZipVLOptions(probe=500))


def test_logits_of_the_whole_prompt_are_approximate_and_said_to_be():
    with pytest.warns(UserWarning, match="computes only those of important tokens exactly"):
        read(ZipVLOptions(), want=Want(logits="all"))


class Bidirectional:
    def attn_plan(self, layer, q, pos, ctx):
        return AttnPlan(mask=Full())


class Needy:
    def attn_plan(self, layer, q, pos, ctx):
        return AttnPlan(need=frozenset({"colsum"}))


def test_attention_that_is_not_causal_is_refused():
    policy, cache = ZipVL(), tier_cache(decoder())
    with pytest.raises(ValueError, match="needs causal attention: counts c_j assume it"):
        decoder()(PROMPT, cache=cache, hooks=(policy, Bidirectional()))
    with pytest.raises(HookConflict, match="another hook needs colsum"):
        decoder()(PROMPT, cache=tier_cache(decoder()), hooks=(policy, Needy()))


def test_padding_on_the_left_is_refused():
    pos = torch.arange(120)[None] - 5
    with pytest.raises(ValueError, match="padded on the left"):
        read(ZipVLOptions(), pos=pos.clamp(min=-1))


def test_a_prompt_in_parts_is_refused():
    policy, cache = ZipVL(), tier_cache(decoder())
    policy.start(cache)
    decoder()(PROMPT[:, :60], cache=cache, hooks=policy.hooks, want=Want(logits="last"))
    with pytest.raises(ValueError, match="reads it in one pass: feed it whole"):
        decoder()(PROMPT[:, 60:], cache=cache, hooks=policy.hooks)


def test_caches_that_do_not_serve_are_refused():
    with pytest.raises(TypeError, match="pass cache=tier_cache"):
        DecoderRunner(decoder(), decoder_cache(decoder()), selection=ZipVL())
    with pytest.raises(HookConflict, match="pass cache=tier_cache"):
        decoder()(PROMPT, hooks=ZipVL().hooks)
    cache = tier_cache(decoder())
    decoder()(PROMPT, cache=cache)
    with pytest.raises(ValueError, match="holds tokens already"):
        ZipVL().start(cache)

"""Each kind of hook against what it should mean, computed by hand on the same weights."""

import pytest
import torch

from shoestring.generation.dense_cache import DenseCache
from shoestring.generation.quantised_cache import QuantCache
from shoestring.layers.attention import attend
from shoestring.layers.attention_masks import Causal, Tree
from shoestring.models.decoder import Decoder
from shoestring.models.decoder_step import Step, Want
from shoestring.models.hooks import AttnPlan, Context, Drop, Keep, Phase, Route
from shoestring.models.protocols import HookConflict
from shoestring.numbers.cache_format import CacheFormat

from .families import LAYERS, VOCAB, ids_of, make

CLOSE = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(scope="module", params=["llama", "gemma 3"])
def decoder(request):
    return Decoder.from_transformers(make(request.param)).requires_grad_(False)


def cache_of(decoder, batch=1):
    cfg = decoder.cfg
    return DenseCache(cfg.num_hidden_layers, batch, cfg.num_key_value_heads, cfg.head_dim)


def run_layers(decoder, x, pos, layers):
    """Layers by hand, on tokens at these positions, without hooks or cache."""
    ropes = frozenset(decoder.cfg.ropes)
    step = Step.start(pos, True, ropes, decoder.cfg.head_dim, x.dtype, None, None, Context())
    for layer in layers:
        x = decoder.model.layers[layer](x, step)
    return x


def head(decoder, x):
    return decoder.lm_head(decoder.model.norm(x))


def span(n, batch=1):
    return torch.arange(n).expand(batch, -1)


class On:
    """A hook with one method, which acts in one layer."""

    def __init__(self, **methods):
        for name, function in methods.items():
            setattr(self, name, function)


def drop_at(layer, keep):
    return On(pre_layer=lambda number, x, pos, ctx: Drop(keep) if number == layer else Keep())


def route_at(layer, take):
    return On(pre_layer=lambda number, x, pos, ctx: Route(take) if number == layer else Keep())


def plan_at(layers, **fields):
    return On(attn_plan=lambda number, q, pos, ctx: AttnPlan(**fields) if number in layers else None)


def test_drop_runs_the_rest_of_the_layers_on_what_is_kept(decoder):
    ids, keep = ids_of(1, 12), torch.tensor([[0, 2, 3, 7, 11]])
    x = run_layers(decoder, decoder.model.embed_tokens(ids), span(12), [0, 1])
    expected = head(decoder, run_layers(decoder, x[:, keep[0]], keep, [2, 3]))
    out = decoder(ids, hooks=[drop_at(2, keep)])
    assert torch.equal(out.pos, keep)
    torch.testing.assert_close(out.logits, expected, **CLOSE)


def test_dropped_tokens_are_missing_in_later_layers_of_the_cache_only(decoder):
    ids, keep = ids_of(1, 12), torch.tensor([[0, 2, 3, 7, 11]])
    cache = cache_of(decoder)
    decoder(ids, cache=cache, hooks=[drop_at(2, keep)])
    assert [cache.length(layer).item() for layer in range(LAYERS)] == [12, 12, 5, 5]
    assert cache.view(3).pos.tolist() == [keep.tolist()]
    assert cache.next_pos.tolist() == [12]
    # A next token sees twelve tokens in two layers and five in the others.
    token = ids_of(1, 1, seed=3)
    out = decoder(token, cache=cache)
    assert out.pos.tolist() == [[12]]
    both = torch.cat([ids, token], 1)
    kept = torch.cat([keep, torch.tensor([[12]])], 1)
    expected = decoder(both, hooks=[drop_at(2, kept)]).logits[:, -1:]
    torch.testing.assert_close(out.logits, expected, **CLOSE)


def test_samples_may_keep_different_numbers_of_tokens(decoder):
    ids, keep = ids_of(2, 8), torch.tensor([[1, 4, 6, 7], [0, 7, -1, -1]])
    cache = cache_of(decoder, 2)
    out = decoder(ids, cache=cache, hooks=[drop_at(1, keep)])
    assert cache.length(1).tolist() == [4, 2]
    assert out.pos.tolist() == [[1, 4, 6, 7], [0, 7, -1, -1]]
    token = ids_of(2, 1, seed=3)
    later = decoder(token, cache=cache).logits
    for row, count in enumerate((4, 2)):
        alone = cache_of(decoder)
        hook = drop_at(1, keep[row : row + 1, :count])
        expected = decoder(ids[row : row + 1], cache=alone, hooks=[hook]).logits
        torch.testing.assert_close(out.logits[row, :count], expected[0], **CLOSE)
        torch.testing.assert_close(later[row], decoder(token[row : row + 1], cache=alone).logits[0], **CLOSE)


def test_route_leaves_the_others_as_they_were(decoder):
    ids, take = ids_of(2, 10), torch.tensor([[0, 3, 4, 9], [2, 5, 8, -1]])
    cache = cache_of(decoder, 2)
    out = decoder(ids, cache=cache, hooks=[route_at(1, take)], want=Want(hidden=(0, 1)))
    before, after = out.hidden[0], out.hidden[1]
    for row, count in enumerate((4, 3)):
        inside = take[row, :count]
        others = [i for i in range(10) if i not in inside.tolist()]
        assert torch.equal(after[row, others], before[row, others])
        expected = run_layers(decoder, before[row : row + 1, inside], inside[None], [1])
        torch.testing.assert_close(after[row, inside], expected[0], **CLOSE)
    assert [cache.length(layer).tolist() for layer in (0, 1, 2)] == [[10, 10], [4, 3], [10, 10]]
    assert out.pos.shape == (2, 10)


def test_tables_of_the_context_follow_the_tokens(decoder):
    seen = {}

    def watch(layer, x_in, x_out, ctx):
        seen[layer] = (ctx.tokens["kind"].tolist(), ctx.pos.tolist(), ctx.shared)
        return x_out

    kinds, shared = torch.arange(6)[None] * 10, {"index": 1}
    drop, route = torch.tensor([[1, 2, 5]]), torch.tensor([[0, 2]])
    hooks = [drop_at(1, drop), route_at(2, route), On(post_layer=watch)]
    decoder(ids_of(1, 6), ctx=Context({"kind": kinds}, shared=shared), hooks=hooks)
    assert seen[0][:2] == ([[0, 10, 20, 30, 40, 50]], [[0, 1, 2, 3, 4, 5]])
    assert seen[1][:2] == ([[10, 20, 50]], [[1, 2, 5]])
    assert seen[2][:2] == ([[10, 50]], [[1, 5]])
    assert seen[3][:2] == ([[10, 20, 50]], [[1, 2, 5]])
    assert all(found[2] is shared for found in seen.values())


def test_a_select_is_attention_under_an_explicit_mask(decoder):
    ids, token = ids_of(1, 9), ids_of(1, 2, seed=4)
    cache = cache_of(decoder)
    decoder(ids, cache=cache)
    masked = cache.clone()
    chosen = torch.tensor([[[0, 2, 5], [1, 7, -1]]])  # one list of slots for each KV head
    out = decoder(token, cache=cache, hooks=[plan_at({1, 2}, select=chosen)])
    keep = torch.zeros(2, 11, dtype=torch.bool)
    keep[0, [0, 2, 5]] = keep[1, [1, 7]] = keep[:, 9:] = True

    def by_mask(call):
        view, mask = call.read()
        p = torch.einsum("bhnd,bhsd->bhns", call.q, view.k.repeat_interleave(2, 1)) * call.scale
        seen = mask.seen(slice(0, 2), slice(0, 11), call.window) & keep[None, :, None]
        p = p.masked_fill(~seen.repeat_interleave(2, 1), -torch.inf).softmax(-1)
        stats = call.default()
        return type(stats)(p @ view.v.repeat_interleave(2, 1))

    expected = decoder(token, cache=masked, hooks=[plan_at({1, 2}, attend=by_mask)])
    torch.testing.assert_close(out.logits, expected.logits, **CLOSE)
    assert cache.length(1).tolist() == [11], "what is not selected stays"
    plain = cache_of(decoder)
    decoder(ids, cache=plain)
    assert (decoder(token, cache=plain).logits - out.logits).abs().max() > 1e-3


@pytest.mark.parametrize("chunk", [1, 4])
def test_a_token_that_is_not_stored_sees_itself_and_is_absent_later(decoder, chunk):
    """The same in one pass without a cache, and in chunks through one that skips it."""
    ids = ids_of(1, 8)
    stored = torch.tensor([[True, True, False, True, False, False, True, True]])
    whole = decoder(ids, hooks=[plan_at(range(LAYERS), store=stored)]).logits
    cache, parts = cache_of(decoder), []
    for at in range(0, 8, chunk):
        hook = plan_at(range(LAYERS), store=stored[:, at : at + chunk])
        parts.append(decoder(ids[:, at : at + chunk], cache=cache, hooks=[hook]).logits)
    torch.testing.assert_close(torch.cat(parts, 1), whole, **CLOSE)
    assert cache.view(2).pos.tolist() == [[[0, 1, 3, 6, 7]]]
    assert cache.next_pos.tolist() == [8]
    # The kept tokens are as if the others had never been there.
    keep = stored[0].nonzero()[:, 0][None]
    torch.testing.assert_close(whole[:, keep[0]], decoder(ids[:, keep[0]], keep).logits, **CLOSE)


def test_rows_that_are_left_out_put_out_zero_but_are_seen(decoder):
    ids, rows = ids_of(2, 8), torch.tensor([[0, 3, 7], [5, 6, -1]])
    found = {}

    def keep_out(layer, out, stats, ctx):
        found[layer] = out
        return out

    decoder(ids, hooks=[On(post_attn=keep_out)])
    plain = found[0]
    decoder(ids, hooks=[plan_at({0}, rows=rows), On(post_attn=keep_out)])
    for row, kept in enumerate(([0, 3, 7], [5, 6])):
        others = [i for i in range(8) if i not in kept]
        assert (found[0][row][:, others] == 0).all()
        torch.testing.assert_close(found[0][row][:, kept], plain[row][:, kept], **CLOSE)


@pytest.mark.parametrize("family", ["llama", "llama, biases"])
@pytest.mark.parametrize("rows", [[[0, 3, 7]], [[2, 5, -1]], [[0, 3, 7], [5, 6, -1]]], ids=str)
def test_rows_that_put_out_zero_skip_the_projection_but_not_its_bias(family, rows):
    model = Decoder.from_transformers(make(family))
    ids, plan = ids_of(len(rows), 8), plan_at({0, 2}, rows=torch.tensor(rows))
    # Whoever looks at the outputs of heads gets all of them, and all are projected.
    whole = model(ids, hooks=[plan, On(post_attn=lambda layer, out, stats, ctx: out)]).logits
    torch.testing.assert_close(model(ids, hooks=[plan]).logits, whole, **CLOSE)


def test_a_policy_fades_keys_as_attend_does(decoder):
    ids = ids_of(1, 6)
    policy = torch.tensor([[1.0, 0.3, 0.0, 1.0, 0.5, 1.0]]).requires_grad_()
    logits = decoder(ids, hooks=[plan_at({1, 3}, policy=policy)]).logits
    logits.sum().backward()
    assert (policy.grad[0, 1:5] != 0).all(), "hidden keys learn too"
    hard = torch.tensor([[1.0, 0.0, 0.0, 1.0, 0.0, 1.0]])
    stored = plan_at({1, 3}, store=hard > 0)
    expected = decoder(ids, hooks=[stored]).logits
    torch.testing.assert_close(decoder(ids, hooks=[plan_at({1, 3}, policy=hard)]).logits, expected, **CLOSE)


def test_statistics_arrive_at_post_attn_and_count_all_rows_and_heads(decoder):
    ids, sums, counts = ids_of(2, 11), {}, {}

    def watch(layer, out, stats, ctx):
        sums[layer], counts[layer] = stats.colsum, stats.colcount
        return out

    hooks = [plan_at({0, 1}, need=frozenset({"colsum"})), plan_at({1}, need=frozenset({"colcount"}))]
    logits = decoder(ids, hooks=[*hooks, On(post_attn=watch)]).logits
    torch.testing.assert_close(logits, decoder(ids).logits, rtol=0, atol=1e-4)
    total = torch.full((2,), 11.0 * decoder.cfg.num_attention_heads)
    torch.testing.assert_close(sums[0].sum((1, 2)), total)
    assert (sums[2], counts[0], counts[3]) == (None, None, None)
    window = decoder.cfg.windows[1] or 11
    assert counts[1][0, 0].tolist() == [min(11 - j, window) for j in range(11)]


def test_post_attn_masks_heads_before_the_output_projection(decoder):
    """A head that is masked out is one whose columns of the projection are zero."""
    ids, dim = ids_of(1, 7), decoder.cfg.head_dim

    def mask_first(layer, out, stats, ctx):
        return out * torch.tensor([0.0, 1.0, 1.0, 1.0])[:, None, None] if layer == 2 else out

    masked = decoder(ids, hooks=[On(post_attn=mask_first)]).logits
    weight = decoder.model.layers[2].self_attn.o_proj.weight
    saved = weight.clone()
    weight[:, :dim] = 0
    expected = decoder(ids).logits
    weight.copy_(saved)
    torch.testing.assert_close(masked, expected, **CLOSE)


def test_each_group_of_linear_maps_is_asked_once(decoder):
    calls, phases = [], []

    def linear(layer, names, x, phase, proceed):
        calls.append((layer, names))
        phases.append(phase)
        out = proceed(x)
        assert len(out) == len(names)
        return out

    cache = cache_of(decoder)
    logits = decoder(ids_of(1, 5), cache=cache, hooks=[On(linear=linear)]).logits
    assert torch.equal(logits, decoder(ids_of(1, 5)).logits)
    groups = [("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",)]
    assert calls == [(layer, group) for layer in range(LAYERS) for group in groups]
    assert set(phases) == {Phase.PREFILL}
    phases.clear()
    decoder(ids_of(1, 1), cache=cache, hooks=[On(linear=linear)])
    assert set(phases) == {Phase.DECODE}
    phases.clear()
    decoder(ids_of(1, 2), cache=cache, ctx=Context(phase=Phase.DECODE), hooks=[On(linear=linear)])
    assert set(phases) == {Phase.DECODE}


def test_linear_hooks_wrap_from_left_to_right(decoder):
    ids, order = ids_of(1, 5), []

    def named(name, change):
        def linear(layer, names, x, phase, proceed):
            if names != ("down_proj",):
                return proceed(x)
            order.append(name)
            return change(proceed(x))

        return On(linear=linear)

    hooks = [named("outer", lambda out: (out[0] + 1,)), named("inner", lambda out: (out[0] * 2,))]
    out = decoder(ids, hooks=hooks, want=Want(hidden=(0,)))
    assert order == ["outer", "inner"] * LAYERS
    down = decoder.model.layers[0].mlp.down_proj
    handle = down.register_forward_hook(lambda module, args, y: y * 2 + 1)
    expected = decoder(ids, want=Want(hidden=(0,))).hidden[0]
    handle.remove()
    torch.testing.assert_close(out.hidden[0], expected, **CLOSE)


def test_embed_may_merge_ids_and_set_positions(decoder):
    """Two ids to a slot, at the position of the second: slots and positions part."""

    def embed(ids, pos, ctx, proceed):
        x, pos = proceed(ids, pos, ctx)
        size = ctx.groups
        return x.unflatten(1, (-1, size)).mean(2), pos[:, size - 1 :: size]

    ids, cache = ids_of(1, 8), cache_of(decoder)
    out = decoder(ids, cache=cache, ctx=Context(groups=2), hooks=[On(embed=embed)])
    assert out.pos.tolist() == [[1, 3, 5, 7]]
    assert (cache.next_pos.tolist(), cache.length(0).tolist()) == ([8], [4])
    merged = decoder.model.embed_tokens(ids).unflatten(1, (-1, 2)).mean(2)
    torch.testing.assert_close(out.logits, decoder(merged, out.pos).logits, **CLOSE)
    after = decoder(ids_of(1, 1), cache=cache)
    assert after.pos.tolist() == [[8]]


def test_post_layer_gates_what_a_layer_gave(decoder):
    ids = ids_of(1, 6)

    def skip(layer, x_in, x_out, ctx):
        return x_in if layer == 1 else x_out

    x = run_layers(decoder, decoder.model.embed_tokens(ids), span(6), [0, 2, 3])
    gated = decoder(ids, hooks=[On(post_layer=skip)]).logits
    torch.testing.assert_close(gated, head(decoder, x), **CLOSE)


def test_a_plan_may_bring_its_own_attention_and_mask(decoder):
    """A tree of three drafts, two of them alternatives at the same position, verified in one pass."""
    ids, cache = ids_of(1, 5), cache_of(decoder)
    decoder(ids, cache=cache)
    drafts, pos = torch.tensor([[7, 8, 9]]), torch.tensor([[5, 6, 6]])
    among = torch.tensor([[[True, False, False], [True, True, False], [True, False, True]]])
    if any(decoder.cfg.windows):
        # A window has no place in a tree of this size: the mask alone decides.
        def by_tree(call):
            view, _ = call.read()
            return attend(call.q, view, Tree(among), call.scale)

        hook = plan_at(range(LAYERS), attend=by_tree)
    else:
        hook = plan_at(range(LAYERS), mask=Tree(among))
    before = cache.clone()
    out = decoder(drafts, pos, cache=cache, hooks=[hook]).logits
    assert cache.length(0).tolist() == [8]
    for branch, index in (([7, 8], 1), ([7, 9], 2)):
        expected = decoder(torch.tensor([branch]), cache=before.clone()).logits
        torch.testing.assert_close(out[:, [0, index]], expected, **CLOSE)


def test_what_a_call_reads_can_be_read_later_and_is_the_plain_attention(decoder):
    def checked(call):
        view, mask = call.read()
        assert isinstance(mask, Causal)
        assert view.k.shape[2] == call.cache.length(call.layer).item()
        return call.default()

    ids, plain, hooked = ids_of(1, 6), cache_of(decoder), cache_of(decoder)
    for part in (ids, ids_of(1, 1)):
        out = decoder(part, cache=hooked, hooks=[plan_at(range(LAYERS), attend=checked)]).logits
        assert torch.equal(out, decoder(part, cache=plain).logits)


def test_a_long_chunk_sees_itself_in_full_through_a_cache_that_rounds(decoder):
    cfg = decoder.cfg
    form = CacheFormat(2, 8, tail_tokens=0)
    cache = QuantCache(LAYERS, 1, cfg.num_key_value_heads, cfg.head_dim, form)
    ids = ids_of(1, 32)
    exact = decoder(ids).logits
    torch.testing.assert_close(decoder(ids, cache=cache).logits, exact, **CLOSE)
    for hooks in ((), [On(post_attn=lambda layer, out, stats, ctx: out)]):
        token = ids_of(1, 1, seed=8)
        rounded = decoder(token, cache=cache.clone(), hooks=hooks).logits
        whole = decoder(torch.cat([ids, token], 1)).logits[:, -1:]
        assert 1e-3 < (rounded - whole).abs().max() < 20


def test_post_step_chooses_what_a_step_emits(decoder):
    from shoestring.models.hooks import HookChain

    logits = decoder(ids_of(2, 3)).logits
    greedy = HookChain().post_step(logits, Context())
    assert greedy == logits[:, -1:].argmax(-1).tolist()
    several = On(post_step=lambda logits, ctx: [[1, 2, 3], []])
    assert HookChain([several]).post_step(logits, Context()) == [[1, 2, 3], []]
    with pytest.raises(HookConflict, match="On and On both choose what a step emits"):
        HookChain([several, several]).post_step(logits, Context())


KEEP = torch.tensor([[0, 2]])


@pytest.mark.parametrize(
    ("hooks", "message"),
    [
        ([drop_at(1, KEEP), drop_at(1, KEEP[:, :1])], "layer 1: On and On both drop tokens; let one do it"),
        ([route_at(2, KEEP), route_at(2, KEEP)], "layer 2: On routes tokens before On chooses"),
        ([route_at(2, KEEP), drop_at(2, KEEP)], "layer 2: On routes tokens before On chooses; put it last"),
        ([plan_at({3}, rows=KEEP), plan_at({3}, rows=KEEP)], "layer 3: two hooks decide 'rows'"),
    ],
)
def test_hooks_that_contradict_are_named(decoder, hooks, message):
    with pytest.raises(HookConflict, match=message):
        decoder(ids_of(1, 4), hooks=hooks)


def test_two_hooks_may_drop_in_different_layers_and_one_drop_before_another_routes(decoder):
    ids = ids_of(1, 8)
    first, then = torch.tensor([[0, 1, 4, 6, 7]]), torch.tensor([[1, 2, 4]])
    out = decoder(ids, hooks=[drop_at(1, first), drop_at(2, then), route_at(2, torch.tensor([[0, 2]]))])
    assert out.pos.tolist() == [[1, 4, 7]]


@pytest.mark.parametrize(
    ("hooks", "error", "message"),
    [
        ([object()], TypeError, "object is no hook: it has none of embed, pre_layer, linear"),
        ([drop_at(0, torch.tensor([[0, 4]]))], ValueError, "must be indices below 4 that ascend"),
        ([drop_at(0, torch.tensor([[2, 1]]))], ValueError, "that ascend"),
        ([drop_at(0, torch.tensor([[1, 1]]))], ValueError, "that ascend"),
        ([drop_at(0, torch.tensor([[-1, 1]]))], ValueError, "−1 only at the end of a row"),
        (
            [plan_at({0}, select=torch.zeros(1, 2, 1, dtype=torch.long))],
            ValueError,
            "selects slots, but there is no cache",
        ),
    ],
)
def test_bad_hooks_and_answers_are_refused(decoder, hooks, error, message):
    with pytest.raises(error, match=message):
        decoder(ids_of(1, 4), hooks=hooks)


def test_vocabulary_is_that_of_the_family(decoder):
    assert decoder.cfg.vocab_size == VOCAB

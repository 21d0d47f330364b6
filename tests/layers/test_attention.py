"""Attention by the fused kernel and in blocks of rows, against its definition with every probability."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.layers import attention
from shoestring.layers.attention import STATISTICS, attend, merge, naive_attend
from shoestring.layers.attention_masks import Causal, Explicit, Full, KVView, Tree

SCALE = 0.3


def noise(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def chance(*shape, seed=0, share=0.6):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < share


def view_of(batch, kv_heads, slots, dim, *, pos=None, valid=None, dtype=torch.float64):
    pos = torch.arange(slots).expand(batch, 1, -1) if pos is None else pos
    k, v = (
        noise(batch, kv_heads, slots, dim, seed=1, dtype=dtype),
        noise(batch, kv_heads, slots, dim, seed=2, dtype=dtype),
    )
    return KVView(k, v, pos, valid)


def same(found, expected, atol=1e-12):
    for name in ("out", *STATISTICS):
        one, other = getattr(found, name), getattr(expected, name)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-10, atol=atol, check_dtype=False, msg=name)


def causal(view, n, newest=False):
    """The mask of the last n of the view's positions."""
    return Causal(view.pos[:, 0, view.pos.shape[2] - n :], view.pos, newest)


@given(
    batch=st.integers(1, 2),
    groups=st.sampled_from([(1, 1), (2, 1), (2, 3)]),
    n=st.integers(1, 9),
    older=st.integers(0, 9),
    window=st.sampled_from([None, 1, 3, 8, 100]),
    newest=st.booleans(),
    block=st.sampled_from([1 << 20, 24, 1]),
    need=st.sampled_from([(), tuple(STATISTICS), ("colsum", "lse")]),
    gaps=st.booleans(),
)
def test_causal_rows_equal_the_definition(batch, groups, n, older, window, newest, block, need, gaps):
    kv_heads, per_head = groups
    pos = (1 + gaps * chance(batch, 1, older + n, seed=n, share=0.3)).cumsum(-1)
    view = view_of(batch, kv_heads, older + n, 6, pos=pos)
    q = noise(batch, kv_heads * per_head, n, 6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "BLOCK_SCORES", block)
        found = attend(q, view, causal(view, n, newest), SCALE, window, need=need)
    same(found, naive_attend(q, view, causal(view, n), SCALE, window, need=need))
    assert {name for name in STATISTICS if getattr(found, name) is not None} == set(need)


@given(
    n=st.integers(1, 6),
    slots=st.integers(1, 9),
    rows=st.sampled_from([1, 2]),
    kind=st.sampled_from(["full", "causal", "explicit", "explicit per head", "tree"]),
    seed=st.integers(0, 50),
    need=st.sampled_from([(), tuple(STATISTICS)]),
)
def test_masks_over_slots_in_any_order_equal_the_definition(n, slots, rows, kind, seed, need):
    """Positions are shuffled and repeated, slots are invalid, per head or for all; some rows see nothing."""
    pos = torch.randint(0, 8, (2, rows, slots), generator=torch.Generator().manual_seed(seed))
    view = view_of(2, 2, slots, 4, pos=pos, valid=chance(2, rows, slots, seed=seed))
    if kind == "tree":
        n = min(n, slots)
    mask = {
        "full": Full(),
        "causal": Causal(torch.randint(-1, 9, (2, n), generator=torch.Generator().manual_seed(seed)), pos),
        "explicit": Explicit(chance(2, 1, n, slots, seed=seed + 1)),
        "explicit per head": Explicit(chance(1, 2, n, slots, seed=seed + 1)),
        "tree": Tree(chance(1, n, n, seed=seed + 2)),
    }[kind]
    q = noise(2, 4, n, 4)
    found = attend(q, view, mask, SCALE, need=need)
    same(found, naive_attend(q, view, mask, SCALE, need=need))


@given(
    n=st.integers(1, 6),
    older=st.integers(0, 4),
    kind=st.sampled_from([torch.float64, torch.bool]),
    window=st.sampled_from([None, 3]),
    need=st.sampled_from([(), ("lse", "rowmax", "colsum", "absout")]),
)
def test_a_policy_hides_keys_from_all_rows_but_their_own(n, older, kind, window, need):
    view = view_of(2, 2, older + n, 4)
    policy = chance(2, older + n, share=0.5)
    if kind != torch.bool:
        policy = policy * noise(2, older + n, seed=4).sigmoid()
    q = noise(2, 4, n, 4)
    mask = causal(view, n)
    found = attend(q, view, mask, SCALE, window, policy, need)
    same(found, naive_attend(q, view, mask, SCALE, window, policy, need))


def test_a_policy_of_zeros_leaves_each_row_its_own_value():
    view = view_of(1, 1, 5, 4)
    found = attend(noise(1, 1, 5, 4), view, causal(view, 5), SCALE, policy=torch.zeros(1, 5).double())
    torch.testing.assert_close(found.out, view.v)


def test_the_gradient_of_a_policy_is_that_of_the_definition():
    view = view_of(1, 2, 6, 4)
    q = noise(1, 4, 6, 4)
    policy = (chance(1, 6, share=0.5) * 1.0).double()
    gradients = []
    for function in (attend, naive_attend):
        leaf = policy.clone().requires_grad_()
        function(q, view, causal(view, 6), SCALE, policy=leaf, need=()).out.square().sum().backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients)
    assert (gradients[0][policy == 0] != 0).any(), "a hidden key must be able to come back"


def test_a_hidden_key_that_would_dominate_does_not_push_the_others_under():
    view = view_of(1, 1, 3, 4)
    k = view.k.clone()
    k[:, :, 1] = 1e4
    view = KVView(k, view.v, view.pos)
    policy = torch.tensor([[1.0, 0.0, 1.0]]).double()
    found = attend(torch.ones(1, 1, 3, 4).double(), view, causal(view, 3), 1.0, policy=policy, need=["lse"])
    kept = KVView(k[:, :, ::2], view.v[:, :, ::2], view.pos[:, :, ::2])
    alone = attend(torch.ones(1, 1, 1, 4).double(), kept, Full(), 1.0, need=["lse"])
    torch.testing.assert_close(found.out[:, :, 2:], alone.out)
    torch.testing.assert_close(found.lse[:, :, 2:], alone.lse)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_statistics_of_128_rows_are_those_of_explicit_probabilities(dtype):
    n, heads = 128, 6
    view = view_of(2, 2, n, 16, dtype=dtype)
    q = noise(2, heads, n, 16, dtype=dtype)
    found = attend(q, view, causal(view, n, newest=True), 0.25, need=STATISTICS)
    k, v = (t.repeat_interleave(3, 1) for t in (view.k, view.v))
    hidden = torch.ones(n, n, dtype=torch.bool).triu(1)
    p = (0.25 * q @ k.mT).masked_fill(hidden, -torch.inf).softmax(-1)
    close = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(found.out, p @ v, **close)
    torch.testing.assert_close(found.rowmax, p.amax(-1), **close)
    torch.testing.assert_close(found.absout, (p @ v).abs().sum((2, 3)), **close)
    torch.testing.assert_close(found.colsum, p.unflatten(1, (2, 3)).sum((2, 3)), **close)
    assert found.colcount[0, 0].tolist() == [n - j for j in range(n)]
    total = torch.full((2,), float(n * heads), dtype=dtype)
    torch.testing.assert_close(found.colsum.sum((1, 2)), total, **close)


def test_no_scores_above_the_block_ever_exist(monkeypatch):
    """Every tensor made on the way is watched: none may have rows × keys entries for one head."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else [out]:
                if isinstance(tensor, torch.Tensor):
                    self.size = max(self.size, tensor.numel())
            return out

    n = 512
    monkeypatch.setattr(attention, "BLOCK_SCORES", 64 * n)
    view = view_of(1, 1, n, 4, dtype=torch.float32)
    q = noise(1, 2, n, 4, dtype=torch.float32)
    for window, need in ((None, ("colsum", "colcount")), (9, ())):
        with Largest() as watch:
            attend(q, view, causal(view, n), 0.5, window, need=need)
        assert watch.size <= 2 * 64 * n


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_keys_and_rows_that_see_nothing_give_zero_and_minus_infinity(dtype):
    q = noise(2, 4, 3, 8, dtype=torch.float32).to(dtype)
    nothing = KVView(q[:, :2, :0], q[:, :2, :0], torch.zeros(2, 1, 0, dtype=torch.long))
    for need in ((), STATISTICS):
        found = attend(q, nothing, Full(), SCALE, need=need)
        assert (found.out == 0).all()
        assert found.out.dtype == dtype
        if need:
            assert (found.lse == -torch.inf).all()
            assert found.colsum.shape == (2, 2, 0)
    hidden = KVView(q[:, :2], q[:, :2], torch.full((2, 1, 3), 9), torch.ones(2, 1, 3, dtype=torch.bool))
    mask = Causal(torch.tensor([[1, 9, -1]] * 2), hidden.pos)
    for need in ((), ("lse", "rowmax")):
        found = attend(q, hidden, mask, SCALE, need=need)
        assert (found.out[:, :, ::2] == 0).all()
        assert (found.out[:, :, 1] != 0).all()
        if need:
            assert (found.lse[:, :, ::2] == -torch.inf).all()
            assert (found.rowmax[:, :, ::2] == 0).all()


@given(first=st.integers(0, 5), second=st.integers(0, 5), seed=st.integers(0, 9))
def test_merging_two_parts_is_attention_over_both(first, second, seed):
    view = view_of(1, 2, first + second, 4)
    q = noise(1, 4, 3, 4, seed=seed)

    def part(keys):
        return KVView(view.k[:, :, keys], view.v[:, :, keys], view.pos[:, :, keys])

    parts = [
        attend(q, part(keys), Full(), SCALE, need=["lse"]) for keys in (slice(0, first), slice(first, None))
    ]
    out, lse = merge(*((p.out, p.lse) for p in parts))
    whole = attend(q, view, Full(), SCALE, need=["lse"])
    torch.testing.assert_close(out, whole.out)
    torch.testing.assert_close(lse, whole.lse)


def test_window_slices_are_not_taken_where_positions_have_gaps():
    """After eviction the last slots are not the last positions: the window must be compared."""
    pos = torch.tensor([[[0, 1, 5, 6, 9]]])
    view = view_of(1, 1, 5, 4, pos=pos)
    q = noise(1, 1, 1, 4)
    mask = Causal(torch.tensor([[9]]), pos, newest=True)
    seen = KVView(view.k[:, :, 3:], view.v[:, :, 3:], pos[:, :, 3:])
    torch.testing.assert_close(attend(q, view, mask, SCALE, 4).out, attend(q, seen, Full(), SCALE).out)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"need": ["entropy"]}, "no statistic 'entropy'; there are absout, colcount, colsum, lse, rowmax"),
        ({"window": 0}, "window=0 must be 1 or more"),
        ({"window": 2, "mask": Full()}, "a window needs positions: use the mask Causal, not Full"),
        (
            {"policy": torch.ones(1, 3, dtype=torch.bool), "mask": Tree(torch.ones(1, 3, 3) > 0)},
            "a policy needs positions",
        ),
        ({"q": noise(1, 3, 3, 4)}, "3 query heads are no multiple of 2 KV heads"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    view = view_of(1, 2, 3, 4)
    arguments = {"q": noise(1, 4, 3, 4), "view": view, "mask": causal(view, 3), "scale": SCALE, **options}
    with pytest.raises(ValueError, match=message):
        attend(**arguments)

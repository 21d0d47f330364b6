"""Attention along one axis, against attention over everything with the rest hidden, and against a peer."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from shoestring.layers.axial.along_axis import AlongAxis, from_lines, to_lines
from shoestring.layers.axial.axial_attention import AxialAttention, AxialBlocks, naive_axial_attention
from shoestring.layers.axial.line_attention import AttentionBlock, LineAttention
from shoestring.yardstick.causality import influence
from shoestring.yardstick.flops import CostCounter


def noise(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def loud(module, seed=0, scale=0.5):
    """In float64, with weights that are far from the start, at which a block does nothing."""
    generator = torch.Generator().manual_seed(seed)
    module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return module


sizes_and_axis = st.lists(st.sampled_from([1, 2, 3, 5]), min_size=1, max_size=3).flatmap(
    lambda sizes: st.tuples(st.just(tuple(sizes)), st.integers(0, len(sizes) - 1))
)


@given(
    sizes_and_axis=sizes_and_axis,
    batch=st.integers(1, 3),
    heads=st.sampled_from([(1, 3), (2, 4), (3, 9)]),
    causal=st.booleans(),
    bias=st.booleans(),
)
def test_lines_equal_full_attention_with_everything_else_hidden(sizes_and_axis, batch, heads, causal, bias):
    """Output, gradient of the input and of the weights."""
    sizes, axis = sizes_and_axis
    n_heads, dim = heads
    layer = loud(AxialAttention(dim, n_heads, axis=axis, n_axes=len(sizes), causal=causal, qkv_bias=bias))
    x = noise(batch, *sizes, dim).requires_grad_()
    weights = noise(batch, *sizes, dim, seed=1)
    inputs = (x, *layer.parameters())
    found, expected = layer(x), naive_axial_attention(layer, x)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    for one, other in zip(
        torch.autograd.grad((found * weights).sum(), inputs),
        torch.autograd.grad((expected * weights).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_one_line_is_ordinary_attention(axis, causal):
    layer = loud(AxialAttention(8, 2, axis=axis, n_axes=3, causal=causal))
    sizes = [1, 1, 1]
    sizes[axis] = 6
    x = noise(2, 6, 8)
    torch.testing.assert_close(layer(x.view(2, *sizes, 8)).view(2, 6, 8), layer.layer(x))


@pytest.mark.parametrize("n_heads", [1, 4])
def test_parity_with_the_published_package(n_heads):
    """Its layer adds up one attention along each axis; ours are two layers."""
    peer = pytest.importorskip("axial_attention").AxialAttention(
        dim=16, heads=n_heads, num_dimensions=2, dim_index=-1, sum_axial_out=True
    )
    layers = []
    for index, part in enumerate(peer.axial_attentions):
        layer = AxialAttention(16, n_heads, axis=index, n_axes=2, qkv_bias=False)
        with torch.no_grad():
            layer.layer.qkv.weight.copy_(torch.cat([part.fn.to_q.weight, part.fn.to_kv.weight]))
            layer.layer.out.load_state_dict(part.fn.to_out.state_dict())
        layers.append(layer)
    x = noise(2, 5, 7, 16, dtype=torch.float32)
    torch.testing.assert_close(layers[0](x) + layers[1](x), peer(x), rtol=1e-5, atol=1e-5)


@given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4), batch=st.integers(1, 3), dim=st.integers(1, 3)
)
def test_lines_go_back_to_where_they_were(sizes, batch, dim):
    x = noise(batch, *sizes, dim)
    for axis in range(len(sizes)):
        lines = to_lines(x, axis)
        assert lines.shape == (x.numel() // (sizes[axis] * dim), sizes[axis], dim)
        assert torch.equal(from_lines(lines, axis, batch, tuple(sizes)), x)


def test_no_copy_where_the_strides_allow_a_view():
    x = noise(2, 3, 4, 5)
    assert to_lines(x, 1).data_ptr() == x.data_ptr()
    assert to_lines(x[:1], 0).data_ptr() == x.data_ptr()
    columns = AlongAxis(nn.Identity(), 0, 2)(x)
    assert to_lines(columns, 0).data_ptr() == columns.data_ptr(), "a second layer along the same axis"


def test_any_sequence_layer_runs_along_an_axis():
    class Sum(nn.Module):
        def forward(self, lines):
            return lines.cumsum(1)

    x = noise(2, 3, 4, 5, 6)
    for axis in range(3):
        assert torch.equal(AlongAxis(Sum(), axis, 3)(x), x.cumsum(axis + 1))


@given(
    lines=st.integers(1, 3),
    length=st.integers(1, 9),
    heads=st.sampled_from([(1, 1), (2, 6), (4, 8)]),
    room=st.integers(0, 3),
)
def test_steps_equal_the_whole_sequence(lines, length, heads, room):
    n_heads, dim = heads
    block = loud(AttentionBlock(LineAttention(dim, n_heads, causal=True), dim, hdim_factor=2))
    x = noise(lines, length, dim)
    cache = block.attention.cache(lines, length + room)
    with torch.no_grad():
        steps = torch.stack([block.step(element, cache) for element in x.unbind(1)], 1)
        torch.testing.assert_close(steps, block(x), rtol=1e-9, atol=1e-10)


def test_a_full_cache_says_so():
    layer = LineAttention(4, 1, causal=True)
    cache = layer.cache(2, 1)
    with torch.no_grad():
        layer.step(torch.ones(2, 4), cache)
        with pytest.raises(ValueError, match="room for 1 elements"):
            layer.step(torch.ones(2, 4), cache)
    with pytest.raises(ValueError, match="only causal attention"):
        LineAttention(4, 1).cache(1, 1)


def test_row_and_column_together_see_everything():
    """Unmasked, two blocks are enough; with columns masked, all of the rows up to an element's own."""
    height, width = 3, 4
    x = noise(height * width, 2, seed=3)
    row = torch.arange(height * width) // width

    def run(blocks, pixels):
        return blocks(pixels.view(1, height, width, 2)).view(-1, 2)

    both = loud(AxialBlocks(2, 1, (1, 0), n_axes=2))
    assert bool((influence(lambda p: run(both, p), x) != 0).all())
    upper = loud(AxialBlocks(2, 1, (1, 0), n_axes=2, masked=(0,)))
    assert torch.equal(influence(lambda p: run(upper, p), x) != 0, row[:, None] >= row[None])


def test_three_axes_see_everything_of_a_video():
    blocks = loud(AxialBlocks(2, 1, (2, 1, 0), n_axes=3), scale=1)
    found = influence(lambda p: blocks(p.view(1, 2, 2, 3, 2)).reshape(-1, 2), noise(12, 2, seed=4))
    assert bool((found != 0).all())


def test_a_fresh_block_is_the_identity_that_can_learn():
    torch.manual_seed(0)
    block = AttentionBlock(LineAttention(32, 4), 32)
    x = noise(2, 5, 32, dtype=torch.float32)
    torch.testing.assert_close(block(x), x, rtol=0, atol=1e-4)
    (block(x) * noise(2, 5, 32, seed=1, dtype=torch.float32)).sum().backward()
    for name in ("attention.out.weight", "down.weight"):
        assert block.get_parameter(name).grad.abs().amax() > 1e-2
    assert block.up.weight.var().item() == pytest.approx(1 / 32, rel=0.15)
    assert block.up.weight.abs().amax() <= 2.01 / (0.8796 * math.sqrt(32))


def test_dropout_is_off_in_eval_and_on_in_training():
    torch.manual_seed(0)
    block = loud(AttentionBlock(LineAttention(8, 2), 8, dropout=0.5))
    x = noise(2, 3, 8)
    assert not torch.equal(block(x), block(x))
    block.eval()
    assert torch.equal(block(x), block(x))


@pytest.mark.parametrize(("height", "width"), [(3, 5), (8, 8), (1, 7)])
def test_scores_cost_what_the_lines_have(height, width):
    """Row and column against one attention over all elements: (H + W) / (H W) of the operations on scores."""

    def scores(module, x):
        with CostCounter() as whole, torch.no_grad():
            module(x)
        return sum(n for name, n in whole.flops_by_operation.items() if "attention" in name)

    x = noise(2, height, width, 8, dtype=torch.float32)
    lines = sum(scores(AxialAttention(8, 2, axis=axis, n_axes=2), x) for axis in (0, 1))
    full = scores(LineAttention(8, 2), x.flatten(1, 2))
    assert lines * height * width == full * (height + width)


def test_under_autocast_it_gives_the_same():
    torch.manual_seed(0)
    blocks = loud(AxialBlocks(16, 2, (1, 0), n_axes=2, masked=(0,)), scale=0.2).float()
    x = noise(2, 4, 6, 16, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        low = blocks(x)
    torch.testing.assert_close(low.float(), blocks(x), rtol=0.05, atol=0.1)


BAD = [
    (lambda: AxialAttention(8, 3, axis=0, n_axes=2), "n_heads=3 must divide d_model=8"),
    (lambda: AxialAttention(8, 2, axis=2, n_axes=2), "axis=2 is the feature axis"),
    (lambda: AxialAttention(8, 2, axis=-1, n_axes=2), "axis=-1 must be one of 0 … 1"),
    (lambda: AxialAttention(8, 2, axis=0, n_axes=0), "n_axes=0 must be 1 or more"),
    (lambda: AxialAttention(8, 2, axis=0, n_axes=2)(torch.ones(1, 4, 8)), "3 dimensions; .* must have 4"),
    (lambda: AxialAttention(8, 2, axis=0, n_axes=2)(torch.ones(1, 8, 4, 4)), "not dim=8; features come last"),
    (lambda: AxialAttention(8, 2, axis=0, n_axes=2)(torch.ones(1, 0, 4, 8)), "no size may be 0"),
    (lambda: AxialBlocks(8, 2, (1, 0), n_axes=2)(torch.ones(1, 8, 4, 4)), "not dim=8"),
    (lambda: AxialBlocks(8, 2, (1, 0), n_axes=2, masked=(0, 1)), "masks more than one axis"),
    (lambda: AxialBlocks(8, 2, (1,), n_axes=2, masked=(0,)), "holds 0, but the blocks"),
    (lambda: AxialBlocks(8, 2, (), n_axes=2), "axes is empty"),
    (lambda: AxialBlocks(8, 2, (1, 0), n_axes=2, repeats=-1), "repeats=-1"),
    (lambda: AttentionBlock(LineAttention(8, 2), 8, hdim_factor=0), "hdim_factor=0"),
    (lambda: AttentionBlock(LineAttention(8, 2), 8, dropout=1.0), "dropout=1.0"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from shoestring.kernels.fft_convolution import naive_convolve
from shoestring.layers.long_convolution import long_convolution
from shoestring.layers.long_convolution.h3 import H3LongConv
from shoestring.layers.long_convolution.learned_butterfly import ButterflyOptions
from shoestring.layers.long_convolution.long_convolution import (
    FeatureLongConv,
    LongConv,
    LongFilter,
    TiedDropout,
)
from shoestring.layers.long_convolution.squash import (
    KernelRegulariser,
    SmoothTime,
    geometric_kernel,
    naive_squash,
)
from shoestring.layers.parameter_hint import hinted_parameters
from shoestring.yardstick.causality import influence


def naive_long_conv(layer: LongConv, x: torch.Tensor) -> torch.Tensor:
    """Part by part, as the paper writes it."""
    kernel = naive_squash(layer.filter.kernel, layer.filter.regulariser.threshold)
    copies = layer.filter.copies
    ahead = kernel[copies:] if layer.filter.bidirectional else None
    y = naive_convolve(x.mT, kernel[:copies], skip=layer.filter.skip, backward_kernel=ahead)
    z = layer.output_linear(F.gelu(y.flatten(1, 2)).mT)
    value, gate = z.chunk(2, dim=-1)
    return value * gate.sigmoid()


@settings(max_examples=15)
@given(
    seq=st.integers(1, 30) | st.just(67),
    shorter=st.integers(0, 4),
    d_model=st.sampled_from([1, 3, 8]),
    copies=st.integers(1, 2),
    bidirectional=st.booleans(),
    threshold=st.sampled_from([0.0, 0.003]),
)
def test_equals_its_equation_forward_and_gradient(seq, shorter, d_model, copies, bidirectional, threshold):
    layer = LongConv(
        d_model,
        seq,
        copies=copies,
        bidirectional=bidirectional,
        init=geometric_kernel,
        generator=torch.Generator().manual_seed(seq),
    ).double()
    layer.filter.regulariser = KernelRegulariser(threshold=threshold)
    if not naive_squash(layer.filter.kernel, threshold).any():
        return
    x = torch.randn(2, max(1, seq - shorter), d_model).double().requires_grad_()
    found, expected = layer(x), naive_long_conv(layer, x)
    torch.testing.assert_close(found, expected)
    leaves = [x, *layer.parameters()]
    upstream = torch.randn(found.shape).double()
    grads = [torch.autograd.grad((y * upstream).sum(), leaves) for y in (found, expected)]
    torch.testing.assert_close(*grads)


def test_causal_unless_told_otherwise():
    x = torch.randn(9, 3, dtype=torch.float64)

    def seen(layer: nn.Module) -> torch.Tensor:
        return influence(lambda x: layer.double()(x[None])[0], x).triu(1).max()

    init = lambda shape, generator: torch.randn(shape, generator=generator)  # noqa: E731
    assert seen(LongConv(3, 9, causal=True, init=init)) < 1e-12
    assert seen(H3LongConv(3, 9, init=init)) < 1e-12
    assert seen(FeatureLongConv(3, init=init)) == 0
    assert seen(LongConv(3, 9, bidirectional=True, init=init)) > 1e-3
    learned = LongConv(3, 9, butterfly=ButterflyOptions(additive=True), init=init)
    assert seen(learned) > 1e-4, "a trained transform is no convolution"


def test_kernel_dropout_is_off_in_evaluation_and_the_spectrum_follows_the_kernel():
    layer = LongConv(4, 32, regulariser=KernelRegulariser(threshold=0.001, dropout=0.3))
    x = torch.randn(2, 32, 4)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    with torch.no_grad():
        first = layer(x)
        assert torch.equal(first, layer(x))
    torch.testing.assert_close(first, layer(x), msg="kept or not, the spectrum is the same")
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    layer(x).square().sum().backward()
    optimizer.step()
    with torch.no_grad():
        torch.testing.assert_close(layer(x), naive_long_conv(layer, x), rtol=1e-4, atol=1e-5)
        assert not torch.equal(layer(x), first)
        torch.testing.assert_close(copy.deepcopy(layer)(x), layer(x))
        before, layer.filter.regulariser = layer(x), KernelRegulariser(threshold=0.003)
        torch.testing.assert_close(layer(x), naive_long_conv(layer, x), rtol=1e-4, atol=1e-5)
        assert (layer(x) - before).abs().max() > 1e-5
        torch.testing.assert_close(layer(x[:, :20]), naive_long_conv(layer, x[:, :20]), rtol=1e-4, atol=1e-5)


def test_the_spectrum_is_not_made_again_in_evaluation(monkeypatch):
    layer, made = LongFilter(2, 16).eval(), []
    make = long_convolution.kernel_spectrum
    monkeypatch.setattr(
        long_convolution,
        "kernel_spectrum",
        lambda *args, **options: (made.append(1), make(*args, **options))[1],
    )
    with torch.no_grad():
        for _ in range(3):
            layer(torch.randn(5, 2, 16))
        assert len(made) == 1
        layer.kernel.mul_(2)
        layer(torch.randn(5, 2, 16))
        assert len(made) == 2


def test_tied_dropout_leaves_out_whole_channels():
    dropout = TiedDropout(0.5)
    x = dropout(torch.ones(40, 10, 7))
    assert torch.equal(x, x[..., :1].expand_as(x))
    assert x.unique().tolist() == [0.0, 2.0]


def test_what_the_optimizer_is_asked_for():
    layer = LongConv(4, 16, kernel_learning_rate=5e-4, butterfly=ButterflyOptions())
    hints = {name: hint for name, _, hint in hinted_parameters(layer)}
    assert (hints["filter.kernel"].learning_rate, hints["filter.kernel"].weight_decay) == (5e-4, 0.0)
    assert hints["filter.butterfly.signal.matrix_16"].learning_rate == 1e-3
    assert hints["filter.skip"].decay(0.05) == 0.05


@pytest.mark.parametrize("tokens", [(2, 3), (4, 9)])
def test_few_and_many_tokens_along_the_features(tokens):
    layer = FeatureLongConv(8, init=lambda s, g: torch.randn(s), butterfly=ButterflyOptions(additive=True))
    layer = layer.double()
    x = torch.randn(*tokens, 8).double().requires_grad_()
    apart = F.glu(layer.output_linear(F.gelu(layer._by_transform(x))), dim=-1)
    torch.testing.assert_close(layer(x), apart)
    leaves = [x, *layer.parameters()]
    grads = [torch.autograd.grad(y.square().sum(), leaves) for y in (layer(x), apart)]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize(("copies", "share"), [(1, 2 / 8), (2, 4 / 8)])
def test_weights_that_the_mlp_would_take(copies, share):
    layer = FeatureLongConv(128, copies=copies)
    weights = sum(p.numel() for p in layer.parameters())
    assert weights / (8 * 128 * 128) == pytest.approx(share, abs=0.03)


def test_h3_equals_its_equation():
    layer = H3LongConv(3, 20, init=geometric_kernel).double()
    x = torch.randn(2, 17, 3).double()
    q, k, v = (part(x).mT for part in (layer.query, layer.key, layer.value))
    one, two = layer.key_filter, layer.product_filter
    w = naive_convolve(k, one.kernel[0], skip=one.skip[0]) * v
    expected = layer.output((q * naive_convolve(w, two.kernel[0], skip=two.skip[0])).mT)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("butterfly", [None, ButterflyOptions()])
def test_half_precision_of_the_rest(butterfly):
    layer = LongConv(4, 16, butterfly=butterfly, regulariser=KernelRegulariser(smooth=SmoothTime(3)))
    x = torch.randn(2, 16, 4)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
        y.float().sum().backward()
    torch.testing.assert_close(y.float(), layer(x), rtol=0.05, atol=0.05)
    assert layer.filter.kernel.grad.dtype == torch.float32
    assert layer.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


def test_bad_input():
    with pytest.raises(ValueError, match="kernel_length=0 must be at least 1"):
        LongConv(4, 0)
    with pytest.raises(ValueError, match="threshold=0.1 leaves nothing"):
        LongConv(4, 16, regulariser=KernelRegulariser(threshold=0.1))
    with pytest.raises(
        ValueError, match="causal=True, but a learned butterfly along time .* FeatureLongConv"
    ):
        LongConv(4, 16, causal=True, butterfly=ButterflyOptions())
    with pytest.raises(ValueError, match="causal=True, but a bidirectional kernel"):
        LongConv(4, 16, causal=True, bidirectional=True)
    with pytest.raises(ValueError, match="maps 4 to 8 features; 2 copies of d_model=4 need 8 to 8"):
        LongConv(4, 16, output_linear=nn.Linear(4, 8))
    layer = LongConv(4, 16)
    with pytest.raises(ValueError, match=r"17 steps, the kernel 16 lags: .*x\[:, -16:\].*kernel_length=17"):
        layer(torch.randn(1, 17, 4))
    with pytest.raises(ValueError, match="u holds NaN"):
        layer(torch.full((1, 16, 4), float("nan")))

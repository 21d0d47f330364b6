"""`auto_fact` on models as they come: exact stays exact, what does not shrink stays, ties stay."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.compression.models import batches, bert, gpt2, llama
from torch import nn

import shoestring
from shoestring.compression import RoundToNearest, apply, auto_fact, capture
from shoestring.compression.auto_factorize import factor_conv, factor_linear
from shoestring.compression.factor_solvers import ActivationAware, EnergyRank, TruncatedSVD
from shoestring.layers import LowRankConv, LowRankLinear, break_even_rank, conv_break_even_rank
from shoestring.layers.low_rank.low_rank_conv import kernel_blind_break_even_rank
from shoestring.notices import record_fallbacks


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 50, bias=False), nn.Linear(50, 2))


@given(
    inputs=st.integers(1, 30), outputs=st.integers(1, 30), bias=st.booleans(), seed=st.integers(0, 9),
    solver=st.sampled_from(["svd", "balanced"]),
)  # fmt: skip
def test_full_rank_is_the_dense_layer(inputs, outputs, bias, seed, solver):
    torch.manual_seed(seed)
    layer, x = nn.Linear(inputs, outputs, bias=bias), torch.randn(4, 3, inputs)
    expected = layer(x)
    found = factor_linear(layer, min(inputs, outputs), solver)(x)
    assert (found - expected).norm() <= 1e-5 * expected.norm() + 1e-7


@given(
    dims=st.integers(1, 3),
    channels=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    groups=st.integers(1, 3),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    padding=st.sampled_from([0, 1, "same"]),
    mode=st.sampled_from(["zeros", "circular"]),
    seed=st.integers(0, 9),
)
def test_full_rank_is_the_convolution(dims, channels, groups, kernel, stride, dilation, padding, mode, seed):
    torch.manual_seed(seed)
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    ins, outs = (groups * part for part in channels)
    stride = 1 if padding == "same" else stride
    conv = kind(
        ins, outs, kernel, stride=stride, padding=padding, dilation=dilation, groups=groups, padding_mode=mode
    )
    x = torch.randn(2, ins, *(7,) * dims)
    rank = groups * min(channels[1], channels[0] * kernel**dims)
    found = factor_conv(conv, rank)
    assert (found(x) - conv(x)).norm() <= 1e-5 * conv(x).norm() + 1e-7
    assert found.bias is not conv.bias


def test_groups_are_factored_alone():
    torch.manual_seed(0)
    conv = nn.Conv2d(12, 8, 3, groups=2)
    found = factor_conv(conv, 4)
    for group in range(2):
        rows = slice(4 * group, 4 * group + 4)
        whole, thin = conv.weight[rows].reshape(4, -1), found.weight[rows].reshape(4, -1)
        tail = torch.linalg.svdvals(whole.double())[2:].square().sum().sqrt()
        assert (whole - thin).norm().item() == pytest.approx(tail.item(), rel=1e-5)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.5, 0.99, 1.0])
def test_a_share_is_of_the_break_even_rank(share):
    model = auto_fact(small(), share)
    for layer, (ins, outs) in zip((model[0], model[2]), ((40, 30), (30, 50)), strict=True):
        rank = int(break_even_rank(ins, outs) * share)
        if share == 1.0 or rank == 0:
            assert type(layer) is nn.Linear
        else:
            assert layer.rank == rank
            assert sum(f.weight.numel() for f in (layer.down, layer.up)) == rank * (ins + outs)
    assert type(model[3]) is nn.Linear  # 50 x 2: no rank makes it smaller


def test_what_would_not_shrink_is_left_and_said():
    model = small()
    first, second = model[0], model[2]
    with record_fallbacks() as said:
        assert auto_fact(model, 17) is model
    assert model[0] is first  # r* = 17
    assert isinstance(model[2], LowRankLinear)  # r* = 18
    assert model[2] is not second
    assert "auto_fact: '0' stays whole: rank 17 of it is no smaller (use 1 to 16)" in said
    assert "auto_fact: '3' stays whole: no rank makes it smaller" in said


def test_convolutions_count_their_kernel():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(16, 32, 3, padding=1), nn.Conv1d(8, 12, 5, groups=4, stride=2))
    before = [sum(p.numel() for p in part.parameters()) for part in model]
    auto_fact(model, 0.5)
    limits = conv_break_even_rank(16, 32, 9), conv_break_even_rank(8, 12, 5, 4)
    assert model[0].rank == limits[0] // 2
    assert model[1].rank == 4 * -(-(limits[1] // 2) // 4)
    for part, count in zip(model, before, strict=True):
        assert isinstance(part, LowRankConv)
        assert sum(p.numel() for p in part.parameters()) < count
    blind = auto_fact(
        nn.Sequential(nn.Conv2d(16, 32, 3, padding=1)), 0.5, conv_limit=kernel_blind_break_even_rank
    )
    assert blind[0].rank == (16 * 32 // 48) // 2 < model[0].rank
    assert model[0](torch.randn(2, 16, 5, 5)).shape == (2, 32, 5, 5)
    assert model[1](torch.randn(2, 8, 11)).shape == (2, 12, 4)


@pytest.mark.parametrize("make", [bert, gpt2, llama])
def test_models_of_transformers_run_and_reload(make, tmp_path):
    ids = batches()[0]
    parts = [name for name, _ in make().named_children() if name != "lm_head"]
    model = auto_fact(make(), 0.5, "balanced", submodules=parts)
    thin = [m for m in model.modules() if isinstance(m, LowRankLinear)]
    assert len(thin) >= 8
    with torch.no_grad():
        out = model(ids)[0]
        assert torch.isfinite(out).all()
        again = auto_fact(make(), 0.5, "random", submodules=parts)
        again.load_state_dict(model.state_dict())
        assert torch.equal(again(ids)[0], out)
        shoestring.save(model, None, tmp_path / "saved")
        assert torch.equal(shoestring.load(tmp_path / "saved")(ids)[0], out)


def test_in_place_or_on_a_copy():
    model = small()
    x = torch.randn(3, 40)
    before = model(x)
    other = auto_fact(model, 5, deepcopy=True)
    assert torch.equal(model(x), before)
    assert type(model[0]) is nn.Linear
    assert isinstance(other[0], LowRankLinear)
    assert auto_fact(model, 5) is model
    assert torch.equal(model(x), other(x))
    single = auto_fact(nn.Linear(20, 20), 3)
    assert isinstance(single, LowRankLinear)


def test_submodules_by_name_or_by_themselves():
    for part in ("0", lambda m: m[0]):
        for copied in (False, True):
            model = nn.Sequential(small(), small())
            chosen = part if isinstance(part, str) else part(model)
            found = auto_fact(model, 4, submodules=[chosen], deepcopy=copied)
            assert isinstance(found[0][0], LowRankLinear)
            assert type(found[1][0]) is nn.Linear


def test_thin_layers_are_not_factored_again_unless_asked():
    model = auto_fact(small(), 12)
    first = model[0]
    with pytest.raises(ValueError, match="no linear layer or convolution to factor"):
        auto_fact(nn.Sequential(first), 2)
    assert model[0] is first
    auto_fact(model, 2, fact_led_unit=True)
    assert isinstance(model[0].down, LowRankLinear)
    torch.testing.assert_close(model[0](torch.eye(40)) - model[0].bias, model[0].weight.T)


def test_tied_weights_stay_tied():
    torch.manual_seed(0)
    model = nn.ModuleDict({"a": nn.Linear(20, 20), "b": nn.Linear(20, 20), "table": nn.Embedding(30, 20)})
    model["b"].weight = model["a"].weight
    model["head"] = nn.Linear(20, 30, bias=False)
    model["head"].weight = model["table"].weight
    model["again"] = model["a"]
    biases = model["a"].bias.clone(), model["b"].bias.clone()
    with record_fallbacks() as said:
        auto_fact(model, 4)
    assert model["a"].down.weight is model["b"].down.weight
    assert model["a"].up.weight is model["b"].up.weight
    assert model["again"] is model["a"]
    assert torch.equal(model["a"].bias, biases[0])
    assert torch.equal(model["b"].bias, biases[1])
    assert model["head"].weight is model["table"].weight
    assert "auto_fact: 'head' stays whole: another part shares its weight" in said
    part = nn.ModuleDict({"a": nn.Linear(20, 20), "b": nn.Linear(20, 20)})
    part["b"].weight = part["a"].weight
    auto_fact(part, 4, submodules=["a"])
    assert part["a"].weight is part["b"].weight


def test_what_is_frozen_or_in_evaluation_stays_so():
    model = small().eval().double()
    model[0].requires_grad_(False)
    bias = model[0].bias
    auto_fact(model, 3)
    assert not any(m.training for m in model.modules())
    assert not any(p.requires_grad for p in model[0].parameters())
    assert all(p.requires_grad for p in model[2].parameters())
    assert model[0].down.weight.dtype == torch.float64
    assert model[0].bias is not bias


def test_torchs_own_encoder_uses_the_thin_layers():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, dropout=0.0)
    model = nn.TransformerEncoder(layer, 2).eval()
    x, mask = torch.randn(2, 5, 32), torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    with record_fallbacks() as said:
        thin = auto_fact(model, 4, deepcopy=True)
    assert isinstance(thin.layers[1].linear1, LowRankLinear)
    assert type(thin.layers[0].self_attn.out_proj) is type(model.layers[0].self_attn.out_proj)
    assert any("nn.MultiheadAttention reads its own weights" in line for line in said)
    calls = []
    thin.layers[1].linear1.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        quiet = thin(x, src_key_padding_mask=mask)[~mask]
    assert calls, "inference goes through the factors"
    reference = copy.deepcopy(model)
    for ours, theirs in zip(thin.layers, reference.layers, strict=True):
        for name in ("linear1", "linear2"):
            getattr(theirs, name).weight.data = getattr(ours, name).weight.detach()
    expected = reference.train()(x, src_key_padding_mask=mask)[~mask]
    torch.testing.assert_close(quiet, expected, rtol=1e-4, atol=1e-5)


def test_ranks_by_energy_and_known_inputs():
    ids = batches(6)
    model = bert()
    calibration = capture(model, ids)
    by_energy = auto_fact(model, EnergyRank(0.5), deepcopy=True)
    weight = model.encoder.layer[0].intermediate.dense.weight
    assert by_energy.encoder.layer[0].intermediate.dense.rank == EnergyRank(0.5).of(weight.detach())
    errors = []
    with torch.no_grad():
        for solver in ("svd", ActivationAware(calibration)):
            thin = auto_fact(model, 0.5, solver, submodules=["encoder"], deepcopy=True)
            errors.append(sum((thin(b)[0] - model(b)[0]).square().sum().item() for b in ids))
    assert errors[1] < errors[0]


@pytest.mark.parametrize("rank", [0, -1, 1.5, 0.0, True])
def test_ranks_that_do_not_exist(rank):
    with pytest.raises(ValueError, match=f"rank={rank} is neither a whole rank"):
        auto_fact(small(), rank)


def test_bad_input_changes_nothing():
    model = small()
    before = {name: id(module) for name, module in model.named_modules()}
    for fields, message in (
        ({"solver": "qr"}, "solver='qr' is unknown"),
        ({"solver": "nmf"}, "'0' has negative weights"),
        ({"submodules": ["nine"]}, "'nine' is no part of the model"),
        ({"submodules": [nn.Linear(2, 2)]}, "a Linear among submodules is no part of the model"),
        ({"num_iter": 0}, "num_iter=0"),
        ({"submodules": ["1"]}, "no linear layer or convolution to factor"),
    ):
        with pytest.raises(ValueError, match=message):
            auto_fact(model, 4, **fields)
    assert {name: id(module) for name, module in model.named_modules()} == before
    packed = apply(small(), RoundToNearest(8, 10))
    with pytest.raises(ValueError, match="'0' is a PackedLinear, whose weight is packed; factor"):
        auto_fact(packed, 4)
    whole = nn.Sequential(nn.Linear(8, 8))
    whole[0].weight = nn.Parameter(torch.zeros(8, 8, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match="'0' holds torch.int8 weights; dequantise"):
        auto_fact(whole, 2)
    whole[0].weight = nn.Parameter(torch.zeros(2, 4, 8))
    with pytest.raises(ValueError, match=r"the weight of '0' has shape \(2, 4, 8\); a matrix was expected"):
        auto_fact(whole, 2)
    with pytest.raises(ValueError, match="rank=9 of 'x' must be from 1 to 8"):
        factor_linear(nn.Linear(8, 9), 9, TruncatedSVD(), "x")
    with pytest.raises(ValueError, match="rank=3 of 'x' must be a multiple of groups=2 from 2 to 8"):
        factor_conv(nn.Conv1d(8, 8, 3, groups=2), 3, TruncatedSVD(), "x")


class Doubled(nn.Linear):
    """A linear layer that computes something else."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def test_layers_of_unknown_kind_are_left():
    model = nn.Sequential(Doubled(20, 20), nn.Linear(20, 20))
    with record_fallbacks() as said:
        auto_fact(model, 4)
    assert type(model[0]) is Doubled
    assert "auto_fact: '0' stays whole: Doubled may compute something else" in said

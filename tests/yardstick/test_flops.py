"""Counted operations and bytes, against numbers worked out by hand or by brute force."""

import math

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from shoestring.kernels.costs import Cost, count_cost, states_cost
from shoestring.yardstick.flops import CostCounter
from shoestring.yardstick.memory import LiveMemory


def count(work) -> CostCounter:
    with CostCounter() as cost:
        work()
    return cost


def test_matrix_product():
    a, b = torch.randn(3, 5), torch.randn(5, 7)
    cost = count(lambda: a @ b)
    assert cost.flops == cost.contraction_flops == 210  # 21 results of 5 multiply-adds
    assert cost.bytes == (15 + 35 + 21) * 4
    assert cost.flops_by_operation == {"mm": 210}


@pytest.mark.parametrize(
    ("work", "flops"),
    [
        (lambda: torch.randn(2, 3, 5) @ torch.randn(2, 5, 7), 420),
        (lambda: torch.randn(3, 5) @ torch.randn(5), 30),
        (lambda: torch.dot(torch.randn(6), torch.randn(6)), 12),
        (lambda: F.linear(torch.randn(4, 5), torch.randn(3, 5), torch.randn(3)), 120),
        (lambda: torch.baddbmm(torch.randn(2, 3, 3), torch.randn(2, 3, 4), torch.randn(2, 4, 3)), 144),
        (lambda: torch.einsum("bi,bj->ij", torch.randn(5, 2), torch.randn(5, 3)), 60),
        (
            lambda: torch._int_mm(torch.ones(32, 16, dtype=torch.int8), torch.ones(16, 8, dtype=torch.int8)),
            8192,
        ),
        (lambda: torch.randn(3, 5, dtype=torch.cfloat) @ torch.randn(5, 7, dtype=torch.cfloat), 840),
        (lambda: torch.mm(torch.randn(3, 5), torch.randn(5, 7), out=torch.empty(3, 7)), 210),
        (lambda: torch.sparse.mm(torch.eye(6).to_sparse(), torch.randn(6, 10)), 120),
        (lambda: torch.sparse.mm(torch.eye(6).to_sparse_csr(), torch.randn(6, 10)), 120),
    ],
)
def test_contractions_by_hand(work, flops):
    cost = count(work)
    assert cost.contraction_flops == flops
    assert not cost.unknown


@given(
    batch=st.integers(1, 2),
    groups=st.integers(1, 3),
    cin=st.integers(1, 2),
    cout=st.integers(1, 2),
    length=st.integers(4, 9),
    kernel=st.integers(1, 4),
    stride=st.integers(1, 3),
    transposed=st.booleans(),
)
def test_convolution_counts_the_products_that_a_loop_makes(
    batch, groups, cin, cout, length, kernel, stride, transposed
):
    """A loop over all (input place, tap) pairs, without padding: every product of an element and a weight."""
    x = torch.randn(batch, groups * cin, length)
    products = 0
    if transposed:
        weight = torch.randn(groups * cin, cout, kernel)
        for _place in range(length):
            products += kernel
        cost = count(lambda: F.conv_transpose1d(x, weight, stride=stride, groups=groups))
    else:
        weight = torch.randn(groups * cout, cin, kernel)
        start = 0
        while start + kernel <= length:
            products += kernel
            start += stride
        cost = count(lambda: F.conv1d(x, weight, stride=stride, groups=groups))
    assert cost.contraction_flops == 2 * products * batch * groups * cin * cout


def test_convolution_backward_is_two_more_unless_the_input_needs_no_gradient():
    weight = torch.randn(6, 2, 3, 3, requires_grad=True)
    for needs_input, factor in ((True, 3), (False, 2)):
        x = torch.randn(2, 4, 10, 10, requires_grad=needs_input)
        cost = count(lambda x=x: F.conv2d(x, weight, groups=2).sum().backward())
        forward = 2 * (2 * 6 * 8 * 8) * (2 * 3 * 3)
        assert cost.contraction_flops == factor * forward


@pytest.mark.parametrize("causal", [False, True])
def test_fused_attention_forward_and_backward(causal):
    batch, heads, queries, keys, dim, dim_v = 2, 3, 6, 6 if causal else 9, 8, 8
    q = torch.randn(batch, heads, queries, dim, requires_grad=True)
    k = torch.randn(batch, heads, keys, dim, requires_grad=True)
    v = torch.randn(batch, heads, keys, dim_v, requires_grad=True)
    pairs = batch * heads * sum((i + 1 if causal else keys) for i in range(queries))
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        forward = count(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=causal))
        both = count(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=causal).sum().backward())
    assert list(forward.flops_by_operation) == ["_scaled_dot_product_flash_attention_for_cpu"]
    assert forward.contraction_flops == 2 * pairs * (dim + dim_v)
    assert both.contraction_flops - forward.contraction_flops == 2 * pairs * (3 * dim + 2 * dim_v)


def test_unfused_attention_counts_the_same_products():
    q, k, v = torch.randn(2, 3, 6, 8), torch.randn(2, 3, 9, 8), torch.randn(2, 3, 9, 8)
    with sdpa_kernel(SDPBackend.MATH):
        unfused = count(lambda: F.scaled_dot_product_attention(q, k, v))
    assert unfused.contraction_flops == 2 * (2 * 3 * 6 * 9) * 16
    assert "bmm" in unfused.flops_by_operation


@pytest.mark.parametrize(
    ("name", "leading", "trailing", "backward_place"),
    [
        ("_scaled_dot_product_efficient_attention", (None, False, 0.0, True), (), None),
        ("_scaled_dot_product_cudnn_attention", (None, False, 0.0, True), (), None),
        ("_scaled_dot_product_flash_attention", (0.0, True), (), None),
    ],
)
def test_causal_flag_of_the_gpu_kernels(name, leading, trailing, backward_place):
    """These kernels do not run here; their formula is asked with the arguments they are called with."""
    from shoestring.yardstick.formulas import CONTRACTIONS

    q = torch.randn(1, 1, 3, 4)
    assert CONTRACTIONS[name]((q, q, q, *leading), {}, None) == 2 * (1 + 2 + 3) * 8
    assert CONTRACTIONS[name]((q, q, q), {}, None) == 2 * 9 * 8
    schema = getattr(torch.ops.aten, name).default._schema
    assert schema.arguments[3 + leading.index(True)].name == "is_causal"


@pytest.mark.parametrize(
    "name",
    [n for n in dir(torch.ops.aten) if n.startswith("_scaled_dot_product_") and n.endswith("_backward")],
)
def test_backward_kernels_are_known_by_their_schema(name):
    from shoestring.yardstick.formulas import _ATTENTION

    place, _, first = _ATTENTION[name]
    arguments = [a.name for a in getattr(torch.ops.aten, name).default._schema.arguments]
    assert arguments[place] == "is_causal"
    assert arguments[first] == "query"


@pytest.mark.parametrize(
    ("work", "flops"),
    [
        (lambda x: torch.fft.fft(x.to(torch.cfloat)), 3 * 5 * 64 * 6),
        (lambda x: torch.fft.rfft(x), 3 * 5 * 64 * 6 / 2),
        (lambda x: torch.fft.irfft(torch.fft.rfft(x)), 3 * 5 * 64 * 6),
        (lambda x: torch.fft.rfft(x, n=128), 3 * 5 * 128 * 7 / 2),
        (lambda x: torch.fft.fft2(x.reshape(3, 8, 8).to(torch.cfloat)), 3 * 5 * 64 * 6),
        (lambda x: torch.fft.irfft(torch.fft.rfft(x[:, :63]), n=63), 3 * 5 * 63 * math.log2(63)),
        (lambda x: torch.fft.fft(x[:, :1].to(torch.cfloat)), 0),
    ],
)
def test_fourier_transforms(work, flops):
    assert count(lambda: work(torch.randn(3, 64))).transform_flops == pytest.approx(flops, abs=1)


def test_recurrent_layer():
    layer, x = nn.LSTM(4, 5), torch.randn(7, 3, 4)
    cost = count(lambda: layer(x))
    # 7 steps of 3 sequences; four gates of 5 units each meet 4 inputs and 5 hidden values
    assert cost.contraction_flops == 2 * 7 * 3 * (4 * 5) * (4 + 5)


def test_elementwise_operations_and_their_traffic():
    a, b = torch.randn(10, 10), torch.randn(10, 10)
    cost = count(lambda: a + b)
    assert (cost.flops, cost.bytes) == (100, 1200)
    cost = count(lambda: a.sum())
    assert (cost.flops, cost.bytes) == (100, 404)
    cost = count(lambda: a.clone())
    assert (cost.flops, cost.bytes) == (0, 800)
    cost = count(lambda: a.mul_(b))
    assert (cost.flops, cost.bytes) == (100, 1200)  # reads both, writes one
    cost = count(lambda: a.copy_(b))
    assert (cost.flops, cost.bytes) == (0, 800)
    cost = count(lambda: a.fill_(1.0))
    assert (cost.flops, cost.bytes) == (0, 400)
    cost = count(lambda: torch.add(a, b, out=torch.empty(10, 10)))
    assert (cost.flops, cost.bytes) == (100, 1200)
    cost = count(lambda: a.to(torch.bfloat16))
    assert (cost.flops, cost.bytes) == (0, 600)
    cost = count(lambda: torch._foreach_add_([a, b], 1.0))
    assert (cost.flops, cost.bytes) == (200, 1600)
    cost = count(lambda: torch.complex(a, b) * torch.complex(a, b))
    assert cost.flops_by_operation["mul"] == 600


def test_softmax_counts_its_steps():
    assert count(lambda: torch.randn(4, 25).softmax(-1)).flops_by_operation["_softmax"] == 500


def test_views_and_allocations_are_free():
    a = torch.randn(10, 10)
    cost = count(
        lambda: (a.t(), a.view(100), a[3], a.expand(5, 10, 10), torch.empty(1000), a.detach(), a.split(5))
    )
    assert (cost.flops, cost.bytes) == (0, 0)


def test_expanded_operands_are_read_once():
    a, b = torch.randn(1, 10).expand(50, 10), torch.randn(50, 10)
    assert count(lambda: a * b).bytes == (10 + 500 + 500) * 4


def test_overlapping_windows_are_read_once():
    windows = torch.randn(100).unfold(0, 10, 1)  # 91 windows of 10 over 100 numbers
    assert count(lambda: windows.sum()).bytes == 100 * 4 + 4


def test_lookups_touch_only_their_rows():
    table, rows = torch.randn(10_000, 16), torch.tensor([3, 9_999])
    assert count(lambda: F.embedding(rows, table)).bytes == 2 * 8 + 2 * (2 * 16 * 4)
    assert count(lambda: table[rows]).bytes == 2 * 8 + 2 * (2 * 16 * 4)
    assert count(lambda: table.index_select(0, rows)).bytes == 2 * 8 + 2 * (2 * 16 * 4)


@states_cost(lambda x: Cost(flops=1000, bytes=77))
def kernel(x: torch.Tensor) -> torch.Tensor:
    return x @ x


def test_kernels_state_their_own_cost():
    x = torch.randn(8, 8)
    cost = count(lambda: kernel(x) + 1)
    assert cost.stated_flops == 1000
    assert cost.contraction_flops == 0, "what the kernel does in torch is part of its stated cost"
    assert cost.flops == 1000 + 64
    assert cost.bytes == 77 + 2 * 256
    assert cost.flops_by_operation == {"kernel": 1000, "add": 64}
    kernel(x)
    assert cost.stated_flops == 1000, "nothing is counted after the block"


@states_cost(lambda lengths: Cost(flops=int((lengths * 2).sum())))
def ragged(lengths: torch.Tensor) -> None: ...


def test_working_out_a_cost_is_not_counted():
    cost = count(lambda: ragged(torch.tensor([1, 2, 3])))
    assert (cost.flops, cost.bytes) == (12, 0)


@torch.library.custom_op("shoestring_tests::stated", mutates_args=())
def stated(x: torch.Tensor) -> torch.Tensor:
    with count_cost("stated", flops=5, bytes=6):
        return x * 2


@torch.library.custom_op("shoestring_tests::silent", mutates_args=())
def silent(x: torch.Tensor) -> torch.Tensor:
    return x * 2


def test_registered_operators_count_what_their_kernel_states():
    x = torch.randn(8)
    cost = count(lambda: stated(x))
    assert (cost.flops, cost.bytes, cost.unknown) == (5, 6, set())
    cost = count(lambda: silent(x))
    assert (cost.flops, cost.bytes, cost.unknown) == (0, 64, {"shoestring_tests::silent"})


def test_what_has_no_formula_is_named():
    cost = count(lambda: torch.cdist(torch.randn(3, 4), torch.randn(5, 4)))
    assert cost.unknown == {"aten::_cdist_forward"}


def test_linear_layer_with_backward_by_hand():
    layer, x = nn.Linear(6, 4), torch.randn(10, 6)
    cost = count(lambda: layer(x).sum().backward())
    assert cost.contraction_flops == 2 * (2 * 10 * 6 * 4)  # forward and weight gradient: x needs none
    assert cost.elementwise_flops == 40 + 40  # the sum, and the bias gradient, which is a sum too


class Network(nn.Module):
    """Convolutions, strided, oblong and transposed, then attention from plain products.

    None is grouped: of those torch counts the gradient of the weights as if they were not.
    """

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1),
            nn.Conv2d(8, 8, (3, 1), padding=(1, 0)),
            nn.ConvTranspose2d(8, 4, 2, stride=2),
        )
        self.project, self.out = nn.Linear(4, 48), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.convolutions(x).flatten(2).transpose(1, 2)
        q, k, v = self.project(x).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        x = ((q @ k.transpose(-1, -2)).softmax(-1) @ v).transpose(1, 2).flatten(2)
        return self.out(x)


def test_agrees_with_torch_where_torch_counts():
    """An independent count, of what torch's own counter knows: products and convolutions."""
    model, x = Network(), torch.randn(2, 3, 8, 8, requires_grad=True)
    with FlopCounterMode(display=False) as reference:
        model(x).sum().backward()
    assert count(lambda: model(x).sum().backward()).contraction_flops == reference.get_total_flops() > 0


def test_memory_and_cost_are_measured_together():
    a = torch.randn(16, 16)
    with LiveMemory(a) as memory, CostCounter() as cost:
        b = a @ a
    assert cost.flops == 2 * 16**3
    assert memory.peak_dynamic_bytes == b.nbytes


def test_fake_tensors_are_counted_too():
    with FakeTensorMode():
        cost = count(lambda: torch.empty(10**5, 10**5) @ torch.empty(10**5, 10**5))
    assert cost.flops == 2 * 10**15

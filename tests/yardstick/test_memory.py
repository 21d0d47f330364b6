"""Live memory against programs whose bytes are counted by hand, and against the allocator's own trace."""

import gc

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM

from shoestring.yardstick.memory import LiveMemory, tensor_bytes

KIB = 1024


def kib(n: int) -> torch.Tensor:
    """A new float32 tensor of n KiB."""
    return torch.empty(n * KIB // 4)


def test_new_tensors_add_up_and_die():
    with LiveMemory() as memory:
        a = kib(3)
        b = kib(5)
        del a
        c = kib(1)
    assert memory.peak_bytes == 8 * KIB
    assert memory.live_bytes == 6 * KIB
    assert memory.static_bytes == 0
    assert memory.peak_operation == "aten.empty.memory_format"
    del b, c
    assert memory.live_bytes == 0, "what outlives the block is followed until it dies"


def test_views_cost_nothing_and_keep_the_whole_storage():
    with LiveMemory() as memory:
        a = kib(4)
        view = a.view(2, -1)[1].t()
        alias = a.detach()
        assert memory.live_bytes == 4 * KIB
        del a, alias
        assert memory.live_bytes == 4 * KIB
        del view
        assert memory.live_bytes == 0
    assert memory.peak_bytes == 4 * KIB


def test_in_place_operations_cost_nothing_but_their_operands():
    a = torch.zeros(KIB)
    with LiveMemory(a) as memory:
        a.add_(1).mul_(2)
        a += a * 3  # one temporary of the same size
    assert (memory.static_bytes, memory.peak_bytes, memory.dynamic_bytes) == (4 * KIB, 8 * KIB, 0)


def test_what_is_met_first_as_an_input_was_there_all_along():
    old = torch.ones(4, KIB)
    with LiveMemory() as memory:
        temporary = kib(10)
        del temporary
        new = old[0] * 2  # the storage of `old` shows itself only now, through a view
    assert memory.static_bytes == 16 * KIB
    assert memory.peak_dynamic_bytes == 10 * KIB
    assert memory.peak_bytes == 26 * KIB
    assert memory.dynamic_bytes == new.nbytes == 4 * KIB


def test_tensors_from_python_values_are_new():
    with LiveMemory() as memory:
        t = torch.tensor([1.0, 2.0, 3.0])
        assert memory.dynamic_bytes == t.nbytes == 12
    assert memory.static_bytes == 0


def test_autograd_holds_what_it_saved_until_backward():
    x = torch.randn(KIB, requires_grad=True)
    with LiveMemory(x) as memory:
        y = x.exp()  # 4 KiB, saved by the graph
        z = y.sin()  # 4 KiB; the graph saves y, not z
        del y
        loss = z.sum()  # 4 B
        del z
        assert memory.dynamic_bytes == 4 * KIB + 4
        loss.backward()
        # grad of sum (4 B, expanded), cos(y), grad*cos = grad of exp's output, times y = x.grad
        assert memory.dynamic_bytes == x.grad.nbytes + 4
    del loss
    assert memory.dynamic_bytes == 4 * KIB


def test_tensors_freed_in_backward_lower_the_peak_of_a_chain():
    """A chain of n exp keeps n results; backward adds one gradient at a time and frees as it goes."""
    n, x = 6, torch.zeros(KIB, requires_grad=True)
    with LiveMemory(x) as memory:
        y = x
        for _ in range(n):
            y = y.exp()
        del_before = memory.dynamic_bytes
        gradient = torch.ones_like(y)
        (result,) = torch.autograd.grad(y, x, gradient)
        del y, gradient
        assert memory.dynamic_bytes == result.nbytes
    assert del_before == n * 4 * KIB
    # n results + the first gradient, which the caller holds, + the gradients either side of a step
    assert n + 2 <= memory.peak_dynamic_bytes / (4 * KIB) <= n + 3


def test_out_argument_is_resized_by_the_operation():
    a = torch.ones(2 * KIB)
    with LiveMemory(a) as memory:
        out = torch.empty(0)
        torch.add(a, 1, out=out)
        assert memory.dynamic_bytes == 8 * KIB
        torch.add(a[:KIB], 1, out=torch.empty(KIB))
    assert memory.peak_dynamic_bytes == 12 * KIB


def test_storages_resized_without_an_operation():
    with LiveMemory() as memory:
        a = kib(8)
        a.untyped_storage().resize_(0)
        b = kib(8)
        a.untyped_storage().resize_(8 * KIB)
        b.untyped_storage().resize_(0)
        a.zero_()
    assert memory.peak_bytes == 8 * KIB
    assert memory.live_bytes == 8 * KIB
    del a
    assert memory.live_bytes == 0


def test_resize_operation_grows_the_storage():
    with LiveMemory() as memory:
        a = kib(2)
        a.resize_(4 * KIB)
        assert memory.live_bytes == 16 * KIB
        a.resize_(1)  # torch keeps the storage when a tensor shrinks
        assert memory.live_bytes == 16 * KIB


def test_shared_parameters_count_once_and_gradients_and_state_are_registered():
    model = nn.Sequential(nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False))
    model[1].weight = model[0].weight
    model.register_buffer("table", torch.zeros(256))
    weight, table = 16 * 16 * 4, 1024
    assert tensor_bytes(model) == weight + table
    optimizer = torch.optim.Adam(model.parameters(), foreach=False)
    model(torch.randn(2, 16)).sum().backward()
    optimizer.step()
    assert tensor_bytes(model, optimizer) == table + 4 * weight + 4  # weight, gradient, two moments, step
    assert tensor_bytes({"a": [model[0].weight, model[1].weight]}) == 2 * weight  # and its gradient


def test_state_created_inside_becomes_static_when_registered():
    p = nn.Parameter(torch.zeros(KIB))
    p.grad = torch.ones(KIB)
    optimizer = torch.optim.SGD([p], momentum=0.9, foreach=False)
    with LiveMemory(p) as memory:
        optimizer.step()
        assert memory.dynamic_bytes == 4 * KIB  # the momentum buffer
        memory.register(optimizer)
        assert memory.dynamic_bytes == 0
        memory.reset_peak()
        optimizer.step()
    assert memory.static_bytes == 12 * KIB
    assert memory.peak_dynamic_bytes == 0


def test_reset_peak_starts_from_what_lives():
    with LiveMemory() as memory:
        a = kib(4)
        kib(100)
        memory.reset_peak()
        kib(2)
    assert memory.peak_bytes == 6 * KIB
    del a


def test_sparse_tensors_are_their_parts():
    with LiveMemory() as memory:
        s = torch.eye(64).to_sparse()
        del_dense = memory.live_bytes
    assert s._nnz() == 64
    assert del_dense == 64 * 2 * 8 + 64 * 4


def test_fake_tensors_take_as_much_as_real_ones():
    def step() -> LiveMemory:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64))
        with LiveMemory(model) as memory:
            model(torch.randn(32, 64)).square().mean().backward()
        return memory

    real = step()
    with FakeTensorMode():
        fake = step()
    assert fake.peak_bytes == real.peak_bytes
    assert fake.static_bytes == real.static_bytes
    assert fake.peak_dynamic_bytes == real.peak_dynamic_bytes > 32 * 256 * 4


def test_fake_tensors_measure_what_does_not_fit():
    with FakeTensorMode(), LiveMemory() as memory:
        a = torch.empty(2**20, 2**20)
        a @ a
    assert memory.peak_bytes == 2 * 2**42


def test_meta_tensors_take_nothing():
    shadow = nn.Linear(64, 256, device="meta")
    with LiveMemory(shadow) as memory:
        real = torch.zeros(10)
        shadow(torch.empty(32, 64, device="meta"))
        shadow.to_empty(device="cpu")
    assert memory.peak_bytes == real.nbytes + 4 * (64 * 256 + 256)
    assert memory.static_bytes == 0


def test_what_holds_no_tensors_is_refused():
    with pytest.raises(TypeError, match="int holds no tensors; register modules"):
        LiveMemory(3)


def allocator_peak(work) -> int:
    """The most bytes that torch's allocator had out during `work`, beyond what was out before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    out = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        out += event.nbytes()
        peak = max(peak, out)
    return peak


def test_agrees_with_the_allocator_on_a_training_step_of_a_language_model():
    """Fused attention with grouped heads, cross entropy, and an optimizer step, in code that is not ours."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=500,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model, ids = LlamaForCausalLM(config), torch.randint(0, 500, (4, 64))
    optimizer = torch.optim.AdamW(model.parameters())

    def step() -> None:
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()

    step()  # creates the optimizer's state
    optimizer.zero_grad()
    gc.collect()
    measured = allocator_peak(step)
    optimizer.zero_grad()
    with LiveMemory(model, optimizer, ids) as memory:
        step()
    assert memory.peak_dynamic_bytes == pytest.approx(measured, rel=0.02)
    assert memory.static_bytes >= 3 * sum(p.nbytes for p in model.parameters()) + ids.nbytes


@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_agrees_with_the_allocator_on_a_transformer_layer(activation):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(128, 4, 512, dropout=0.1, activation=activation, batch_first=True)
    x = torch.randn(8, 96, 128)

    def step() -> None:
        layer.zero_grad()
        layer(x).square().mean().backward()

    step()  # the first call fills caches that stay
    layer.zero_grad()
    gc.collect()
    measured = allocator_peak(step)
    layer.zero_grad()
    with LiveMemory(layer, x) as memory:
        step()
    assert memory.peak_dynamic_bytes == pytest.approx(measured, rel=0.02)
    assert memory.static_bytes == sum(p.nbytes for p in layer.parameters()) + x.nbytes

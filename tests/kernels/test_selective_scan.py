"""The selective scan, compiled and in torch, against its equations: values, states and gradients."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.errors import NoCompiler
from shoestring.kernels import selective_scan_compiled, selective_scan_torch
from shoestring.kernels.selective_scan import naive_selective_scan, selective_scan, selective_step
from shoestring.notices import record_fallbacks
from shoestring.yardstick.flops import CostCounter
from shoestring.yardstick.memory import LiveMemory

NAMES = ("x", "dt", "A", "B", "C", "D", "z", "dt_bias", "initial")


def problem(batch, seq, channels, states, groups=(1, 1), seed=0, without=()):
    """Inputs in float64, x and z as views into wider rows, as a projection gives them."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    both = draw(batch, seq, 2 * channels)
    inputs = {
        "x": both[..., :channels],
        "dt": draw(batch, seq, channels) - 1,
        "A": -draw(channels, states).exp(),
        "B": draw(batch, seq, groups[0], states),
        "C": draw(batch, seq, groups[1], states),
        "D": draw(channels),
        "z": both[..., channels:],
        "dt_bias": draw(channels),
        "initial": draw(batch, channels, states),
    }
    return {name: part for name, part in inputs.items() if name not in without}


def leaves(inputs, dtype):
    return {name: part.detach().to(dtype).requires_grad_() for name, part in inputs.items()}


def compare(inputs, dtype, tolerance, **options):
    """Values within `tolerance` of the equations in float64, gradients within it of their largest."""
    mine, theirs = leaves(inputs, dtype), leaves(inputs, torch.float64)
    found, right = selective_scan(**mine, **options), naive_selective_scan(**theirs, **options)
    for a, b in zip(found, right, strict=True):
        assert (a - b).abs().max() <= tolerance * max(1, b.abs().max())
    weights = [torch.randn_like(part) for part in right]
    totals = [
        sum((w.to(o.dtype) * o).sum() for w, o in zip(weights, out, strict=True)) for out in (found, right)
    ]
    grads = [torch.autograd.grad(t, list(i.values())) for t, i in zip(totals, (mine, theirs), strict=True)]
    for name, a, b in zip(inputs, *grads, strict=True):
        assert (a - b).abs().max() <= 4 * tolerance * max(1, b.abs().max()), name


SHAPES = {
    "batch": st.integers(1, 3),
    "seq": st.sampled_from([1, 2, 7, 31, 33, 64, 65, 130]),
    "width": st.sampled_from([1, 3, 8, 16, 17, 33]),
    "groups": st.sampled_from([(1, 1), (2, 2), (1, 3), (4, 2)]),
    "states": st.sampled_from([1, 3, 4, 16, 17]),
    "softplus": st.booleans(),
    "reverse": st.booleans(),
    "without": st.sampled_from([(), ("D",), ("z",), ("dt_bias",), ("initial",), ("D", "z", "initial")]),
    "seed": st.integers(0, 99),
}


def draw_problem(batch, seq, width, groups, states, softplus, without, seed):
    inputs = problem(batch, seq, width * max(groups), states, groups, seed, without)
    if not softplus:
        inputs["dt"] = inputs["dt"].sigmoid()
        inputs.pop("dt_bias", None)
    return inputs


@given(**SHAPES)
def test_compiled_follows_the_equations_with_its_gradient(reverse, softplus, **shape):
    inputs = draw_problem(softplus=softplus, **shape)
    compare(inputs, torch.float32, 1e-5, dt_softplus=softplus, reverse=reverse)


@given(**SHAPES)
def test_torch_follows_the_equations_with_its_gradient(reverse, softplus, **shape):
    inputs = draw_problem(softplus=softplus, **shape)
    compare(inputs, torch.float64, 1e-10, dt_softplus=softplus, reverse=reverse)


@pytest.mark.parametrize("seq", [1, 7, 196, 1000])
def test_compiled_at_the_lengths_of_pictures(seq):
    compare(problem(1, seq, 24, 16), torch.float32, 1e-5, dt_softplus=True)


def test_gradcheck():
    inputs = leaves(problem(1, 5, 4, 3, (1, 2)), torch.float64)

    def scan(*values):
        return selective_scan(**dict(zip(inputs, values, strict=True)), dt_softplus=True)

    assert torch.autograd.gradcheck(scan, tuple(inputs.values()))


@pytest.mark.parametrize("chunk", [1, 2, 5, 16, 64])
def test_the_chunk_changes_nothing(monkeypatch, chunk):
    monkeypatch.setattr(selective_scan_torch, "CHUNK", chunk)
    compare(problem(2, 50, 6, 4), torch.float64, 1e-10, dt_softplus=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_steps_stay_finite(dtype):
    """Decays that vanish, and long runs without decay: no division by a product of decays."""
    inputs = problem(1, 300, 20, 16)
    inputs["dt"] = torch.where(torch.rand(1, 300, 20) < 0.5, -60.0, 60.0).double()
    compare(inputs, dtype, 1e-4 if dtype == torch.float32 else 1e-9, dt_softplus=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pieces_and_steps_make_the_whole(dtype):
    inputs = {name: part.to(dtype) for name, part in problem(2, 70, 20, 16).items()}
    whole, last = selective_scan(**inputs, dt_softplus=True)
    ys, state = [], inputs["initial"]
    for t in range(0, 35):
        at = {n: inputs[n][:, t] for n in ("x", "dt", "B", "C", "z")}
        same = {n: inputs[n] for n in ("A", "D", "dt_bias")}
        y, state = selective_step(**at, **same, state=state, dt_softplus=True)
        ys.append(y[:, None])
    rest = {n: p[:, 35:] if n in ("x", "dt", "B", "C", "z") else p for n, p in inputs.items()}
    y, end = selective_scan(**rest | {"initial": state}, dt_softplus=True)
    torch.testing.assert_close(torch.cat([*ys, y], 1), whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(end, last, rtol=1e-5, atol=1e-5)


def test_reverse_is_the_mirror_image():
    inputs = {name: part.float() for name, part in problem(2, 40, 20, 16).items()}
    mirrored = {n: p.flip(1) if n in ("x", "dt", "B", "C", "z") else p for n, p in inputs.items()}
    y, last = selective_scan(**inputs, dt_softplus=True, reverse=True)
    right, right_last = selective_scan(**mirrored, dt_softplus=True)
    assert torch.equal(y, right.flip(1))
    assert torch.equal(last, right_last)


def test_threads_change_no_bit():
    inputs = leaves(problem(2, 150, 40, 16), torch.float32)
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        out = selective_scan(**inputs, dt_softplus=True)
        grads = torch.autograd.grad(sum(part.sum() for part in out), list(inputs.values()))
        results.append((*out, *grads))
    torch.set_num_threads(1)
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


def test_bfloat16_is_computed_in_float32():
    inputs = {name: part.float() for name, part in problem(1, 30, 20, 16).items()}
    half = {n: p.bfloat16() if n in ("x", "dt", "B", "C", "z") else p for n, p in inputs.items()}
    y, last = selective_scan(**half, dt_softplus=True)
    wide = {name: part.float() for name, part in half.items()}
    right, right_last = selective_scan(**wide, dt_softplus=True)
    assert (y.dtype, last.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(y, right.bfloat16())
    assert torch.equal(last, right_last)


def test_without_a_compiler_torch_answers(monkeypatch):
    def missing():
        raise NoCompiler("none here")

    monkeypatch.setattr(selective_scan_compiled, "library", missing)
    with record_fallbacks() as notices:
        compare(problem(1, 40, 6, 16), torch.float32, 1e-5, dt_softplus=True)
    assert any("none here" in notice for notice in notices)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_states_are_never_held_for_all_positions(dtype):
    """What is kept for the gradient, and the peak of its computation, beside all positions as one chunk."""
    inputs = leaves(problem(1, 1024, 32, 16), dtype)

    def measure(scan):
        with LiveMemory(inputs) as memory:
            y, _ = scan()
            kept = memory.dynamic_bytes
            y.sum().backward()
        return kept, memory.peak_dynamic_bytes

    kept, peak = measure(lambda: selective_scan(**inputs, dt_softplus=True))
    options = selective_scan_torch.ScanOptions(softplus=True, reverse=False)
    one_chunk = selective_scan_torch.ScanInputs(**inputs)
    all_kept, all_peak = measure(lambda: selective_scan_torch.scan_chunk(one_chunk, options))
    assert kept < 0.1 * all_kept
    assert peak < 0.25 * all_peak


def test_cost():
    inputs = {name: part.float() for name, part in problem(2, 9, 5, 4).items()}
    with CostCounter() as counter:
        selective_scan(**inputs)
    assert counter.flops == 2 * 9 * 5 * (6 * 4 + 4)


def test_bad_input():
    inputs = {name: part.float() for name, part in problem(1, 9, 6, 4).items()}

    def scan(**changed):
        return selective_scan(**inputs | changed)

    with pytest.raises(ValueError, match="a seq of at least 1"):
        scan(x=inputs["x"][:, :0], dt=inputs["dt"][:, :0], z=None)
    with pytest.raises(ValueError, match=r"A is \(5, 4\); x of \(1, 9, 6\) takes \(6, 4\)"):
        scan(A=inputs["A"][:5])
    with pytest.raises(ValueError, match=r"B is \(1, 8, 1, 4\)"):
        scan(B=inputs["B"][:, :8])
    with pytest.raises(ValueError, match="C has 4 groups, which do not divide 6 channels"):
        scan(C=inputs["C"].expand(1, 9, 4, 4))
    with pytest.raises(ValueError, match="B and C have 2 and 3 groups; one must be a multiple"):
        scan(B=inputs["B"].expand(1, 9, 2, 4), C=inputs["C"].expand(1, 9, 3, 4))
    with pytest.raises(TypeError, match="initial is torch.float16; a state drifts in it"):
        scan(initial=inputs["initial"].half())
    with pytest.raises(ValueError, match="A reaches 1"):
        scan(A=inputs["A"] * 0 + 1)
    with pytest.raises(TypeError, match="tensors on cpu, meta"):
        scan(D=inputs["D"].to("meta"))

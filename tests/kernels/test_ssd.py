"""The scan of Mamba-2 as matrix products against its recurrence: values, states and gradients."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.kernels.selective_scan import selective_scan
from shoestring.kernels.ssd import naive_ssd, ssd, ssd_step


def problem(batch, seq, heads, head_dim, states, groups, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    inputs = {
        "x": draw(batch, seq, heads, head_dim),
        "dt": torch.nn.functional.softplus(draw(batch, seq, heads) - 1),
        "A": -draw(heads).exp(),
        "B": draw(batch, seq, groups, states),
        "C": draw(batch, seq, groups, states),
        "D": draw(heads),
        "initial": draw(batch, heads, head_dim, states),
    }
    return {name: part.to(dtype).requires_grad_() for name, part in inputs.items()}


@given(
    batch=st.integers(1, 2), seq=st.sampled_from([1, 2, 7, 63, 64, 65, 150]),
    heads=st.sampled_from([(1, 1), (2, 1), (4, 2), (3, 3)]), head_dim=st.sampled_from([1, 3, 8]),
    states=st.sampled_from([1, 4, 5]), chunk=st.sampled_from([1, 5, 64, 256]), start=st.booleans(),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_matrix_products_follow_the_recurrence(batch, seq, heads, head_dim, states, chunk, start, seed):
    inputs = problem(batch, seq, heads[0], head_dim, states, heads[1], seed)
    if not start:
        inputs.pop("initial")
    found, right = ssd(**inputs, chunk=chunk), naive_ssd(**inputs)
    for mine, theirs in zip(found, right, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)
    weights = [torch.randn_like(part) for part in right]
    grads = [
        torch.autograd.grad(
            sum((w * o).sum() for w, o in zip(weights, out, strict=True)), list(inputs.values())
        )
        for out in (found, right)
    ]
    for name, mine, theirs in zip(inputs, *grads, strict=True):
        assert (mine - theirs).abs().max() <= 1e-8 * max(1, theirs.abs().max()), name


def test_float32_within_1e5_of_the_recurrence():
    inputs = problem(2, 150, 4, 8, 16, 2, dtype=torch.float32)
    right = naive_ssd(**{name: part.double() for name, part in inputs.items()})
    for mine, theirs in zip(ssd(**inputs), right, strict=True):
        assert (mine - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def test_a_prefix_and_steps_make_the_whole():
    inputs = {name: part.detach() for name, part in problem(2, 24, 4, 8, 5, 2).items()}
    whole, last = ssd(**inputs)
    cut = {n: p[:, :8] if n in ("x", "dt", "B", "C") else p for n, p in inputs.items()}
    y, state = ssd(**cut)
    ys = [y]
    for t in range(8, 24):
        at = {n: inputs[n][:, t] for n in ("x", "dt", "B", "C")}
        y, state = ssd_step(**at, A=inputs["A"], D=inputs["D"], state=state)
        ys.append(y[:, None])
    torch.testing.assert_close(torch.cat(ys, 1), whole)
    torch.testing.assert_close(state, last)


def test_it_is_a_selective_scan_whose_decays_are_alike_within_a_head():
    inputs = {name: part.detach() for name, part in problem(2, 40, 4, 3, 5, 2).items()}
    y, last = ssd(**inputs)
    spread = {
        "x": inputs["x"].flatten(2),
        "dt": inputs["dt"].repeat_interleave(3, 2),
        "A": inputs["A"].repeat_interleave(3)[:, None].expand(12, 5),
        "D": inputs["D"].repeat_interleave(3),
        "initial": inputs["initial"].flatten(1, 2),
    }
    right, right_last = selective_scan(**inputs | spread)
    torch.testing.assert_close(y.flatten(2), right)
    torch.testing.assert_close(last.flatten(1, 2), right_last)


def test_long_decay_stays_finite():
    inputs = problem(1, 500, 2, 3, 4, 1, dtype=torch.float32)
    with torch.no_grad():
        inputs["dt"][:, ::2] = 80.0
    y, last = ssd(**inputs)
    (y.sum() + last.sum()).backward()
    assert y.isfinite().all()
    assert all(part.grad.isfinite().all() for part in inputs.values())


def test_bad_input():
    inputs = {name: part.detach() for name, part in problem(1, 9, 4, 3, 5, 2).items()}
    with pytest.raises(ValueError, match="chunk=0 must be at least 1"):
        ssd(**inputs, chunk=0)
    with pytest.raises(ValueError, match=r"A is \(3,\); x of .* takes \(4,\)"):
        ssd(**inputs | {"A": inputs["A"][:3]})
    with pytest.raises(ValueError, match="with groups that divide 4 heads"):
        ssd(**inputs | {"B": torch.zeros(1, 9, 3, 5)})
    with pytest.raises(TypeError, match="initial is torch.bfloat16; a state drifts in it"):
        ssd(**inputs | {"initial": inputs["initial"].bfloat16()})
    with pytest.raises(ValueError, match="a seq of at least 1"):
        ssd(**inputs | {"x": inputs["x"][:, :0], "dt": inputs["dt"][:, :0]})

"""Rotations against complex numbers, and scaled frequencies against the transformers library's."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from shoestring.layers.norm import RMSNorm, naive_rms_norm
from shoestring.layers.rotary import LinearScaling, Llama3Scaling, Rope, YarnScaling, naive_rotate, rotate


@given(
    head_dim=st.sampled_from([2, 8, 64]), base=st.sampled_from([100.0, 1e4, 1e6]), start=st.integers(0, 900)
)
def test_rotation_is_multiplication_by_a_unit_complex_number(head_dim, base, start):
    x = torch.randn(2, 5, 3, head_dim, generator=torch.Generator().manual_seed(start))
    pos = torch.arange(start, start + 5).expand(2, -1)
    rope = Rope(base)
    cos, sin = rope.tables(pos, head_dim, torch.float32)
    expected = naive_rotate(x, pos, rope.frequencies(head_dim))
    torch.testing.assert_close(rotate(x, cos, sin), expected, rtol=1e-4, atol=1e-4)


def test_scores_depend_on_the_distance_only():
    q, k = torch.randn(2, 1, 1, 1, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rope = Rope(100.0)

    def score(at_q, at_k):
        turned = [
            naive_rotate(x, torch.tensor([[p]]), rope.frequencies(16)) for x, p in ((q, at_q), (k, at_k))
        ]
        return (turned[0] * turned[1]).sum().item()

    assert score(7, 3) == pytest.approx(score(104, 100))
    assert score(7, 3) != pytest.approx(score(7, 4))


@pytest.mark.parametrize(
    ("scaling", "document"),
    [
        (LinearScaling(8.0), {"rope_type": "linear", "factor": 8.0}),
        (
            Llama3Scaling(8.0, 1.0, 4.0, 64),
            {
                "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        ),
        (
            YarnScaling(4.0, 64),
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
        ),
        (
            YarnScaling(4.0, 64, 20.0, 2.0, 1.5, truncate=False),
            {
                "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 20.0,
                "beta_slow": 2.0, "attention_factor": 1.5, "truncate": False,
            },
        ),
    ],
)  # fmt: skip
def test_scaled_frequencies_are_those_of_transformers(scaling, document):
    config = LlamaConfig(
        hidden_size=64, num_attention_heads=2, max_position_embeddings=256,
        rope_parameters={"rope_theta": 5000.0, **document},
    )  # fmt: skip
    expected, gain = ROPE_INIT_FUNCTIONS[document["rope_type"]](config)
    torch.testing.assert_close(Rope(5000.0, scaling).frequencies(32), expected, rtol=1e-5, atol=0)
    assert scaling.gain == pytest.approx(gain)
    assert not torch.allclose(expected, Rope(5000.0).frequencies(32))


def test_frequencies_made_in_inference_mode_serve_training_later():
    rope = Rope(12_345.0)
    with torch.inference_mode():
        rope.frequencies(8)
    assert not rope.frequencies(8).is_inference()


@given(dim=st.integers(1, 40), offset=st.sampled_from([0.0, 1.0]))
def test_the_norm_is_its_equation(dim, offset):
    generator = torch.Generator().manual_seed(dim)
    norm = RMSNorm(dim, 1e-3, offset=offset)
    x = torch.randn(2, 3, dim, generator=generator)
    torch.testing.assert_close(norm(x), naive_rms_norm(x, torch.ones(dim) - offset, 1e-3, offset))
    norm.weight.data = torch.randn(dim, generator=generator)
    expected = naive_rms_norm(x, norm.weight, 1e-3, offset)
    torch.testing.assert_close(norm(x), expected, rtol=1e-5, atol=1e-5)


def test_an_offset_gain_keeps_what_half_precision_would_lose():
    norm = RMSNorm(64, offset=1.0, dtype=torch.bfloat16)
    norm.weight.data.fill_(1e-3)  # 1 + 1e-3 is 1 in bfloat16
    x = torch.full((1, 64), 200.0, dtype=torch.bfloat16)
    assert norm(x).dtype == torch.bfloat16
    more = RMSNorm(64, offset=1.0)
    more.weight.data.fill_(1e-3)
    assert torch.equal(norm(x), more(x.float()).bfloat16())

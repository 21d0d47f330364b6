import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.generation import logits_process as hf

from shoestring.generation.sampling import Sampling, naive_scores

SETTINGS = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 1.7]),
    top_k=st.sampled_from([0, 1, 5, 40, 5000]),
    top_p=st.sampled_from([0.05, 0.5, 0.9, 0.999, 1.0]),
    min_p=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
    repetition_penalty=st.sampled_from([0.7, 1.0, 1.3]),
)


def processors(sampling: Sampling) -> hf.LogitsProcessorList:
    """The same settings as transformers would build them in `generate`."""
    chain = hf.LogitsProcessorList()
    if sampling.repetition_penalty != 1:
        chain.append(hf.RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if sampling.greedy:
        return chain
    chain.append(hf.TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        chain.append(hf.TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        chain.append(hf.TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        chain.append(hf.MinPLogitsWarper(sampling.min_p))
    return chain


@given(
    sampling=SETTINGS, vocab=st.sampled_from([2, 17, 1000]), batch=st.integers(1, 3), seed=st.integers(0, 99)
)
def test_scores_equal_transformers(sampling, vocab, batch, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, vocab, generator=generator) * 4
    seen = torch.randint(vocab, (batch, 9), generator=generator)
    assert torch.equal(sampling.scores(logits, seen), processors(sampling)(seen, logits.clone()))


@given(sampling=SETTINGS, vocab=st.integers(1, 40), seed=st.integers(0, 99))
def test_scores_equal_the_meaning(sampling, vocab, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(1, vocab, generator=generator, dtype=torch.float64) * 3
    seen = torch.randint(-1, vocab + 3, (1, 5), generator=generator)
    expected = torch.tensor(
        [naive_scores(sampling, logits[0].tolist(), seen[0].tolist())], dtype=torch.float64
    )
    torch.testing.assert_close(sampling.scores(logits, seen), expected, rtol=1e-12, atol=0)


def test_draws_follow_the_kept_probabilities():
    sampling = Sampling(temperature=1.0, top_k=3)
    logits = torch.tensor([[math.log(p) for p in (0.4, 0.1, 0.3, 0.2)]]).expand(20000, 4)
    drawn = sampling.choose(logits, generator=torch.Generator().manual_seed(1))
    shares = torch.bincount(drawn, minlength=4) / len(drawn)
    torch.testing.assert_close(shares, torch.tensor([4 / 9, 0.0, 3 / 9, 2 / 9]), rtol=0, atol=0.015)


def test_a_seed_repeats_a_draw():
    sampling, logits = Sampling(temperature=1.0), torch.randn(8, 100)
    first, again, other = (
        sampling.choose(logits, generator=torch.Generator().manual_seed(s)) for s in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_greedy_takes_the_likeliest_and_needs_no_generator():
    logits = torch.randn(5, 30)
    assert torch.equal(Sampling().choose(logits), logits.argmax(-1))


@pytest.mark.parametrize(
    ("field", "value", "fix"),
    [
        ("temperature", -0.1, "0 \\(greedy\\) or a positive"),
        ("temperature", math.nan, "temperature=nan"),
        ("top_k", -1, "0 \\(no limit\\)"),
        ("top_p", 0.0, "above 0 and at most 1"),
        ("top_p", 1.01, "above 0 and at most 1"),
        ("min_p", -0.5, "between 0 and 1"),
        ("repetition_penalty", 0.0, "positive number; 1 is none"),
    ],
)
def test_values_outside_their_range_are_refused(field, value, fix):
    with pytest.raises(ValueError, match=fix):
        Sampling(**{field: value})


def test_a_draw_needs_a_generator_a_penalty_needs_the_tokens_and_nan_is_refused():
    with pytest.raises(ValueError, match="pass generator="):
        Sampling(temperature=1.0).choose(torch.zeros(1, 4))
    with pytest.raises(ValueError, match="pass seen="):
        Sampling(repetition_penalty=1.2).choose(torch.zeros(1, 4))
    with pytest.raises(ValueError, match="NaN"):
        Sampling(temperature=1.0).choose(torch.full((1, 4), math.nan), generator=torch.Generator())
    with pytest.raises(ValueError, match="NaN"):
        Sampling().choose(torch.tensor([[0.0, math.nan, 9.0]]))

import numpy as np
import pytest
import torch

from shoestring.numbers import (
    FORMATS,
    FaultyRounder,
    FixedPointFormat,
    Rounder,
    Rounding,
    decode,
    encode,
    flip_significand_bits,
    random_words,
    round_to_format,
)


@pytest.mark.parametrize("name", ["half", "e4m3fn", "e5m2", "bfloat16", "e2m1"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_exactly_one_stored_significand_bit_of_the_code_flips(name, dtype):
    fmt = FORMATS[name]
    values = decode(np.arange(1 << fmt.bits), fmt)
    values = np.tile(values[np.isfinite(values) & (values != 0)], 20_000 // (1 << fmt.bits) + 1).astype(dtype)
    flipped = flip_significand_bits(values, fmt, 1.0, seed=5)
    change = encode(values, fmt) ^ encode(flipped, fmt)
    assert set(np.unique(change).tolist()) == {1 << bit for bit in range(fmt.sig_bits)}
    _, counts = np.unique(change, return_counts=True)
    expected = len(values) / fmt.sig_bits
    assert (np.abs(counts - expected) < 4 * expected**0.5).all()
    on_torch = flip_significand_bits(torch.from_numpy(values), fmt, 1.0, seed=5)
    assert np.array_equal(on_torch.numpy(), flipped, equal_nan=True)


def test_a_flip_into_the_code_of_nan_is_nan():
    x = np.float32([448.0, -448.0] * 200)
    flipped = flip_significand_bits(x, FORMATS["e4m3fn"], 1.0, seed=3)
    assert set(flipped[~np.isnan(flipped)].tolist()) == {384.0, 320.0, -384.0, -320.0}
    assert 0.2 < np.isnan(flipped).mean() < 0.47
    assert not np.isnan(flip_significand_bits(x / 2, FORMATS["e4m3fn"], 1.0, seed=3)).any()
    assert np.abs(flip_significand_bits(x[:2] / 64, FORMATS["e3m2"], 1.0)).max() <= 28


def test_probability_special_values_and_seeds():
    x = np.full(40_000, 1.25, np.float32)
    for p in (0.0, 0.1, 0.5):
        share = (flip_significand_bits(x, FORMATS["half"], p, seed=2) != x).mean()
        assert abs(share - p) <= 4 * (p * (1 - p) / len(x)) ** 0.5
    special = np.tile(np.float32([0, -0.0, np.inf, -np.inf, np.nan]), 100)
    assert np.array_equal(
        flip_significand_bits(special, FORMATS["half"], 1.0).view(np.int32), special.view(np.int32)
    )
    whole = flip_significand_bits(x, FORMATS["half"], seed=7)
    parts = [flip_significand_bits(x[:777], FORMATS["half"], seed=7)]
    parts.append(flip_significand_bits(x[777:], FORMATS["half"], seed=7, offset=777))
    assert np.array_equal(np.concatenate(parts), whole)


def test_chance_and_choice_of_a_flip_are_independent_of_each_other_and_of_rounding():
    """One seed may serve a rounder and its faults; the words that decide them come from three streams."""
    x = np.full(40_000, 1.25, np.float32)
    flipped = flip_significand_bits(x, FORMATS["half"], 0.5, seed=9)
    hit = flipped != x
    rounded_away = random_words(len(x), 9) < 1 << 31
    assert abs((hit == rounded_away).mean() - 0.5) < 4 * 0.5 / len(x) ** 0.5
    change = encode(x[hit], FORMATS["half"]) ^ encode(flipped[hit], FORMATS["half"])
    _, counts = np.unique(change, return_counts=True)
    assert len(counts) == FORMATS["half"].sig_bits
    assert (np.abs(counts - hit.sum() / len(counts)) < 4 * (hit.sum() / len(counts)) ** 0.5).all()


def test_a_faulty_rounder_rounds_first_and_counts_its_calls():
    x = torch.randn(5_000)
    rounder = Rounder(FORMATS["half"], Rounding.STOCHASTIC, seed=1)
    faulty = FaultyRounder(rounder, p=0.5, seed=2)
    first, second = faulty(x), faulty(x)
    assert not torch.equal(first, second)
    rounded = round_to_format(x, FORMATS["half"], Rounding.STOCHASTIC, seed=1, call=0)
    assert torch.equal(first, flip_significand_bits(rounded, FORMATS["half"], 0.5, seed=2, call=0))
    assert abs(float((first != rounded).float().mean()) - 0.5) < 4 * 0.5 / 5_000**0.5
    assert torch.equal(FaultyRounder(rounder, p=0.0)(x, call=0), rounded)


def test_bad_input():
    with pytest.raises(ValueError, match=r"p=1.5: a probability"):
        flip_significand_bits(torch.ones(2), FORMATS["half"], 1.5)
    with pytest.raises(ValueError, match=r"p=-0.1"):
        FaultyRounder(Rounder(FORMATS["half"]), p=-0.1)
    with pytest.raises(ValueError, match="no significand bit"):
        flip_significand_bits(torch.ones(2), FORMATS["e8m0"])
    with pytest.raises(TypeError, match="cast explicitly"):
        flip_significand_bits(torch.ones(2, dtype=torch.float16), FORMATS["half"])
    with pytest.raises(TypeError, match="not list"):
        flip_significand_bits([1.0], FORMATS["half"])
    with pytest.raises(ValueError, match="explim=True"):
        FaultyRounder(Rounder(FORMATS["half"], explim=False))
    with pytest.raises(ValueError, match="float formats"):
        FaultyRounder(Rounder(FixedPointFormat(4, 4)))

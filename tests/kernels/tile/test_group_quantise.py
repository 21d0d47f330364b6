import numpy as np
import pytest

from shoestring.kernels.tile.group_quantise import dequantise_groups, quantise_groups
from shoestring.kernels.tile.types import data_type


@pytest.mark.parametrize("name", ["i2", "i4", "i8", "f3e1m1", "f6e3m2", "f8e4m3", "e4m3fn"])
def test_error_is_half_a_step_of_the_type_at_most(name):
    dtype, half = data_type(name), data_type("f16")
    weight = np.random.default_rng(0).standard_normal((70, 5)).astype(np.float32)
    weight[32:64, 2] = 0
    codes, scales = quantise_groups(weight, dtype, 32, half)
    assert scales.shape == (3, 5)
    back = dequantise_groups(codes, scales, dtype, 32, half)
    values = np.unique(dtype.values[np.isfinite(dtype.values)])
    scale = np.repeat(half.decode(scales), 32, axis=0)[:70]
    top = dtype.max_value
    nearest = np.clip(weight / scale, -top, top)
    best = np.abs(nearest[..., None] - values[values >= -top]).min(-1)
    assert np.allclose(np.abs(back / scale - nearest), best, atol=1e-6)
    assert (back[32:64, 2] == 0).all()
    assert np.abs(weight - back).max() < np.abs(weight).max()


def test_bad_arguments():
    weight = np.ones((4, 4), np.float32)
    with pytest.raises(ValueError, match="u4 is unsigned.*use i4"):
        quantise_groups(weight, data_type("u4"), 2, data_type("f16"))
    with pytest.raises(ValueError, match="group_size=0"):
        quantise_groups(weight, data_type("i4"), 0, data_type("f16"))

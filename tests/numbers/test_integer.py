import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.numbers import IntegerFormat, IntegerQuantizer


@given(
    bits=st.integers(2, 16),
    symmetric=st.booleans(),
    axis=st.sampled_from([None, 0, 1, -1]),
    shift=st.sampled_from([0.0, 100.0, -3.0]),
    seed=st.integers(0, 99),
)
def test_error_is_at_most_half_a_step_and_the_range_is_used(bits, symmetric, axis, shift, seed):
    x = torch.randn(6, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + shift
    fmt = IntegerFormat(bits, symmetric)
    quantizer = IntegerQuantizer(fmt, axis=axis)
    q = quantizer.quantize(x)
    assert fmt.qmin <= int(q.min())
    assert int(q.max()) <= fmt.qmax
    scale = quantizer.scaling.scale.expand_as(x)
    # z is rounded too, so the ends of an asymmetric range may clip by another half step
    bound = scale * (0.5 if symmetric else 1.0) * (1 + 1e-9)
    assert bool(((quantizer.dequantize(q) - x).abs() <= bound).all())
    if symmetric:
        extreme = x.abs().amax() if axis is None else None
        assert extreme is None or int(q.abs().max()) == fmt.qmax
    assert quantizer(torch.zeros_like(x)).abs().max() == 0


def test_figures_by_hand():
    asymmetric = IntegerQuantizer(IntegerFormat(8, symmetric=False))
    x = torch.tensor([-1.0, 0.0, 0.5, 1.55])
    assert asymmetric.quantize(x).tolist() == [0, 100, 150, 255]
    assert (round(float(asymmetric.scaling.scale), 6), int(asymmetric.scaling.zero_point)) == (0.01, 100)
    symmetric = IntegerQuantizer(IntegerFormat(4))
    assert symmetric.quantize(torch.tensor([-7.0, 3.4, 0.6, -20.0][:3])).tolist() == [-7, 3, 1]
    assert symmetric.quantize(torch.tensor([-20.0])).tolist() == [-7]  # the first call has calibrated
    assert IntegerQuantizer(IntegerFormat(4, symmetric=False)).quantize(torch.zeros(3)).tolist() == [0, 0, 0]


def test_calibration_covers_all_batches_per_channel():
    quantizer = IntegerQuantizer(IntegerFormat(8), axis=1)
    scaling = quantizer.calibrate(
        iter([torch.tensor([[1.0, -2.0]]), torch.tensor([[-3.0, 1.0], [0.0, 0.0]])])
    )
    assert scaling.scale.shape == (1, 2)
    assert torch.allclose(scaling.scale * 127, torch.tensor([[3.0, 2.0]]))


def test_bad_input():
    quantizer = IntegerQuantizer(IntegerFormat(8), name="encoder.0")
    with pytest.raises(ValueError, match=r"'encoder.0' is not calibrated"):
        quantizer.dequantize(torch.zeros(2, dtype=torch.int32))
    with pytest.raises(ValueError, match=r"'encoder.0': the calibration iterator is empty"):
        quantizer.calibrate([])
    with pytest.raises(ValueError, match=r"'encoder.0': a calibration batch holds NaN"):
        quantizer.calibrate([torch.tensor([1.0, torch.nan])])
    with pytest.raises(ValueError, match="is empty"):
        quantizer.calibrate([torch.zeros(0)])
    with pytest.raises(TypeError, match="cast explicitly"):
        quantizer.quantize(torch.arange(3))
    quantizer.calibrate([torch.ones(2)])
    with pytest.raises(ValueError, match="no integer code"):
        quantizer.quantize(torch.tensor([torch.nan]))
    per_channel = IntegerQuantizer(IntegerFormat(8), axis=0, name="conv")
    per_channel.calibrate([torch.ones(2, 2)])
    with pytest.raises(ValueError, match="'conv' was calibrated on cpu and x is on meta; move one of them"):
        per_channel.quantize(torch.ones(2, 2, device="meta"))
    with pytest.raises(ValueError, match="axis=2 is out of range for 2 axes"):
        IntegerQuantizer(IntegerFormat(8), axis=2).quantize(torch.ones(2, 2))
    with pytest.raises(ValueError, match="bits=1: an integer format has 2 to 16"):
        IntegerFormat(1)
    with pytest.raises(ValueError, match="bits=17"):
        IntegerFormat(17, symmetric=False)

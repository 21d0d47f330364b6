import operator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.numbers.accumulation import EveryStep
from shoestring.numbers.emulated_types import CPArray, CPFloat, CPJaxArray, CPTensor, promote
from shoestring.numbers.formats import FloatFormat, named_format
from shoestring.numbers.rounder import Rounder
from shoestring.numbers.rounding_bits import Rounding

HALF = Rounder(named_format("half"))
OPERATORS = [operator.add, operator.sub, operator.mul, operator.truediv]


@pytest.mark.parametrize("operation", OPERATORS)
@given(seed=st.integers(0, 10**6))
def test_numbers_and_arrays_of_half_compute_as_numpys_half_does(operation, seed):
    generator = np.random.default_rng(seed)
    a, b = (generator.standard_normal(30).astype(np.float16) for _ in range(2))
    expected = operation(a, b).astype(np.float64)
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    np.testing.assert_array_equal(operation(CPArray(wide_a, HALF), CPArray(wide_b, HALF)).value, expected)
    in_torch = operation(
        CPTensor(torch.from_numpy(wide_a), HALF),
        CPTensor(torch.from_numpy(wide_b).float(), HALF).value.double(),
    )
    np.testing.assert_array_equal(in_torch.value.numpy(), expected)
    assert float(operation(CPFloat(float(a[0]), HALF), CPFloat(float(b[0]), HALF))) == expected[0]


@pytest.mark.parametrize("operation", OPERATORS)
def test_jax_arrays_compute_the_same_bits(operation):
    jnp = pytest.importorskip("jax.numpy")
    generator = np.random.default_rng(5)
    a, b = (generator.standard_normal(50).astype(np.float32) for _ in range(2))
    ours = operation(CPJaxArray(jnp.asarray(a), HALF), CPJaxArray(jnp.asarray(b), HALF))
    np.testing.assert_array_equal(np.asarray(ours.value), operation(CPArray(a, HALF), CPArray(b, HALF)).value)
    sine = CPJaxArray(jnp.asarray(a), HALF).apply(jnp.abs)
    np.testing.assert_array_equal(np.asarray(sine.value), abs(HALF(a)))


def test_a_plain_number_is_rounded_before_it_is_used():
    x = CPFloat(1.0, Rounder(FloatFormat(5, 2)))
    assert float(x * 1.1) == 1.0
    assert float(1.1 * x) == 1.0
    assert float(3.3 - x) == 2.5  # 3.3 becomes 3.5
    assert float(1 / (x + x)) == 0.5


def test_a_plain_array_is_rounded_before_it_is_used():
    coarse = Rounder(FloatFormat(5, 2))
    x = CPArray(np.array([1.0, 2.0]), coarse)
    plain = np.array([1.1, 3.3])
    for mixed in (x + plain, plain + x):
        assert isinstance(mixed, CPArray)
        np.testing.assert_array_equal(mixed.value, [2.0, 6.0])  # 2 + 3.5 = 5.5, a tie, to even
    tensor = CPTensor(torch.tensor([1.0, 2.0]), coarse)
    for mixed in (tensor + torch.tensor([1.1, 3.3]), torch.tensor([1.1, 3.3]) + tensor):
        assert isinstance(mixed, CPTensor)
        assert mixed.value.tolist() == [2.0, 6.0]


def test_a_number_mixes_with_an_array_of_its_rounder():
    number, array = CPFloat(0.1, HALF), CPArray(np.array([1.0, 2.0], np.float32), HALF)
    expected = (np.float16(0.1) + np.array([1, 2], np.float16)).astype(np.float32)
    for mixed in (number + array, array + number):
        assert type(mixed) is CPArray
        assert mixed.value.dtype == np.float32
        np.testing.assert_array_equal(mixed.value, expected)
    tensor = number * CPTensor(torch.ones(3), HALF)
    assert type(tensor) is CPTensor
    assert tensor.value.tolist() == [float(np.float16(0.1))] * 3


def test_different_rounders_do_not_mix_without_promotion():
    half, bfloat16, e5m2 = (Rounder(named_format(name)) for name in ("half", "bfloat16", "e5m2"))
    a, b = CPFloat(1.1, half), CPFloat(1.1, e5m2)
    with pytest.raises(ValueError, match=r"different rounders.*promote\(a, b\)"):
        a + b
    with pytest.raises(ValueError, match="different rounders"):
        CPFloat(1.0, Rounder(named_format("half"), Rounding.UP)) * CPArray(np.ones(2), half)
    wide_a, wide_b = promote(a, b)
    assert wide_b.rounder == half
    assert float(wide_a + wide_b) == float(np.float16(np.float16(1.1) + np.float16(1.0)))
    assert promote(b, a)[0].rounder == half
    with pytest.raises(ValueError, match="neither of .* holds all numbers of the other"):
        promote(a, CPFloat(1.0, bfloat16))


def test_a_number_and_an_array_of_other_libraries_do_not_mix():
    with pytest.raises(TypeError):
        CPArray(np.ones(2), HALF) + CPTensor(torch.ones(2), HALF)
    with pytest.raises(TypeError, match="torch tensor"):
        CPArray(torch.ones(2), HALF)
    for mixed in (lambda x, t: x + t, lambda x, t: t + x, lambda x, t: x @ t, lambda x, t: t / x):
        with pytest.raises(TypeError, match="CPTensor is made from a torch tensor, not ndarray"):
            mixed(np.ones(2), CPTensor(torch.ones(2), HALF))  # NumPy would make an array of objects of it
    with pytest.raises(TypeError, match="use np.hypot|not supported|unsupported|does not support ufuncs"):
        np.hypot(np.ones(2), CPTensor(torch.ones(2), HALF))


def test_a_jax_array_mixes_with_jax_alone():
    jnp = pytest.importorskip("jax.numpy")
    coarse = Rounder(FloatFormat(5, 2))
    x = CPJaxArray(jnp.asarray([1.0, 2.0]), coarse)
    plain = jnp.asarray([1.1, 3.3])
    for mixed in (x + plain, plain + x):
        assert type(mixed) is CPJaxArray
        assert mixed.value.tolist() == [2.0, 6.0]
    assert float(plain @ x) == float(x @ plain) == 8.0  # 1 + 7
    assert (CPFloat(1.0, coarse) * x).value.tolist() == [1.0, 2.0]
    for mixed in (lambda a: x + a, lambda a: a + x, lambda a: a * x):
        with pytest.raises(TypeError, match="made from a JAX array, not ndarray; use jnp.asarray"):
            mixed(np.ones(2))
    with pytest.raises(TypeError, match="does not mix with a JAX array; use CPJaxArray"):
        CPArray(np.ones(2), coarse) + plain
    with pytest.raises(TypeError):
        x + CPArray(np.ones(2, np.float32), coarse)


def test_powers_of_a_plain_base():
    assert float(2.0 ** CPFloat(1.5, HALF)) == float(np.float16(2**1.5))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CPArray(np.array([1, 2]), HALF), "cast explicitly"),
        (lambda: CPArray(np.array([True]), HALF), "cast explicitly"),
        (lambda: CPArray(np.array([1j]), HALF), "cast explicitly"),
        (lambda: CPTensor(torch.tensor([1]), HALF), "cast explicitly"),
        (lambda: CPTensor([1.0], HALF), "made from a torch tensor, not list"),
        (lambda: CPFloat(1j, HALF), "made from a number, not complex"),
        (lambda: CPFloat(True, HALF), "cast explicitly"),
        (lambda: CPFloat(np.ones(2), HALF), "use CPArray"),
        (lambda: CPArray(np.ones(2), HALF) + np.array([1, 2]), "cast explicitly"),
    ],
)
def test_other_kinds_of_values_are_refused(make, message):
    with pytest.raises(TypeError, match=message):
        make()


def test_a_carrier_that_would_round_twice_is_refused():
    t13 = Rounder(FloatFormat(5, 12))
    with pytest.raises(ValueError, match="t=13.*float32.*t <= 11"):
        CPTensor(torch.ones(2), t13)
    assert float(CPArray(np.ones(1), t13)[0]) == 1.0


def test_a_tensor_on_another_device_is_refused():
    with pytest.raises(ValueError, match="tensor on meta meets a CPTensor on cpu"):
        CPTensor(torch.ones(2), HALF) + torch.ones(2, device="meta")


def test_functions_of_numpy_and_torch_round_their_result():
    x = np.linspace(0.1, 2, 20)
    array, tensor = CPArray(x, HALF), CPTensor(torch.from_numpy(x), HALF)
    for name in ("exp", "sin", "log1p", "tanh", "sqrt"):
        expected = HALF(getattr(np, name)(HALF(x)))
        np.testing.assert_array_equal(getattr(np, name)(array).value, expected)
        np.testing.assert_array_equal(getattr(torch, name)(tensor).value.numpy(), expected)
    np.testing.assert_array_equal(np.hypot(array, array).value, HALF(np.hypot(HALF(x), HALF(x))))
    np.testing.assert_array_equal(
        array.apply(np.hypot, 0.3).value, HALF(np.hypot(HALF(x), float(np.float16(0.3))))
    )
    np.testing.assert_array_equal(torch.add(tensor, tensor).value.numpy(), HALF(2 * HALF(x)))
    assert np.isfinite(array).all()
    with pytest.raises(TypeError, match="numpy.add.reduce .*x.apply"):
        np.add.reduce(array)
    with pytest.raises(TypeError, match="torch.sum with .'dim'. is not emulated"):
        torch.sum(tensor, dim=0)


def test_sums_and_products():
    x = np.random.default_rng(1).standard_normal((4, 6))
    a = CPArray(x, HALF)
    np.testing.assert_array_equal(a.sum(0).value, HALF(HALF(x).sum(0)))
    np.testing.assert_array_equal(a.cumsum(1).value, HALF(HALF(x).cumsum(1)))
    np.testing.assert_array_equal((a @ a.T).value, HALF(HALF(x) @ HALF(x).T))
    np.testing.assert_array_equal(np.matmul(a, a.T).value, (a @ a.T).value)
    assert ((a @ a.T).value != a.matmul(a.T, EveryStep()).value).any()
    tensor = CPTensor(torch.from_numpy(x), HALF)
    np.testing.assert_array_equal(torch.matmul(tensor, tensor.T).value.numpy(), (a @ a.T).value)
    assert float(CPFloat(3.0, HALF).fma(0.5, 1.0)) == 2.5


def test_they_behave_as_values():
    a = CPArray(np.array([1.1, -2.0, 3.0]), HALF)
    assert len(a) == 3
    assert a.shape == (3,)
    assert a[0] == np.float16(1.1)
    assert a[1] < a[2]
    assert float(abs(a[1])) == 2.0
    a[1] = 1 / 3
    assert float(a[1]) == float(np.float16(1 / 3))
    assert float((-a)[2] ** 2) == 9.0
    assert "half" in repr(a) or "FloatFormat" in repr(a)
    original = np.array([1.1])
    CPArray(original, HALF)[0] = 5.0
    assert original[0] == 1.1

import pytest
from torch import nn

from shoestring.layers.parameter_hint import NO_HINT, ParameterHint, hinted_parameters


class _Slow(nn.Linear):
    parameter_hints = {"weight": ParameterHint(largest_learning_rate=1e-3, weight_decay=0.0)}  # noqa: RUF012


def test_hints_are_found_by_path_and_once():
    slow = _Slow(2, 2)
    model = nn.Sequential(slow, nn.Linear(2, 2), slow)
    found = {name: hint for name, _, hint in hinted_parameters(model)}
    assert list(found) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert found["0.weight"].weight_decay == 0.0
    assert found["0.bias"] is NO_HINT


def test_rates():
    bounded = ParameterHint(largest_learning_rate=1e-3)
    assert (bounded.rate(1e-2), bounded.rate(1e-4)) == (1e-3, 1e-4)
    assert ParameterHint(learning_rate=0.5).rate(1e-2) == 0.5
    assert NO_HINT.rate(1e-2) == 1e-2
    assert NO_HINT.decay(0.05) == 0.05
    assert ParameterHint(weight_decay=0.0).decay(0.05) == 0.0


def test_a_hint_for_no_parameter_is_refused():
    class Wrong(nn.Linear):
        parameter_hints = {"wight": NO_HINT}  # noqa: RUF012

    with pytest.raises(ValueError, match=r"layer has a hint for 'wight'"):
        list(hinted_parameters(nn.ModuleDict({"layer": Wrong(1, 1)})))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate=0.0 must be above 0"),
        ({"largest_learning_rate": -1.0}, "largest_learning_rate=-1.0"),
        ({"adam_eps": 0.0}, "adam_eps=0.0 must be above 0"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1"),
        ({"learning_rate": 1.0, "largest_learning_rate": 1.0}, "not both"),
    ],
)
def test_bad_hints(fields, message):
    with pytest.raises(ValueError, match=message):
        ParameterHint(**fields)

"""Energy, emissions and cost are the published constants times hours."""

import pytest

from shoestring.yardstick.energy import Tariff, footprint, saved_share


def test_an_hour_at_a_kilowatt():
    made = footprint(3600, Tariff(watts=1000, price_per_hour=2.5))
    assert made.kwh == pytest.approx(1.58)
    assert made.co2e_kilograms == pytest.approx(1.58 * 0.954 * 0.45359237)
    assert made.cost == 2.5


def test_a_run_of_the_literature():
    """Strubell et al. 2019, table 3: BERT-base on 64 V100 at 12,041.51 W for 79 h: 1507 kWh, 1438 pounds."""
    made = footprint(79 * 3600, Tariff(watts=12041.51))
    assert made.kwh == pytest.approx(1507, rel=0.005)
    assert made.co2e_kilograms / 0.45359237 == pytest.approx(1438, rel=0.005)


def test_the_share_saved_is_that_of_time():
    assert saved_share(10, 7) == pytest.approx(0.3)
    assert saved_share(10, 12) == pytest.approx(-0.2)
    dense, thin = (footprint(seconds, Tariff(watts=70)) for seconds in (10, 7))
    assert 1 - thin.kwh / dense.kwh == pytest.approx(0.3)
    assert 1 - thin.co2e_kilograms / dense.co2e_kilograms == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Tariff(watts=-1), "watts=-1 must be at least 0"),
        (lambda: Tariff(watts=1, pue=0.9), "pue=0.9 must be at least 1"),
        (lambda: Tariff(watts=1, price_per_hour=-2), "price_per_hour=-2 must be at least 0"),
        (lambda: footprint(-1, Tariff(watts=1)), "seconds=-1 must not be negative"),
        (lambda: saved_share(0, 1), "baseline_seconds=0 must be above 0"),
    ],
)
def test_what_cannot_be(make, message):
    with pytest.raises(ValueError, match=message):
        make()

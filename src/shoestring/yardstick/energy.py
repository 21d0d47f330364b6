"""What a run costs in energy, emissions and money, by its hours: an estimate from stated constants.

Source: Strubell et al. 2019, "Energy and Policy Considerations for Deep Learning in NLP", section 2 (PUE
1.58, 0.954 pounds of CO2 equivalent a kilowatt-hour: means of data centres in 2018 and of the United States).
"""

from dataclasses import dataclass

POUND_KILOGRAMS = 0.45359237


@dataclass(frozen=True, kw_only=True)
class Tariff:
    """What is assumed of a device and of where it stands.

    watts: mean draw of the device at work. pue: energy of the whole data centre over that of its machines.
    co2e_pounds_per_kwh: of the grid. price_per_hour: of the rented device, in whatever currency.

    Raises: ValueError for a draw or price below 0, a PUE below 1, or emissions below 0.
    """

    watts: float | int
    pue: float | int = 1.58
    co2e_pounds_per_kwh: float | int = 0.954
    price_per_hour: float | int = 0.0

    def __post_init__(self) -> None:
        for name, least in (("watts", 0), ("pue", 1), ("co2e_pounds_per_kwh", 0), ("price_per_hour", 0)):
            if not getattr(self, name) >= least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}.")


@dataclass(frozen=True)
class Footprint:
    """Of one run: energy in kilowatt-hours, emissions in kilograms of CO2 equivalent, and money."""

    kwh: float
    co2e_kilograms: float
    cost: float


def footprint(seconds: float | int, tariff: Tariff) -> Footprint:
    """What a device that works for so long takes: energy = watts · hours · PUE.

    Raises: ValueError for a time below 0.
    """
    if not seconds >= 0:
        raise ValueError(f"seconds={seconds} must not be negative.")
    hours = seconds / 3600
    kwh = tariff.watts * hours * tariff.pue / 1000
    return Footprint(kwh, kwh * tariff.co2e_pounds_per_kwh * POUND_KILOGRAMS, hours * tariff.price_per_hour)


def saved_share(baseline_seconds: float | int, method_seconds: float | int) -> float:
    """1 − T / T₀: the share of time, and with it of energy, emissions and cost, that a method saves.

    Below 0 where it takes longer. Raises: ValueError for a baseline that takes no time.
    """
    if not baseline_seconds > 0:
        raise ValueError(f"baseline_seconds={baseline_seconds} must be above 0.")
    return 1 - method_seconds / baseline_seconds

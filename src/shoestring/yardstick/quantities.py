"""Figures as a person reads them: three significant digits and the prefix that fits."""

import math

_BINARY = ((2**40, "Ti"), (2**30, "Gi"), (2**20, "Mi"), (2**10, "Ki"))
_DECIMAL = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_FRACTIONS = ((1.0, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n"))


def format_quantity(value: float | int | None, unit: str) -> str:
    """ "B" takes binary prefixes, "s" fractions, "FLOP" and "FLOP/…" decimal ones; others stand as they are.

    None is a dash; what is not finite is spelt out.
    """
    if value is None:
        return "–"
    if not math.isfinite(value):
        return f"{_special(value)} {unit}".strip()
    scale: float
    if unit == "B":
        scale, prefix = next((s for s in _BINARY if abs(value) >= s[0]), (1, ""))
    elif unit == "s" and value != 0:
        scale, prefix = next((s for s in _FRACTIONS if abs(value) >= 0.9995 * s[0]), _FRACTIONS[-1])
    elif unit.startswith("FLOP"):
        scale, prefix = next((s for s in _DECIMAL if abs(value) >= s[0]), (1, ""))
    else:
        scale, prefix = 1, ""
    return f"{three_digits(value / scale)} {prefix}{unit}".strip()


def format_ratio(value: float | int | None) -> str:
    """A ratio with its sign of multiplication; None is a dash."""
    if value is None:
        return "–"
    return f"{three_digits(value)}×" if math.isfinite(value) else f"{_special(value)}×"


def three_digits(value: float | int) -> str:
    """At least three significant digits, no exponent between 0.001 and a million."""
    if not math.isfinite(value):
        return _special(value)
    if value == 0:
        return "0"
    size = math.floor(math.log10(abs(value)))
    if not -3 <= size < 6:
        return f"{value:.2e}"
    if value == int(value):
        return f"{int(value):,}".replace(",", " ")
    return f"{value:,.{max(0, 2 - size)}f}".replace(",", " ")


def _special(value: float) -> str:
    return "NaN" if math.isnan(value) else ("∞" if value > 0 else "−∞")

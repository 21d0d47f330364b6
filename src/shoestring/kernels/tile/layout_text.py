"""A register layout as text: the composition of primitives that it is, where it is one."""

from shoestring.kernels.tile.digits import Digit
from shoestring.kernels.tile.layout import RegisterLayout


def composition_of(layout: RegisterLayout) -> str | None:
    """Such as "local(2, 1).spatial(8, 4).local(1, 2)"; None where no composition gives the layout.

    Peels factors off the right. A digit can be peeled when it is the last of its list and has stride 1; that
    stays so until it is peeled, so the order of peeling cannot lead into a dead end.
    """
    shape = list(layout.shape)
    lists = {"local": list(layout.local_digits), "spatial": list(layout.spatial_digits)}
    covered = [1] * layout.rank
    factors: list[str] = []
    while lists["local"] or lists["spatial"]:
        for kind, digits in lists.items():
            factor = _peel(kind, digits, covered)
            if factor is not None:
                factors.append(factor)
                break
        else:
            return None
    if not factors:
        return f"local({', '.join(map(str, shape))})"
    if layout.rank != 1 and all(factor.startswith("replicate") for factor in factors):
        factors.append(f"local({', '.join(['1'] * layout.rank)})")
    return ".".join(reversed(factors))


def _peel(kind: str, digits: list[Digit], covered: list[int]) -> str | None:
    """Take the longest primitive off the end of `digits`; None where the last digit is not free yet."""
    if not digits:
        return None
    if digits[-1].dim is None:
        return f"replicate({digits.pop().size})"
    dims: list[int] = []
    factor = [1] * len(covered)
    while digits and _joins(digits[-1], dims, covered):
        digit = digits.pop()
        assert digit.dim is not None
        dims.append(digit.dim)
        factor[digit.dim] = digit.size
    if not dims:
        return None
    for dim in dims:
        covered[dim] *= factor[dim]
    name = f"column_{kind}" if len(dims) > 1 and dims[0] < dims[1] else kind
    return f"{name}({', '.join(map(str, factor))})"


def _joins(digit: Digit, dims: list[int], covered: list[int]) -> bool:
    """Whether the digit extends a primitive whose faster digits lie in `dims`."""
    if digit.dim is None or digit.dim in dims or digit.stride != covered[digit.dim]:
        return False
    if len(dims) == 0:
        return True
    if len(dims) == 1:
        return True
    rising = dims[0] < dims[1]
    return digit.dim > dims[-1] if rising else digit.dim < dims[-1]

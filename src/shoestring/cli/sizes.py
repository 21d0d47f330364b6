"""Sizes as people write them, and back."""

import re

UNITS = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
}


def parse_bytes(text: str, option: str) -> int:
    """Bytes of a size such as 64MiB or 1.5 GB. Raises: ValueError naming the option and what is right."""
    found = re.fullmatch(r"\s*([-+]?\d+(?:\.\d+)?)\s*([A-Za-z]+)?\s*", text)
    if found is None or (found[2] or "B").upper() not in UNITS:
        raise ValueError(f"{option} {text!r} is not a size; write for example 64MiB, 48MB or 1.5GiB")
    nbytes = int(float(found[1]) * UNITS[(found[2] or "B").upper()])
    if nbytes < 1:
        raise ValueError(f"{option} {text!r} holds nothing; give a size above zero, for example 64MiB")
    return nbytes


def format_bytes(nbytes: int) -> str:
    """A size to read: 63.9 MiB."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if nbytes >= size:
            return f"{nbytes / size:.1f} {unit}"
    return f"{nbytes} B"

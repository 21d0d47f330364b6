"""The widths of cached keys and values as people write them."""

import re


def parse_cache_bits(text: str) -> tuple[int, int]:
    """The bits of keys and of values that "8" or "k8v4" ask for.

    Raises: ValueError naming the option and what is right. Which widths there are, `TokenCacheFormat` says.
    """
    found = re.fullmatch(r"(\d+)|k(\d+)v(\d+)", text)
    if found is None:
        raise ValueError(f"--cache-bits {text} must be a width such as 8, or two such as k8v4")
    both, k, v = found.groups()
    return int(both or k), int(both or v)

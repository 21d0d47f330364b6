"""Operators that are made of others, in inference mode.

Elsewhere torch takes them apart before a dispatch mode sees them. In inference mode it hands them over whole:
a linear layer or attention as one operator, whose inner products and tensors would not be seen.
"""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


def in_parts(mode: TorchDispatchMode, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What an operator made of others gives, with `mode` seeing its parts; else NotImplemented."""
    if not torch.is_inference_mode_enabled() or not func._can_decompose():
        return NotImplemented
    TorchDispatchMode.__enter__(mode)
    try:
        return func.decompose(*args, **kwargs)
    finally:
        TorchDispatchMode.__exit__(mode, None, None, None)

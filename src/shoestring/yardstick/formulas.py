"""What one ATen operation costs in floating-point operations, by its shapes.

Conventions
- A multiply-add is 2. Complex arithmetic is counted in real operations: a complex multiply-add is 8.
- A complex Fourier transform of N points is 5 N log2 N, a real one half of that (the convention of FFTW's
  benchmarks, whatever algorithm runs); over several dimensions N is the product of their lengths.
- Attention counts the pairs of query and key that the mask leaves: with `is_causal`, query i meets keys 0..i.
  Its backward computes the scores again: 3 products over the head dimension of the keys, 2 over the values'.
- An element-wise operation is 1 per element of the result, a reduction 1 per element of the argument,
  whatever the function; softmax and normalisation are counted by the steps they are defined by.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten
Formula = Callable[[tuple[Any, ...], dict[str, Any], Any], int]


def multiply_adds(count: int, dtype: torch.dtype) -> int:
    """Real operations of `count` multiply-adds."""
    return count * (8 if dtype.is_complex else 2)


def _matmul(a: Tensor, b: Tensor) -> int:
    """(… m k) @ (… k n), also with a vector on either side and a sparse matrix on the left."""
    columns = b.shape[-1] if b.dim() > 1 else 1
    if a.layout is torch.strided:
        stored = a.numel()
    else:
        stored = (a._values() if a.layout is torch.sparse_coo else a.values()).numel()
    return multiply_adds(stored * columns, a.dtype)


def _attention_forward(q: Tensor, k: Tensor, v: Tensor, is_causal: bool) -> int:
    pairs = q.shape[:-2].numel() * attended_pairs(q.shape[-2], k.shape[-2], is_causal)
    return multiply_adds(pairs * (q.shape[-1] + v.shape[-1]), q.dtype)


def _attention_backward(q: Tensor, k: Tensor, v: Tensor, is_causal: bool) -> int:
    pairs = q.shape[:-2].numel() * attended_pairs(q.shape[-2], k.shape[-2], is_causal)
    return multiply_adds(pairs * (3 * q.shape[-1] + 2 * v.shape[-1]), q.dtype)


def attended_pairs(queries: int, keys: int, is_causal: bool) -> int:
    """How many (query, key) pairs a head attends to; causal means that query i sees keys 0..i."""
    if not is_causal:
        return queries * keys
    square = min(queries, keys)
    return square * (square + 1) // 2 + (queries - square) * keys


def _convolution(x: Tensor, weight: Tensor, out: Tensor, transposed: bool) -> int:
    """Each element of the output (of the input, when transposed) meets one filter over its group."""
    return multiply_adds((x if transposed else out).numel() * weight.shape[1:].numel(), weight.dtype)


def _convolution_backward(args: tuple[Any, ...]) -> int:
    grad_out, x, weight, transposed, mask = args[0], args[1], args[2], args[7], args[10]
    return (int(mask[0]) + int(mask[1])) * _convolution(x, weight, grad_out, transposed)


def _fourier(whole: Tensor, dims: Sequence[int], is_complex: bool) -> int:
    """`whole` is the side of the transform that is not cut to half its spectrum."""
    points = math.prod(whole.shape[dim] for dim in dims)
    per_point = (5 if is_complex else 2.5) * math.log2(points) if points else 0
    return round(whole.numel() * per_point)


def _recurrent(x: Tensor, w_input: Tensor, w_hidden: Tensor) -> int:
    """One layer in one direction: both weight matrices meet every step of every sequence."""
    return multiply_adds(x.shape[0] * x.shape[1] * (w_input.numel() + w_hidden.numel()), x.dtype)


def _flag(args: tuple[Any, ...], kwargs: dict[str, Any], place: int, name: str = "is_causal") -> bool:
    """An argument of a schema that may come by place, by name, or not at all."""
    return bool(args[place] if len(args) > place else kwargs.get(name, False))


# Attention kernels by name: the place of is_causal, forward or backward, and where q, k, v begin.
_ATTENTION: dict[str, tuple[int, Callable[..., int], int]] = {
    "_scaled_dot_product_flash_attention_for_cpu": (4, _attention_forward, 0),
    "_scaled_dot_product_flash_attention_for_cpu_backward": (7, _attention_backward, 1),
    "_scaled_dot_product_flash_attention": (4, _attention_forward, 0),
    "_scaled_dot_product_flash_attention_backward": (11, _attention_backward, 1),
    "_scaled_dot_product_efficient_attention": (6, _attention_forward, 0),
    "_scaled_dot_product_efficient_attention_backward": (11, _attention_backward, 1),
    "_scaled_dot_product_cudnn_attention": (6, _attention_forward, 0),
    "_scaled_dot_product_cudnn_attention_backward": (14, _attention_backward, 1),
    "_scaled_dot_product_fused_attention_overrideable": (5, _attention_forward, 0),
    "_scaled_dot_product_fused_attention_overrideable_backward": (13, _attention_backward, 1),
}


def _attention(name: str) -> Formula:
    place, formula, first = _ATTENTION[name]
    return lambda args, kwargs, out: formula(*args[first : first + 3], _flag(args, kwargs, place))


def _of_matrices(first: int) -> Formula:
    """A product whose two matrices are the arguments number `first` and `first + 1`."""
    return lambda args, kwargs, out: _matmul(args[first], args[first + 1])


CONTRACTIONS: dict[str, Formula] = {
    **{name: _of_matrices(0) for name in ("mm", "bmm", "mv", "dot", "vdot", "_int_mm", "_scaled_mm")},
    **{
        name: _of_matrices(1)
        for name in ("addmm", "baddbmm", "addmv", "addbmm", "_addmm_activation", "_sparse_addmm")
    },
    **{name: _attention(name) for name in _ATTENTION},
    "_weight_int8pack_mm": lambda args, kwargs, out: multiply_adds(
        out.numel() * args[0].shape[-1], out.dtype
    ),
    "addr": lambda args, kwargs, out: multiply_adds(out.numel(), out.dtype),
    "convolution": lambda args, kwargs, out: _convolution(args[0], args[1], out, args[6]),
    "convolution_overrideable": lambda args, kwargs, out: _convolution(args[0], args[1], out, args[6]),
    "convolution_backward": lambda args, kwargs, out: _convolution_backward(args),
    "mkldnn_rnn_layer": lambda args, kwargs, out: _recurrent(args[0], args[1], args[2]),
    "mkldnn_rnn_layer_backward": lambda args, kwargs, out: 2 * _recurrent(args[0], args[1], args[2]),
}

TRANSFORMS: dict[str, Formula] = {
    "_fft_c2c": lambda args, kwargs, out: _fourier(args[0], args[1], is_complex=True),
    "_fft_r2c": lambda args, kwargs, out: _fourier(args[0], args[1], is_complex=False),
    "_fft_c2r": lambda args, kwargs, out: _fourier(out, args[1], is_complex=False),
}

# Operations per element of the first argument, counted in the steps that define them.
STEPS_PER_ELEMENT = {
    "_softmax": 5,  # max, subtract, exp, sum, divide
    "_log_softmax": 5,  # max, subtract, exp, sum, subtract the log
    "_softmax_backward_data": 4,  # multiply, sum, multiply, subtract
    "_log_softmax_backward_data": 4,  # exp, sum, multiply, subtract
    "native_layer_norm": 8,  # mean (1), variance (3), subtract, scale, times weight, plus bias
    "native_layer_norm_backward": 12,
    "native_group_norm": 8,
    "native_group_norm_backward": 12,
    "native_batch_norm": 8,
    "_native_batch_norm_legit": 8,
    "native_batch_norm_backward": 12,
    "_fused_rms_norm": 4,  # square, mean, scale, times weight
    "_fused_rms_norm_backward": 9,
    "cumsum": 1,
    "cumprod": 1,
    "logcumsumexp": 4,
    "logsumexp": 4,
    "linalg_vector_norm": 2,
    "avg_pool2d": 1,
    "max_pool2d_with_indices": 1,
    "_adaptive_avg_pool2d": 1,
}

_COMPLEX_STEPS = {"add": 2, "sub": 2, "neg": 2, "sum": 2, "mean": 2, "cumsum": 2}
_ONLY_MOVES = frozenset(
    {"clone", "where", "copy", "fill", "zero", "masked_fill", "_to_copy", "conj_physical"}
)


def elementwise(func: Any, args: tuple[Any, ...], out: Any) -> int:
    """Operations of an element-wise operation or a reduction; 0 for what only moves data."""
    name = base_name(func)
    if name in _ONLY_MOVES:
        return 0
    first = next((a for a in (*args, out) if isinstance(a, Tensor)), None)
    if name in STEPS_PER_ELEMENT and first is not None:
        return STEPS_PER_ELEMENT[name] * _scale(name, first.dtype) * first.numel()
    results = [t for t in (out if isinstance(out, list | tuple) else [out]) if isinstance(t, Tensor)]
    if is_pointwise(func, name):
        # In-place list operations return nothing: their first argument is the result.
        results = results or [
            t for t in (args[0] if isinstance(args[0], list) else []) if isinstance(t, Tensor)
        ]
        return sum(_scale(name, t.dtype) * t.numel() for t in results)
    if torch.Tag.reduction in func.tags and first is not None:
        return _scale(name, first.dtype) * first.numel()
    return 0


def is_pointwise(func: Any, name: str) -> bool:
    """Whether torch tags this operation, or the one that a list operation repeats, as element-wise."""
    if torch.Tag.pointwise in func.tags:
        return True
    packet = getattr(aten, name, None)
    return packet is not None and any(
        torch.Tag.pointwise in getattr(packet, overload).tags for overload in packet.overloads()
    )


def base_name(func: Any) -> str:
    """aten._foreach_add_.List -> "add", aten.mm.default -> "mm"."""
    name = func._schema.name.split("::")[1].removeprefix("_foreach_")
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name


def _scale(name: str, dtype: torch.dtype) -> int:
    return _COMPLEX_STEPS.get(name, 6) if dtype.is_complex else 1

"""Counts the floating-point operations and the memory traffic of a run, forward and backward.

torch's own `FlopCounterMode` reports 0 for fused attention on the CPU and for Fourier transforms; here they
count (`formulas` states the conventions), and compiled kernels state their own cost
(`shoestring.kernels.costs`).
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from shoestring.kernels import costs
from shoestring.yardstick import formulas
from shoestring.yardstick.composite import in_parts


class CostCounter(TorchDispatchMode):
    """Counts what runs inside a `with` block.

        with CostCounter() as cost:
            loss(model(x)).backward()
        cost.flops, cost.bytes, cost.flops_by_operation.most_common(5)

    `contraction_flops` (products, convolutions, attention, recurrent layers), `transform_flops` (Fourier),
    `elementwise_flops` (element-wise operations and reductions) and `stated_flops` (kernels of this library)
    add up to `flops`. Papers usually print the first alone.

    `bytes` is the traffic if every operation reads each operand once and writes each result once: what a
    cache saves is not known here, nor is what a kernel reads twice. A view costs nothing, an
    expanded or overlapping operand only what it stores, a lookup (embedding, index_select, gather) the rows
    it touches.

    `unknown` are operations that may compute something of which no formula is known: their traffic counts,
    their arithmetic does not. Fake tensors are counted like real ones.
    """

    def __init__(self) -> None:
        super().__init__()
        self.contraction_flops = 0
        self.transform_flops = 0
        self.elementwise_flops = 0
        self.stated_flops = 0
        self.bytes = 0
        self.flops_by_operation: Counter[str] = Counter()
        self.bytes_by_operation: Counter[str] = Counter()
        self.unknown: set[str] = set()
        self._stack = ExitStack()

    @property
    def flops(self) -> int:
        """All operations together."""
        return self.contraction_flops + self.transform_flops + self.elementwise_flops + self.stated_flops

    def __enter__(self) -> "CostCounter":
        self._stack.enter_context(costs.listen(self._hear))
        super().__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        super().__exit__(kind, value, traceback)
        self._stack.close()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if (parts := in_parts(self, func, args, kwargs)) is not NotImplemented:
            return parts
        heard = self.stated_flops, self.bytes_by_operation.total()
        results = func(*args, **kwargs)
        if costs.cost_is_stated() or heard != (self.stated_flops, self.bytes_by_operation.total()):
            return results  # part of a stated cost, or an operator whose kernel has just stated its own
        name = formulas.base_name(func)
        if not func._schema.name.startswith(("aten::", "profiler::")):
            self.unknown.add(func._schema.name)
        flops = self._count_flops(name, func, args, kwargs, results)
        self._add(name, flops, traffic(func, args, kwargs, results))
        return results

    def _count_flops(
        self, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], results: Any
    ) -> int:
        if name in formulas.CONTRACTIONS:
            flops = formulas.CONTRACTIONS[name](args, kwargs, results)
            self.contraction_flops += flops
        elif name in formulas.TRANSFORMS:
            flops = formulas.TRANSFORMS[name](args, kwargs, results)
            self.transform_flops += flops
        else:
            if name in UNCOUNTED:
                self.unknown.add(func._schema.name)
            flops = formulas.elementwise(func, args, results)
            self.elementwise_flops += flops
        return flops

    def _hear(self, name: str, cost: costs.Cost) -> None:
        self.stated_flops += cost.flops
        self._add(name, cost.flops, cost.bytes)

    def _add(self, name: str, flops: int, nbytes: int) -> None:
        self.bytes += nbytes
        if flops:
            self.flops_by_operation[name] += flops
        if nbytes:
            self.bytes_by_operation[name] += nbytes


# Heavy operations without a formula. They are named to the reader instead of passing for free.
UNCOUNTED = frozenset(
    {
        "_cdist_backward",
        "_cdist_forward",
        "_linalg_det",
        "_linalg_eigh",
        "_linalg_solve_ex",
        "_linalg_svd",
        "_thnn_fused_gru_cell",
        "_thnn_fused_lstm_cell",
        "_trilinear",
        "_weight_int4pack_mm_for_cpu",
        "cholesky_inverse",
        "convolution_backward_overrideable",
        "linalg_cholesky_ex",
        "linalg_eig",
        "linalg_householder_product",
        "linalg_inv_ex",
        "linalg_lu",
        "linalg_lu_factor_ex",
        "linalg_qr",
        "linalg_solve_triangular",
        "_cudnn_rnn",
        "_cudnn_rnn_backward",
        "miopen_rnn",
        "triangular_solve",
    }
)

_LOOKUPS = frozenset({"embedding", "gather", "index", "index_select", "take"})
_OVERWRITES = frozenset(
    {"bernoulli", "copy", "exponential", "fill", "geometric", "normal", "random", "uniform", "zero"}
)
_UNDECLARED_VIEWS = frozenset({"_unsafe_view", "_reshape_alias"})
"""Views whose schema does not say so."""
_ALLOCATIONS = frozenset({"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "resize"})


def traffic(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], results: Any) -> int:
    """Bytes read plus bytes written by one operation, each operand once (see `CostCounter`)."""
    name = formulas.base_name(func)
    schema = func._schema  # type: ignore[attr-defined]
    if name in _ALLOCATIONS:
        return 0
    written_inputs = {
        id(tensor)
        for argument, value in _bound(schema, args, kwargs)
        if argument.alias_info is not None and argument.alias_info.is_write
        for tensor in _tensors(value)
    }
    fresh = {id(tensor) for tensor in _tensors(results)} - {id(t) for t in _tensors((args, kwargs))}
    if not written_inputs and (_is_view(schema) or name in _UNDECLARED_VIEWS):
        return 0
    inputs = {id(tensor): tensor for tensor in _tensors((args, kwargs))}
    outputs = {id(tensor): tensor for tensor in _tensors(results) if id(tensor) in fresh}
    write = sum(stored_bytes(tensor) for tensor in outputs.values())
    write += sum(stored_bytes(inputs[key]) for key in written_inputs)
    if name in _LOOKUPS:
        indices = sum(stored_bytes(t) for t in list(inputs.values())[1:])
        return indices + 2 * write
    only_written = written_inputs if name in _OVERWRITES or "out" in kwargs else set()
    read = sum(stored_bytes(tensor) for key, tensor in inputs.items() if key not in only_written)
    return read + write


def stored_bytes(tensor: Tensor) -> int:
    """Bytes of the distinct elements of a tensor: an expanded dimension stores one of its elements."""
    if tensor.layout is torch.sparse_coo:
        return stored_bytes(tensor._indices()) + stored_bytes(tensor._values())
    if tensor.layout is not torch.strided or tensor.is_mkldnn:
        return tensor.numel() * tensor.element_size() if tensor.is_mkldnn else stored_bytes(tensor.values())
    count = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= size if stride != 0 or size == 0 else 1
    return min(count * tensor.element_size(), tensor.untyped_storage().nbytes())  # windows may overlap


def _is_view(schema: Any) -> bool:
    """Whether every result is a window on an argument."""
    return bool(schema.returns) and all(result.alias_info is not None for result in schema.returns)


def _bound(schema: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    yield from zip(schema.arguments, args, strict=False)
    for argument in schema.arguments:
        if argument.name in kwargs:
            yield argument, kwargs[argument.name]


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)

"""The exact peak of live tensor bytes, followed storage by storage.

Every operation that torch dispatches is seen, in backward too. A storage is counted once, however many views
share it, from the operation that brings it to the moment it is freed, whoever held it last: a variable, the
autograd graph, the caller after the block. Nothing is sampled. What a kernel allocates and frees inside one
operation is invisible, and so is memory that is no tensor; `process_memory` shows both as resident set size.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass

from shoestring.yardstick.composite import in_parts

# torch.tensor(...) makes its storage without an operation and shows it first as the argument of this one.
_BIRTHS = frozenset({torch.ops.aten.lift_fresh.default, torch.ops.aten.lift_fresh_copy.default})


class _Storage:
    """What is known of one living storage."""

    __slots__ = ("is_static", "nbytes", "reference")

    def __init__(self, nbytes: int, is_static: bool, reference: "weakref.ref[torch.UntypedStorage]") -> None:
        self.nbytes = nbytes
        self.is_static = is_static
        self.reference = reference


class LiveMemory(TorchDispatchMode):
    """Follows the tensors that live inside a `with` block.

        with LiveMemory(model, optimizer) as memory:
            loss(model(x)).backward()
        memory.peak_bytes, memory.static_bytes, memory.peak_dynamic_bytes

    Static is what was there before: what is registered (modules, optimizers with their state, tensors, nested
    containers of them), and any storage that first appears as the input of an operation: it lived all along,
    so it is added to what was counted before as well. Dynamic is what the block itself brings to life.

    After the block the live bytes still fall when a tensor dies, but new ones are not seen. Works on fake
    tensors too, when entered inside `FakeTensorMode`. Sources: torch's dispatch modes and storage weak
    references; the results agree with the allocator's own trace (see the tests).
    """

    def __init__(self, *static: Any) -> None:
        super().__init__()
        self._storages: dict[int, _Storage] = {}
        self.live_bytes = 0
        """Bytes of all the storages known to live now."""
        self.static_bytes = 0
        """Those among them that were there before."""
        self.peak_bytes = 0
        """The most that `live_bytes` has been."""
        self.peak_dynamic_bytes = 0
        """The most that `dynamic_bytes` has been."""
        self.peak_operation = ""
        """The operation whose result made the peak; empty as long as nothing rose above the static bytes."""
        self.register(*static)

    @property
    def dynamic_bytes(self) -> int:
        """Live bytes that the block brought to life."""
        return self.live_bytes - self.static_bytes

    def register(self, *things: Any) -> None:
        """Count as static: modules, optimizers (parameters and state), tensors, and containers of them.

        What was dynamic until now (an optimizer's state after its first step) is static from now on.
        Raises: TypeError naming what holds no tensors.
        """
        for thing in things:
            for tensor in _tensors_of(thing):
                self._see(tensor, is_static=True)
                for storage in _storages_of(tensor):
                    self._settle(self._storages[id(storage)])

    def reset_peak(self) -> None:
        """Forget the peak so far; the next one starts from what lives now."""
        self._poll()
        self.peak_bytes, self.peak_dynamic_bytes, self.peak_operation = (
            self.live_bytes,
            self.dynamic_bytes,
            "",
        )

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if (parts := in_parts(self, func, args, kwargs)) is not NotImplemented:
            return parts
        inputs = list(_flat_tensors((args, kwargs)))
        for tensor in inputs:
            self._see(tensor, is_static=func not in _BIRTHS)
        results = func(*args, **kwargs)
        for tensor in (*inputs, *_flat_tensors(results)):  # inputs again: the operation may have resized them
            self._see(tensor, is_static=False)
        self._note_peak(func)
        return results

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        super().__exit__(kind, value, traceback)
        self._poll()

    def _see(self, tensor: Tensor, *, is_static: bool) -> None:
        for storage in _storages_of(tensor):
            known = self._storages.get(id(storage))
            if known is None:
                self._admit(storage, is_static=is_static)
            else:
                self._resize(known, storage.nbytes())

    def _admit(self, storage: torch.UntypedStorage, *, is_static: bool) -> None:
        key, nbytes = id(storage), storage.nbytes()
        # The Python object of a storage lives exactly as long as the storage, so its id is a key until then.
        reference = weakref.ref(storage, lambda _: self._bury(key))
        self._storages[key] = _Storage(nbytes, is_static, reference)
        self.live_bytes += nbytes
        if is_static:
            self.static_bytes += nbytes
            self.peak_bytes += nbytes  # it lived already when the peak was reached

    def _bury(self, key: int) -> None:
        dead = self._storages.pop(key)
        self._resize(dead, 0)

    def _resize(self, storage: _Storage, nbytes: int) -> None:
        change = nbytes - storage.nbytes
        storage.nbytes = nbytes
        self.live_bytes += change
        if storage.is_static:
            self.static_bytes += change

    def _settle(self, storage: _Storage) -> None:
        """From dynamic to static."""
        if not storage.is_static:
            storage.is_static = True
            self.static_bytes += storage.nbytes

    def _poll(self) -> None:
        """Read all sizes afresh: `storage.resize_` is no operation and is not seen when it happens."""
        for known in list(self._storages.values()):
            storage = known.reference()
            if storage is not None:
                self._resize(known, storage.nbytes())

    def _note_peak(self, func: Callable[..., Any]) -> None:
        if self.live_bytes > self.peak_bytes or self.dynamic_bytes > self.peak_dynamic_bytes:
            self._poll()
            if self.live_bytes > self.peak_bytes:
                self.peak_bytes, self.peak_operation = self.live_bytes, str(func)
            self.peak_dynamic_bytes = max(self.peak_dynamic_bytes, self.dynamic_bytes)


def tensor_bytes(*things: Any) -> int:
    """Bytes of the storages behind modules, optimizers, tensors and containers, each counted once."""
    return LiveMemory(*things).static_bytes


def _tensors_of(thing: Any) -> Iterator[Tensor]:
    if isinstance(thing, Tensor):
        yield thing
        if thing.grad is not None:
            yield thing.grad
    elif isinstance(thing, nn.Module):
        for tensor in (*thing.parameters(), *thing.buffers()):
            yield from _tensors_of(tensor)
    elif isinstance(thing, torch.optim.Optimizer):
        for group in thing.param_groups:
            yield from _tensors_of(group["params"])
        yield from _flat_tensors(list(thing.state.values()))
    elif isinstance(thing, Mapping):
        for item in thing.values():
            yield from _tensors_of(item)
    elif isinstance(thing, Iterable) and not isinstance(thing, str | bytes):
        for item in thing:
            yield from _tensors_of(item)
    else:
        raise TypeError(
            f"{type(thing).__name__} holds no tensors; register modules, optimizers, tensors or containers "
            "of them"
        )


def _flat_tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in nested lists, tuples and dictionaries; everything else is passed over."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _flat_tensors(item)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _flat_tensors(item)


def _storages_of(tensor: Tensor) -> Iterator[torch.UntypedStorage]:
    """The storages behind a tensor: one, or those of the parts of a sparse or wrapped one; none of a meta
    tensor, which takes no memory."""
    if tensor.is_meta:
        return
    if is_traceable_wrapper_subclass(tensor):
        names, _ = tensor.__tensor_flatten__()
        parts = [getattr(tensor, name) for name in names]
    elif tensor.layout is torch.sparse_coo:
        parts = [tensor._indices(), tensor._values()]
    elif tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        parts = [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    elif tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        parts = [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    elif tensor.is_mkldnn:
        return  # opaque: it has no storage that could be asked
    else:
        yield tensor.untyped_storage()
        return
    for part in parts:
        yield from _storages_of(part)

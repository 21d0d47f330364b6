"""What is known about the inputs of each layer: second moments, mean magnitudes, and token counts."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from weakref import ref

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from shoestring.compression.weight_matrix import holds_matrix, is_table, matrix_shape
from shoestring.yardstick.language_quality import without_cache


class Moments:
    """Statistics of the inputs x of a linear layer, accumulated in float32 over `count` tokens."""

    def __init__(self, cols: int) -> None:
        self.count = 0
        self._squares = torch.zeros(cols, cols)
        self._magnitudes = torch.zeros(cols)

    @classmethod
    def of(
        cls, second_moment: Float[Tensor, "cols cols"], mean_magnitude: Float[Tensor, " cols"], count: int
    ) -> "Moments":
        """Statistics that were gathered before, over `count` tokens."""
        moments = cls(mean_magnitude.numel())
        moments.count = count
        moments._squares, moments._magnitudes = second_moment * count, mean_magnitude * count
        return moments

    def add(self, x: Float[Tensor, "*batch cols"]) -> None:
        """Take in the inputs of one call."""
        x = x.detach().reshape(-1, x.shape[-1]).float()
        with torch.autocast(x.device.type, enabled=False):  # in bfloat16 the moment is not even definite
            self._squares += (x.T @ x).to(self._squares.device)
        self._magnitudes += x.abs().sum(0).to(self._magnitudes.device)
        self.count += x.shape[0]

    @property
    def second_moment(self) -> Float[Tensor, "cols cols"]:
        """E[x xᵀ]; zeros if no token came by."""
        return self._squares / max(self.count, 1)

    @property
    def mean_magnitude(self) -> Float[Tensor, " cols"]:
        """E|x|; zeros if no token came by."""
        return self._magnitudes / max(self.count, 1)

    @property
    def nbytes(self) -> int:
        return moment_bytes(self._magnitudes.numel())


def moment_bytes(cols: int) -> int:
    """Bytes that the statistics of a layer with `cols` inputs take."""
    return 4 * (cols * cols + cols)


@dataclass
class Calibration:
    """Input statistics by module name; layers that see the same input share one `Moments`.

    token_counts: of each embedding, how often every row was looked up.
    """

    moments: dict[str, Moments] = field(default_factory=dict)
    token_counts: dict[str, Int[Tensor, " rows"]] = field(default_factory=dict)

    def __contains__(self, name: str) -> bool:
        return (name in self.moments and self.moments[name].count > 0) or name in self.token_counts

    def second_moment(self, name: str) -> Float[Tensor, "cols cols"]:
        """E[x xᵀ] of the inputs of a linear layer. Raises: ValueError if none was captured."""
        return self.of(name).second_moment

    def mean_magnitude(self, name: str) -> Float[Tensor, " cols"]:
        """E|x| of the inputs of a linear layer. Raises: ValueError if none was captured."""
        return self.of(name).mean_magnitude

    @property
    def nbytes(self) -> int:
        """Bytes held, shared statistics counted once."""
        unique = {id(m): m.nbytes for m in self.moments.values()}
        return sum(unique.values()) + sum(t.nbytes for t in self.token_counts.values())

    def of(self, name: str) -> Moments:
        """All statistics of a linear layer. Raises: ValueError if no token reached it."""
        if name not in self.moments:
            raise ValueError(f"no inputs of {name!r} were captured; capture a calibration that includes it.")
        if self.moments[name].count == 0:
            raise ValueError(f"no token reached {name!r} during calibration; give more text, or ignore it.")
        return self.moments[name]


class InputRecorder:
    """Forward hooks that fill a `Calibration`; a context manager, so that no hook outlives its use.

    modules: {name: linear layer or embedding}. Layers called one after the other with the same tensor object
    (query, key and value; gate and up) share one `Moments`.
    """

    def __init__(self, modules: dict[str, nn.Module]) -> None:
        self.calibration = Calibration()
        self._modules = modules
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._leader_of: dict[str, str] = {}
        self._last: tuple[str, ref[Tensor]] | None = None

    def __enter__(self) -> "InputRecorder":
        for name, module in self._modules.items():
            hook = self._count_tokens if is_table(module) else self._add_input
            self._handles.append(
                module.register_forward_pre_hook(
                    lambda m, args, kwargs, n=name, h=hook: h(n, m, (*args, *kwargs.values())[0]),
                    with_kwargs=True,
                )
            )
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _add_input(self, name: str, module: nn.Module, x: Tensor) -> None:
        same = self._last is not None and self._last[1]() is x
        leader = self._leader_of.get(name)
        if leader is None:
            leader = self._last[0] if same and self._last is not None else name
            self._leader_of[name] = leader
            shared = self.calibration.moments.get(leader)
            self.calibration.moments[name] = Moments(x.shape[-1]) if shared is None else shared
        if leader == name:
            self.calibration.moments[name].add(x)
            self._last = (name, ref(x))
        elif not (same and self._last is not None and self._last[0] == leader):
            raise RuntimeError(
                f"{name!r} shared its input with {leader!r} in one call and not in the next; "
                "capture the two in separate passes (names=…)."
            )

    def _count_tokens(self, name: str, module: nn.Module, ids: Tensor) -> None:
        counts = torch.bincount(ids.reshape(-1).cpu(), minlength=matrix_shape(module)[0])
        self.calibration.token_counts[name] = self.calibration.token_counts.get(name, 0) + counts


def capture(
    model: nn.Module,
    batches: Iterable[Tensor],
    *,
    names: Sequence[str] | None = None,
    max_bytes: int | None = None,
) -> Calibration:
    """Statistics of all linear layers and embeddings (or of `names`) in one pass through the model.

    batches: what the model takes as its one argument, e.g. token ids. max_bytes: a limit for what is held.
    The model is run as it is, in evaluation mode.

    Raises: ValueError for an unknown name, for no batches, or if the statistics could exceed `max_bytes`
    (without counting on shared inputs); the message says how much they take.
    """
    available = {n: m for n, m in model.named_modules() if holds_matrix(m)}
    if unknown := [n for n in names or () if n not in available]:
        raise ValueError(f"{unknown[0]!r} is no linear layer or embedding of the model.")
    modules = available if names is None else {n: available[n] for n in names}
    needed = sum(moment_bytes(matrix_shape(m)[1]) for m in modules.values() if not is_table(m))
    if max_bytes is not None and needed > max_bytes:
        raise ValueError(
            f"the statistics of {len(modules)} layers may take {needed} bytes, over max_bytes={max_bytes}; "
            "capture fewer names at a time (see `capture_groups`)."
        )
    with InputRecorder(modules) as recorder:
        run(model, batches)
    return recorder.calibration


def capture_groups(model: nn.Module, names: Sequence[str], max_bytes: int) -> list[list[str]]:
    """Split names, in order, so that the statistics of each part take at most `max_bytes`.

    Raises: ValueError if a single layer takes more.
    """
    parts: list[list[str]] = []
    room = -1
    for name in names:
        module = model.get_submodule(name)
        size = 0 if is_table(module) else moment_bytes(matrix_shape(module)[1])
        if size > max_bytes:
            raise ValueError(f"the statistics of {name!r} alone take {size} bytes, more than {max_bytes}.")
        if not parts or size > room:
            parts.append([])
            room = max_bytes
        parts[-1].append(name)
        room -= size
    return parts


def run(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Pass batches through the model, in evaluation mode, for the sake of its hooks.

    Raises: ValueError if there is no batch.
    """
    training, count = model.training, 0
    model.eval()
    try:
        with torch.no_grad():
            for ids in batches:
                model(ids, **without_cache(model))
                count += 1
    finally:
        model.train(training)
    if count == 0:
        raise ValueError("no batches were given to calibrate on.")

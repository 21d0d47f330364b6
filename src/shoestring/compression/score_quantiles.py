"""How the inputs of each linear layer are distributed: what a constant threshold keeps, before it is set.

Values are counted by their leading 16 bits, so that memory does not grow with the text and any quantile is
known afterwards, to a fraction of 1/128 of itself.
"""

from collections.abc import Iterable, Sequence
from weakref import ref

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from shoestring.compression.calibration import Calibration, run
from shoestring.compression.weight_matrix import holds_matrix, is_linear, weight_matrix

LEAST_TOKENS = 256
SKIPPED_TOKENS = 4
"""At the start of each window: the first tokens draw attention and have inputs like no others."""
KEPT_TOKENS = 16
"""Inputs of each layer that are kept as they are."""

_BINS = 1 << 16


class ValueTable:
    """The distribution of the numbers that were added, signed."""

    def __init__(self) -> None:
        self._counts = torch.zeros(_BINS, dtype=torch.int32)

    def add(self, values: Float[Tensor, "*shape"]) -> None:
        """Count these numbers; they must be finite."""
        bits = (values.detach().float().contiguous().view(torch.int32).reshape(-1) >> 16) & 0xFFFF
        counts = torch.bincount(bits.cpu(), minlength=_BINS)
        self._counts += counts.to(torch.int32)

    @property
    def count(self) -> int:
        return int(self._counts.sum())

    def quantile(self, q: float) -> float:
        """The number that a share `q` of all is below; within a bin they are taken as evenly spread.

        Raises: ValueError for a q outside [0, 1], or without any numbers.
        """
        half = _BINS // 2
        counts = torch.cat([self._counts[half:].flip(0), self._counts[:half]])  # ascending
        return _quantile(counts, _edges(), q)

    def magnitude_quantile(self, q: float) -> float:
        """`quantile` of the magnitudes."""
        half = _BINS // 2
        return _quantile(self._counts[:half] + self._counts[half:], _edges()[half:], q)


def _edges() -> Float[Tensor, " edges"]:
    """The limits of the bins of all values in ascending order."""
    positive = (torch.arange(_BINS // 2 + 1, dtype=torch.int64) << 16).clamp(max=0x7F7FFFFF)
    up = positive.to(torch.int32).view(torch.float32)
    return torch.cat([-up[1:].flip(0), up])


def _quantile(counts: Int[Tensor, " bins"], edges: Float[Tensor, " edges"], q: float) -> float:
    if not 0 <= q <= 1:
        raise ValueError(f"q={q} is no share; give one from 0 to 1.")
    total = counts.double().cumsum(0)
    if total[-1] == 0:
        raise ValueError("no values were counted; capture scores on some text first.")
    wanted = (q * total[-1]).clamp(min=1e-9)  # of nothing: where the first value lies
    place = min(int(torch.searchsorted(total, wanted)), len(counts) - 1)
    before = total[place] - counts[place]
    within = (wanted - before) / max(int(counts[place]), 1)
    low, high = edges[place].double(), edges[place + 1].double()
    return float(low + (high - low) * within.clamp(0, 1))


class ScoreCalibration(Calibration):
    """Distributions of inputs by the name of a linear layer; layers that share an input share them.

    inputs: of x. weighted: of |x_j| c_j with c_j = ‖W[:, j]‖. samples: a few inputs as they were.
    """

    def __init__(self) -> None:
        super().__init__()
        self.inputs: dict[str, ValueTable] = {}
        self.weighted: dict[str, ValueTable] = {}
        self.samples: dict[str, Float[Tensor, "tokens cols"]] = {}
        self.tokens = 0

    def __contains__(self, name: str) -> bool:
        return name in self.inputs

    def threshold(self, name: str, kept: float, weighted: bool) -> float:
        """The score above which lies a share `kept` of the inputs. Raises: ValueError for another layer."""
        if name not in self.inputs:
            raise ValueError(f"no inputs of {name!r} were captured; capture scores that include it.")
        q = min(max(1.0 - kept, 0.0), 1.0)
        return self.weighted[name].quantile(q) if weighted else self.inputs[name].magnitude_quantile(q)


def column_norms(weight: Float[Tensor, "rows cols"]) -> Float[Tensor, " cols"]:
    """c_j = ‖W[:, j]‖ = ‖(V diag s)_j‖ over the whole spectrum; float32."""
    return weight.float().norm(dim=0)


def capture_scores(
    model: nn.Module, batches: Iterable[Tensor], names: Sequence[str], *, skip: int = SKIPPED_TOKENS
) -> ScoreCalibration:
    """Distributions of the inputs of the named linear layers, in one pass through the model as it is.

    batches: token ids (batch, window) or whatever the model takes as its one argument. skip: tokens at the
    start of each window that do not count.

    Raises: ValueError for an unknown name, fewer than `LEAST_TOKENS` tokens, or an input that is not finite
    (naming the layer).
    """
    modules = {name: _linear(model, name) for name in names}
    listening = _Listening(modules, list(batches), skip)
    handles = [
        module.register_forward_pre_hook(lambda _, args, n=name: listening.hear(n, args[0]))
        for name, module in modules.items()
    ]
    try:
        run(model, listening.batches)
    finally:
        for handle in handles:
            handle.remove()
    return listening.found


class _Listening:
    """The state of `capture_scores` during its pass."""

    def __init__(self, modules: dict[str, nn.Module], batches: list[Tensor], skip: int) -> None:
        self.batches, self.skip, self.found = batches, skip, ScoreCalibration()
        self.norms = {name: column_norms(weight_matrix(module)) for name, module in modules.items()}
        self.leader: tuple[str, ref[Tensor]] | None = None
        self.found.tokens = sum(batch.shape[0] * max(batch.shape[1] - skip, 0) for batch in batches)
        if self.found.tokens < LEAST_TOKENS:
            raise ValueError(
                f"calibration on {self.found.tokens} tokens (without the first {skip} of each window); "
                f"give text of {LEAST_TOKENS} or more."
            )

    def hear(self, name: str, x: Tensor) -> None:
        own = x.detach()[..., self.skip :, :].reshape(-1, x.shape[-1]).float()
        tables, found = self.found.inputs, self.found
        same = self.leader is not None and self.leader[1]() is x
        if same and self.leader is not None and name not in tables:
            tables[name] = tables[self.leader[0]]
        elif not same or tables.get(name) is not tables[self.leader[0] if self.leader else name]:
            if not bool(torch.isfinite(own).all()):
                raise ValueError(f"the inputs of {name!r} are not finite; check the model and the text.")
            tables.setdefault(name, ValueTable()).add(own)
            self.leader = name, ref(x)
        found.weighted.setdefault(name, ValueTable()).add(own.abs() * self.norms[name])
        self._keep(name, own)

    def _keep(self, name: str, own: Tensor) -> None:
        """A few tokens of every batch, evenly spread."""
        held = self.found.samples.get(name, own[:0])
        wanted = min(-(-KEPT_TOKENS // len(self.batches)), KEPT_TOKENS - len(held), len(own))
        places = torch.linspace(0, len(own) - 1, wanted).long() if wanted > 0 else torch.arange(0)
        self.found.samples[name] = torch.cat([held, own[places]])


def _linear(model: nn.Module, name: str) -> nn.Module:
    found = dict(model.named_modules()).get(name)
    if found is None or not (holds_matrix(found) and is_linear(found)):
        raise ValueError(f"{name!r} is no linear layer of the model.")
    return found

"""How the reads of each layer are divided between whole columns and low rank: a cheap rule, then evolution.

Source: Zhang et al. 2025, "R-Sparse", section 3.3 (search of the shares; its settings are not published).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shoestring.compression.apply import Progress
from shoestring.compression.r_sparse import RowStore, RSparse, Split
from shoestring.compression.score_quantiles import ScoreCalibration
from shoestring.compression.singular_factors import singular_factors
from shoestring.kernels.row_gather import RowWeights, naive_row_gather
from shoestring.layers.row_sparse_linear import row_sparse_layers

CHOICES = (0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
"""The shares that the cheap rule tries."""

Alphas = Float[Tensor, " layers"]


class AlphaSpace:
    """The row-sparse layers of a model at a fixed sparsity, to be set to any shares, at once and again.

    Factors stay in memory, in the layers' own type: about as many bytes as half the weights.
    """

    def __init__(self, model: nn.Module, sparsity: float, calibration: ScoreCalibration) -> None:
        self.layers = row_sparse_layers(model)
        if not self.layers:
            raise ValueError("the model has no row-sparse layers; apply RSparse to it first.")
        self.sparsity, self.calibration = RSparse(sparsity).sparsity, calibration
        self._factors: dict[str, tuple[Tensor, Tensor]] = {}
        self._put: dict[str, float] = {}

    @property
    def names(self) -> list[str]:
        return list(self.layers)

    def prepare(self, progress: Progress | None = None) -> None:
        """Have the factors of all layers: read from the cache folder, or worked out and put there."""
        for done, (name, layer) in enumerate(self.layers.items()):
            if name not in self._factors:
                self._factors[name] = singular_factors(layer.weight, layer.rows.dtype)
            if progress is not None:
                progress(name, done + 1, len(self.layers))

    def split(self, name: str, alpha: float) -> Split:
        """What one layer becomes at a share."""
        layer = self.layers[name]
        if alpha < 1.0 and name not in self._factors:
            self._factors[name] = singular_factors(layer.weight, layer.rows.dtype)
        recipe = RSparse(self.sparsity, alpha, RowStore.AS_IS)
        return recipe.split(name, layer, self.calibration, self._factors.get(name))

    def put(self, alphas: Alphas) -> None:
        """Set every layer to its share; those that stand there already are left."""
        for name, alpha in zip(self.names, alphas.tolist(), strict=True):
            if self._put.get(name) != alpha:
                self.split(name, alpha).put(self.layers[name])
                self._put[name] = alpha

    def output_change(self, name: str, alpha: float) -> float:
        """‖W x − y(x)‖² over the inputs that the calibration kept."""
        layer, x = self.layers[name], self.calibration.samples[name]
        split = self.split(name, alpha)
        dtype = layer.rows.dtype
        thin = [None if part is None else part.to(dtype) for part in (split.down, split.up)]
        weights = RowWeights(layer.rows, split.threshold, split.scales, *thin)
        exact = x @ layer.rows.float()
        return (naive_row_gather(x, weights) - exact).double().square().sum().item()


def layer_by_layer(space: AlphaSpace, progress: Progress | None = None) -> Alphas:
    """For each layer the share of `CHOICES` whose outputs change least, on a few calibration inputs."""
    best = []
    for done, name in enumerate(space.names):
        changes = {alpha: space.output_change(name, alpha) for alpha in CHOICES}
        best.append(min(changes, key=lambda alpha: changes[alpha]))
        if progress is not None:
            progress(name, done + 1, len(space.names))
    return torch.tensor(best, dtype=torch.float64)


@dataclass(frozen=True)
class Evolution:
    """Settings of `evolve`; the published search does not state its own."""

    population: int = 16
    generations: int = 8
    elite: int = 4
    changed: float = 0.1
    deviation: float = 0.1

    def __post_init__(self) -> None:
        if not 2 <= self.elite < self.population or self.generations < 0:
            raise ValueError(
                f"population={self.population}, elite={self.elite}, generations={self.generations}: the "
                "elite is 2 or more and smaller than the population, generations are 0 or more."
            )


@dataclass(frozen=True)
class Found:
    """The best shares, their loss, and the best loss after each generation (the first: as it began)."""

    alphas: Alphas
    loss: float
    history: tuple[float, ...]
    evaluations: int


def evolve(
    loss: Callable[[Alphas], float],
    starts: list[Alphas],
    settings: Evolution = Evolution(),
    *,
    seed: int = 0,
    progress: Callable[[int, float], None] | None = None,
) -> Found:
    """Minimise a loss over shares in [0, 1]: elitism, uniform crossover, Gaussian mutation of some genes.

    starts: shares to begin with; the population is filled with random mixes of them. The best so far never
    gets lost, so the history does not rise. Raises: ValueError for no starts, or of different lengths.
    """
    if not starts or len({len(start) for start in starts}) != 1:
        raise ValueError(f"{len(starts)} starts; give one or more, all with a share for each layer.")
    generator = torch.Generator().manual_seed(seed)
    members = [start.double() for start in starts][: settings.population]
    while len(members) < settings.population:
        members.append(_child(members[: len(starts)], settings, generator))
    scored = [(loss(member), index, member) for index, member in enumerate(members)]
    scored.sort(key=lambda entry: entry[:2])
    evaluations, history = len(scored), [scored[0][0]]
    for generation in range(settings.generations):
        scored = scored[: settings.elite]
        elite = [member for _, _, member in scored]
        for _ in range(settings.population - settings.elite):
            child = _child(elite, settings, generator)
            scored.append((loss(child), evaluations, child))
            evaluations += 1
        scored.sort(key=lambda entry: entry[:2])
        history.append(scored[0][0])
        if progress is not None:
            progress(generation + 1, scored[0][0])
    return Found(scored[0][2], scored[0][0], tuple(history), evaluations)


def _child(parents: list[Alphas], settings: Evolution, generator: torch.Generator) -> Alphas:
    """Genes of two parents, some of them moved."""
    one, other = (parents[int(torch.randint(len(parents), (), generator=generator))] for _ in range(2))
    shape = one.shape
    mixed = torch.where(torch.rand(shape, generator=generator) < 0.5, one, other)
    moves = torch.randn(shape, generator=generator, dtype=torch.float64) * settings.deviation
    moved = torch.rand(shape, generator=generator) < settings.changed
    return torch.where(moved, mixed + moves, mixed).clamp(0.0, 1.0)

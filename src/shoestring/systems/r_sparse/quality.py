"""What R-Sparse and its rivals do to perplexity as they decode; how much thresholds keep of unseen text."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from shoestring.compression.alpha_search import Alphas, AlphaSpace, Evolution, Found, evolve, layer_by_layer
from shoestring.compression.apply import apply
from shoestring.compression.r_sparse import RowStore, block_linears, r_sparse_recipes
from shoestring.compression.score_quantiles import ScoreCalibration, capture_scores
from shoestring.compression.sparsity_baselines import (
    Cats,
    RandomChannels,
    ReluActivation,
    ReluInputs,
    capture_gates,
)
from shoestring.compression.tail_loss import TailDivergence, TailLoss
from shoestring.generation.shared_rows import layer_name
from shoestring.layers.row_sparse_linear import reset_counters, rows_read
from shoestring.models.decoder import Decoder
from shoestring.models.hooks import Phase, Project
from shoestring.systems.card import Claim
from shoestring.systems.r_sparse.claims import (
    CATS,
    CHANCE,
    LEVELS,
    MONOTONE,
    PERPLEXITY_40,
    PERPLEXITY_50,
    REALISED_ALL,
    REALISED_LAYER,
    REALISED_MEAN,
    RELU,
    SEARCHED,
    TARGET,
)
from shoestring.yardstick.comparison import Row
from shoestring.yardstick.paired_difference import CONFIDENCE

Losses = Float[Tensor, " windows"]


@dataclass(frozen=True)
class Texts:
    """Windows of token ids: to calibrate on, to search on, to judge on, and to count on what thresholds keep,
    which takes a whole text, as one article may differ; and how many tokens are decoded.
    """

    calibration: Int[Tensor, "c_windows c_window"]
    search: Int[Tensor, "s_windows s_window"]
    held_out: Int[Tensor, "h_windows h_window"]
    counted: Int[Tensor, "n_windows h_window"]
    tail: int
    search_tail: int


@dataclass
class Rivals:
    """Losses of what R-Sparse is compared with; measured before it changes the model."""

    relu: Losses
    relu_saved: float
    relu_inputs: Losses | None
    chance: dict[float, Losses]
    cats: dict[float, Losses]


class KeptShare:
    """A hook that counts which inputs lie above a threshold, and changes nothing."""

    def __init__(self, thresholds: dict[str, float]) -> None:
        self.thresholds = thresholds
        self.kept, self.seen = dict.fromkeys(thresholds, 0), dict.fromkeys(thresholds, 0)

    def linear(
        self, layer: int, names: tuple[str, ...], x: Tensor, phase: Phase, proceed: Project
    ) -> tuple[Tensor, ...]:
        """As `LinearHook`."""
        for name in [layer_name(layer, part) for part in names]:
            self.kept[name] += int((x.abs() > self.thresholds[name]).sum())
            self.seen[name] += x.numel()
        return proceed(x)

    @property
    def shares(self) -> dict[str, float]:
        """By layer."""
        return {name: self.kept[name] / self.seen[name] for name in self.kept}


class QualityRun:
    """The experiment on one model, which ends as a row-sparse one with the searched shares."""

    def __init__(
        self, model: Decoder, texts: Texts, settings: Evolution, seed: int, *, every_rival: bool = True
    ) -> None:
        """every_rival: also the one that no claim is about, ReLU on all inputs."""
        self.model, self.texts, self.settings, self.seed = model, texts, settings, seed
        self.every_rival = every_rival
        self.notes: list[str] = []
        names = block_linears(model)
        batches = list(texts.calibration.split(1))
        self.scores: ScoreCalibration = capture_scores(model, batches, names)
        self.loss = TailLoss(model, texts.held_out, texts.tail)
        self.dense = self.loss.windows(())
        kept = KeptShare({n: self.scores.threshold(n, 1 - TARGET, weighted=False) for n in names})
        TailLoss(model, texts.counted, texts.tail).windows((kept,))
        self.kept_dense = kept.shares
        self.rivals = self._rivals(batches)
        self.fitness = TailDivergence(model, texts.search, texts.search_tail)
        recipes = r_sparse_recipes(model, TARGET, 1.0, RowStore.BFLOAT16)
        apply(model, recipes, calibration=self.scores)

    def rows(self) -> list[Row]:
        """All rows of quality; afterwards the model has the searched shares."""
        columns = {share: self._columns(share) for share in (0.0, *LEVELS)}
        kept_sparse = columns[TARGET][1]
        losses = {share: found[0] for share, found in columns.items()}
        found, seconds, space = self._search()
        cheap, shares = found
        searched = self._shares(space, shares.alphas)
        by_rule = self._shares(space, cheap)
        low_rank = self._shares(space, torch.zeros_like(cheap))
        space.put(shares.alphas)
        return [
            *self._perplexities(losses, searched, by_rule, low_rank),
            *self._against(losses, searched),
            self._monotone(losses),
            *self._realised(kept_sparse),
            Row(metric="seconds of the search, rule and evolution", kind="time", unit="s", better="lower",
                baseline=None, method=seconds),
            Row(metric="divergence on the text searched on, rule to evolution", kind="quality",
                unit="nats", better="lower", baseline=shares.history[0], method=shares.loss,
                against="the better of columns alone and the rule"),
        ]  # fmt: skip

    def _rivals(self, batches: Sequence[Tensor]) -> Rivals:
        relu = ReluActivation(self.model)
        gates = capture_gates(self.model, batches)
        relu_losses = self.loss.windows((relu,))
        return Rivals(
            relu=relu_losses,
            relu_saved=relu.sparsity,
            relu_inputs=self.loss.windows((ReluInputs(),)) if self.every_rival else None,
            chance={TARGET: self.loss.windows((RandomChannels(TARGET, self.seed),))},
            cats={share: self.loss.windows((Cats(self.model, gates, share),)) for share in CATS},
        )

    def _columns(self, share: float) -> tuple[Losses, dict[str, float]]:
        """Columns alone at a share saved: losses, and what was kept."""
        space = AlphaSpace(self.model, share, self.scores)
        space.put(torch.ones(len(space.names), dtype=torch.float64))
        reset_counters(self.model)
        return self.loss.windows(), rows_read(self.model)

    def _shares(self, space: AlphaSpace, alphas: Alphas) -> Losses:
        space.put(alphas)
        return self.loss.windows()

    def _search(self) -> tuple[tuple[Alphas, Found], float, AlphaSpace]:
        space = AlphaSpace(self.model, TARGET, self.scores)
        space.prepare()  # the factors of all weights, from the cache folder
        start = time.perf_counter()
        cheap = layer_by_layer(space)

        def loss(alphas: Alphas) -> float:
            space.put(alphas)
            return self.fitness()

        found = evolve(loss, [torch.ones_like(cheap), cheap], self.settings, seed=self.seed)
        seconds = time.perf_counter() - start
        below = int((found.alphas < 1).sum())
        self.notes.append(
            f"search: {found.evaluations} evaluations on {self.fitness.tokens} tokens; {below} of "
            f"{len(cheap)} layers share their reads with low rank ({int((cheap < 1).sum())} by the rule)"
        )
        return (cheap, found), seconds, space

    def _perplexities(
        self, columns: dict[float, Losses], searched: Losses, by_rule: Losses, low_rank: Losses
    ) -> list[Row]:
        def named(metric: str, losses: Losses) -> Row:
            return Row(
                metric=metric, kind="quality", unit="", better="lower", **_ratio(losses, self.dense)
            )  # fmt: skip

        rows = [PERPLEXITY_40.row(**_ratio(columns[0.4], self.dense))]
        rows += [
            named(f"perplexity, {share:.0%} of reads saved, columns alone".replace("%", " %", 1), losses)
            for share, losses in columns.items()
            if share != 0.4
        ]
        rows += [
            PERPLEXITY_50.row(**_ratio(searched, self.dense)),
            SEARCHED.row(**_ratio(searched, columns[TARGET]), against="columns alone"),
            named("perplexity, 50 %, shares by the rule", by_rule),
            named("perplexity, 50 %, low rank alone", low_rank),
            named("perplexity, ReLU activation", self.rivals.relu),
            named("perplexity, 50 %, inputs kept by chance", self.rivals.chance[TARGET]),
        ]
        if self.rivals.relu_inputs is not None:
            rows.append(named("perplexity, ReLU on all inputs", self.rivals.relu_inputs))
        rows += [
            named(f"perplexity, {share:.0%}, CATS".replace("%", " %"), losses)
            for share, losses in self.rivals.cats.items()
        ]
        self.notes.append(f"ReLU instead of SiLU skips {self.rivals.relu_saved:.0%} of the reads")
        return rows

    def _against(self, columns: dict[float, Losses], searched: Losses) -> list[Row]:
        """ln(perplexity / dense) beside that of a rival."""

        def row(claim: Claim, ours: Losses, theirs: Losses, name: str) -> Row:
            mine, other = ((part - self.dense).mean().item() for part in (ours, theirs))
            return claim.row(baseline=other, method=mine, against=name)

        return [
            row(RELU, searched, self.rivals.relu, "ReLU-fication"),
            row(CHANCE, searched, self.rivals.chance[TARGET], "chance"),
            *(row(claim, columns[share], self.rivals.cats[share], "CATS") for share, claim in CATS.items()),
        ]

    def _monotone(self, columns: dict[float, Losses]) -> Row:
        means = [columns[share].mean().item() for share in sorted(columns)]
        falls = sum(later < earlier - math.log(1.005) for earlier, later in pairwise(means))
        return MONOTONE.row(baseline=None, method=falls)

    def _realised(self, sparse: dict[str, float]) -> list[Row]:
        wanted = 1 - TARGET
        dense = self.kept_dense

        def worst_projection(shares: dict[str, float]) -> float:
            by_part: dict[str, list[float]] = {}
            for name, share in shares.items():
                by_part.setdefault(name.rpartition(".")[2], []).append(share)
            return max(abs(sum(found) / len(found) - wanted) for found in by_part.values())

        worst_layer = max(abs(share - wanted) for share in dense.values())
        return [
            REALISED_MEAN.row(baseline=None, method=100 * worst_projection(dense)),
            REALISED_LAYER.row(baseline=None, method=100 * worst_layer),
            REALISED_ALL.row(baseline=None, method=100 * worst_projection(sparse)),
        ]


def _ratio(ours: Losses, theirs: Losses) -> dict[str, Any]:
    """Perplexities, their ratio, and its 95 % interval, paired by window."""
    change = ours - theirs
    mean = change.mean().item()
    margin = CONFIDENCE * (change.std().item() / math.sqrt(len(change)) if len(change) > 1 else math.inf)
    return {
        "baseline": math.exp(theirs.mean().item()),
        "method": _exp(ours.mean().item()),
        "ratio": _exp(mean),
        "spread": (_exp(mean - margin), _exp(mean + margin)),
    }


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf

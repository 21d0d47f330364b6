"""DB-LLM: weights of two bits as two sparse binary planes with learnable levels, trained by distillation.

Its paper works on models of 7 billion parameters; at 135 million two bits cost far more, which the rows say.
"""

import copy
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from shoestring.compression.apply import apply
from shoestring.compression.block_reconstruction import Reconstruction, reconstruct, trace_block, update_error
from shoestring.compression.calibration import Calibration, capture
from shoestring.compression.dual_binarize import DualBinarize, Fit
from shoestring.compression.group_quantize import GPTQ
from shoestring.kernels.dual_binary import PlaneWeights, dual_binary_linear
from shoestring.layers.dual_binary_linear import DualBinaryLinear, LatentDualBinaryLinear
from shoestring.models.decoder import Decoder
from shoestring.numbers.affine_fit import fit_min_max
from shoestring.numbers.dual_binary import DualBinary, pack_planes
from shoestring.numbers.grouped_affine import GroupedAffine, ZeroPoint
from shoestring.systems.card import Card, Claim, Effort
from shoestring.systems.language_task import LanguageTask, language_task, tiny_task
from shoestring.training.distillation import DeviationAware, Distillation, distil
from shoestring.training.model_text import model_text
from shoestring.yardstick.comparison import Comparison, Row
from shoestring.yardstick.language_quality import perplexity
from shoestring.yardstick.timing import time_interleaved

GROUP = 64
BLOCKS = "model.layers.*proj"
BLOCK = 3
"""The block that the quick run trains."""

GAP = Claim(
    text="two planes keep far more than plain rounding to two bits",
    figure="7.23 against 9.64",
    setting="LLaMA-1-7B class, WikiText-2, after training; bar: before any training, planes fitted with the "
    "inputs' mean squares, share of the gap in ln PPL between float32 and min-max rounding that they close",
    metric="share of the gap in ln PPL closed, untrained",
    kind="quality",
    unit="",
    better="higher",
    bar=0.5,
    bar_on="value",
)
TRAINED_RTN = Claim(
    text="training the levels and weights of a block restores what it puts out",
    figure="qualitative",
    setting="block 3 after 100 steps of 4 x 256 tokens, held-out text; error of the outputs in units of what "
    "the block adds; bar: our own",
    metric="output error of a trained block, against rounding",
    kind="quality",
    unit="",
    better="lower",
    bar=0.4,
)
TRAINED_INIT = Claim(
    text="and it is the training that does it",
    figure="qualitative",
    setting="the same block, against its own start",
    metric="output error of a trained block, against its start",
    kind="quality",
    unit="",
    better="lower",
    bar=0.8,
)
TIME_F32 = Claim(
    text="a product with binary planes needs additions only",
    figure="14x fewer FLOPs",
    setting="LLaMA; here 8192 x 4096 by one vector, two threads, time; bar: our own",
    metric="time of a product, against float32",
    kind="time",
    unit="s",
    better="lower",
    bar=1 / 4,
)
TIME_BF16 = Claim(
    text="the same beside bfloat16",
    figure="qualitative",
    setting="as above",
    metric="time of a product, against bfloat16",
    kind="time",
    unit="s",
    better="lower",
    bar=1 / 2.5,
)
BYTES = Claim(
    text="2.5 bits a weight in groups of 64",
    figure="3.7x less storage, embeddings kept",
    setting="all linear layers of the blocks against float16; the paper counts the whole model",
    metric="bytes of the linear layers",
    kind="storage",
    unit="B",
    better="lower",
    paper_ratio=1 / 3.7,
    bar=1 / 6.4 + 1e-9,
)
SPARSE = Claim(
    text="both planes are sparse: a fifth fewer additions than other two-bit codes",
    figure="20 % fewer operations",
    setting="same bit width, set bits a weight; bar: our own",
    metric="set bits a weight",
    kind="compute",
    unit="",
    better="lower",
    paper_ratio=0.8,
    bar=0.9,
)
STUDENT = Claim(
    text="distillation beats the best method without training",
    figure="7.23 against 9.64 (0.75)",
    setting="LLaMA-1-7B class, WikiText-2; here the full run: every block reconstructed, then distilled",
    metric="perplexity after distillation, against the best untrained",
    kind="quality",
    unit="",
    better="lower",
    paper_ratio=0.75,
    bar=0.75,
)
DEVIATION = Claim(
    text="weighing positions by their difficulty helps",
    figure="qualitative",
    setting="full run, three seeds; against plain distillation; bar: within noise",
    metric="perplexity, deviation-aware against plain distillation",
    kind="quality",
    unit="",
    better="lower",
    bar=1.02,
)

card = Card(
    slug="db-llm",
    title="DB-LLM",
    paper="DB-LLM: Accurate Dual-Binarization for Efficient LLMs (ACL Findings 2024)",
    year=2024,
    authors_code=None,
    saves=("storage", "memory", "time"),
    parts=(
        "shoestring.numbers.dual_binary.DualBinary",
        "shoestring.kernels.dual_binary.dual_binary_linear",
        "shoestring.layers.DualBinaryLinear",
        "shoestring.layers.LatentDualBinaryLinear",
        "shoestring.compression.DualBinarize",
        "shoestring.compression.block_reconstruction.reconstruct",
        "shoestring.training.distillation.DeviationAware",
        "shoestring.training.model_text.model_text",
    ),
    claims=(GAP, TRAINED_RTN, TRAINED_INIT, TIME_F32, TIME_BF16, BYTES, SPARSE, STUDENT, DEVIATION),
)


def measure(effort: Effort, seed: int) -> Comparison:
    """Untrained planes beside plain rounding on a whole model, one block trained, the product timed; the full
    run trains all blocks (about an hour)."""
    started = time.perf_counter()
    smoke = effort is Effort.SMOKE
    full = effort is Effort.FULL
    task = tiny_task(seed) if smoke else language_task((32, 512), (8 if full else 4, 512))
    group = 32 if smoke else GROUP
    block = 1 if smoke else BLOCK
    calibration = capture(task.model, [w[None] for w in task.calibration[: 16 if full else 8]])
    rows, best, compensated = untrained_rows(task, calibration, group, full=full)
    rows += block_rows(task, calibration, block, group, steps=4 if smoke else 100)
    rows += time_rows(*((256, 256, 3) if smoke else (8192, 4096, 9)))
    rows += size_rows(task.model, compensated, group)
    notes = [task.origin]
    if full:
        rows += distilled_rows(task, calibration, best, seed)
    else:
        for claim in (STUDENT, DEVIATION):
            notes.append(f"{claim.metric}: not measured; training all blocks takes the full effort")
    return Comparison(
        system=card.slug,
        method="dual binarisation, groups of 64",
        baseline="rounding to two bits, min-max, groups of 64",
        work="all linear layers of the blocks; embeddings, head and norms as they are",
        rows=tuple(rows),
        effort=effort,
        seed=seed,
        notes=tuple(notes),
        seconds=time.perf_counter() - started,
    )


def untrained_rows(
    task: LanguageTask, calibration: Calibration, group: int, *, full: bool
) -> tuple[list[Row], float, Decoder]:
    """Perplexities without any training; the best of them; the model with compensated planes."""
    exact = _nll(task.model, task)
    rounded = _nll(_round_min_max(copy.deepcopy(task.model), group), task)
    recipes = {"inputs": DualBinarize(group, Fit.INPUTS), "compensated": DualBinarize(group)}
    if full:
        recipes["weights"] = DualBinarize(group, Fit.WEIGHTS)
    models = {name: _applied(task.model, recipe, calibration) for name, recipe in recipes.items()}
    found = {name: _nll(model, task) for name, model in models.items()}
    if full:
        found["GPTQ"] = _nll(_applied(task.model, GPTQ(2, group, ZeroPoint.INTEGER), calibration), task)
    share = (rounded - found["inputs"]) / (rounded - exact) if rounded != exact else math.nan
    rows = [GAP.row(baseline=None, method=share, against="float32 and rounding")]
    labels = {
        "inputs": "planes weighted by inputs", "compensated": "planes with compensation",
        "weights": "planes by weights alone", "GPTQ": "GPTQ, two bits",
    }  # fmt: skip
    for name, nll in found.items():
        rows.append(_row(f"ln PPL, {labels[name]}", "quality", rounded, nll))
    rows.append(_row("ln PPL, float32", "quality", rounded, exact))
    return rows, math.exp(min(found.values())), models["compensated"]


def block_rows(
    task: LanguageTask, calibration: Calibration, index: int, group: int, *, steps: int
) -> list[Row]:
    """One block rounded, made of planes, and trained; its error on text it was not trained on."""
    model = copy.deepcopy(task.model)
    block: nn.Module = model.model.layers[index]
    length = min(256, task.calibration.shape[1])
    batches = task.calibration[:, :length].split(4)
    trace, held_out = trace_block(model, block, batches), trace_block(model, block, task.held_out.split(4))
    rounded = update_error(_round_min_max(copy.deepcopy(block), group), held_out)
    make_latent(block, f"model.layers.{index}", DualBinarize(group, Fit.INPUTS), calibration)
    start = update_error(block, held_out)
    reconstruct(block, trace, Reconstruction(steps))
    trained = update_error(block, held_out)
    bits = [m.pack().stored.set_bits() / m.latent.numel() for m in _latent_layers(block)]
    return [
        TRAINED_RTN.row(baseline=rounded, method=trained, against="rounding"),
        TRAINED_INIT.row(baseline=start, method=trained, against="planes before training"),
        Row(
            metric="set bits a weight after training", kind="compute", unit="", better="lower",
            baseline=None, method=sum(bits) / len(bits),
        ),
    ]  # fmt: skip


def time_rows(rows: int, cols: int, rounds: int) -> list[Row]:
    """The product with one vector beside dense ones, over copies that no cache holds."""
    generator = torch.Generator().manual_seed(0)
    form, copies = DualBinary(GROUP), 3 if rows > 1000 else 1
    weights = [torch.randn(rows, cols, generator=generator) for _ in range(copies)]
    planes = []
    for weight in weights:
        levels = torch.tensor([1.6, -0.8]).expand(rows, cols // GROUP, 2)
        stored = pack_planes(form.assign(weight, levels))
        planes.append(PlaneWeights(*stored, levels.half().contiguous(), cols, GROUP))
    halves = [weight.bfloat16() for weight in weights]
    x = torch.randn(1, cols, generator=generator)
    narrow = x.bfloat16()

    def over(product: Callable[[int], Tensor]) -> Callable[[], object]:
        return lambda: [product(i) for i in range(copies)]

    times = time_interleaved(
        {
            "planes": over(lambda i: dual_binary_linear(x, planes[i])),
            "float32": over(lambda i: nn.functional.linear(x, weights[i])),
            "bfloat16": over(lambda i: nn.functional.linear(narrow, halves[i])),
        },
        rounds=rounds,
    )
    return [
        claim.row(
            baseline=times.median(peer) / copies,
            method=times.median("planes") / copies,
            ratio=times.ratio("planes", peer),
            spread=times.interval("planes", peer),
            against=f"torch {peer}",
        )
        for claim, peer in ((TIME_F32, "float32"), (TIME_BF16, "bfloat16"))
    ]


def size_rows(original: Decoder, planes: Decoder, group: int) -> list[Row]:
    """Bytes and set bits of all layers of planes."""
    layers = {n: m for n, m in planes.named_modules() if isinstance(m, DualBinaryLinear)}
    count = sum(m.in_features * m.out_features for m in layers.values())
    ones = sum(m.stored.set_bits() for m in layers.values())
    rounded = 0
    for name in layers:
        weight: Any = original.get_submodule(name).weight
        form = _two_bits(group)
        codes = form.encode(weight, fit_min_max(form, weight))
        rounded += int((codes & 1).sum()) + int((codes >> 1).sum())
    stored = sum(m.stored.nbytes for m in layers.values())
    return [
        BYTES.row(baseline=2 * count, method=stored, against="float16"),
        SPARSE.row(baseline=rounded / count, method=ones / count, against="two-bit codes"),
    ]


def distilled_rows(task: LanguageTask, calibration: Calibration, best: float, seed: int) -> list[Row]:
    """All blocks reconstructed one after the other, then distilled four at a time on the model's own text."""
    start = copy.deepcopy(task.model)
    batches = task.calibration[:, :256].split(4)
    for index, block in enumerate(start.model.layers):
        # The targets are what the original block puts out for the inputs that reach it now.
        trace = trace_block(start, block, batches)
        own = capture(start, batches, names=_names(start, index))
        make_latent(block, f"model.layers.{index}", DualBinarize(GROUP, Fit.INPUTS), own)
        reconstruct(block, trace, Reconstruction(100))
    reached: dict[float, list[float]] = {0.0: [], 0.5: []}
    for run in range(3):
        generator = torch.Generator().manual_seed(seed + run)
        text = model_text(task.model, 128, 256, generator=generator)
        for gamma, found in reached.items():
            student = copy.deepcopy(start)
            _distil_in_parts(student, task.model, text, gamma)
            found.append(math.exp(_nll(student, task)))
    plain, aware = (sum(found) / len(found) for found in reached.values())
    spread = [a / p for a, p in zip(reached[0.5], reached[0.0], strict=True)]
    return [
        STUDENT.row(baseline=best, method=aware, against="best untrained"),
        DEVIATION.row(
            baseline=plain, method=aware, spread=(min(spread), max(spread)), against="plain distillation"
        ),
        _row("perplexity, blocks reconstructed, not distilled", "quality", best, math.exp(_nll(start, task))),
    ]


def make_latent(block: nn.Module, prefix: str, recipe: DualBinarize, calibration: Calibration) -> None:
    """Put trainable planes in the place of every linear layer of a block."""
    for name, module in list(block.named_modules()):
        if isinstance(module, nn.Linear):
            path, _, leaf = name.rpartition(".")
            latent = recipe.latent(f"{prefix}.{name}", module, calibration)
            setattr(block.get_submodule(path), leaf, latent)


def _distil_in_parts(student: Decoder, teacher: Decoder, text: Tensor, gamma: float) -> None:
    blocks, batches = student.model.layers, list(text.split(4))
    for first in range(0, len(blocks), 4):
        part = [blocks[i] for i in range(first, min(first + 4, len(blocks)))]
        settings = Distillation(steps=25, loss=DeviationAware(gamma=gamma))
        distil(student, teacher, batches, settings, within=part)


def _names(model: nn.Module, index: int) -> list[str]:
    prefix = f"model.layers.{index}."
    return [n for n, m in model.named_modules() if n.startswith(prefix) and isinstance(m, nn.Linear)]


def _latent_layers(block: nn.Module) -> Iterator[LatentDualBinaryLinear]:
    return (m for m in block.modules() if isinstance(m, LatentDualBinaryLinear))


def _applied(model: Decoder, recipe: DualBinarize | GPTQ, calibration: Calibration) -> Decoder:
    changed = copy.deepcopy(model)
    apply(changed, {BLOCKS: recipe}, calibration=calibration)
    return changed


def _round_min_max(module: nn.Module, group: int) -> nn.Module:
    form = _two_bits(group)
    for name, linear in module.named_modules():
        if isinstance(linear, nn.Linear) and name.endswith("proj"):
            grid = fit_min_max(form, linear.weight)
            linear.weight = nn.Parameter(form.decode(form.encode(linear.weight, grid), grid), False)
    return module


def _two_bits(group: int) -> GroupedAffine:
    return GroupedAffine(2, group, ZeroPoint.INTEGER)


@torch.no_grad()
def _nll(model: nn.Module, task: LanguageTask) -> float:
    return perplexity(model, task.held_out).nll


def _row(metric: str, kind: str, baseline: float, method: float) -> Row:
    return Row(metric=metric, kind=kind, unit="", better="lower", baseline=baseline, method=method)

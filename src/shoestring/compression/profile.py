"""The profiling pass: what every recipe would cost in every layer, kept on disk for every later budget.

A profile belongs to one model and one calibration text. It is resumable: statistics are written once they are
complete, predicted losses layer by layer, so that a killed run goes on where it stopped.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from shoestring.compression.apply import Slot, slots
from shoestring.compression.calibration import Calibration, Moments
from shoestring.compression.menu import options_for
from shoestring.compression.recipe import ModuleRecipe
from shoestring.compression.sensitivity import Sensitivity, measure_sensitivity
from shoestring.compression.weight_matrix import weight_matrix
from shoestring.files import cache_folder, replacing_file, write_text

VERSION = 2
"""Part of the cache key: raised when the same inputs would give another profile."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Option:
    """One recipe for one weight: its bytes in the file and the divergence it is predicted to add (nats).

    seconds: of its product for one token; 0 as long as no speed is asked for.
    """

    recipe: ModuleRecipe
    nbytes: int
    loss: float
    seconds: float = 0.0


@dataclass
class Profile:
    """Curvature and calibration of a model, and the options of each of its weights by slot name."""

    sensitivity: Sensitivity
    options: dict[str, list[Option]] = field(default_factory=dict)
    folder: Path | None = None

    @property
    def calibration(self) -> Calibration:
        return self.sensitivity.calibration


def profile(
    model: nn.Module,
    windows: Int[Tensor, "windows tokens"],
    menu: Sequence[ModuleRecipe],
    *,
    gradient_windows: int,
    seed: int,
    autocast: torch.dtype | None = None,
    progress: Progress | None = None,
    folder: Path | None = None,
) -> Profile:
    """Measure a model's sensitivity and predict the loss of every recipe of the menu in every layer.

    folder: where to keep it (default: the user's cache, by the hash of model, text and settings). What is
    there already is not measured again. A weight that no recipe can rewrite has no options: it stays.
    """
    if folder is None:
        key = fingerprint(model, windows, gradient_windows, seed, autocast)
        folder = cache_folder("profiles", key)
    folder.mkdir(parents=True, exist_ok=True)
    sensitivity = _load_statistics(folder)
    if sensitivity is None:
        report = None if progress is None else (lambda done, total: progress("statistics", done, total))
        generator = torch.Generator().manual_seed(seed)
        sensitivity = measure_sensitivity(
            model,
            windows,
            gradient_windows=gradient_windows,
            generator=generator,
            autocast=autocast,
            progress=report,
        )
        _save_statistics(folder, sensitivity)
    result = Profile(sensitivity, folder=folder)
    known = _read_losses(folder)
    found = slots(model)
    for done, slot in enumerate(found):
        losses = known.setdefault(slot.name, {})
        if any(_key(recipe) not in losses for recipe in options_for(slot, menu)):
            for recipe in options_for(slot, menu):
                if _key(recipe) not in losses:
                    losses[_key(recipe)] = predicted_loss(slot, recipe, sensitivity)
            write_text(folder / "losses.json", json.dumps(known))
        result.options[slot.name] = [
            Option(recipe, recipe.bytes_after(slot.module), losses[_key(recipe)])
            for recipe in options_for(slot, menu)
        ]
        if progress is not None:
            progress(slot.name, done + 1, len(found))
    return result


def predicted_loss(slot: Slot, recipe: ModuleRecipe, sensitivity: Sensitivity) -> float:
    """The divergence, in nats a token, that rewriting this weight alone is predicted to cause."""
    with torch.no_grad():
        rewritten = recipe.rewrite(slot.name, slot.module, sensitivity.calibration)
        after = getattr(rewritten, "weight", None)
        if not isinstance(after, Tensor):
            raise TypeError(f"{type(rewritten).__name__} of {slot.name!r} has no weight to compare.")
        return sensitivity.loss(slot, after.float() - weight_matrix(slot.module).float())


def fingerprint(
    model: nn.Module,
    windows: Int[Tensor, "windows tokens"],
    gradient_windows: int,
    seed: int,
    autocast: torch.dtype | None,
) -> str:
    """A name for what a profile was made from: the weights, the text, the settings and this version."""
    digest = hashlib.sha256(repr((VERSION, gradient_windows, seed, str(autocast))).encode())
    for name, tensor in [*sorted(model.state_dict().items()), ("windows", windows)]:
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:32]


def _key(recipe: ModuleRecipe) -> str:
    return json.dumps(recipe.to_json(), sort_keys=True)


def _read_losses(folder: Path) -> dict[str, dict[str, float]]:
    path = folder / "losses.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _save_statistics(folder: Path, sensitivity: Sensitivity) -> None:
    """Symmetric matrices as lower triangles, shared ones once; written beside and renamed."""
    tensors: dict[str, Tensor] = {}
    written: dict[int, str] = {}
    for name, moments in sensitivity.calibration.moments.items():
        owner = written.setdefault(id(moments), name)
        tensors[f"shares/{name}"] = torch.tensor(list(owner.encode()), dtype=torch.uint8)
        if owner == name:
            tensors[f"moment/{name}"] = _triangle(moments.second_moment)
            tensors[f"magnitude/{name}"] = moments.mean_magnitude
            tensors[f"count/{name}"] = torch.tensor([moments.count])
    for name, counts in sensitivity.calibration.token_counts.items():
        tensors[f"tokens/{name}"] = counts
    for name, gradient in sensitivity.output_gradients.items():
        tensors[f"output_gradient/{name}"] = gradient
    for name, moment in sensitivity.table_gradients.items():
        tensors[f"table_gradient/{name}"] = _triangle(moment)
    with replacing_file(folder / "statistics.safetensors") as temporary:
        save_file({k: v.contiguous() for k, v in tensors.items()}, temporary)


def _load_statistics(folder: Path) -> Sensitivity | None:
    path = folder / "statistics.safetensors"
    if not path.exists():
        return None
    tensors = load_file(path)

    def under(kind: str) -> dict[str, Tensor]:
        return {k.removeprefix(f"{kind}/"): v for k, v in tensors.items() if k.startswith(f"{kind}/")}

    owners = {name: bytes(owner.tolist()).decode() for name, owner in under("shares").items()}
    magnitudes, counts = under("magnitude"), under("count")
    shared = {
        name: Moments.of(_square(moment), magnitudes[name], int(counts[name]))
        for name, moment in under("moment").items()
    }
    calibration = Calibration({name: shared[owner] for name, owner in owners.items()}, under("tokens"))
    tables = {name: _square(moment) for name, moment in under("table_gradient").items()}
    return Sensitivity(calibration, under("output_gradient"), tables)


def _triangle(square: Float[Tensor, "cols cols"]) -> Float[Tensor, " packed"]:
    rows, cols = torch.tril_indices(*square.shape)
    return square[rows, cols]


def _square(triangle: Float[Tensor, " packed"]) -> Float[Tensor, "cols cols"]:
    size = int(((8 * triangle.numel() + 1) ** 0.5 - 1) / 2)
    rows, cols = torch.tril_indices(size, size)
    square = torch.empty(size, size, dtype=triangle.dtype)
    square[rows, cols] = triangle
    square[cols, rows] = triangle
    return square

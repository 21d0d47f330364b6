"""Where a training run stands, on disk: a folder for each kept step, written beside its place and renamed.

`step-00000120/` holds `model.safetensors`, `training.safetensors` (optimizer tensors, losses),
`best.safetensors` where evaluations choose the weights, and `state.json` with the SHA-256 of each. Never
pickle. The newest two are kept: should the last be damaged, the one before it still is good.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from shoestring.files import replacing_folder
from shoestring.notices import notice_fallback

KEPT = 2
Tensors = dict[str, Tensor]
Names = Mapping[Tensor, str]
"""Of parameters."""


@dataclass
class Checkpoint:
    """Everything a resumed run needs. `notes` is JSON; `best` those of the best evaluation, if wanted."""

    step: int
    model: Tensors
    training: Tensors
    notes: dict[str, Any]
    best: Tensors | None = None


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write `checkpoint` into `folder` and remove all but the newest two.

    Raises: OSError where it cannot be written; the older ones are then untouched.
    """
    with replacing_folder(folder / f"step-{checkpoint.step:08d}") as place:
        files = {"model": checkpoint.model, "training": checkpoint.training, "best": checkpoint.best}
        hashes = {}
        for name, tensors in files.items():
            if tensors is not None:
                path = place / f"{name}.safetensors"
                save_file(_separate(tensors), path)
                hashes[path.name] = _hash(path)
        state = {"step": checkpoint.step, "notes": checkpoint.notes, "sha256": hashes}
        (place / "state.json").write_text(json.dumps(state, indent=1), encoding="utf-8")
    for old in _steps(folder)[KEPT:]:
        shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest checkpoint in `folder` that is whole; None where there is none at all.

    A damaged one is passed over, and said. Raises: ValueError if all that are there are damaged.
    """
    places = _steps(folder)
    for place in places:
        try:
            return _read(place)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            notice_fallback(f"checkpoint {place}", f"damaged ({error}); the one before it is used")
    if places:
        raise ValueError(f"every checkpoint in {folder} is damaged; remove the folder to begin anew")
    return None


def steps_done(folder: Path) -> int:
    """The step of the newest checkpoint in `folder`, 0 where there is none."""
    places = _steps(folder)
    return int(places[0].name.removeprefix("step-")) if places else 0


def model_tensors(model: nn.Module) -> Tensors:
    """Copies of the parameters and buffers of a model's state dict.

    Raises: TypeError for an entry that is no tensor: it could not be stored without pickle.
    """
    state = model.state_dict()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise TypeError(
                f"the model's state {name!r} is a {type(value).__name__}; only tensors can be saved"
            )
    return {name: value.detach().clone() for name, value in state.items()}


def optimizer_tensors(optimizer: Optimizer, names: Names) -> tuple[Tensors, dict[str, Any]]:
    """The optimizer's states by "parameter/state": the tensors, and the plain numbers apart.

    Raises: TypeError for a state that is neither tensor, number nor None.
    """
    tensors: Tensors = {}
    numbers: dict[str, Any] = {}
    for parameter, states in optimizer.state.items():
        for key, value in states.items():
            name = f"{names[parameter]}/{key}"
            if isinstance(value, Tensor):
                tensors[name] = value.detach()
            elif value is None or isinstance(value, bool | int | float | str):
                numbers[name] = value
            else:
                raise TypeError(
                    f"{type(optimizer).__name__} keeps {key!r} as a {type(value).__name__}; only tensors and "
                    "numbers can be saved: train without folder, or with another optimizer"
                )
    return tensors, numbers


def restore_optimizer(
    optimizer: Optimizer, names: Names, tensors: Tensors, numbers: Mapping[str, Any]
) -> None:
    """Set the states that `optimizer_tensors` gave.

    Done by hand, as `load_state_dict` rounds states to the type of their parameter. A counter without axes
    stays on the CPU, where torch keeps it unless its optimizer is fused or capturable.
    """
    saved = {**tensors, **numbers}
    for group in optimizer.param_groups:
        moved = group.get("fused") or group.get("capturable")
        for parameter in group["params"]:
            start = f"{names[parameter]}/"
            for name in [name for name in saved if name.startswith(start)]:
                value = saved[name]
                if isinstance(value, Tensor) and (value.dim() or moved):
                    value = value.to(parameter.device)
                optimizer.state[parameter][name.removeprefix(start)] = value


def _steps(folder: Path) -> list[Path]:
    """The checkpoints, newest first."""
    return sorted((path for path in folder.glob("step-*") if path.is_dir()), reverse=True)


def _read(place: Path) -> Checkpoint:
    state = json.loads((place / "state.json").read_text(encoding="utf-8"))
    for name, expected in state["sha256"].items():
        if _hash(place / name) != expected:
            raise ValueError(f"{name} is not what was written")
    files = {name.removesuffix(".safetensors"): load_file(place / name) for name in state["sha256"]}
    return Checkpoint(state["step"], files["model"], files["training"], state["notes"], files.get("best"))


def _separate(tensors: Tensors) -> Tensors:
    """Contiguous tensors that share no storage, as safetensors wants them; tied weights become copies."""
    return dict(_owned(tensors))


def _owned(tensors: Tensors) -> Iterator[tuple[str, Tensor]]:
    seen: set[int] = set()
    for name, tensor in tensors.items():
        shared = tensor.untyped_storage().data_ptr() in seen
        seen.add(tensor.untyped_storage().data_ptr())
        yield name, tensor.clone(memory_format=torch.contiguous_format) if shared else tensor.contiguous()


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

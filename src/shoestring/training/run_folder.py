"""The folder of one training run: it belongs to one process at a time, one plan and one model."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from shoestring.training.checkpoint import Checkpoint
from shoestring.training.plan import TrainingPlan


@contextmanager
def own_folder(folder: Path | None) -> Iterator[None]:
    """Make the folder and keep other runs out of it; the system lets go if we are killed.

    Raises: ValueError if another run is in it.
    """
    if folder is None:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another run trains in {folder}; wait, or use another folder") from None
        yield


def check_same_run(folder: Path, checkpoint: Checkpoint, plan: TrainingPlan, model: nn.Module) -> None:
    """Raises: ValueError naming the first difference between the saved run and this plan and model."""
    saved, wanted = checkpoint.notes["plan"], plan.as_json()
    for name in wanted:
        if saved.get(name) != wanted[name]:
            raise ValueError(
                f"{folder} holds a run with {name}={saved.get(name)!r}, not {wanted[name]!r}; use that, or "
                "another folder"
            )
    here = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    there = {name: tuple(tensor.shape) for name, tensor in checkpoint.model.items()}
    for name in sorted(here.keys() | there.keys()):
        if here.get(name) != there.get(name):
            raise ValueError(
                f"{folder} holds a run of another model: {name!r} is {there.get(name)} there and "
                f"{here.get(name)} here; use another folder"
            )

"""Metrics of a run as they arise: JSON lines in its folder, and TensorBoard's event files where wanted."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from shoestring.errors import MissingExtra
from shoestring.files import write_text

METRICS = "metrics.jsonl"


class MetricsLog:
    """Lines of {"step": …, name: value}; one whole line at a time, so that a kill loses at most the last.

    A resumed run first drops what is later than its checkpoint: those steps come again. folder: None logs
    nowhere. tensorboard: also write event files into `folder / "tensorboard"`.
    Raises: MissingExtra where TensorBoard is wanted and not installed.
    """

    def __init__(self, folder: Path | None, resumed_from: int, *, tensorboard: bool = False) -> None:
        self._file: TextIO | None = None
        self._board: Any = None
        if folder is not None:
            path = folder / METRICS
            _drop_after(path, resumed_from)
            if tensorboard:
                self._board = _summary_writer()(folder / "tensorboard", purge_step=resumed_from + 1)
            self._file = path.open("a", encoding="utf-8")

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for writer in (self._file, self._board):
            if writer is not None:
                writer.close()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Note the values after `step` steps."""
        if self._file is not None:
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl`; a last line that a kill cut short is left out."""
    path = folder / METRICS
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _drop_after(path: Path, step: int) -> None:
    kept = [line for line in read_metrics(path.parent) if line["step"] <= step]
    write_text(path, "".join(json.dumps(line) + "\n" for line in kept))


def _summary_writer() -> type:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingExtra(
            "tensorboard=True needs TensorBoard: pip install 'shoestring[tensorboard]'"
        ) from error
    return SummaryWriter

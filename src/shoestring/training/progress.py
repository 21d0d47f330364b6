"""The bar of a training run, on stderr."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def step_bar(steps: int, done: int) -> Iterator[Callable[[float], None]]:
    """A bar of `steps`, of which `done` are; call what is given with the loss after each further one."""
    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]}"),
    )
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("training", total=steps, completed=done, loss="…")
        yield lambda loss: bar.update(task, advance=1, loss=f"{loss:.4f}")

"""Ctrl-C between two steps instead of within one, where weights and optimizer would not agree."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupt:
    """Whether Ctrl-C was pressed; a second press is not held back."""

    asked = False


@contextmanager
def held_back_interrupt() -> Iterator[Interrupt]:
    """Within, the first Ctrl-C only sets `asked`.

    Nothing is held back outside the main thread, where none comes, nor from a handler of the program's own.
    """
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    before = signal.getsignal(signal.SIGINT)

    def hold(number: int, frame: FrameType | None) -> None:
        interrupt.asked = True
        signal.signal(signal.SIGINT, before)

    if before is not signal.default_int_handler:
        yield interrupt
        return
    signal.signal(signal.SIGINT, hold)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, before)

"""The live engine in a thread of its own: requests come from any thread, messages go out as they are made."""

import contextlib
import queue
import threading
from collections.abc import Callable

from shoestring.serving.engine import Engine, Message
from shoestring.serving.events import Finish, Reason, Reject

Listener = Callable[[Message], None]


class EngineDriver:
    """Runs an engine until it is stopped. on_step: called in the engine's thread after each iteration."""

    def __init__(self, engine: Engine, on_step: Callable[[], None] = lambda: None) -> None:
        self.engine, self._on_step = engine, on_step
        self._commands: queue.Queue[Callable[[], None]] = queue.Queue()
        self._listeners: dict[str, Listener] = {}
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self.error: BaseException | None = None
        """What ended the engine, if something did."""

    @property
    def accepts(self) -> bool:
        """Whether new requests are served: it was started, is not stopping, and did not fail."""
        return self._thread.is_alive() and not self._closing.is_set() and self.error is None

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def stop(self, timeout_seconds: float | None = None) -> bool:
        """Take no more requests, finish those there are, and end; whether that was done in time."""
        self._closing.set()
        self._commands.put(lambda: None)
        self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    def submit(self, rid: str, add: Callable[[Engine], None], listener: Listener) -> None:
        """Let `add` give the engine a request of this name; `listener` gets its messages, in the engine's
        thread, of which `Finish` or `Reject` is the last.
        """

        def command() -> None:
            self._listeners[rid] = listener
            try:
                add(self.engine)
            except ValueError as error:
                self._tell(Reject(rid, str(error)))

        self._commands.put(command)

    def cancel(self, rid: str) -> None:
        """End a request early; its listener hears no more of it."""

        def command() -> None:
            self._listeners.pop(rid, None)
            self.engine.cancel(rid)

        self._commands.put(command)

    def _run(self) -> None:
        try:
            while self.engine.busy or not self._closing.is_set() or not self._commands.empty():
                self._take_commands()
                messages = self.engine.step()
                # First: who hears of an end and looks must not see the request at work still.
                self._on_step()
                for message in messages:
                    self._tell(message)
        except BaseException as error:
            # Nobody reads this thread's end: every request must hear of it.
            self.error = error
            for rid in list(self._listeners):
                self._tell(Finish(rid, Reason.FAILED))
            raise

    def _take_commands(self) -> None:
        if not self.engine.busy:
            self._commands.get()()
        with contextlib.suppress(queue.Empty):
            while True:
                self._commands.get_nowait()()

    def _tell(self, message: Message) -> None:
        ends = isinstance(message, Finish | Reject)
        listener = self._listeners.pop(message.rid, None) if ends else self._listeners.get(message.rid)
        if listener is not None:
            listener(message)

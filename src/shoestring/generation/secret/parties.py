"""Parties as processes of their own, joined by TCP on the loopback device; they stay for several programs.

A program is a module-level function `program(engine, *inputs, **public)`, which every party runs on its
shares.
"""

import enum
import multiprocessing
import secrets
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

from shoestring.generation.secret.channel import Channel, Counters, HandshakeError
from shoestring.generation.secret.dealer import Dealer
from shoestring.generation.secret.engine import Engine
from shoestring.generation.secret.three_party import ThreeParty
from shoestring.generation.secret.two_party import DEALER, RemoteDealer, TwoParty
from shoestring.numbers.ring import RingFormat

HOST = "127.0.0.1"


class Dealing(enum.Enum):
    """Where the randomness of two parties comes from. STUB: party 1 computes it, which is for tests and for
    counting only, as it then knows all masks."""

    PROCESS = "process"
    STUB = "stub"


@dataclass(frozen=True)
class Setting:
    """parties: 2 (summands, with a dealer) or 3 (replicated, which needs no dealer). timeout: seconds of
    silence after which a peer counts as dead. processes: how many to start in all.

    Raises: ValueError for another number of parties or processes, or two without a dealer.
    """

    parties: int = 2
    dealer: Dealing | None = Dealing.PROCESS
    form: RingFormat = field(default_factory=RingFormat)
    timeout: float = 60.0
    processes: int = 3

    def __post_init__(self) -> None:
        if self.parties not in (2, 3):
            raise ValueError(f"parties={self.parties}: there are protocols for 2 and for 3.")
        if self.parties == 2 and self.dealer is None:
            raise ValueError("parties=2 needs a dealer for its products; set dealer=Dealing.PROCESS.")
        if self.processes != 3:
            raise ValueError(
                f"processes={self.processes}: both settings take 3, two parties and a dealer or three "
                "parties."
            )


@dataclass(frozen=True)
class Run:
    """What a program gave: results by party, and what went over the wire, summed over the parties."""

    results: list[Any]
    sent_bytes: int
    offline_bytes: int
    rounds: int


class PartyGroup:
    """Three processes that run programs together; a context manager. threads: in this process instead, over
    the same sockets, for tests and debugging.

    Raises: what a party raised, the party named in the message.
    """

    def __init__(self, setting: Setting = Setting(), *, threads: bool = False) -> None:
        self.setting = setting
        spawn = multiprocessing.get_context("spawn")
        self._links: list[Connection] = []
        self.workers: list[Any] = []
        self._failed = False
        keys = [secrets.token_bytes(16) for _ in range(3)]
        for rank in range(3):
            ours, theirs = spawn.Pipe()
            arguments = (rank, theirs, setting, keys)
            worker: Any = (
                threading.Thread(target=_party, args=arguments, daemon=True)
                if threads
                else spawn.Process(target=_party, args=arguments, daemon=True)
            )
            worker.start()
            if not threads:
                # With no copy of its end here, a party that dies is noticed.
                theirs.close()
            self._links.append(ours)
            self.workers.append(worker)
        ports = [link.recv() for link in self._links]
        for link in self._links:
            link.send(ports)

    def run(self, program: Callable[..., Any], inputs: Sequence[Sequence[Any]] = (), /, **public: Any) -> Run:
        """Run a program in all parties. inputs: for each argument, what every party gets (shares); public:
        the same for all, or a mapping by party under the name `of_party`.

        Raises: HandshakeError where parties disagree; ConnectionError naming a dead party.
        """
        if self._failed:
            raise ConnectionError("a party of this group has failed before; start a new group.")
        for rank in range(self.setting.parties):
            self._links[rank].send((program, [argument[rank] for argument in inputs], public))
        dealing = self.setting.parties == 2 and self.setting.dealer is Dealing.PROCESS
        if dealing:
            self._links[DEALER].send("deal")
        answers = [self._answer(rank) for rank in range(self.setting.parties)]
        if dealing:
            answers.append(self._answer(DEALER))
        failures = [answer for answer in answers if isinstance(answer, BaseException)]
        if failures:
            self._failed = True
            # Who failed by itself comes before who noticed.
            raise min(failures, key=lambda error: type(error) is ConnectionError)
        counted: list[Counters] = [counters for _, counters in answers]
        return Run(
            [result for result, _ in answers[: self.setting.parties]],
            sum(c.sent_bytes for c in counted),
            sum(c.offline_bytes for c in counted),
            max(c.rounds for c in counted),
        )

    def close(self) -> None:
        """End all parties."""
        for link in self._links:
            try:
                link.send(None)
            except OSError:
                continue
        for worker in self.workers:
            worker.join(timeout=5)
            if hasattr(worker, "terminate") and worker.is_alive():
                worker.terminate()

    def __enter__(self) -> "PartyGroup":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _answer(self, rank: int) -> Any:
        try:
            return self._links[rank].recv()
        except (EOFError, OSError):
            return ConnectionError(f"party {rank} ended without an answer.")


def connect(rank: int, listener: socket.socket, ports: Sequence[int], timeout: float) -> Channel:
    """Connections to all peers: to those of lower rank this party calls, the others call it."""
    sockets: dict[int, socket.socket] = {}
    for peer in range(rank):
        link = socket.create_connection((HOST, ports[peer]), timeout=timeout)
        link.sendall(bytes([rank]))
        sockets[peer] = link
    listener.settimeout(timeout)
    for _ in range(rank + 1, len(ports)):
        link, _address = listener.accept()
        link.settimeout(timeout)
        sockets[link.recv(1)[0]] = link
    return Channel(rank, sockets, timeout)


def _party(rank: int, link: Connection, setting: Setting, keys: Sequence[bytes]) -> None:
    listener = socket.create_server((HOST, 0))
    link.send(listener.getsockname()[1])
    channel = connect(rank, listener, link.recv(), setting.timeout)
    listener.close()
    worker: Engine | Dealer
    if setting.parties == 3:
        worker = ThreeParty(channel, setting.form, (keys[rank], keys[(rank + 1) % 3]))
    elif rank == DEALER:
        worker = Dealer((keys[0], keys[1]))
    else:
        stub = Dealer((keys[0], keys[1])) if setting.dealer is Dealing.STUB else None
        worker = TwoParty(channel, setting.form, keys[rank], stub or RemoteDealer(channel))
    try:
        while (order := link.recv()) is not None:
            channel.counters = Counters()
            try:
                link.send((_work(worker, order, setting, channel), channel.counters))
            except Exception as error:
                # Peers must not wait for who failed.
                channel.close()
                link.send(_named(error, rank))
                return
    except (EOFError, OSError):
        return
    finally:
        channel.close()


def _work(worker: Engine | Dealer, order: Any, setting: Setting, channel: Channel) -> Any:
    if isinstance(worker, Dealer):
        worker.serve(channel)
        return None
    program, inputs, public = order
    own: Mapping[int, Mapping[str, Any]] = public.pop("of_party", {})
    public = {**public, **own.get(worker.rank, {})}
    peers = range(setting.parties)
    channel.agree(
        {
            "program": program.__qualname__,
            "parties": setting.parties,
            "fraction bits": worker.form.frac_bits,
            "shapes": [list(x.shape) if hasattr(x, "shape") else repr(type(x)) for x in inputs],
            "settings": {name: repr(value) for name, value in public.items()},
        },
        [peer for peer in peers if peer != worker.rank],
    )
    try:
        return program(worker, *inputs, **public)
    finally:
        if isinstance(worker, TwoParty):
            worker.done()


def _named(error: Exception, rank: int) -> Exception:
    if isinstance(error, HandshakeError | ConnectionError):
        return error
    try:
        return type(error)(f"party {rank}: {error}")
    except TypeError:
        return RuntimeError(f"party {rank}: {type(error).__name__}: {error}")

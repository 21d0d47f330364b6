"""A party's connections to its peers over TCP: every byte and every dependent round is counted here.

A message carries the sender's round number; who receives it is at least one round further. The largest number
of all parties at the end is the length of the longest chain of messages that waited for each other.
"""

import json
import selectors
import socket
import struct
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

HEADER = struct.Struct("<QI")
"""Bytes of payload, and the sender's round; not counted as payload."""
CHUNK = 1 << 18


class HandshakeError(ConnectionError):
    """Two parties do not agree on what they are about to compute; the message names the difference."""


@dataclass
class Counters:
    """What a party has sent. sent_bytes: payload of the protocol. offline_bytes: payload to and from a
    dealer, and what the dealer sent. rounds: dependent rounds, of the protocol only."""

    sent_bytes: int = 0
    offline_bytes: int = 0
    messages: int = 0
    rounds: int = 0


class Channel:
    """A party's open sockets, by peer. timeout: seconds without a byte after which a peer counts as dead.

    name: how to call a peer in messages, by rank.
    """

    def __init__(self, rank: int, sockets: Mapping[int, socket.socket], timeout: float = 30.0) -> None:
        self.rank, self.sockets, self.timeout = rank, dict(sockets), timeout
        self.counters = Counters()
        self.transcript: list[bytes] | None = None
        """Set to a list, it gathers every payload received: a party's view."""
        for link in self.sockets.values():
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            link.setblocking(False)

    def transfer(self, outgoing: Mapping[int, bytes], incoming: Collection[int]) -> dict[int, bytes]:
        """Send to some peers and receive from some, all at once; one round for who receives.

        Raises: ConnectionError naming the party that closed its end or stays silent.
        """
        counted = self.counters
        counted.sent_bytes += sum(map(len, outgoing.values()))
        counted.messages += len(outgoing)
        found = self._move(outgoing, incoming, counted.rounds)
        if found:
            counted.rounds = max(counted.rounds, *(number + 1 for _, number in found.values()))
        received = {peer: payload for peer, (payload, _) in found.items()}
        if self.transcript is not None:
            self.transcript.extend(received.values())
        return received

    def offline(self, outgoing: Mapping[int, bytes], incoming: Collection[int]) -> dict[int, bytes]:
        """As `transfer`, for what does not depend on inputs: counted apart, and no round."""
        self.counters.offline_bytes += sum(map(len, outgoing.values()))
        return {peer: payload for peer, (payload, _) in self._move(outgoing, incoming, 0).items()}

    def agree(self, terms: Mapping[str, Any], peers: Collection[int] | None = None) -> None:
        """Make sure that all peers go by the same terms; not counted.

        Raises: HandshakeError naming the peer, the term and both values.
        """
        peers = self.sockets.keys() if peers is None else peers
        mine = json.dumps(terms, sort_keys=True)
        answers = self._move(dict.fromkeys(peers, mine.encode()), peers, 0)
        for peer, (payload, _) in sorted(answers.items()):
            try:
                theirs = json.loads(payload)
            except ValueError:
                raise HandshakeError(
                    f"party {peer} speaks another protocol than party {self.rank}."
                ) from None
            ours = json.loads(mine)
            for name in sorted(ours.keys() | theirs.keys()):
                if ours.get(name) != theirs.get(name):
                    raise HandshakeError(
                        f"parties {self.rank} and {peer} disagree on {name}: {ours.get(name)} and "
                        f"{theirs.get(name)}; give all parties the same."
                    )

    def close(self) -> None:
        """Close all connections."""
        for link in self.sockets.values():
            link.close()

    def _move(
        self, outgoing: Mapping[int, bytes], incoming: Collection[int], number: int
    ) -> dict[int, tuple[bytes, int]]:
        """Both directions in one loop: two that send much to each other must not wait for each other."""
        left = {peer: memoryview(HEADER.pack(len(data), number) + data) for peer, data in outgoing.items()}
        partial = {peer: bytearray() for peer in incoming}
        found: dict[int, tuple[bytes, int]] = {}
        deadline = time.monotonic() + self.timeout
        with selectors.DefaultSelector() as selector:
            for peer in left.keys() | partial.keys():
                events = (selectors.EVENT_WRITE if peer in left else 0) | (
                    selectors.EVENT_READ if peer in partial else 0
                )
                selector.register(self.sockets[peer], events, peer)
            while left or len(found) < len(partial):
                ready = selector.select(max(0.0, deadline - time.monotonic()))
                if not ready:
                    silent = min(left.keys() | (partial.keys() - found.keys()))
                    raise ConnectionError(
                        f"party {silent} has been silent for {self.timeout:g} s; is it alive?"
                    )
                deadline = time.monotonic() + self.timeout
                for key, events in ready:
                    self._advance(key.data, events, left, partial, found)
                    waits = (selectors.EVENT_WRITE if key.data in left else 0) | (
                        selectors.EVENT_READ if key.data in partial and key.data not in found else 0
                    )
                    if waits:
                        selector.modify(key.fileobj, waits, key.data)
                    else:
                        selector.unregister(key.fileobj)
        return found

    def _advance(
        self,
        peer: int,
        events: int,
        left: dict[int, memoryview],
        partial: dict[int, bytearray],
        found: dict[int, tuple[bytes, int]],
    ) -> None:
        link = self.sockets[peer]
        try:
            if events & selectors.EVENT_WRITE:
                left[peer] = left[peer][link.send(left[peer][:CHUNK]) :]
                if not left[peer]:
                    del left[peer]
            if events & selectors.EVENT_READ:
                buffer = partial[peer]
                # Never more than this message: the next one may be here already.
                wanted = HEADER.size
                if len(buffer) >= HEADER.size:
                    wanted += HEADER.unpack_from(buffer)[0]
                data = link.recv(min(CHUNK, wanted - len(buffer)))
                if not data:
                    raise ConnectionError(f"party {peer} closed the connection.")
                buffer += data
                if len(buffer) >= HEADER.size:
                    size, number = HEADER.unpack_from(buffer)
                    if len(buffer) == HEADER.size + size:
                        found[peer] = bytes(buffer[HEADER.size :]), number
        except OSError as error:
            if isinstance(error, ConnectionError) and str(error).startswith("party"):
                raise
            raise ConnectionError(f"party {peer} is gone: {error}.") from error

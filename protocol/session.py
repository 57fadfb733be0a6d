"""One connection, seen from one end, without the connection: bytes in, events out; messages in, bytes out.

```
session = Session("device", partial=partial)            # `partial` is kept across connections
websocket.send(session.send(Hello(...)))
for event in session.receive(websocket.recv()): ...     # messages, and BlobReceived for finished transfers
```

The table of `states` says which message may come when. The session adds the rules about contents, which no
table can hold:

- only owned components are offered, by Train and Finish to the device and by Update to the coordinator, which is
  offered none that the Train said stays at home;
- only offered blobs are asked for, from the offset that the asking side has come to, one transfer of a blob at a time;
- chunks come for blobs that were asked for, in order, and the finished blob has the digest that names it;
- an update, its answer, a decline and a done come when the transfers before them are over, and with the round that was
  asked for.

It has no sockets and no clock. Each `receive` takes one WebSocket message; after RemoteProtocolError the session is
closed, and the caller closes the connection with the error's `close_code`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

from protocol.codec import Buffer, decode, encode, encode_chunk
from protocol.errors import LocalProtocolError, ProtocolError, RemoteProtocolError
from protocol.messages import (
    CHUNK,
    Accepted,
    AnyMessage,
    Bye,
    Chunk,
    ComponentRef,
    Decline,
    Done,
    Fetch,
    Finish,
    Message,
    Refuse,
    Rejected,
    Train,
    Update,
    Want,
    Welcome,
    sizes_by_digest,
)
from protocol.names import ComponentName, Digest
from protocol.states import Direction, Role, State, next_state
from protocol.transfer import Incoming, Transfers, pieces


@dataclass(frozen=True)
class BlobReceived:
    """A transfer is complete and its bytes have the digest that names it."""

    digest: Digest
    data: bytes


SessionEvent: TypeAlias = AnyMessage | BlobReceived
"""What `receive` returns: every message but Chunk, and BlobReceived."""


class Session:
    """One end of one connection (see the module's text)."""

    def __init__(self, role: Role, *, partial: dict[Digest, Incoming] | None = None, chunk_size: int = CHUNK) -> None:
        """Start in `opening`.

        Args:
            role: Which end this is.
            partial: Transfers that an earlier connection to the same peer left unfinished, by digest. The session
                changes it in place: the caller keeps one for each peer and gives it to the next session. Blobs that the
                peer no longer offers are dropped from it.
            chunk_size: How many bytes one chunk sent carries, 1 to CHUNK.

        Raises:
            LocalProtocolError: ``chunk_size`` is out of range.
        """
        if not 1 <= chunk_size <= CHUNK:
            raise LocalProtocolError(f"chunk_size is 1 to {CHUNK}, not {chunk_size}")
        self._role: Role = role
        self._state: State = "opening"
        self._chunk_size = chunk_size
        self._owned: frozenset[ComponentName] = frozenset()
        self._home: frozenset[ComponentName] = frozenset()
        self._round = -1
        self._transfers = Transfers({} if partial is None else partial)

    @property
    def state(self) -> State:
        return self._state

    @property
    def awaited(self) -> frozenset[Digest]:
        """Digests that were announced by `expect` and are not complete."""
        return self._transfers.expected

    def receive(self, data: Buffer) -> list[SessionEvent]:
        """Take one WebSocket message.

        Args:
            data: The message's bytes, in the order of arrival.

        Returns:
            No event or one.

        Raises:
            RemoteProtocolError: The peer broke the protocol; the session is closed. Nothing else is raised.
        """
        try:
            message = decode(data)
            new = next_state(self._role, self._state, "receive", message.type)
            if self._state == "closed":
                return []
            if isinstance(message, Chunk):
                blob = self._transfers.take(message)
                return [] if blob is None else [BlobReceived(message.digest, blob)]
            self._check("receive", message)
        except RemoteProtocolError:
            self.connection_lost()
            raise
        self._move("receive", message, new)
        return [message]

    def send(self, message: Message) -> bytes:
        """The bytes of a message, to be sent as one binary WebSocket message.

        Args:
            message: What to say. The state moves with it, so its bytes must go out in the order of the calls.

        Returns:
            The encoded message.

        Raises:
            LocalProtocolError: The state or the rules above forbid it; nothing has changed.
        """
        data = encode(message)
        new = next_state(self._role, self._state, "send", message.type)
        if isinstance(message, Chunk):
            self._transfers.check_piece(message.digest, message.offset, len(message.data))
            self._transfers.sent(message.digest, message.offset + len(message.data))
        else:
            self._check("send", message)
            self._move("send", message, new)
        return data

    def expect(self, digest: Digest, size: int) -> int:
        """Announce that a blob may arrive. Asking for it is a Fetch (device) or a Want (coordinator).

        Args:
            digest: The blob's sha256 in hexadecimal.
            size: Its bytes.

        Returns:
            The offset from which to ask for it. Calling it again changes nothing.

        Raises:
            LocalProtocolError: The peer did not offer the blob with this size.
        """
        return self._transfers.expect(digest, size)

    def send_blob(self, digest: Digest, data: Buffer, offset: int = 0) -> Iterator[bytes]:
        """The chunks of a blob that the peer asked for.

        Args:
            digest: The blob's sha256 in hexadecimal.
            data: The whole blob.
            offset: The byte from which the peer asked for it.

        Returns:
            The chunks as encoded messages. The iterator ends early, or is empty, if since the request the peer has
            called the transfer off or the connection has ended.

        Raises:
            LocalProtocolError: Before the first chunk: the peer did not ask for the blob from there, or ``data`` has
                another size than was offered.
        """
        if self._transfers.is_cancelled(digest):
            return iter(())
        next_state(self._role, self._state, "send", "chunk")
        size = memoryview(data).nbytes
        self._transfers.check_piece(digest, offset, size - offset)
        if size != self._transfers.offered_size(digest):
            raise LocalProtocolError(f"{digest[:12]} was offered with another size than {size} bytes")
        return self._chunks(digest, data, offset)

    def connection_lost(self) -> None:
        """Close the session. Unfinished incoming transfers stay in `partial`."""
        self._state = "closed"
        self._transfers.end()

    def _chunks(self, digest: Digest, data: Buffer, offset: int) -> Iterator[bytes]:
        for start, piece in pieces(data, offset, self._chunk_size):
            if self._transfers.next_offset(digest) != start:
                return
            encoded = encode_chunk(digest, start, piece)
            self._transfers.sent(digest, start + len(piece))
            yield encoded

    def _check(self, direction: Direction, message: Message) -> None:
        """The rules about contents, the same for both ends; raises the error of the side at fault."""
        wrong = self._wrong(direction, message)
        if wrong is not None:
            error: type[ProtocolError] = LocalProtocolError if direction == "send" else RemoteProtocolError
            raise error(wrong)

    def _wrong(self, direction: Direction, message: Message) -> str | None:
        by_peer = direction == "receive"
        match message:
            case Train() | Finish():
                return self._wrong_names(message.components)
            case Fetch():
                asks = zip(message.digests, message.offsets, strict=True)
                reasons = (self._transfers.wrong_request(*ask, by_peer=by_peer) for ask in asks)
                return next(filter(None, reasons), None)
            case Want():
                return self._transfers.wrong_request(message.digest, message.offset, by_peer=by_peer)
            case Update():
                wrong = self._wrong_round(message.round) or self._busy(message) or self._wrong_names(message.components)
                return wrong or self._at_home(message.components)
            case Accepted() | Decline():
                return self._wrong_round(message.round) or self._busy(message)
            case Rejected():
                return self._wrong_round(message.round)
            case Done():
                return self._busy(message)
        return None

    def _wrong_names(self, components: tuple[ComponentRef, ...]) -> str | None:
        strange = sorted({component.name for component in components} - self._owned)
        return f"the device does not own {strange[0]}" if strange else None

    def _at_home(self, components: tuple[ComponentRef, ...]) -> str | None:
        kept = sorted({component.name for component in components} & self._home)
        return f"{kept[0]} stays at home in this round" if kept else None

    def _wrong_round(self, number: int) -> str | None:
        return None if number == self._round else f"round {number}, but the device was asked for round {self._round}"

    def _busy(self, message: Message) -> str | None:
        return f"{message.type} while transfers are under way" if self._transfers.busy else None

    def _move(self, direction: Direction, message: Message, new: State) -> None:
        """The effects of an allowed message."""
        self._state = new
        by_peer = direction == "receive"
        match message:
            case Welcome():
                self._owned = frozenset(message.owned)
            case Train():
                self._round, self._home = message.round, frozenset(message.home)
                self._transfers.offer(sizes_by_digest(message.components), by_peer=by_peer)
            case Finish() | Update():
                self._transfers.offer(sizes_by_digest(message.components), by_peer=by_peer)
            case Fetch():
                for digest, offset in zip(message.digests, message.offsets, strict=True):
                    self._transfers.request(digest, offset, by_peer=by_peer)
            case Want():
                self._transfers.request(message.digest, message.offset, by_peer=by_peer)
            case Rejected():
                self._transfers.call_off()
            case Bye() | Refuse():
                self._transfers.end()
        if by_peer and message.type in ("fetch", "update", "decline", "done"):
            self._transfers.nothing_late()  # the device has heard of the last answer to an update

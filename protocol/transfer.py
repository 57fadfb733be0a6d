"""Blobs in pieces: each named by its sha256, cut into chunks, resumed at the offset that the receiver has come to.

`Incoming` is one blob on its way in, `Transfers` the books of one connection: what was offered, what was asked for and
how far it is. It knows bytes, digests and offsets; not in which state what is allowed (`session`, `states`), nor what
the bytes mean (`tensors`).
"""

import hashlib
from collections.abc import Iterator, Mapping

from protocol.codec import Buffer
from protocol.codes import CloseCode
from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.messages import CHUNK, Chunk
from protocol.names import Digest


class Incoming:
    """A blob on its way in. It outlives the connection: a later one goes on at `offset`.

    Memory grows with what has arrived, never with what was only announced.
    """

    def __init__(self, digest: Digest, size: int) -> None:
        """Await a blob.

        Args:
            digest: Its sha256 in hexadecimal.
            size: Its bytes.
        """
        self.digest = digest
        self.size = size
        self._offset = 0
        self._pieces: list[bytes] = []
        self._hash = hashlib.sha256()

    @property
    def offset(self) -> int:
        """Bytes that have arrived, which is where the transfer goes on."""
        return self._offset

    @property
    def complete(self) -> bool:
        return self._offset == self.size

    def add(self, offset: int, data: bytes) -> None:
        """Take the next piece.

        Args:
            offset: Where it belongs, in bytes.
            data: Its bytes.

        Raises:
            RemoteProtocolError: It is not the next, or runs past the blob's size; it is not taken.
        """
        if offset != self._offset:
            raise RemoteProtocolError(f"chunk of {self.digest[:12]} at {offset}; expected {self._offset}")
        if len(data) > self.size - self._offset:
            raise RemoteProtocolError(f"chunk of {self.digest[:12]} runs past its {self.size} bytes", CloseCode.TOO_BIG)
        self._hash.update(data)
        self._pieces.append(data)
        self._offset += len(data)

    def so_far(self) -> bytes:
        """What has arrived: the bytes before `offset`."""
        return b"".join(self._pieces)

    def data(self) -> bytes:
        """The whole blob.

        Raises LocalProtocolError while it is not complete, RemoteProtocolError if the bytes are not those of the
        digest: drop the object then, its pieces are worth nothing.
        """
        if not self.complete:
            raise LocalProtocolError(f"{self.digest[:12]} has {self._offset} of {self.size} bytes")
        if self._hash.hexdigest() != self.digest:
            raise RemoteProtocolError(f"the bytes of {self.digest[:12]} have another sha256", CloseCode.INVALID_DATA)
        if len(self._pieces) != 1:
            self._pieces = [b"".join(self._pieces)]
        return self._pieces[0]


def pieces(data: Buffer, offset: int = 0, size: int = CHUNK) -> Iterator[tuple[int, memoryview]]:
    """Cut `data` from `offset` on into views of `size` bytes or, the last, fewer; each with its own offset."""
    view = memoryview(data).cast("B")
    for start in range(offset, len(view), size):
        yield start, view[start : start + size]


class Transfers:
    """The transfers of one connection, in both directions.

    A blob is offered (by this side or the peer), expected (announced by the receiving side's caller), requested, and
    sent. A request may be called off; chunks that were under way then are dropped.
    """

    def __init__(self, partial: dict[Digest, Incoming]) -> None:
        self._partial = partial
        self._offered: dict[Digest, int] = {}  # digest -> size, of the last offer
        self._offered_by_peer = False
        self._expected: dict[Digest, Incoming] = {}  # announced by `expect`, not complete
        self._requested: set[Digest] = set()  # asked for by this side, not complete
        self._late: dict[Digest, int] = {}  # asked for by this side, called off: digest -> bytes that may still come
        self._demanded: dict[Digest, int] = {}  # asked for by the peer: digest -> offset of the next byte to send
        self._cancelled: set[Digest] = set()  # asked for by the peer, called off

    @property
    def expected(self) -> frozenset[Digest]:
        return frozenset(self._expected)

    @property
    def busy(self) -> bool:
        """Whether a blob that was asked for is not all there."""
        return bool(self._requested or self._demanded)

    def offer(self, sizes: Mapping[Digest, int], *, by_peer: bool) -> None:
        """Start anew with the blobs of `sizes`. Partial transfers of what the peer no longer offers are dropped."""
        self.end()
        self._offered = dict(sizes)
        self._offered_by_peer = by_peer
        if by_peer:
            for digest in [d for d, known in self._partial.items() if sizes.get(d) != known.size]:
                del self._partial[digest]

    def expect(self, digest: Digest, size: int) -> int:
        """Make ready for a blob; returns the offset to ask from. Raises LocalProtocolError if it was not offered so."""
        if not self._offered_by_peer or self._offered.get(digest) != size:
            raise LocalProtocolError(f"the peer offered no blob {digest[:12]} of {size} bytes")
        if digest not in self._expected:
            known = self._partial.get(digest)
            if known is None or known.complete:
                known = self._partial[digest] = Incoming(digest, size)
            self._expected[digest] = known
        return self._expected[digest].offset

    def wrong_request(self, digest: Digest, offset: int, *, by_peer: bool) -> str | None:
        """Why the blob cannot be asked for from `offset` on, or None."""
        if by_peer == self._offered_by_peer or offset >= self._offered.get(digest, 0):
            return f"nothing was offered of {digest[:12]} from {offset} on"
        if digest in (self._demanded if by_peer else self._requested):
            return f"the transfer of {digest[:12]} is already under way"
        if not by_peer and (digest not in self._expected or self._expected[digest].offset != offset):
            return f"expect() did not announce {digest[:12]} from {offset} on"
        return None

    def request(self, digest: Digest, offset: int, *, by_peer: bool) -> None:
        """Note a request that is not wrong."""
        if by_peer:
            self._demanded[digest] = offset
            self._cancelled.discard(digest)
        else:
            self._requested.add(digest)

    def take(self, chunk: Chunk) -> bytes | None:
        """A chunk has come; returns the blob if it is complete. Raises RemoteProtocolError if it must not come."""
        digest = chunk.digest
        if digest in self._requested:
            incoming = self._expected[digest]
            incoming.add(chunk.offset, chunk.data)
            if not incoming.complete:
                return None
            del self._partial[digest], self._expected[digest]
            self._requested.remove(digest)
            return incoming.data()
        if len(chunk.data) > self._late.get(digest, 0):
            raise RemoteProtocolError(f"nobody asked for this chunk of {digest[:12]}")
        self._late[digest] -= len(chunk.data)
        return None

    def is_cancelled(self, digest: Digest) -> bool:
        """Whether the peer asked for the blob and then called that off, or the connection ended."""
        return digest in self._cancelled

    def offered_size(self, digest: Digest) -> int:
        """Bytes of an offered blob; 0 if it was not offered."""
        return self._offered.get(digest, 0)

    def next_offset(self, digest: Digest) -> int | None:
        """Offset of the next byte that the peer waits for; None if it waits for none."""
        return self._demanded.get(digest)

    def check_piece(self, digest: Digest, offset: int, length: int) -> None:
        """Raises LocalProtocolError unless these bytes are what the peer waits for next."""
        if digest not in self._demanded:
            raise LocalProtocolError(f"the peer did not ask for {digest[:12]}")
        if offset != self._demanded[digest]:
            raise LocalProtocolError(f"{digest[:12]} goes on at {self._demanded[digest]}, not at {offset}")
        if offset + length > self._offered[digest]:
            raise LocalProtocolError(f"{digest[:12]} was offered with {self._offered[digest]} bytes")

    def sent(self, digest: Digest, offset: int) -> None:
        """The blob has been sent up to `offset`."""
        if offset == self._offered[digest]:
            del self._demanded[digest]
        else:
            self._demanded[digest] = offset

    def call_off(self) -> None:
        """The offered blobs are no longer wanted: forget what arrived, and let what is under way come and go."""
        for digest in self._requested:
            self._late[digest] = self._expected[digest].size - self._expected[digest].offset
        for digest in self._expected:
            self._partial.pop(digest, None)
        self.end()

    def nothing_late(self) -> None:
        """The peer has heard of the calling off: from now on such chunks are refused."""
        self._late = {}

    def end(self) -> None:
        """No transfer is under way any more; what has arrived stays in `partial`."""
        self._cancelled.update(self._demanded)
        self._expected, self._requested, self._demanded = {}, set(), {}

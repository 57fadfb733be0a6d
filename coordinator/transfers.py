"""The memory and the disk of transfers: a bound on all of them together, and the pieces of those that were cut off.

Whatever a device is about to send or to be sent is counted before it is asked for, so a crowd waits instead of filling
the memory: first come, first served, and no connection may hold more than a part. What had arrived when a connection
ended lies in a file until the device comes back, for an hour at most. It knows sizes, files and who waits; it does not
know messages.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Collection
from pathlib import Path

from coordinator.blobs import WRITING, BlobStore
from protocol.errors import RemoteProtocolError
from protocol.names import Digest
from protocol.transfer import Incoming
from tap_core.files import replace_private
from tap_core.names import DeviceName

PART = ".part"
KEPT_SECONDS = 3600.0
"""How long the pieces of an upload wait for their device."""

SHARES = 4
"""No connection holds more than this part of the whole (but for a single blob that is larger)."""


class Budget:
    """So many bytes in memory, for all transfers together. Belongs to one event loop."""

    def __init__(self, limit: int):
        self.limit = limit
        self.used = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    def has_room(self, size: int) -> bool:
        """Whether `take` would not wait."""
        return not self._waiting and self.used + min(size, self.limit) <= self.limit

    async def take(self, size: int) -> int:
        """Wait, in turn, until there is room for ``size`` bytes; returns what to `give` back: at most all there is."""
        size = min(size, self.limit)
        if self.has_room(size):
            self.used += size
            return size
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, turn))
        try:
            await turn
        except BaseException:
            if turn.done() and not turn.cancelled():  # it was given just now
                self.give(size)
            else:
                with contextlib.suppress(ValueError):
                    self._waiting.remove((size, turn))
                self._next()
            raise
        return size

    def give(self, size: int) -> None:
        """Give back what was taken."""
        self.used -= size
        self._next()

    @contextlib.asynccontextmanager
    async def hold(self, size: int) -> AsyncIterator[None]:
        """Have room for ``size`` bytes within the block."""
        taken = await self.take(size)
        try:
            yield
        finally:
            self.give(taken)

    def _next(self) -> None:
        while self._waiting and self.used + self._waiting[0][0] <= self.limit:
            size, turn = self._waiting.popleft()
            if not turn.done():
                self.used += size
                turn.set_result(None)


class Holding:
    """What one connection holds of the budget: by digest, for blobs that are on their way in."""

    def __init__(self, budget: Budget):
        self._budget = budget
        self._held: dict[Digest, int] = {}
        self._over = False
        self._room = asyncio.Event()

    @property
    def is_empty(self) -> bool:
        return not self._held

    def has_room(self, size: int) -> bool:
        """Whether `take` would not wait."""
        return not self._beyond_its_share(size) and self._budget.has_room(size)

    def _beyond_its_share(self, size: int) -> bool:
        return bool(self._held) and sum(self._held.values()) + size > self._budget.limit // SHARES

    async def take(self, digest: Digest, size: int) -> None:
        """Wait until this connection may have the blob sent. Another of its own must end first if it has its share."""
        while self._beyond_its_share(size):
            self._room.clear()
            await self._room.wait()
        taken = await self._budget.take(size)
        if self._over:
            self._budget.give(taken)
        else:
            self._held[digest] = taken

    def give(self, digests: Collection[Digest]) -> None:
        """These blobs are on the disk, or are not wanted any more."""
        for digest in digests:
            size = self._held.pop(digest, None)
            if size is not None:
                self._budget.give(size)
        self._room.set()

    def end(self) -> None:
        """The connection is over."""
        self._over = True
        self.give(list(self._held))


def put_away(blobs: BlobStore, device: DeviceName, partial: dict[Digest, Incoming], now: float) -> None:
    """Write the pieces of a device's uploads to files and forget them; remove files that are too old (``now``: seconds
    since 1970). What cannot be written is sent again."""
    place = blobs.place_of(device)
    for digest, incoming in list(partial.items()):
        if incoming.offset:
            with contextlib.suppress(OSError):
                place.mkdir(mode=0o700, exist_ok=True)
                replace_private(place / f"{digest}{PART}", incoming.so_far(), durable=False, ending=WRITING)
        del partial[digest]
    for path in place.parent.glob(f"*/*{PART}"):
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < now - KEPT_SECONDS:
                path.unlink()


def left_behind(blobs: BlobStore, device: DeviceName) -> set[Digest]:
    """Digests of which pieces lie in files."""
    return {Digest(path.name.removesuffix(PART)) for path in blobs.place_of(device).glob(f"*{PART}")}


def take_up(blobs: BlobStore, device: DeviceName, digest: Digest, size: int) -> Incoming | None:
    """The transfer as far as it had come, and its file away; None if there is none that fits."""
    path: Path = blobs.place_of(device) / f"{digest}{PART}"
    try:
        if path.stat().st_size >= size:  # no part of a blob of this size
            return None
        data = path.read_bytes()
        path.unlink()
    except OSError:
        return None
    incoming = Incoming(digest, size)
    try:
        incoming.add(0, data)
    except RemoteProtocolError:
        return None
    return incoming

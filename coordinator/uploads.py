"""One update on its way in: which blobs are lacking, and their checking and staging beside the transfer of the next.

It knows an Update, the blob store and the checks; it does not know the connection, nor whether the round still waits.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeVar

from coordinator.blobs import BlobError
from coordinator.checks import Membership, check_change, check_component, check_update
from coordinator.federation import Federation
from coordinator.versions import Contribution, Version
from protocol.messages import Update
from protocol.names import Digest
from tap_core.names import ComponentName, DeviceName

BATCH_BYTES = 2 * 1024 * 1024
"""Bytes of blobs from which a thread is worth its while."""

SAVES_AT_ONCE = 4
"""Batches of one update that may be checked and staged at a time; further ones wait in the socket."""

Item = TypeVar("Item")


class Upload:
    """An update whose blobs are coming in. Raises Unacceptable if it is refused for what it says of itself."""

    def __init__(
        self,
        update: Update,
        membership: Membership,
        sent: Mapping[ComponentName, Version],
        federation: Federation,
        device: DeviceName,
        left: Callable[[list[Digest]], None],
    ):
        """``sent``: of the components that the device was asked for, the versions that it was to train from. ``left``:
        told which blobs have left the memory."""
        self.update = update
        self._claimed = check_update(update, membership, sent, federation.forms)
        self._forms, self._blobs, self._device = federation.forms, federation.blobs, device
        self._federation, self._sent, self._left = federation, sent, left
        self._norms: dict[ComponentName, float] = {}
        self._names: dict[Digest, list[ComponentName]] = {}
        for name, given in sorted(self._claimed.items()):
            self._names.setdefault(given.digest, []).append(name)
        self._missing: set[Digest] = set(self._names)
        self.eager = False
        """Whether each blob is staged as it comes, since somebody waits for its memory."""
        self._waiting: list[tuple[Digest, bytes]] = []
        self._saves: list[asyncio.Future[None]] = []
        self._slots = asyncio.Semaphore(SAVES_AT_ONCE)

    @property
    def contributions(self) -> dict[ComponentName, Contribution]:
        """By component; with its norm once it is checked, if norms are limited."""
        return {name: replace(given, norm=self._norms.get(name)) for name, given in self._claimed.items()}

    @property
    def digests(self) -> frozenset[Digest]:
        return frozenset(self._names)

    @property
    def complete(self) -> bool:
        """Whether every blob has arrived (perhaps not yet staged: see `settle`)."""
        return not self._missing

    def lacks(self, digest: Digest) -> bool:
        return digest in self._missing

    async def lacking(self) -> list[tuple[Digest, int]]:
        """(digest, size) of each blob to ask for. Those that are stored already are only checked."""
        sizes = {given.digest: given.size for given in self._claimed.values()}
        stored = await asyncio.to_thread(lambda: [d for d in self._names if self._blobs.has(d, self._device)])
        if stored:
            self._missing.difference_update(stored)
            await self._start(self._check_stored, stored)
        return [(digest, sizes[digest]) for digest in sorted(self._missing)]

    async def save(self, digest: Digest, data: bytes) -> None:
        """Have a blob checked and staged in a thread, small ones together; returns when there is room for another."""
        self._missing.discard(digest)
        self._waiting.append((digest, data))
        if self.complete or self.eager or sum(len(data) for _, data in self._waiting) >= BATCH_BYTES:
            await self.flush()

    async def flush(self) -> None:
        """Have what has arrived checked and staged, however little it is."""
        batch, self._waiting = self._waiting, []
        if batch:
            save = await self._start(self._stage, batch)
            save.add_done_callback(lambda _: self._left([digest for digest, _ in batch]))

    async def settle(self) -> None:
        """Wait until every blob is staged. Raises Unacceptable if one does not hold its component's tensors."""
        try:
            await asyncio.gather(*self._saves)
        except BlobError as error:
            if error.digest in {version.digest for version in self._sent.values()}:
                self._federation.repair()
            raise

    async def _start(self, work: Callable[[list[Item]], None], items: list[Item]) -> "asyncio.Future[None]":
        await self._slots.acquire()
        save = asyncio.get_running_loop().run_in_executor(self._blobs.pool, work, items)
        save.add_done_callback(self._release)
        self._saves.append(save)
        return save

    def _release(self, save: "asyncio.Future[None]") -> None:
        self._slots.release()
        if not save.cancelled():
            save.exception()  # raised by `settle`; this marks it as seen if the connection ends first

    def _stage(self, blobs: list[tuple[Digest, bytes]]) -> None:
        for digest, data in blobs:
            self._check(digest, data)
            self._blobs.stage(self._device, digest, data)

    def _check_stored(self, digests: list[Digest]) -> None:
        for digest in digests:
            self._check(digest, self._blobs.get(digest, self._device))

    def _check(self, digest: Digest, data: bytes) -> None:
        bound = self._federation.bound
        for name in self._names[digest]:
            check_component(self._forms[name], data)
            if bound.exists:
                sent, recent = self._blobs.get(self._sent[name].digest), self._federation.norms.get(name, ())
                self._norms[name] = check_change(self._forms[name], data, sent, bound, self.update.round, recent)

"""The tokens that are valid, kept in memory: a handshake costs no look into the database.

It knows digests and the devices they belong to, and reads them anew when told to or when it meets an unknown one; it
does not know how they are stored, nor how they travel.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from coordinator.device_registry import Enrolment
from coordinator.identity import same_digest
from tap_core.names import DeviceName

LOOK_SECONDS = 0.25
"""Least time between two looks into the database because of unknown tokens, whoever shows them."""

Void = Callable[[Mapping[DeviceName, "str | None"]], Coroutine[Any, Any, None]]


class Tokens:
    """The valid tokens, by device and by digest."""

    def __init__(
        self,
        read: Callable[[], Mapping[DeviceName, Enrolment]],
        void: Void,
        clock: Callable[[], float] = time.monotonic,
    ):
        """``read`` blocks and returns what is enrolled by device. ``void`` is told of each device whose token ceased
        to be valid, with the digest of its new one, None if it has none."""
        self._read, self._void, self._clock = read, void, clock
        self.enrolments: Mapping[DeviceName, Enrolment] = {}
        """What each valid token stands for, by device. Replaced as a whole."""
        self._by_digest: dict[str, DeviceName] = {}
        self._reading = asyncio.Lock()
        self._looked = -LOOK_SECONDS
        self._look: asyncio.Task[None] | None = None

    @property
    def devices(self) -> frozenset[DeviceName]:
        """Those whose token is valid."""
        return frozenset(self.enrolments)

    def token_of(self, device: DeviceName) -> str | None:
        """The digest of the device's token; None if it has none that is valid."""
        return _token(self.enrolments, device)

    async def refresh(self) -> None:
        """Read the tokens. Raises what reading raises."""
        async with self._reading:
            valid = dict(await asyncio.to_thread(self._read))
            before, self.enrolments = self.enrolments, valid
            self._by_digest = {enrolment.token_sha256: device for device, enrolment in valid.items()}
        void = {
            device: _token(valid, device)
            for device, enrolment in before.items()
            if enrolment.token_sha256 != _token(valid, device)
        }
        if void:
            await self._void(void)

    def known(self, digest: str) -> DeviceName | None:
        """The device whose token has this digest, as of the last look."""
        device = self._by_digest.get(digest)
        return device if device is not None and same_digest(self.enrolments[device].token_sha256, digest) else None

    async def device_of(self, digest: str) -> DeviceName | None:
        """The device whose token has this digest; None if there is none, also not in the database."""
        device = self.known(digest)
        if device is None:
            await self._look_again()
            device = self.known(digest)
        return device

    async def is_valid(self, device: DeviceName, digest: str) -> bool:
        """Whether the token with this digest is the device's. If it ceases to be, ``void`` will be told."""
        return await self.device_of(digest) == device

    async def _look_again(self) -> None:
        """Read the tokens once for all who ask meanwhile: from a moment on that is later than this one."""
        if self._look is None:
            self._look = asyncio.ensure_future(self._look_soon())
            self._look.add_done_callback(_seen)
        await asyncio.shield(self._look)

    async def _look_soon(self) -> None:
        await asyncio.sleep(max(0.0, self._looked + LOOK_SECONDS - self._clock()))
        self._look, self._looked = None, self._clock()  # who asks from here on needs a later look
        await self.refresh()


def _token(enrolments: Mapping[DeviceName, Enrolment], device: DeviceName) -> str | None:
    return enrolments[device].token_sha256 if device in enrolments else None


def _seen(look: "asyncio.Task[None]") -> None:
    """Whoever asked is told of the error, if anybody is still there."""
    if not look.cancelled():
        look.exception()

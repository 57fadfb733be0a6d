"""What a session with a device stands on: the connection, as a `Peer`, and what outlives it, as a `Link`.

It knows no WebSocket library and nothing of what is said.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from protocol.names import Digest
from protocol.transfer import Incoming
from tap_core.names import DeviceName

if TYPE_CHECKING:
    from coordinator.device_session import DeviceSession


class Gone(Exception):
    """The connection has ended."""


class Peer(Protocol):
    """The device's end of the connection. `receive` and `send` raise Gone when it has ended."""

    address: str

    async def receive(self) -> bytes | str: ...
    async def send(self, data: bytes) -> None: ...
    def welcome(self) -> None:
        """The device is about to be welcomed: from now on its messages may be large."""

    async def close(self, code: int, reason: str) -> None: ...
    def abort(self) -> None: ...


@dataclass
class Link:
    """What is known of a device across its connections."""

    device: DeviceName
    phase: str = ""
    step: int = 0
    steps: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    partial: dict[Digest, Incoming] = field(default_factory=dict)
    session: "DeviceSession | None" = None

"""TLS of the device plane: the certificate from files, taken up anew when they change.

It knows files and contexts of the standard library; it does not know connections, which keep what they were made with.
"""

import asyncio
import ssl
from pathlib import Path

import structlog

from tap_core.errors import UsageError

LOOK_SECONDS = 3.0
"""How often the files are looked at."""

log = structlog.get_logger("coordinator.tls")


class Certificates:
    """The server's side of TLS 1.2 or newer."""

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None = None):
        """``client_ca``: authorities of whom every device must show a certificate; None asks for none.

        Raises UsageError if a file is missing or is not what it should be.
        """
        self._certificate, self._key = certificate, key
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._seen = self._state()
        try:
            self._load(self.context)
        except (OSError, ValueError) as error:  # an SSLError is an OSError
            raise UsageError(
                f"cannot use {certificate} with {key}: {_reason(error)}; give a certificate chain and its "
                "key in PEM, without a password"
            ) from None
        if client_ca is not None:
            try:
                self.context.load_verify_locations(client_ca)
            except (OSError, ValueError) as error:
                raise UsageError(f"cannot use {client_ca}: {_reason(error)}; give certificates in PEM") from None
            self.context.verify_mode = ssl.CERT_REQUIRED

    def look(self) -> bool:
        """Take up the files if they have changed; returns whether that was so. What cannot be used is logged, and the
        certificate before it stays."""
        state = self._state()
        if state == self._seen:
            return False
        self._seen = state
        try:
            self._load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))  # half a change must not reach the one in use
            self._load(self.context)
        except (OSError, ValueError) as error:
            log.error("new certificate not usable; the old one stays", file=str(self._certificate), why=_reason(error))
            return False
        log.info("new certificate", file=str(self._certificate))
        return True

    async def watch(self) -> None:
        """Look at the files again and again, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            await asyncio.to_thread(self.look)

    def _load(self, context: ssl.SSLContext) -> None:
        context.load_cert_chain(self._certificate, self._key, password="")  # else it would ask at the terminal

    def _state(self) -> list[tuple[int, int, int] | None]:
        return [_stamp(path) for path in (self._certificate, self._key)]


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return (error.reason or str(error)).replace("_", " ").lower()
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)

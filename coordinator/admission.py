"""Who is let in to the device plane: the token of a handshake, how often it may come, and what the others are answered.

It knows headers, addresses and the tokens in memory; it does not know sockets, nor what is said afterwards.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus

import structlog

from coordinator.gate import network_of
from coordinator.identity import bearer_token, token_digest
from coordinator.limits import Bucket, Failures
from coordinator.tokens import Tokens
from tap_core.names import DeviceName

CONNECTIONS_A_MINUTE = 60
"""Connections that one token may open within a minute; devices wait a second or more before they try again."""

ASK = "ask the operator for a token: tap-coordinator enroll DEVICE"

log = structlog.get_logger("coordinator.admission")


@dataclass(frozen=True)
class Admitted:
    """The handshake's token is the device's; ``token``: its digest."""

    device: DeviceName
    token: str


@dataclass(frozen=True)
class Refused:
    """What the handshake is answered. ``code``: for the metrics; ``retry_after``: seconds, 0 if it would not help."""

    status: HTTPStatus
    code: str
    text: str
    retry_after: int = 0


class Admission:
    """The door-keeper of one device plane."""

    def __init__(self, tokens: Tokens, failures: Failures | None = None, clock: Callable[[], float] = time.monotonic):
        self._tokens, self._clock = tokens, clock
        self._failures = Failures(clock=clock) if failures is None else failures
        self._comings: dict[DeviceName, Bucket] = {}  # by device: only those that are enrolled have one

    async def check(self, authorization: Sequence[str], address: str) -> Admitted | Refused:
        """``authorization``: the values of all such headers. Raises what reading the tokens raises."""
        token = bearer_token(authorization[0]) if len(authorization) == 1 else None
        digest = token_digest(token) if token else ""
        network = network_of(address)
        device = self._tokens.known(digest)
        if device is None and token and not self._failures.is_over(network):  # 429 is not for ever: no look for those
            device = await self._tokens.device_of(digest)
        if device is not None:
            return self._welcome(device, digest)
        why = "the token is not valid, was revoked or has expired" if token else "the request carries no token"
        failure = self._failures.note(network)
        if failure.report:
            log.warning("unauthorized", address=address, why=why, attempts=failure.report)
        if failure.retry_after:
            text = "too many attempts without a valid token; wait before the next one"
            return Refused(HTTPStatus.TOO_MANY_REQUESTS, "too_many_attempts", text, failure.retry_after)
        return Refused(HTTPStatus.UNAUTHORIZED, "unauthorized", f"{why}; {ASK}")

    def _welcome(self, device: DeviceName, digest: str) -> Admitted | Refused:
        now = self._clock()
        if device not in self._comings:
            self._comings[device] = Bucket(CONNECTIONS_A_MINUTE, CONNECTIONS_A_MINUTE / 60, now)
        wait = self._comings[device].take(now)
        if not wait:
            return Admitted(device, digest)
        text = f"{device} opens more than {CONNECTIONS_A_MINUTE} connections a minute; wait before the next one"
        return Refused(HTTPStatus.TOO_MANY_REQUESTS, "too_many_connections", text, math.ceil(wait))

"""Codes and tokens that devices exchange by themselves: GET /enroll and GET /rotate on the device port.

Both come with `Authorization: Bearer SECRET` (a one-time code, or the token to replace) and with `Tap-Token-Sha256`,
the digest of the token that the device has made; no token travels in an answer. It knows requests, answers and how many
attempts an address has; `credentials.py` knows what is recorded.
"""

import asyncio
import json
import math
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from http import HTTPStatus
from urllib.parse import urlsplit

import structlog
from sqlalchemy.exc import SQLAlchemyError
from websockets.asyncio.server import ServerConnection
from websockets.http11 import Request, Response

from coordinator import credentials
from coordinator.credentials import Conflict, Void
from coordinator.fresh import Fresh
from coordinator.gate import network_of
from coordinator.identity import bearer_token, token_digest
from coordinator.limits import Bucket, Failures
from coordinator.store import Store

PAGES = ("enroll", "rotate")
DIGEST_HEADER, DEVICE_HEADER = "Tap-Token-Sha256", "Tap-Device"

ROTATIONS_AN_HOUR = 10
"""Of one device: each is written to the audit log, which a hostile device must not fill."""

REQUESTS_AT_ONCE, REQUESTS_A_SECOND = 30, 0.5
"""Of one device, with a code or token that it has: each takes the write lock of the database and a line of the log."""

log = structlog.get_logger("coordinator.enrolment")


@dataclass(frozen=True)
class Answer:
    """What a request is answered. ``retry_after``: seconds, 0 if it would not help."""

    status: HTTPStatus
    text: str
    retry_after: int = 0


class EnrolmentDesk:
    """Answers the two pages for one federation."""

    def __init__(self, store: Store, failures: Failures | None = None, clock: Callable[[], float] = time.monotonic):
        self._store, self._clock = store, clock
        self._failures = Failures(clock=clock) if failures is None else failures
        self._known = Fresh(lambda: credentials.known(store.engine, store.federation), clock=clock)
        self._requests: dict[str, Bucket] = {}  # by device: only those that are enrolled have one
        self._rotations: dict[str, Bucket] = {}

    async def respond(self, connection: ServerConnection, request: Request) -> Response | None:
        """The response; None if the request is for neither page."""
        page = urlsplit(request.path).path.rpartition("/")[2]
        if page not in PAGES:
            return None
        values = [_only(request.headers.get_all(name)) for name in ("Authorization", DIGEST_HEADER, DEVICE_HEADER)]
        remote = connection.remote_address
        address = str(remote[0]) if remote else "?"
        try:
            answer = await self.answer(page, *values, address=address)
        except SQLAlchemyError as error:
            log.error("enrolment failed", page=page, address=address, error=str(error).split("\n")[0])
            answer = Answer(HTTPStatus.SERVICE_UNAVAILABLE, "the database does not answer; try again", 1)
        response = connection.respond(answer.status, answer.text + "\n")
        response.headers["Cache-Control"] = "no-store"
        if answer.status == HTTPStatus.UNAUTHORIZED:
            response.headers["WWW-Authenticate"] = "Bearer"
        if answer.retry_after:
            response.headers["Retry-After"] = str(answer.retry_after)
        return response

    async def answer(
        self, page: str, authorization: str | None, token_sha256: str | None, device: str | None, *, address: str
    ) -> Answer:
        """Decide about one request from its headers. Raises what the database raises."""
        secret = bearer_token(authorization)
        digest = token_digest(secret) if secret else ""
        owner = (await self._known.recent()).get(digest) if secret else None
        if owner is None and secret:
            owner = (await self._known.later()).get(digest)
        if owner is None:
            return self._unauthorized(page, address)
        if wait := self._wait(self._requests, owner, REQUESTS_AT_ONCE, REQUESTS_A_SECOND):
            return Answer(HTTPStatus.TOO_MANY_REQUESTS, "the device asks too often; wait before the next request", wait)
        if token_sha256 is None or not re.fullmatch(r"[0-9a-f]{64}", token_sha256):
            return Answer(HTTPStatus.BAD_REQUEST, f"{DIGEST_HEADER} must be the sha256 of the new token in hexadecimal")
        is_rotation = page == "rotate" and token_sha256 != digest
        an_hour = (ROTATIONS_AN_HOUR, ROTATIONS_AN_HOUR / 3600)
        if wait := self._wait(self._rotations, owner, *an_hour) if is_rotation else 0:
            return Answer(HTTPStatus.TOO_MANY_REQUESTS, "tokens are not replaced so often; wait before the next", wait)
        where = (self._store.engine, self._store.federation, digest, token_sha256, time.time())
        try:
            if page == "enroll":
                issued = await asyncio.to_thread(credentials.exchange, *where, device=device)
            else:
                issued = await asyncio.to_thread(credentials.rotate, *where)
        except Void:
            return self._unauthorized(page, address)
        except Conflict as error:
            log.warning("enrolment refused", page=page, device=owner, address=address, why=str(error))
            return Answer(HTTPStatus.CONFLICT, str(error))
        log.info("token issued", page=page, device=issued.device, address=address)
        return Answer(HTTPStatus.OK, json.dumps({**asdict(issued), "federation": self._store.federation}))

    def _wait(self, buckets: dict[str, Bucket], device: str, burst: int, per_second: float) -> int:
        now = self._clock()
        return math.ceil(buckets.setdefault(device, Bucket(burst, per_second, now)).take(now))

    def _unauthorized(self, page: str, address: str) -> Answer:
        what = "code" if page == "enroll" else "token"
        why = f"the {what} is not valid, was used, was revoked or has expired"
        failure = self._failures.note(network_of(address))
        if failure.report:
            log.warning("unauthorized", page=page, address=address, why=why, attempts=failure.report)
        if failure.retry_after:
            text = "too many attempts without a valid code or token; wait before the next one"
            return Answer(HTTPStatus.TOO_MANY_REQUESTS, text, failure.retry_after)
        return Answer(HTTPStatus.UNAUTHORIZED, f"{why}; ask the operator: tap-coordinator enroll DEVICE --code")


def _only(values: list[str]) -> str | None:
    """The value of a header that was given once."""
    return values[0] if len(values) == 1 else None

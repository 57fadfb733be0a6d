"""Who may do what on the HTTP plane: tokens in memory, two roles, and how often an address may be wrong.

It knows digests, roles and addresses; it does not know pages.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from coordinator.fresh import Fresh
from coordinator.gate import network_of
from coordinator.identity import bearer_token, same_digest, token_digest
from coordinator.limits import Failures
from coordinator.operator_registry import Operator, OperatorRegistry, Role

log = structlog.get_logger("coordinator.operators")


@dataclass(frozen=True)
class Caller:
    """A valid token was shown. ``actor``: as the audit log names its holder."""

    actor: str
    role: Role


@dataclass(frozen=True)
class Unknown:
    """No valid token was shown. ``retry_after``: seconds after which the address may try again, 0 for at once."""

    why: str
    retry_after: int = 0


class OperatorAccess:
    """The tokens of one federation's operators, and one more for the commands on this host (``local_sha256``)."""

    def __init__(
        self,
        registry: OperatorRegistry,
        local_sha256: str = "",
        *,
        failures: Failures | None = None,
        now: Callable[[], float] = time.time,
    ):
        self._operators = Fresh(lambda: {operator.token_sha256: operator for operator in registry.all()})
        self._local_sha256, self._now = local_sha256, now
        self._failures = Failures() if failures is None else failures

    async def caller(self, authorization: str | None, address: str) -> Caller | Unknown:
        """Whose request this is. A valid token is never made to wait; an unknown one waits for the next look into the
        database, of which there are few however many ask. Raises what the database raises."""
        token = bearer_token(authorization)
        if token is None:
            return Unknown("the request carries no token; send Authorization: Bearer TOKEN")
        digest = token_digest(token)
        if self._local_sha256 and same_digest(digest, self._local_sha256):
            return Caller("this host", "read")
        operator = (await self._operators.recent()).get(digest)
        if operator is None:
            operator = (await self._operators.later()).get(digest)
        if operator is not None and same_digest(operator.token_sha256, digest) and operator.is_valid(self._now()):
            return Caller(f"operator {operator.name}", operator.role)
        return self._refused(operator, address)

    def _refused(self, operator: Operator | None, address: str) -> Unknown:
        why = "the token is not valid, was revoked or has expired"
        failure = self._failures.note(network_of(address))
        if failure.report:
            whose = None if operator is None else operator.name
            log.warning("unauthorized", plane="operator", address=address, operator=whose, attempts=failure.report)
        if failure.retry_after:
            return Unknown("too many attempts without a valid token; wait before the next one", failure.retry_after)
        return Unknown(f"{why}; make one: tap-coordinator operator add NAME DIR --role read")

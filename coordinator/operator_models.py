"""The answers of the HTTP plane as types: what its OpenAPI document promises. A field that is not here is not sent.

It knows names and types; the facts come from `standing.py`, the registries and the store.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from tap_core.settings.base import NAME_PATTERN

Why = Annotated[str, StringConstraints(min_length=1, max_length=500, pattern=r"^[^\x00-\x1f\x7f]+$")]
"""One line, shown by status and kept in the audit log."""

DeviceName = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]


class Model(BaseModel):
    """Nothing unknown comes in or goes out."""

    model_config = ConfigDict(extra="forbid")


class Problem(Model):
    """Every error."""

    detail: str = Field(description="One line: what is wrong, and what to do.")


class Health(Model):
    """The process is alive; that is all that is said to anybody."""

    status: Literal["ok"] = "ok"


class Readiness(Model):
    ready: bool = Field(description="The federation is taken up and the database answers.")


class LinkFacts(Model):
    connected: bool
    phase: str
    step: int
    steps: int
    bytes_sent: int
    bytes_received: int


class StatusFacts(Model):
    """Where the federation stands; rounds count from 0."""

    federation: str
    phase: str
    paused: str | None
    round: int
    rounds: int
    attempt: int
    sampled: list[str]
    reported: list[str]
    roster: list[str]
    away: list[str]
    strikes: dict[str, int]
    barred: list[str]
    done: list[str]
    devices: dict[str, LinkFacts]


class DeviceFacts(Model):
    """A device that was ever enrolled; times are in seconds since 1970."""

    device: str
    state: Literal["invited", "enrolled", "joined", "away", "barred", "done", "expired", "revoked"]
    enrolled_at: float
    revoked_at: float | None
    joined_at: float | None
    done_at: float | None
    token_expires_at: float | None
    code_expires_at: float | None
    tasks: dict[str, int]
    owned: list[str]
    away: bool
    allowed_tasks: list[str] | None
    max_examples: int
    missed: int
    strikes: int


class AttemptFacts(Model):
    """One attempt at a round."""

    round: int
    attempt: int
    status: str
    sampled: list[str]
    contributors: list[str]
    missing: list[str]
    why: str
    opened_at: float
    closed_at: float | None


class AuditEntry(Model):
    """One administrative act; ``at`` in seconds since 1970."""

    at: float
    actor: str
    act: str
    subject: str
    detail: str


class Pause(Model):
    why: Why = "by the operator"


class Paused(Model):
    paused: str | None = Field(description="Why the federation is paused; null while it runs.")


class Stopping(Model):
    stopping: Literal[True] = True


class Revoked(Model):
    device: str
    revoked: Literal[True] = True

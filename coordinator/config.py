"""The settings of the service, and where a federation directory keeps its state.

Each setting is declared once, with its help; it comes from the command line, else from the environment (``TAP_`` and
its name in capitals), else from its default. It knows names and limits; it opens nothing.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from tap_core.errors import UsageError, did_you_mean
from tap_core.settings.toml import explain

PREFIX = "TAP_"


class ServiceSettings(BaseSettings):
    """What `tap-coordinator serve` can be told."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    host: str = Field(default="127.0.0.1", description="Address of the device plane.")
    port: int = Field(default=8710, ge=0, le=65535, description="Port of the device plane (WebSocket); 0 picks one.")
    http_host: str = Field(default="127.0.0.1", description="Address of the operator plane (HTTP).")
    http_port: int = Field(default=8711, ge=0, le=65535, description="Port of the operator plane; 0 picks one.")
    http_allowed_hosts: str = Field(
        default="",
        pattern=r"^[A-Za-z0-9_.:,-]*$",
        description="Host names by which the operator plane may be called, separated by commas.",
    )
    database: str = Field(default="", description="Database URL; empty for SQLite in the state directory.")
    tls_cert: str = Field(default="", description="Certificate chain (PEM) of the device plane; empty for no TLS.")
    tls_key: str = Field(default="", description="Its key (PEM, no password).")
    tls_client_ca: str = Field(
        default="", description="Authorities (PEM) of whom each device must show a certificate; empty for none."
    )
    wait_for_database: float = Field(
        default=60, ge=0, le=86_400, description="Seconds to wait at the start for a PostgreSQL that is not up yet."
    )
    max_connections: int = Field(
        default=0, ge=0, le=1_000_000, description="Connections of devices at a time; 0 for what open files allow."
    )
    transfer_memory: int = Field(
        default=256, ge=16, le=1_000_000, description="Megabytes (MiB) in memory of all transfers together."
    )
    threads: int = Field(default=0, ge=0, le=256, description="Aggregation threads; 0 for one per core, 4 at most.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="Least level logged.")

    @model_validator(mode="after")
    def _tls_is_whole(self) -> "ServiceSettings":
        if bool(self.tls_cert) != bool(self.tls_key):
            raise ValueError("'tls_cert' and 'tls_key' belong together; give both or neither")
        if self.tls_client_ca and not self.tls_cert:
            raise ValueError("'tls_client_ca' needs 'tls_cert' and 'tls_key'")
        return self

    @property
    def http_hosts(self) -> tuple[str, ...]:
        """What a request to the operator plane may name as its host, beside this machine's own names."""
        return (self.http_host, *(name for name in self.http_allowed_hosts.split(",") if name))

    @property
    def aggregation_threads(self) -> int:
        return self.threads or min(4, os.cpu_count() or 1)


def load_settings(given: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> ServiceSettings:
    """The settings from what the command line gave (None: not given) and from the environment.

    Raises UsageError in one line for a value out of range, and for a ``TAP_`` variable that does not exist: a misspelt
    setting must not pass for a default.
    """
    check_environment(os.environ if environment is None else environment)
    chosen = {name: value for name, value in given.items() if value is not None}
    try:
        return ServiceSettings(**chosen)
    except ValidationError as error:
        raise UsageError(f"setting {explain(error, ServiceSettings)}".replace("setting the file: ", "")) from None


def check_environment(environment: Mapping[str, str]) -> None:
    """Raise UsageError for a ``TAP_`` variable that is no setting, naming the nearest one."""
    known = {PREFIX + name.upper() for name in ServiceSettings.model_fields}
    for name in sorted(environment):
        upper = name.upper()
        if upper.startswith(PREFIX) and upper not in known:
            hint = did_you_mean(upper, known, quoted=False) or f"known: {', '.join(sorted(known))}"
            raise UsageError(f"environment variable {name} is no setting of the coordinator; {hint}")


class StatePaths:
    """Where the coordinator keeps what it writes: DIR/state."""

    def __init__(self, directory: Path):
        self.root = directory / "state"
        self.blobs = self.root / "blobs"
        self.lock = self.root / "serving.lock"
        self.addresses = self.root / "serving.json"
        self.identity = self.root / "identity"

    def database_url(self, chosen: str) -> str:
        """The chosen URL, or the one of the SQLite file in the state directory."""
        return chosen or f"sqlite:///{(self.root / 'coordinator.db').resolve()}"

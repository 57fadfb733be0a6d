"""The device's settings: `client.toml`, with TAP_* environment variables on top.

It knows the file format and where paths are relative to. It does not open data, sockets or tensors, and needs no torch.
"""

import ipaddress
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from tap_core.errors import UsageError, did_you_mean
from tap_core.settings.base import DeviceField, Name, Settings, TaskField
from tap_core.settings.runtime import Runtime
from tap_core.settings.toml import load_toml, validate

ENVIRONMENT_PREFIX = "TAP_"


class RuntimeConfig(Runtime):
    """How this machine trains, and what it needs for that."""

    memory_limit_mb: int | None = Field(
        default=None, ge=64, description="Megabytes that doctor and join ask to be free before the model is loaded."
    )


class Columns(Settings):
    """Which column of the user's file holds what."""

    image: str = Field(default="image", min_length=1, description="Image: a path relative to the file, or its bytes.")
    text: str = Field(default="text", min_length=1, description="Input text.")
    target: str | None = Field(
        default=None,
        min_length=1,
        description="Class name, answer or target image; 'target' unless named. An image_generation task with images "
        "as input reconstructs its own input unless it is named.",
    )


class TaskDataConfig(Settings):
    """Where the examples of one task are: files (`train`, `test`) or a Hugging Face dataset."""

    train: Path | None = Field(default=None, description="Image folder (sub-folder = class), .csv, .jsonl or .parquet.")
    test: Path | None = Field(default=None, description="The same for the test split; without it one is cut off.")
    dataset: str | None = Field(
        default=None, min_length=1, description="Hugging Face dataset: a directory or a hub id."
    )
    train_split: str = Field(default="train", min_length=1, description="Split of `dataset` to train on.")
    test_split: str | None = Field(default=None, min_length=1, description="Split of `dataset` to test on.")
    test_fraction: float = Field(default=0.2, ge=0, lt=1, description="Share of items cut off where no test is given.")
    item: str | None = Field(
        default=None, min_length=1, description="Column that names the source item; train and test share none."
    )
    columns: Columns = Columns()

    @model_validator(mode="after")
    def _one_source(self) -> "TaskDataConfig":
        if (self.train is None) == (self.dataset is None):
            raise ValueError("give either 'train' (a folder or file) or 'dataset' (a Hugging Face dataset)")
        if self.dataset is not None and self.test is not None:
            raise ValueError("a 'dataset' takes 'test_split', not 'test'")
        if self.train is not None and self.test_split is not None:
            raise ValueError("'train' takes 'test' (a folder or file), not 'test_split'")
        return self


class ClientConfig(Settings):
    """The whole of `client.toml`. After `load_client_config` every path is absolute."""

    coordinator: str = Field(description="wss://HOST:PORT, or ws:// where nobody else can listen.")
    federation: Name = Field(description="Name of the federation to join.")
    device_id: DeviceField = Field(description="The name this device was enrolled with.")
    token_file: Path = Field(description="File that holds the token `tap-coordinator enroll` printed.")
    tls_ca: Path | None = Field(
        default=None,
        description="Certificates (PEM) of the authority that signed the coordinator's; else the system's.",
    )
    tls_cert: Path | None = Field(default=None, description="This device's certificate (PEM), if it is asked for one.")
    tls_key: Path | None = Field(default=None, description="Its key (PEM, no password).")
    state_dir: Path = Field(description="Private directory: personal tensors, progress, results, exports.")
    foundation: str = Field(min_length=1, description="Directory or hub id of the federation's pretrained model.")
    export: bool = Field(
        default=True,
        description="Whether the personal models are exported at the end; if not, `tap-client export` does it later.",
    )
    runtime: RuntimeConfig = RuntimeConfig()
    tasks: dict[TaskField, TaskDataConfig] = Field(
        min_length=1, description="This device's tasks: where their data is."
    )

    @field_validator("coordinator")
    @classmethod
    def _is_websocket_address(cls, value: str) -> str:
        try:
            parts = urlsplit(value)
            usable = parts.scheme in ("ws", "wss") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            usable = False
        if not usable:
            raise ValueError("must be ws://HOST:PORT or wss://HOST:PORT")
        return value

    @model_validator(mode="after")
    def _tls_is_whole(self) -> "ClientConfig":
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("'tls_cert' and 'tls_key' belong together; give both or neither")
        if not self.coordinator.startswith("wss://") and (self.tls_ca or self.tls_cert):
            raise ValueError("'tls_ca' and 'tls_cert' need a coordinator at wss://")
        return self

    @property
    def sends_token_in_the_clear(self) -> bool:
        """Whether the token travels unencrypted to another machine."""
        parts = urlsplit(self.coordinator)
        return parts.scheme == "ws" and not _is_loopback(parts.hostname or "")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


class _AnyTable(BaseModel):
    """A TOML table taken as it is, so that overrides can be laid over it before validation."""

    model_config = ConfigDict(extra="allow")


def load_client_config(path: Path, environment: Mapping[str, str] | None = None) -> ClientConfig:
    """Read `client.toml` and lay TAP_* variables over it (`environment` defaults to the process's).

    Paths in the file are relative to the file, paths in variables to the working directory. Raises UsageError, in one
    line, for anything wrong in either; an unknown TAP_* variable is an error that names the nearest known one.
    """
    environment = os.environ if environment is None else environment
    overrides = _overrides(environment)
    values = dict(load_toml(path, _AnyTable).model_extra or {})
    values = _resolve_paths(values, path.absolute().parent)
    source = str(path)
    if overrides:
        over: dict[str, Any] = {}
        for keys, text in overrides.values():
            _put(over, keys, text)
        over = _resolve_paths(over, Path.cwd())
        values = _merge(values, over)
        source += f" with {', '.join(overrides)}"
    return validate(values, ClientConfig, source=source)


def environment_variables() -> dict[str, tuple[str, ...]]:
    """Every overriding variable with the key path of its setting, such as TAP_RUNTIME_DEVICE: (runtime, device)."""
    return {ENVIRONMENT_PREFIX + "_".join(keys).upper(): keys for keys in _scalar_keys(ClientConfig)}


def _scalar_keys(model: type[BaseModel]) -> Iterator[tuple[str, ...]]:
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from ((name, *rest) for rest in _scalar_keys(kind))
        elif name != "tasks":
            yield (name,)


def _overrides(environment: Mapping[str, str]) -> dict[str, tuple[tuple[str, ...], str]]:
    known = environment_variables()
    found = {}
    for name in sorted(environment):
        if not name.startswith(ENVIRONMENT_PREFIX):
            continue
        if name not in known:
            hint = did_you_mean(name, known, quoted=False) or f"known: {', '.join(sorted(known))}"
            raise UsageError(f"environment variable {name} is unknown; {hint} (unset it or correct its name)")
        found[name] = (known[name], environment[name])
    return found


def _put(table: dict[str, Any], keys: tuple[str, ...], value: str) -> None:
    for key in keys[:-1]:
        table = table.setdefault(key, {})
    table[keys[-1]] = value


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(value, dict) and isinstance(old, dict) else value
    return merged


def _resolve_paths(values: dict[str, Any], base: Path) -> dict[str, Any]:
    """The same tables with every path made absolute against ``base``; values of a wrong type are left to validation."""
    resolved = dict(values)
    for key in ("token_file", "state_dir", "tls_ca", "tls_cert", "tls_key"):
        if isinstance(resolved.get(key), str):
            resolved[key] = str(_absolute(resolved[key], base))
    if isinstance(resolved.get("foundation"), str):
        resolved["foundation"] = directory_or_hub_id(resolved["foundation"], base)
    if isinstance(resolved.get("tasks"), dict):
        resolved["tasks"] = {name: _resolve_task(task, base) for name, task in resolved["tasks"].items()}
    return resolved


def _resolve_task(task: Any, base: Path) -> Any:
    if not isinstance(task, dict):
        return task
    resolved = dict(task)
    for key in ("train", "test"):
        if isinstance(resolved.get(key), str):
            resolved[key] = str(_absolute(resolved[key], base))
    if isinstance(resolved.get("dataset"), str):
        resolved["dataset"] = directory_or_hub_id(resolved["dataset"], base)
    return resolved


def directory_or_hub_id(value: str, base: Path) -> str:
    """``value`` as an absolute path if it looks like a path or exists below ``base``; else unchanged: a hub id."""
    path = _absolute(value, base)
    looks_like_a_path = value.startswith((".", "/", "~")) or value.count("/") > 1
    return str(path) if looks_like_a_path or path.exists() else value


def _absolute(value: str, base: Path) -> Path:
    return Path(os.path.normpath(base / os.path.expanduser(value)))

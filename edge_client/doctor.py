"""Whether this device is ready to join: one finding for each thing that could stop it, and what to do about it.

It looks and reports; it changes nothing except that unpacked data stays in the state directory for `join` to use. To
the coordinator it says a hello without tasks: a device that is in the middle of a round is not disturbed.
"""

import asyncio
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from edge_client.config import ClientConfig, TaskDataConfig
from edge_client.connection import Traffic, open_connection
from edge_client.greeting import greet
from edge_client.journal import read_settings
from edge_client.outages import Disconnected
from edge_client.tls import tls_context
from edge_client.token_file import read_token
from tap_core.errors import TapError, UsageError
from tap_core.files import make_private_directory
from tap_core.foundations.files import foundation_digest
from tap_core.settings.federation import FederationConfig

FREE_DISK_MB = 200
"""Least free disk that the state directory needs."""


@dataclass(frozen=True)
class Finding:
    """``what`` was looked at, whether it is ``ok``, and what was found or what to do. ``warns``: nothing keeps the
    device from joining, but somebody should read it."""

    what: str
    ok: bool
    detail: str
    warns: bool = False


IN_THE_CLEAR = "the token travels unencrypted to {address}; use wss:// on any network that others can listen to"


def findings(config: ClientConfig) -> Iterator[Finding]:
    """Everything that is looked at, cheapest first."""
    yield Finding("config", True, f"device {config.device_id} of federation {config.federation}")
    yield _token(config)
    if config.sends_token_in_the_clear:
        yield Finding("encryption", True, IN_THE_CLEAR.format(address=config.coordinator), warns=True)
    yield _state_directory(config)
    yield _memory(config)
    yield _torch(config)
    foundation, digest = _foundation(config)
    yield foundation
    coordinator, federation = asyncio.run(_reach(config, digest))
    yield coordinator
    yield from _data(config, federation)


async def _reach(config: ClientConfig, foundation: str | None) -> tuple[Finding, FederationConfig | None]:
    """Whether the coordinator answers, takes the token, and knows this federation and these tasks; its settings."""
    federation, taken = None, "answers and takes the token"
    try:
        token = read_token(config.token_file)
        tls = tls_context(config.tls_ca, config.tls_cert, config.tls_key)
        async with open_connection(
            config.coordinator, token, token_file=config.token_file, partial={}, traffic=Traffic(), tls=tls
        ) as connection:
            if foundation is not None:
                federation = await greet(connection, config, foundation, {})
                taken = f"{taken}, and has the device's foundation and tasks"
            return Finding("coordinator", True, f"{config.coordinator} {taken}"), federation
    except Disconnected as error:
        fix = "check that it runs and that 'coordinator' names its address and port"
        return Finding("coordinator", False, f"cannot reach {config.coordinator} ({error.reason}); {fix}"), None
    except TapError as error:
        return Finding("coordinator", False, str(error)), None


def free_memory_mb() -> int:
    """Megabytes of memory that can be had without swapping."""
    import psutil

    return int(psutil.virtual_memory().available // 2**20)


def require_memory(config: ClientConfig) -> None:
    """Raise TapError if less memory is free than `runtime.memory_limit_mb` asks for."""
    limit = config.runtime.memory_limit_mb
    if limit is not None and (free := free_memory_mb()) < limit:
        raise TapError(
            f"{free} MB of memory are free and runtime.memory_limit_mb asks for {limit}; close other "
            "programs or lower it"
        )


def _token(config: ClientConfig) -> Finding:
    try:
        read_token(config.token_file)
    except TapError as error:
        return Finding("token", False, str(error))
    if config.token_file.stat().st_mode & 0o077:
        return Finding("token", False, f"others can read it; run: chmod 600 {config.token_file}")
    return Finding("token", True, str(config.token_file))


def _state_directory(config: ClientConfig) -> Finding:
    try:
        make_private_directory(config.state_dir)
        free = shutil.disk_usage(config.state_dir).free // 2**20
    except OSError as error:
        return Finding(
            "state", False, f"{config.state_dir}: {error.strerror}; give a state_dir that this user can write"
        )
    if free < FREE_DISK_MB:
        return Finding("state", False, f"{config.state_dir} has {free} MB free of the {FREE_DISK_MB} needed; make room")
    return Finding("state", True, f"{config.state_dir}, {free} MB free")


def _memory(config: ClientConfig) -> Finding:
    try:
        require_memory(config)
    except TapError as error:
        return Finding("memory", False, str(error))
    return Finding("memory", True, f"{free_memory_mb()} MB free")


def _torch(config: ClientConfig) -> Finding:
    for package in ("torch", "transformers", "peft", "accelerate", "datasets", "onnxruntime"):
        try:
            version(package)
        except PackageNotFoundError:
            return Finding("torch", False, f'{package} is not installed; run: pip install "tap-edge[client]"')
    import torch

    from tap_core.training.runtime import check_runtime, is_on_cpu

    try:
        check_runtime(config.runtime)
    except UsageError as error:
        return Finding("torch", False, f"{torch.__version__}: {error}")
    where = "the CPU" if is_on_cpu(config.runtime) else torch.cuda.get_device_name()
    return Finding("torch", True, f"{torch.__version__}, trains on {where} in {config.runtime.precision}")


def _foundation(config: ClientConfig) -> tuple[Finding, str | None]:
    """The finding, and the digest if there is one."""
    try:
        digest = foundation_digest(config.foundation)
    except TapError as error:
        return Finding("foundation", False, str(error)), None
    return Finding("foundation", True, f"{config.foundation}, digest {digest[:12]}"), digest


def _data(config: ClientConfig, federation: FederationConfig | None) -> Iterator[Finding]:
    """``federation``: the settings, if the coordinator just told them; otherwise those of an earlier time count."""
    from edge_client.datasets import CACHE_DIRECTORY, load_task

    try:
        federation = federation or read_settings(config.state_dir)
    except TapError as error:
        yield Finding("data", False, str(error))
        return
    for name, source in sorted(config.tasks.items()):
        what = f"data of {name}"
        given = [path for path in (source.train, source.test) if path is not None]
        if absent := _absent(source):
            yield Finding(what, False, absent)
        elif federation is None:
            yield Finding(
                what,
                True,
                f"{_shown(given) or source.dataset}; read in full when the coordinator has told its settings",
            )
        else:
            try:
                (task,) = federation.tasks_named([name])
                data = load_task(task, source, seed=federation.seed, cache=config.state_dir / CACHE_DIRECTORY)
                yield Finding(what, True, f"{len(data.train)} training and {len(data.test)} test examples")
            except TapError as error:
                yield Finding(what, False, str(error))


def require_files(config: ClientConfig) -> None:
    """Raise UsageError if a task's file or folder is missing, before any coordinator counts on the device."""
    for _, source in sorted(config.tasks.items()):
        if absent := _absent(source):
            raise UsageError(absent)


def _absent(source: TaskDataConfig) -> str:
    absent = [path for path in (source.train, source.test) if path is not None and not path.exists()]
    return f"{absent[0]}: no such file or folder; correct its path in the configuration" if absent else ""


def _shown(paths: list[Path]) -> str:
    return ", ".join(str(path) for path in paths)

"""A federation's directory and its devices, put together from files: what `tap init` and `tap simulate` do.

It composes the method, the wire's encoding and the device's files. It does not know the command line or processes.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from edge_client.config import directory_or_hub_id, load_client_config
from edge_client.datasets import load_tasks
from protocol.names import ComponentName as WireName
from protocol.tensors import ComponentTensors, digest_of, encode_tensors
from tap_core.algorithms import algorithm_of
from tap_core.algorithms.base import on_wire
from tap_core.algorithms.participant import Participant, RoundOutcome
from tap_core.errors import UsageError
from tap_core.files import new_directory
from tap_core.foundations import load_foundation
from tap_core.foundations.files import foundation_digest
from tap_core.manifest import COMPONENTS_DIRECTORY, ComponentSpec, FederationManifest, without_path
from tap_core.model.tap_model import Tensors, build_model
from tap_core.names import DeviceName
from tap_core.settings.federation import FederationConfig
from tap_core.settings.toml import load_toml
from tap_core.simulation.in_process import SimulationResult, simulate


def load_federation(path: Path) -> FederationConfig:
    """Read `federation.toml`; a foundation that is a directory becomes absolute. Raises UsageError in one line."""
    config = load_toml(path, FederationConfig)
    foundation = directory_or_hub_id(config.foundation, path.absolute().parent)
    return config.model_copy(update={"foundation": foundation})


def version_0(config: FederationConfig) -> Tensors:
    """Every component of the federation at version 0, in the wire's dtype."""
    model = build_model(config, config.tasks_named(config.tasks), load_foundation(config.foundation))
    return on_wire(model.state("federated"), config.wire.dtype)


def init_federation(path: Path, directory: Path) -> FederationManifest:
    """Write the directory that the coordinator serves; it appears complete or not at all.

    Raises UsageError if the settings are wrong, the foundation cannot be loaded, or the directory is taken.
    """
    config = load_federation(path)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UsageError(f"{directory} exists and is not empty; give another --out or remove it first")
    if not algorithm_of(config).shares_whole_components:
        raise UsageError(
            f"algorithm {config.algorithm.name!r} with these settings does not share whole components, and runs in tap "
            "simulate alone; choose another algorithm, or other rounds.factors, for a federation of devices"
        )
    digest = foundation_digest(config.foundation)
    with new_directory(directory) as partial:
        (partial / COMPONENTS_DIRECTORY).mkdir()
        specs = {}
        for name, tensors in version_0(config).items():
            data = encode_tensors(ComponentTensors(WireName(name), tensors))
            component = digest_of(data)
            (partial / COMPONENTS_DIRECTORY / f"{component}.safetensors").write_bytes(data)
            shapes = {key: tuple(value.shape) for key, value in tensors.items()}
            specs[name] = ComponentSpec(digest=component, size=len(data), shapes=shapes)
        manifest = FederationManifest(config=without_path(config, digest), foundation_digest=digest, components=specs)
        manifest.save(partial)
    return manifest


def find_devices(directory: Path, federation: Path) -> list[Path]:
    """The devices' settings in a directory: client.toml in each sub-directory, its own *.toml that have a device_id.

    Raises UsageError if there is none.
    """
    own = [
        path for path in directory.glob("*.toml") if "device_id" in path.read_text(encoding="utf-8", errors="replace")
    ]
    found = sorted([*own, *directory.glob("*/client.toml")])
    found = [path for path in found if path.resolve() != federation.resolve()]
    if not found:
        raise UsageError(f"{directory} holds no device; put NAME.toml or NAME/client.toml files there")
    return found


def load_participants(config: FederationConfig, paths: list[Path]) -> dict[DeviceName, Participant]:
    """One participant for each client.toml, over one copy of the frozen weights. Raises UsageError in one line."""
    foundation = load_foundation(config.foundation)
    participants: dict[DeviceName, Participant] = {}
    for path in paths:
        client = load_client_config(path)
        if client.federation != config.name:
            raise UsageError(f"{path}: federation is {client.federation!r}; this one is {config.name!r}")
        if client.device_id in participants:
            raise UsageError(f"{path}: device_id {client.device_id!r} is taken by another file; choose another")
        model = build_model(config, config.tasks_named(client.tasks), foundation)
        participants[client.device_id] = Participant(
            config, client.device_id, model, load_tasks(client, config), client.runtime
        )
    return participants


def simulate_federation(
    path: Path, devices: Path, on_round: Callable[[int, Mapping[DeviceName, RoundOutcome]], None] | None = None
) -> tuple[FederationConfig, SimulationResult]:
    """The whole algorithm in this process, on the devices' own files."""
    config = load_federation(path)
    participants = load_participants(config, find_devices(devices, path))
    return config, simulate(config, participants, version_0(config), on_round=on_round)

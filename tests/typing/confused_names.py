"""Names that are taken for others, one mistake a line. `make types` fails if mypy finds nothing wrong with one of them:
then the line's `type: ignore` is unused. Nothing here is run."""

from coordinator.blobs import BlobStore
from coordinator.federation import Federation
from coordinator.rounds import Rounds
from coordinator.store import Store
from coordinator.versions import Version
from edge_client.cache import ComponentCache
from edge_client.private_store import PendingUpdate
from edge_client.worker import Given
from protocol.messages import ComponentRef
from protocol.names import ComponentName as WireName
from protocol.names import Digest
from protocol.session import Session
from tap_core.cohorts import own_values
from tap_core.components import decoder, family
from tap_core.model.tap_model import TapModel
from tap_core.names import ComponentName, DeviceName, TaskName


def on_the_wire(session: Session, name: WireName, digest: Digest) -> None:
    session.expect(name, 1)  # type: ignore[arg-type]
    ComponentRef(name=digest, version=0, digest=digest, size=1)  # type: ignore[arg-type]
    ComponentRef(name=name, version=0, digest=name, size=1)  # type: ignore[arg-type]


def in_the_coordinator(
    store: Store,
    blobs: BlobStore,
    federation: Federation,
    rounds: Rounds,
    device: DeviceName,
    task: TaskName,
    component: ComponentName,
    digest: Digest,
) -> None:
    blobs.get(component)  # type: ignore[arg-type]
    blobs.stage(digest, digest, b"")  # type: ignore[arg-type]
    store.remove_updates(0, component)  # type: ignore[arg-type]
    store.add_update(0, component, {}, 0.0)  # type: ignore[arg-type]
    store.registry.register(device, {component: 1}, (component,), 0.0)  # type: ignore[dict-item]
    store.registry.register(device, {task: 1}, (task,), 0.0)  # type: ignore[arg-type]
    rounds.awaits(task)  # type: ignore[arg-type]
    federation.assignment(component, (component,))  # type: ignore[arg-type]
    Version(0, component, 1)  # type: ignore[arg-type]


def on_a_device(
    cache: ComponentCache, model: TapModel, task: TaskName, device: DeviceName, component: ComponentName, digest: Digest
) -> None:
    cache.get(component)  # type: ignore[arg-type]
    Given({digest: digest}, {})  # type: ignore[dict-item]
    Given({component: component}, {})  # type: ignore[dict-item]
    PendingUpdate(0, {}, {task: 1}, {}, {})  # type: ignore[dict-item]
    PendingUpdate(0, {}, {}, {}, {component: b""})  # type: ignore[dict-item]
    family(digest)  # type: ignore[arg-type]
    decoder(device)  # type: ignore[arg-type]
    own_values({component: 1}, [digest], 0)  # type: ignore[list-item]
    model.state("personal", [task])  # type: ignore[list-item]

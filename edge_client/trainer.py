"""The method on this device, with bytes at its edge: components arrive and leave in the wire's encoding.

It stands between the agent, which carries bytes and digests, and `tap_core.algorithms`, which computes on arrays. It
knows both encodings and the two forms of the device's state; it does not know sockets, rounds of others or the disk.
Importing it is slow: it brings torch.
"""

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edge_client.config import ClientConfig
from edge_client.datasets import count_tasks, load_tasks
from edge_client.private_store import PendingUpdate, PersonalTensors, StateError, StoredState, Tensors
from protocol.errors import LocalProtocolError, NotFinite, RemoteProtocolError
from protocol.names import ComponentName as WireName
from protocol.tensors import ComponentTensors, decode_tensors, digest_of, encode_tensors
from tap_core.algorithms.base import DeviceState
from tap_core.algorithms.participant import Participant
from tap_core.cohorts import own_values
from tap_core.errors import Diverged, TapError
from tap_core.export.directory import export_task
from tap_core.foundations import load_foundation
from tap_core.model.adapters import ParameterSet
from tap_core.model.tap_model import build_model
from tap_core.names import ComponentName, TaskName
from tap_core.settings.federation import FederationConfig
from tap_core.training.progress import OnProgress
from tap_core.training.runtime import check_runtime

Shapes = Mapping[ComponentName, Mapping[str, tuple[int, ...]]]


class LocalTrainer:
    """One device's participant, driven with encoded components (docs/method.md sections 4 and 5).

    ``participant`` may be any object with the methods `take_part` and `finish` of
    `tap_core.algorithms.participant.Participant`.
    ``shapes``: shape by tensor name by owned component. ``examples``: n_{i,o} by task.
    """

    def __init__(self, participant: Any, *, dtype: str, shapes: Shapes, examples: Mapping[TaskName, int]):
        self._participant, self._dtype, self._shapes = participant, dtype, shapes
        self.examples = dict(examples)
        self.components = tuple(sorted(shapes))

    def take_part(
        self,
        round_number: int,
        received: Mapping[ComponentName, bytes],
        stored: StoredState | None,
        on_progress: OnProgress,
        *,
        home: Mapping[ComponentName, int],
    ) -> tuple[StoredState, dict[str, Any]]:
        """One round of stage 1: the next state, with the update to send in it, and a report for `rounds.jsonl`.

        ``home``: the components that stay at home, each with the coordinator's version. ``received``: the encoded
        global value of each owned component but those that start from the device's own (`own_values`). Raises Diverged
        if training does, or if a received or trained value is not finite, and TapError if a component does not fit this
        device's model or memory runs out; ``stored`` is then still the device's state.
        """
        state = self._device_state(stored)
        tensors = self._decoded(received, own_values(home, state.home, state.round))
        try:
            outcome = self._participant.take_part(round_number, tensors, state, on_progress, home=home)
        except torch.OutOfMemoryError:
            raise out_of_memory() from None
        _require_finite("personal", outcome.state.personal)
        _require_finite("federated", outcome.state.home)
        blobs, digests = {}, {}
        for name, values in sorted(outcome.update.components.items()):
            data = self._encoded(name, values)
            digests[name] = digest_of(data)
            blobs[digests[name]] = data
        trained_from = {name: digest_of(data) for name, data in sorted(received.items())}
        pending = PendingUpdate(round_number, trained_from, dict(outcome.update.examples), digests, blobs)
        return _stored(outcome.state, pending), dataclasses.asdict(outcome.report)

    def finish(
        self,
        received: Mapping[ComponentName, bytes],
        stored: StoredState | None,
        on_progress: OnProgress,
        *,
        home: Mapping[ComponentName, int],
        distilling: bool = True,
    ) -> tuple[StoredState, dict[TaskName, Any], dict[TaskName, Any]]:
        """Stage 2: the final state, the results by task and the sample outputs by task. Arguments and errors are those
        of `take_part`. Without ``distilling`` the personal set stays that of stage 1.
        """
        state = self._device_state(stored)
        tensors = self._decoded(received, own_values(home, state.home, state.round))
        try:
            outcome = self._participant.finish(tensors, state, on_progress, distilling=distilling, home=home)
        except torch.OutOfMemoryError:
            raise out_of_memory() from None
        for name, tensors in {"personal": outcome.state.personal, **outcome.state.candidates}.items():
            _require_finite(name, tensors)
        results = {task: dataclasses.asdict(result) for task, result in sorted(outcome.results.items())}
        return _stored(outcome.state, None), results, outcome.samples

    def export(self, stored: StoredState, task: TaskName, directory: Path) -> float:
        """Write the ONNX export of one task with the personal set merged into it.

        Returns the largest absolute difference between torch and onnxruntime over a few of the device's examples.
        """
        self._require_own_shapes(stored)
        model, data = self._participant.model, self._participant.data[task]
        model.load("personal", stored.personal_for(task).for_training())
        return export_task(model, task, directory, data.test or data.train)

    def _device_state(self, stored: StoredState | None) -> DeviceState:
        if stored is None:
            return DeviceState.initial(tuple(self.examples))
        self._require_own_shapes(stored)
        return DeviceState(
            round=stored.round,
            personal=stored.personal.for_training(),
            federated_loss=dict(stored.federated_loss),
            personal_loss=dict(stored.personal_loss),
            finished=stored.finished,
            home=stored.home.for_training(),
            rounds=stored.rounds,
            selected=dict(stored.selected),
            candidates={name: tensors.for_training() for name, tensors in stored.candidates.items()},
        )

    def _require_own_shapes(self, stored: StoredState) -> None:
        """Raise StateError unless the stored personal set, and what stays at home, have the shapes of this model."""
        home = _shapes_of(stored.home.for_training())
        odd = list[str]()
        for personal in (
            _shapes_of(tensors.for_training()) for tensors in (stored.personal, *stored.candidates.values())
        ):
            odd += sorted(c for c in {*personal, *self._shapes} if personal and personal.get(c) != self._shapes.get(c))
        odd += sorted(c for c in home if home[c] != self._shapes.get(c))
        if odd:
            raise StateError(
                "the saved personal model does not fit the federation's present settings or this device's tasks "
                f"({odd[0]} first); bring back the old ones, or move the state directory away to start anew"
            )
        if set(stored.personal_loss) != set(self.examples):
            raise StateError(
                f"the saved state is of tasks {', '.join(sorted(stored.personal_loss))} and this device now has "
                f"{', '.join(sorted(self.examples))}; bring back the old ones, or move the state directory away"
            )

    def _encoded(self, name: ComponentName, values: Mapping[str, np.ndarray]) -> bytes:
        try:
            return encode_tensors(ComponentTensors(WireName(name), values))
        except LocalProtocolError as error:
            raise Diverged(
                f"training diverged, and nothing was sent ({error}); ask the federation's operator for a lower "
                f"training.learning_rate or another wire.dtype than {self._dtype}"
            ) from None

    def _decoded(self, received: Mapping[ComponentName, bytes], own: Collection[ComponentName]) -> Tensors:
        """The received tensors, which with the device's ``own`` make up its components."""
        if odd := sorted({*received, *own} ^ set(self._shapes)):
            raise TapError(
                f"the coordinator and this device disagree about the components of its tasks ({odd[0]} first); use the "
                "same version of tap-edge on both"
            )
        tensors: Tensors = {}
        for name, data in sorted(received.items()):
            try:
                decoded = decode_tensors(WireName(name), data, shapes=self._shapes[name], dtype=self._dtype)
            except NotFinite as error:
                raise Diverged(f"a value from the coordinator is not finite ({error})") from None
            except RemoteProtocolError as error:
                raise TapError(
                    f"component {name} from the coordinator does not fit this device's model ({error}); use the same "
                    "foundation and version of tap-edge on both"
                ) from None
            tensors[name] = dict(decoded.tensors)
        return tensors


def build_trainer(config: ClientConfig, federation: FederationConfig) -> LocalTrainer:
    """Read the data, load the foundation, build this device's model.

    Raises UsageError for bad data or weights, or for a runtime that this machine cannot give or is slower with.
    """
    check_runtime(config.runtime)
    data = load_tasks(config, federation)
    tasks = federation.tasks_named(data)
    model = build_model(federation, tasks, load_foundation(config.foundation))
    participant = Participant(federation, config.device_id, model, data, config.runtime, config.state_dir)
    shapes = _shapes_of(model.state("federated"))
    return LocalTrainer(participant, dtype=federation.wire.dtype, shapes=shapes, examples=count_tasks(data))


def _shapes_of(components: Tensors) -> dict[ComponentName, dict[str, tuple[int, ...]]]:
    return {
        component: {name: tuple(array.shape) for name, array in tensors.items()}
        for component, tensors in components.items()
    }


def _require_finite(parameter_set: ParameterSet, components: Tensors) -> None:
    for component, tensors in sorted(components.items()):
        if not all(np.isfinite(array).all() for array in tensors.values()):
            raise Diverged(f"training diverged (the {parameter_set} {component} has values that are not finite)")


def out_of_memory() -> TapError:
    return TapError(
        'the GPU\'s memory is full; close other programs that use it, set runtime.precision to "bf16", or ask the '
        "federation's operator for a smaller training.batch_size"
    )


def _stored(state: DeviceState, pending: PendingUpdate | None) -> StoredState:
    return StoredState(
        round=state.round,
        finished=state.finished,
        personal=PersonalTensors(state.personal),
        federated_loss=dict(state.federated_loss),
        personal_loss=dict(state.personal_loss),
        pending=pending,
        home=PersonalTensors({c: {k: v.astype(np.float32) for k, v in g.items()} for c, g in state.home.items()}),
        rounds=state.rounds,
        selected=dict(state.selected),
        candidates={name: PersonalTensors(tensors) for name, tensors in state.candidates.items()},
    )

"""What a device must not lose and must not show: personal tensors, what stays at home, loss histories, the round, the
update under way.

Every commit is one generation: a new directory with new files, made durable, and then one rename of `current.json`,
which points to it and holds the digests of its files. A power cut at any point leaves the old generation or the new
one. It knows files and numpy arrays; it does not know the method, sockets or torch.

Such tensors leave this module only as `PersonalTensors`: no dictionary, and no type that the wire's encoder takes.
"""

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load, save

from protocol.names import Digest
from protocol.tensors import digest_of
from tap_core.errors import TapError
from tap_core.files import make_private_directory, replace_private, sync_directory, write_private
from tap_core.names import ComponentName, DeviceName, TaskName
from tap_core.settings.base import Settings

STATE_DIRECTORY = "state"
POINTER = "current.json"
PERSONAL, HOME = "personal.safetensors", "home.safetensors"
FORMAT = 3
READABLE = (1, 2, FORMAT)
"""Format 1 is of before components could stay at home, format 2 of before tasks could select a set of their own."""
_JOINT = "::"

Tensors = dict[ComponentName, dict[str, np.ndarray]]


class StateError(TapError):
    """The state directory cannot be used: damaged, or another device's."""


class PersonalTensors:
    """Component name -> tensor name -> array, never transmitted: x_i, the personal set, or w_r of what stays at home.

    Not a mapping on purpose: nothing that sends tensors can take one by mistake. `for_training` is the only way in.
    """

    __slots__ = ("_tensors",)

    def __init__(self, tensors: Mapping[ComponentName, Mapping[str, np.ndarray]]):
        self._tensors = {component: dict(values) for component, values in tensors.items()}

    @property
    def components(self) -> frozenset[ComponentName]:
        """Their names, which are no secret."""
        return frozenset(self._tensors)

    def for_training(self) -> Tensors:
        """The arrays, for the local trainer and nobody else."""
        return {component: dict(values) for component, values in self._tensors.items()}

    def __repr__(self) -> str:
        return f"<personal tensors of {len(self._tensors)} components>"

    def __reduce__(self) -> Any:
        raise TypeError("personal tensors are not to be serialized; PrivateStore writes them")


@dataclass(frozen=True)
class PendingUpdate:
    """A trained update in its wire form, kept until the next round so that after a crash the same one is sent again.

    ``trained_from``: digest by component that the round started from. ``digests``: digest by component of the result.
    ``blobs``: the encoded bytes by digest. ``examples``: n_{i,r} by component.
    """

    round: int
    trained_from: Mapping[ComponentName, Digest]
    examples: Mapping[ComponentName, int]
    digests: Mapping[ComponentName, Digest]
    blobs: Mapping[Digest, bytes] = field(repr=False)


@dataclass(frozen=True)
class StoredState:
    """One generation. ``round``: the last completed one, -1 before the first; histories are by task (section 4).

    ``home``: w_r, float32, of each component that stayed at home in that round. ``rounds``: how many the device took
    part in. ``selected``: at the end, the name of the set that a task selected in place of the personal one, by task;
    ``candidates``: those sets, by name.
    """

    round: int
    finished: bool
    personal: PersonalTensors
    federated_loss: Mapping[TaskName, float]
    personal_loss: Mapping[TaskName, float]
    pending: PendingUpdate | None = None
    home: PersonalTensors = field(default_factory=lambda: PersonalTensors({}))
    rounds: int = 0
    selected: Mapping[TaskName, str] = field(default_factory=dict)
    candidates: Mapping[str, PersonalTensors] = field(default_factory=dict)

    def personal_for(self, task: TaskName) -> PersonalTensors:
        """The set that answers for a task."""
        return self.candidates[self.selected[task]] if task in self.selected else self.personal


class _Pending(Settings):
    round: int
    trained_from: dict[ComponentName, Digest]
    examples: dict[ComponentName, int]
    digests: dict[ComponentName, Digest]


class _Pointer(Settings):
    """`current.json`. Loss histories start at infinity, which JSON lacks: None stands for it."""

    format: int
    device: DeviceName
    federation: str
    generation: int
    round: int
    finished: bool
    federated_loss: dict[TaskName, float | None]
    personal_loss: dict[TaskName, float | None]
    pending: _Pending | None
    rounds: int = 0
    selected: dict[TaskName, str] = Field(default={})
    files: dict[str, Digest] = Field(description="sha256 by path below the generation's directory.")


class PrivateStore:
    """The `state` directory of one device in one federation; one process at a time."""

    def __init__(self, state_dir: Path, *, device: DeviceName, federation: str):
        make_private_directory(state_dir)
        self._directory = state_dir / STATE_DIRECTORY
        make_private_directory(self._directory)
        self._device, self._federation = device, federation
        self._generation = -1

    def load(self) -> StoredState | None:
        """The last committed state, None before the first. Raises StateError, in one line, if it cannot be trusted.

        Another process may commit meanwhile (`export` beside `join`): then the newer generation is read.
        """
        while True:
            pointer = self._read_pointer()
            try:
                return self._load(pointer)
            except StateError:
                if self._read_pointer() == pointer:
                    raise

    def _load(self, pointer: "_Pointer | None") -> StoredState | None:
        if pointer is None:
            return None
        directory = self._directory / str(pointer.generation)
        files = {name: self._read_file(directory / name, digest) for name, digest in pointer.files.items()}
        for needed in (PERSONAL, *(_candidate_name(name) for name in pointer.selected.values())):
            if needed not in files:
                raise self._damaged(f"{POINTER} names no {needed}")
        personal = self._tensors_of(PERSONAL, files)
        home = self._tensors_of(HOME, files) if HOME in files else PersonalTensors({})
        pending = None
        if pointer.pending is not None:
            about = pointer.pending
            wanted = {digest: _blob_name(digest) for digest in about.digests.values()}
            if any(name not in files for name in wanted.values()):
                raise self._damaged("the pending update is incomplete")
            blobs = {digest: files[name] for digest, name in wanted.items()}
            pending = PendingUpdate(about.round, about.trained_from, about.examples, about.digests, blobs)
        self._generation = pointer.generation
        return StoredState(
            pointer.round,
            pointer.finished,
            personal,
            {task: math.inf if loss is None else loss for task, loss in pointer.federated_loss.items()},
            {task: math.inf if loss is None else loss for task, loss in pointer.personal_loss.items()},
            pending,
            home,
            pointer.rounds,
            pointer.selected,
            {name: self._tensors_of(_candidate_name(name), files) for name in set(pointer.selected.values())},
        )

    def _tensors_of(self, name: str, files: Mapping[str, bytes]) -> PersonalTensors:
        try:
            return PersonalTensors(_split(load(files[name])))
        except (SafetensorError, ValueError) as error:
            raise self._damaged(f"{name}: {error}") from None

    def commit(self, state: StoredState) -> None:
        """Make ``state`` the current generation. After it returns a power cut cannot undo it. Raises OSError."""
        generation = self._generation + 1
        directory = self._directory / str(generation)
        if directory.exists():
            shutil.rmtree(directory)
        make_private_directory(directory)
        files = {PERSONAL: save(_joined(state.personal.for_training()))}
        if state.home.components:
            files[HOME] = save(_joined(state.home.for_training()))
        files |= {
            _candidate_name(name): save(_joined(tensors.for_training())) for name, tensors in state.candidates.items()
        }
        if state.pending is not None:
            files |= {_blob_name(digest): data for digest, data in state.pending.blobs.items()}
        for name, data in files.items():
            write_private(directory / name, data)
        sync_directory(directory)
        sync_directory(self._directory)
        pointer = _Pointer(
            format=FORMAT,
            device=self._device,
            federation=self._federation,
            generation=generation,
            round=state.round,
            finished=state.finished,
            federated_loss={task: _finite(loss) for task, loss in state.federated_loss.items()},
            personal_loss={task: _finite(loss) for task, loss in state.personal_loss.items()},
            pending=None
            if state.pending is None
            else _Pending(
                round=state.pending.round,
                trained_from=dict(state.pending.trained_from),
                examples=dict(state.pending.examples),
                digests=dict(state.pending.digests),
            ),
            rounds=state.rounds,
            selected=dict(state.selected),
            files={name: digest_of(data) for name, data in files.items()},
        )
        replace_private(self._directory / POINTER, pointer.model_dump_json(indent=1).encode())
        self._generation = generation
        self._remove_others()

    def _remove_others(self) -> None:
        for path in self._directory.iterdir():
            if path.is_dir() and path.name != str(self._generation):
                shutil.rmtree(path)

    def _read_pointer(self) -> _Pointer | None:
        try:
            values = json.loads((self._directory / POINTER).read_text(encoding="utf-8"))
            written = values.get("format") if isinstance(values, dict) else None
            if isinstance(written, int) and written not in READABLE:
                raise StateError(
                    f"{self._directory} was written by another version (format {written}, this one reads {FORMAT}); "
                    "use that version, or move the directory away to start anew"
                )
            pointer = _Pointer.model_validate(values)
        except FileNotFoundError:
            return None
        except (ValueError, ValidationError):
            raise self._damaged(f"{POINTER} is not readable") from None
        if (pointer.device, pointer.federation) != (self._device, self._federation):
            raise StateError(
                f"{self._directory} belongs to device {pointer.device!r} of federation {pointer.federation!r}, not to "
                f"{self._device!r} of {self._federation!r}; give this device a state_dir of its own"
            )
        return pointer

    def _read_file(self, path: Path, digest: Digest) -> bytes:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise self._damaged(f"{path.name}: {error.strerror}") from None
        if digest_of(data) != digest:
            raise self._damaged(f"{path.name} has changed on the disk")
        return data

    def _damaged(self, what: str) -> StateError:
        return StateError(
            f"{self._directory} is damaged ({what}); restore it from a backup, or move it away to start anew"
        )


def _finite(loss: float) -> float | None:
    return loss if math.isfinite(loss) else None


def _candidate_name(name: str) -> str:
    """The file of a set that a task selected; names of sets are words of the algorithms' own."""
    return f"selected-{name.replace(' ', '-')}.safetensors"


def _blob_name(digest: Digest) -> str:
    return f"update-{digest}.safetensors"


_NOTHING = np.empty(0, np.float32)
"""Stands, without a name, for a component that has no tensors."""


def _joined(tensors: Tensors) -> dict[str, np.ndarray]:
    return {
        f"{component}{_JOINT}{name}": np.ascontiguousarray(array)
        for component, values in sorted(tensors.items())
        for name, array in sorted(values.items() or [("", _NOTHING)])
    }


def _split(flat: Mapping[str, np.ndarray]) -> Tensors:
    tensors: Tensors = {}
    for joined, array in flat.items():
        component, joint, name = joined.partition(_JOINT)
        if not joint:
            raise ValueError(f"unexpected tensor {joined!r}")
        group = tensors.setdefault(ComponentName(component), {})
        if name:
            group[name] = array
    return tensors

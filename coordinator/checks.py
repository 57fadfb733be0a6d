"""What a device may say: hello and update against the federation's manifest, before anything is stored or asked for.

It knows messages, shapes and counts; it does not know connections, files or rounds.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from coordinator.device_registry import Enrolment
from coordinator.forms import Form
from coordinator.norms import Bound, Norms
from coordinator.versions import Contribution
from protocol.codes import RefusalCode, RejectionCode
from protocol.errors import RemoteProtocolError
from protocol.messages import Hello, Update
from tap_core.components import examples_per_component, owned_components
from tap_core.manifest import FederationManifest
from tap_core.names import ComponentName, DeviceName, TaskName
from tap_core.settings.federation import TaskConfig


class Unacceptable(Exception):
    """What a device said is refused: a code for programs, and why and how to mend it, one line each, for people."""

    def __init__(self, code: RefusalCode | RejectionCode, why: str, fix: str = ""):
        super().__init__(f"{code}: {why}")
        self.code, self.why, self.fix = code.value, why, fix


@dataclass(frozen=True)
class Membership:
    """What follows from an accepted hello: the components it owns and the most examples it may claim for each."""

    tasks: dict[TaskName, int]
    owned: tuple[ComponentName, ...]
    examples: dict[ComponentName, int]


def check_hello(hello: Hello, device: DeviceName, manifest: FederationManifest, enrolment: Enrolment) -> Membership:
    """The membership of ``device``, the one that the token of ``enrolment`` belongs to; an empty one if it names no
    task and so only looks at the settings. Raises Unacceptable."""
    config = manifest.config
    if hello.device != device:
        raise Unacceptable(
            RefusalCode.WRONG_DEVICE,
            f"the token belongs to device {device!r}, not to {hello.device!r}",
            "set device_id to the name that the token was enrolled for",
        )
    if hello.federation != config.name:
        raise Unacceptable(
            RefusalCode.WRONG_FEDERATION,
            f"this coordinator serves federation {config.name!r}, not {hello.federation!r}",
            "correct 'federation' or 'coordinator' in client.toml",
        )
    if hello.schema_version != manifest.schema_version:
        raise Unacceptable(
            RefusalCode.SCHEMA,
            f"the federation has schema {manifest.schema_version} and the device speaks {hello.schema_version}",
            "install the version of tap-edge that the coordinator runs",
        )
    if hello.foundation != manifest.foundation_digest:
        raise Unacceptable(
            RefusalCode.FOUNDATION,
            f"the device holds foundation {hello.foundation[:12]}, the federation {manifest.foundation_digest[:12]}",
            f"point 'foundation' in client.toml at the weights of {config.foundation}",
        )
    tasks = _allowed_tasks(hello, config.tasks, enrolment)
    named = {TaskName(name): count for name, count in hello.tasks.items()}
    examples = examples_per_component(tasks, named)
    return Membership(named, owned_components(tasks), examples)


def _allowed_tasks(hello: Hello, known: Mapping[TaskName, TaskConfig], enrolment: Enrolment) -> list[TaskConfig]:
    allowed = set(known) if enrolment.allowed_tasks is None else set(enrolment.allowed_tasks)
    renew = f"tap-coordinator enroll {hello.device} DIR --renew"
    for name, count in sorted(hello.tasks.items()):
        if name not in known:
            raise Unacceptable(
                RefusalCode.UNKNOWN_TASK,
                f"the federation has no task {name!r}; its tasks are {', '.join(sorted(known))}",
                "name one of the federation's tasks in client.toml",
            )
        if name not in allowed:
            raise Unacceptable(
                RefusalCode.TASK_NOT_ALLOWED,
                f"device {hello.device!r} may not take part in task {name!r}; it may in {', '.join(sorted(allowed))}",
                f"leave {name!r} out of client.toml, or ask the operator for a new token: {renew} --task {name} ...",
            )
        if count > enrolment.max_examples:
            raise Unacceptable(
                RejectionCode.EXAMPLES,
                f"task {name!r} has {count} training examples, more than the {enrolment.max_examples} that device "
                f"{hello.device!r} may claim",
                f"train on fewer, or ask the operator for a new token: {renew} --max-examples {count}",
            )
    return [known[TaskName(name)] for name in sorted(hello.tasks)]


def check_update(
    update: Update, membership: Membership, asked: Collection[ComponentName], forms: Mapping[ComponentName, Form]
) -> dict[ComponentName, Contribution]:
    """The update's contributions by component, from what it says of itself. Raises Unacceptable.

    It must name exactly the components that the device was ``asked`` for, with sizes that their tensors can have, and
    claim no more examples than the hello announced.
    """
    named = [ComponentName(ref.name) for ref in update.components]
    claimed = {ComponentName(name): count for name, count in update.examples.items()}
    if sorted(named) != sorted(asked):
        odd = sorted(set(named) ^ set(asked)) or [name for name in named if named.count(name) > 1]
        raise Unacceptable(
            RejectionCode.COMPONENTS, f"the update must hold exactly the components that were asked for; see {odd[0]!r}"
        )
    if claimed.keys() != set(asked):
        raise Unacceptable(
            RejectionCode.EXAMPLES, "the update must give the number of examples of exactly its components"
        )
    contributions = {}
    for name, ref in zip(named, update.components, strict=True):
        count, most = claimed[name], membership.examples[name]
        if not 0 < count <= most:
            raise Unacceptable(
                RejectionCode.EXAMPLES, f"{name!r}: {count} examples, of at most {most} that were announced"
            )
        if not 0 < ref.size <= forms[name].limit:
            raise Unacceptable(RejectionCode.SIZE, f"{name!r}: {ref.size} bytes, of at most {forms[name].limit}")
        if ref.version != update.round:
            raise Unacceptable(
                RejectionCode.VERSION, f"{name!r}: version {ref.version} in an update of round {update.round}"
            )
        contributions[name] = Contribution(ref.digest, ref.size, count)
    return contributions


def check_change(form: Form, data: bytes, sent: bytes, bound: Bound, round_number: int, recent: Norms) -> float:
    """The norm of the change from ``sent``, what the device was sent, to ``data``, its checked answer. Raises
    Unacceptable if that is over the limit."""
    norm = form.distance(data, sent)
    limit = bound.limit(round_number, form.values, 0.0, recent)
    if norm > limit:
        limit = bound.limit(round_number, form.values, form.distance(sent), recent)
    if not norm <= limit:
        raise Unacceptable(
            RejectionCode.NORM, f"{form.name!r}: the update's norm is {norm:.4g}, of at most {limit:.4g}"
        )
    return norm


def check_component(form: Form, data: bytes) -> None:
    """Raise Unacceptable unless ``data`` is the component's tensors: names, shapes, dtype, and finite values."""
    try:
        form.check(data)
    except RemoteProtocolError as error:
        raise Unacceptable(RejectionCode.TENSORS, f"{form.name!r}: {error}") from None

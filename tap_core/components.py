"""Which components a task uses: the one map of the method (docs/method.md section 3, "Components").

Ownership, forward routing, the wire filter, aggregation and replacement all call the functions of this module, so
they cannot disagree about a name (docs/method.md section 8, trap 3). It knows names only: no tensors, no torch.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol, get_args

from tap_core.names import ComponentName, TaskName

Modality = Literal["image", "text"]
TaskKind = str
"""The name of a task kind, one of `tap_core.tasks.KINDS`."""
ComponentFamily = Literal["encoder", "mote/attention", "mote/expert", "mome/attention", "mome/expert", "decoder"]

SHARED = "shared"


class Task(Protocol):
    """What this module needs to know of a task: its name, its kind and its input modalities."""

    @property
    def name(self) -> TaskName: ...

    @property
    def kind(self) -> TaskKind: ...

    @property
    def inputs(self) -> Sequence[Modality]: ...


class Path(NamedTuple):
    """One of the four ways (a, b) through the backbone.

    For a task with two modalities ``own_modality`` means each token's own modality, so the four paths stay four.
    """

    own_modality: bool
    own_kind: bool

    def modality_key(self, modality: Modality) -> str:
        """The path's ``a`` for a token of ``modality``: the modality itself or "shared"."""
        return modality if self.own_modality else SHARED

    def kind_key(self, kind: TaskKind) -> str:
        """The path's ``b`` for a task of ``kind``: the kind itself or "shared"."""
        return kind if self.own_kind else SHARED


PATHS: tuple[Path, ...] = tuple(Path(a, b) for a in (True, False) for b in (True, False))
"""The four paths, in the order in which the backbone stacks them."""


def encoder(modality: str) -> ComponentName:
    return ComponentName(f"encoder/{modality}")


def mote_attention(a: str) -> ComponentName:
    return ComponentName(f"mote/attention/{a}")


def mote_expert(a: str, b: str) -> ComponentName:
    return ComponentName(f"mote/expert/{a}/{b}")


def mome_attention(b: str) -> ComponentName:
    return ComponentName(f"mome/attention/{b}")


def mome_expert(b: str, a: str) -> ComponentName:
    return ComponentName(f"mome/expert/{b}/{a}")


def decoder(task_name: TaskName) -> ComponentName:
    return ComponentName(f"decoder/{task_name}")


def family(component: ComponentName) -> ComponentFamily:
    """The family of a component name, for example ``mote/expert`` of ``mote/expert/image/shared``.

    Raises ValueError if the name is not of the form that the functions above make.
    """
    for known in get_args(ComponentFamily):
        if component.startswith(f"{known}/"):
            name: ComponentFamily = known
            return name
    raise ValueError(
        f"{component!r} is not a component name; expected one of {', '.join(get_args(ComponentFamily))}/..."
    )


def is_lora_a(tensor: str) -> bool:
    """Whether a component's tensor is the first factor of an adapter, which its input meets first."""
    return tensor.endswith(".lora_A")


def is_lora_b(tensor: str) -> bool:
    return tensor.endswith(".lora_B")


def components_of_task(task: Task) -> tuple[ComponentName, ...]:
    """Every component that ``task`` uses, sorted (docs/method.md section 3)."""
    names = {decoder(task.name)}
    for modality in task.inputs:
        names.add(encoder(modality))
        for path in PATHS:
            a, b = path.modality_key(modality), path.kind_key(task.kind)
            names |= {mote_attention(a), mote_expert(a, b), mome_attention(b), mome_expert(b, a)}
    return tuple(sorted(names))


def owned_components(tasks: Iterable[Task]) -> tuple[ComponentName, ...]:
    """The components that a device with ``tasks`` owns: the union over its tasks, sorted."""
    return tuple(sorted({name for task in tasks for name in components_of_task(task)}))


def examples_per_component(tasks: Iterable[Task], examples: Mapping[TaskName, int]) -> dict[ComponentName, int]:
    """n_{i,r}: for each owned component, the sum of n_{i,o} over the tasks that use it (docs/method.md section 4).

    ``examples`` holds n_{i,o}, the number of training examples, by task name.
    """
    counts: dict[ComponentName, int] = {}
    for task in tasks:
        for name in components_of_task(task):
            counts[name] = counts.get(name, 0) + examples[task.name]
    return dict(sorted(counts.items()))

"""Which components have too few owners to be federated: `rounds.min_cohort` of docs/method.md section 4, "Cohorts".

Owners are the devices that have said hello and are enrolled. With a `min_cohort` of 1 nothing stays at home, and what a
single device owns is averaged alone: then its update is what every later owner reads, and the operator is told so.
It knows settings and which tasks devices have; it does not know rounds, tokens or where a statement is shown.
"""

from collections.abc import Collection, Iterable
from typing import Protocol

from tap_core.cohorts import federated_components
from tap_core.components import components_of_task, owned_components
from tap_core.names import ComponentName, TaskName
from tap_core.settings.federation import FederationConfig


class Enrolled(Protocol):
    """What is needed of a row of the registry."""

    @property
    def tasks(self) -> Collection[TaskName]: ...
    @property
    def allowed_tasks(self) -> Collection[TaskName] | None: ...
    def is_admitted(self, at: float) -> bool: ...


def home_components(config: FederationConfig, devices: Iterable[Collection[TaskName]]) -> frozenset[ComponentName]:
    """The components that stay at home, those that nobody owns among them. ``devices``: the tasks of each owner."""
    tasks = ([config.tasks[name] for name in names] for names in devices)
    federated = federated_components(tasks, config.rounds.min_cohort)
    return frozenset(owned_components(config.tasks.values())).difference(federated)


def tasks_by_device(config: FederationConfig, devices: Iterable[Enrolled], at: float) -> list[Collection[TaskName]]:
    """The tasks of each device that may take part: those of its last hello; before its first, all that it may name."""
    return [
        device.tasks or (config.tasks.keys() if device.allowed_tasks is None else device.allowed_tasks)
        for device in devices
        if device.is_admitted(at)
    ]


def single_owners(config: FederationConfig, devices: Collection[Collection[TaskName]]) -> tuple[ComponentName, ...]:
    """The components that are sent although they can have a single owner, sorted; none with a `min_cohort` above 1.

    ``devices``: the tasks of each. Without any, nobody is enrolled yet: then those that a single task uses.
    """
    if config.rounds.min_cohort >= 2:
        return ()
    owners = [[config.tasks[name] for name in tasks if name in config.tasks] for tasks in devices]
    owners = owners or [[task] for task in config.tasks.values()]
    return tuple(sorted(set(federated_components(owners, 1)).difference(federated_components(owners, 2))))


def statement(config: FederationConfig, devices: Collection[Collection[TaskName]]) -> str | None:
    """What a `min_cohort` of 1 means for single owners, in one line. None if there is none."""
    single = single_owners(config, devices)
    if not single:
        return None
    tasks = sorted(task for task, settings in config.tasks.items() if set(components_of_task(settings)) & set(single))
    return (
        f"with rounds.min_cohort = 1 a single owner's update is readable by the operator and by every later owner; "
        f"{len(single)} components can have a single owner, of the tasks {', '.join(tasks)}: {', '.join(single)}"
    )


class Watch:
    """Remembers which statement was made last, so that each is made once."""

    def __init__(self, config: FederationConfig):
        self._config = config
        self._last: str | None = None

    def news(self, devices: Iterable[Enrolled], at: float) -> str | None:
        """The statement for the devices as they are now, if there is one and it is another than the last."""
        known = tasks_by_device(self._config, devices, at)
        before, self._last = self._last, statement(self._config, known) if known else None
        return self._last if self._last != before else None

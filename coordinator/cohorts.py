"""Which components can have a single owner: their average is then that one device's own update, for others to read.

It matters only if `rounds.min_cohort` is 1; see `warning`. It knows settings and which tasks devices have; it does not
know rounds, tokens or where a warning is shown.
"""

from collections.abc import Collection, Iterable
from typing import Protocol

from tap_core.components import components_of_task, owned_components
from tap_core.settings.federation import FederationConfig


class Enrolled(Protocol):
    """What is needed of a row of the registry."""

    @property
    def tasks(self) -> Collection[str]: ...
    @property
    def allowed_tasks(self) -> Collection[str] | None: ...
    def is_admitted(self, at: float) -> bool: ...


def tasks_by_device(config: FederationConfig, devices: Iterable[Enrolled], at: float) -> list[Collection[str]]:
    """The tasks of each device that may take part: those of its last hello; before its first, all that it may name."""
    return [
        device.tasks or (config.tasks.keys() if device.allowed_tasks is None else device.allowed_tasks)
        for device in devices
        if device.is_admitted(at)
    ]


def single_owners(config: FederationConfig, devices: Collection[Collection[str]]) -> tuple[str, ...]:
    """The components that can have a single owner, sorted; none with a `min_cohort` of 2 or more.

    ``devices``: the tasks of each. Without any, nobody is enrolled yet: then those that a single task uses.
    """
    if config.rounds.min_cohort >= 2:
        return ()
    owners: list[str] = []
    for tasks in devices or [[name] for name in config.tasks]:
        owners += owned_components(config.tasks[name] for name in tasks if name in config.tasks)
    return tuple(sorted(name for name in set(owners) if owners.count(name) == 1))


def warning(config: FederationConfig, devices: Collection[Collection[str]]) -> str | None:
    """What to tell the operator, in one line: which components, what it means and what to do. None if all is well."""
    single = single_owners(config, devices)
    if not single:
        return None
    tasks = sorted(task for task, settings in config.tasks.items() if set(components_of_task(settings)) & set(single))
    return (
        f"{len(single)} components can have a single owner, and an average over one owner is that device's update, "
        "readable by the operator and by every later owner: set rounds.min_cohort = 2 before tap init, or enroll a "
        f"second device for {', '.join(tasks)}; components: {', '.join(single)}"
    )


class Watch:
    """Remembers which warning was given last, so that each is given once."""

    def __init__(self, config: FederationConfig):
        self._config = config
        self._last: str | None = None

    def news(self, devices: Iterable[Enrolled], at: float) -> str | None:
        """The warning for the devices as they are now, if there is one and it is another than the last."""
        known = tasks_by_device(self._config, devices, at)
        before, self._last = self._last, warning(self._config, known) if known else None
        return self._last if self._last != before else None

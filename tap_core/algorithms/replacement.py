"""Replacement: which personal components become copies of the federated ones (docs/method.md section 4, step 3).

It knows which tasks' triggers fired and names of components. No tensors, no torch.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

from tap_core.components import components_of_task
from tap_core.names import ComponentName, TaskName
from tap_core.settings.federation import TaskConfig

SharedReplacement = Literal["all", "any"]
"""Which of the local tasks that use a component must have fired before it is replaced."""

Fired = bool | Mapping[ComponentName, bool]
"""R[o], or what each of the task's components says for itself."""


def replaced_components(
    tasks: Sequence[TaskConfig], triggered: Mapping[TaskName, Fired], policy: SharedReplacement
) -> tuple[ComponentName, ...]:
    """The components of x_i that become copies of w_i, sorted.

    A component that several local tasks use is replaced if all of them triggered (``all``) or one of them (``any``).
    """
    votes: dict[ComponentName, list[bool]] = {}
    for task in tasks:
        for component in components_of_task(task):
            fired = triggered[task.name]
            votes.setdefault(component, []).append(fired if isinstance(fired, bool) else fired[component])
    decide = all if policy == "all" else any
    return tuple(sorted(component for component, cast in votes.items() if decide(cast)))


def groups(
    tasks: Sequence[TaskConfig], components: Sequence[ComponentName]
) -> dict[tuple[TaskName, ...], list[ComponentName]]:
    """The components by the local tasks that use them, in the order of those tasks' names."""
    users: dict[ComponentName, list[TaskName]] = {}
    for task in sorted(tasks, key=lambda task: task.name):
        for component in components_of_task(task):
            users.setdefault(component, []).append(task.name)
    found: dict[tuple[TaskName, ...], list[ComponentName]] = {}
    for component in components:
        found.setdefault(tuple(users[component]), []).append(component)
    return dict(sorted(found.items()))

"""Replacement: which personal components become copies of the federated ones (docs/method.md section 4, step 3).

It knows which tasks' triggers fired and names of components. No tensors, no torch.
"""

from collections.abc import Mapping, Sequence

from tap_core.components import components_of_task
from tap_core.names import ComponentName, TaskName
from tap_core.settings.federation import SharedReplacement, TaskConfig


def replaced_components(
    tasks: Sequence[TaskConfig], triggered: Mapping[TaskName, bool], policy: SharedReplacement
) -> tuple[ComponentName, ...]:
    """The components of x_i that become copies of w_i, sorted.

    A component that several local tasks use is replaced if all of them triggered (``all``) or one of them (``any``).
    """
    votes: dict[ComponentName, list[bool]] = {}
    for task in tasks:
        for component in components_of_task(task):
            votes.setdefault(component, []).append(triggered[task.name])
    decide = all if policy == "all" else any
    return tuple(sorted(component for component, cast in votes.items() if decide(cast)))

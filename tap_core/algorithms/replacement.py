"""Margin replacement: which personal components become copies of the federated ones (METHOD.md section 4, step 3).

It knows losses by task and names of components. No tensors, no torch.
"""

from collections.abc import Mapping, Sequence

from tap_core.components import components_of_task
from tap_core.settings.federation import SharedReplacement, TapConfig, TaskConfig


def triggers(
    tasks: Sequence[TaskConfig], federated: Mapping[str, float], personal: Mapping[str, float], tap: TapConfig
) -> dict[str, bool]:
    """R[o] by task: whether h_fed[o] + margin[o] < h_personal[o].

    ``federated`` and ``personal`` are mean training losses per example by task. A personal loss of infinity (before the
    first participation) always triggers.
    """
    return {task.name: federated[task.name] + tap.margins.of(task.kind) < personal[task.name] for task in tasks}


def replaced_components(
    tasks: Sequence[TaskConfig], triggered: Mapping[str, bool], policy: SharedReplacement
) -> tuple[str, ...]:
    """The components of x_i that become copies of w_i, sorted.

    A component that several local tasks use is replaced if all of them triggered (``all``) or one of them (``any``).
    """
    votes: dict[str, list[bool]] = {}
    for task in tasks:
        for component in components_of_task(task):
            votes.setdefault(component, []).append(triggered[task.name])
    decide = all if policy == "all" else any
    return tuple(sorted(component for component, cast in votes.items() if decide(cast)))

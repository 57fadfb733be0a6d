"""Which components are federated, and which stay at home (docs/method.md section 4, "Cohorts").

An average over one owner is that owner's update. So a component is federated only if `rounds.min_cohort` enrolled
devices own it; any other is neither sent nor averaged, and each owner keeps its w_r to itself from round to round.
Simulator, coordinator and devices call these functions. They know names and numbers: no tensors, no torch.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping

from tap_core.components import Task, owned_components
from tap_core.names import ComponentName


def federated_components(devices: Iterable[Iterable[Task]], min_cohort: int) -> tuple[ComponentName, ...]:
    """The components that ``min_cohort`` or more devices own, sorted. ``devices``: the tasks of each enrolled one."""
    owners = Counter(name for tasks in devices for name in owned_components(tasks))
    return tuple(sorted(name for name, count in owners.items() if count >= min_cohort))


def own_values(
    home: Mapping[ComponentName, int], kept: Collection[ComponentName], last_round: int
) -> tuple[ComponentName, ...]:
    """The components at home that start from the device's own value, sorted; any other from the coordinator's.

    ``home``: the version that the coordinator has of each component at home; version v holds the rounds before v.
    ``kept``: those of which the device has a value, from its last participation, in round ``last_round``. The device's
    own value counts unless the coordinator's is newer: others have federated the component since.
    """
    return tuple(name for name in sorted(home) if name in kept and home[name] <= last_round)

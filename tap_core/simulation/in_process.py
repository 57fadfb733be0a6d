"""The whole of TAP in one process, written as docs/method.md reads: the oracle for the networked federation.

It knows participants, cohorts and aggregation. It does not know files, sockets, processes or failures.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from tap_core.aggregation import aggregate
from tap_core.algorithms.base import WIRE_DTYPES
from tap_core.algorithms.participant import FinishOutcome, Participant, RoundOutcome
from tap_core.cohorts import federated_components
from tap_core.model.tap_model import Tensors
from tap_core.names import ComponentName, DeviceName
from tap_core.samplers import SAMPLERS
from tap_core.settings.federation import FederationConfig

Value = TypeVar("Value")


@dataclass(frozen=True)
class SimulationResult:
    """The final global components, and each device's outcome of stage 2.

    A component that stays at home keeps its version here; its owners' values are in their states.
    """

    components: Tensors
    devices: dict[DeviceName, FinishOutcome]


def simulate(
    config: FederationConfig,
    participants: Mapping[DeviceName, Participant],
    components: Tensors,
    *,
    on_round: Callable[[int, Mapping[DeviceName, RoundOutcome]], None] | None = None,
    enrolled: Callable[[int], Collection[DeviceName]] | None = None,
) -> SimulationResult:
    """Run every round and stage 2.

    Args:
        config: The federation's settings.
        participants: The devices by name.
        components: Version 0 of every component, in the wire's dtype (`tap_core.algorithms.base.on_wire`).
        on_round: Called after each round with its number, from 0, and the outcomes by device.
        enrolled: From a round's number to the devices that are enrolled when it opens; None: all, always. Stage 2 is
            for those of the last round.

    Returns:
        The final global components, and each device's outcome of stage 2.

    Raises:
        UsageError: The settings name a sampler that is not known.
        Diverged: A device's training left the finite numbers.
    """
    W, versions = dict(components), dict.fromkeys(components, 0)
    states = {device: p.initial_state() for device, p in participants.items()}
    sample = SAMPLERS.named(config.rounds.sampler)
    members, home = sorted(participants), dict[ComponentName, int]()
    for t in range(config.rounds.total):
        if enrolled is not None:
            members = sorted(enrolled(t))
        home = at_home(versions, (participants[i] for i in members), config.rounds.min_cohort)
        outcomes: dict[DeviceName, RoundOutcome] = {}
        for i in sample(config.seed, t, 0, members, config.rounds.clients_per_round):
            p = participants[i]
            outcomes[i] = p.take_part(t, owned(W, p), states[i], home=owned(home, p))
            states[i] = outcomes[i].state
        changed = next_components(W, outcomes, config)
        W, versions = {**W, **changed}, {**versions, **dict.fromkeys(changed, t + 1)}
        if on_round is not None:
            on_round(t, outcomes)
    last = {i: participants[i] for i in members}
    finished = {i: p.finish(owned(W, p), states[i], home=owned(home, p)) for i, p in last.items()}
    return SimulationResult(W, finished)


def owned(values: Mapping[ComponentName, Value], participant: Participant) -> dict[ComponentName, Value]:
    """Of values by component those of the components that a device owns."""
    return {r: values[r] for r in participant.model.components if r in values}


def at_home(
    versions: Mapping[ComponentName, int], participants: Iterable[Participant], min_cohort: int
) -> dict[ComponentName, int]:
    """The components that stay at home while these devices are enrolled, each with its version."""
    federated = federated_components((participant.tasks for participant in participants), min_cohort)
    return {r: version for r, version in versions.items() if r not in federated}


def next_components(W: Tensors, outcomes: Mapping[DeviceName, RoundOutcome], config: FederationConfig) -> Tensors:
    """The components that the round changes: W_r <- the aggregate over S_r (`aggregation`), if S_r is large enough."""
    rounds, changed = config.rounds, Tensors()
    for r in sorted(W):
        S_r = {
            i: (outcome.update.examples[r], outcome.update.components[r])
            for i, outcome in outcomes.items()
            if r in outcome.update.components
        }
        if len(S_r) >= rounds.min_cohort:
            changed[r] = aggregate(S_r, WIRE_DTYPES[config.wire.dtype], rounds.aggregation, rounds.trim)
    return changed

"""The whole of TAP in one process, written as METHOD.md reads: the oracle for the networked federation.

It knows participants and aggregation. It does not know files, sockets, processes or failures.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tap_core.aggregation import aggregate
from tap_core.algorithms.participant import WIRE_DTYPES, DeviceState, FinishOutcome, Participant, RoundOutcome
from tap_core.model.tap_model import Tensors
from tap_core.samplers.uniform import sample_devices
from tap_core.settings.federation import FederationConfig


@dataclass(frozen=True)
class SimulationResult:
    """The final global components, and each device's outcome of stage 2."""

    components: Tensors
    devices: dict[str, FinishOutcome]


def simulate(
    config: FederationConfig,
    participants: Mapping[str, Participant],
    components: Tensors,
    *,
    on_round: Callable[[int, Mapping[str, RoundOutcome]], None] | None = None,
) -> SimulationResult:
    """Run every round and stage 2. ``participants``: by device; ``components``: version 0, in the wire's dtype."""
    W = dict(components)
    states = {device: DeviceState.initial(tuple(p.data)) for device, p in participants.items()}
    for t in range(config.rounds.total):
        sampled = sample_devices(config.seed, t, 0, sorted(participants), config.rounds.clients_per_round)
        outcomes: dict[str, RoundOutcome] = {}
        for i in sampled:
            outcomes[i] = participants[i].take_part(t, owned(W, participants[i]), states[i])
            states[i] = outcomes[i].state
        W = next_components(W, outcomes, config)
        if on_round is not None:
            on_round(t, outcomes)
    finished = {i: p.finish(owned(W, p), states[i]) for i, p in sorted(participants.items())}
    return SimulationResult(W, finished)


def owned(W: Tensors, participant: Participant) -> Tensors:
    """What a device receives: the components that it owns."""
    return {r: W[r] for r in participant.model.components}


def next_components(W: Tensors, outcomes: Mapping[str, RoundOutcome], config: FederationConfig) -> Tensors:
    """W_r <- the aggregate over S_r (`aggregation`); a component with too small an S_r keeps its value."""
    rounds, updated = config.rounds, dict(W)
    for r in sorted(W):
        S_r = {
            i: (outcome.update.examples[r], outcome.update.components[r])
            for i, outcome in outcomes.items()
            if r in outcome.update.components
        }
        if len(S_r) >= rounds.min_cohort:
            updated[r] = aggregate(S_r, WIRE_DTYPES[config.wire.dtype], rounds.aggregation, rounds.trim)
    return updated

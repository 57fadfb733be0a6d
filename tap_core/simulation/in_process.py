"""The whole of TAP in one process, written as docs/method.md reads: the oracle for the networked federation.

It knows participants, cohorts and aggregation. It does not know files, sockets, processes or failures.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from tap_core.aggregation import aggregate
from tap_core.algorithms import algorithm_of
from tap_core.algorithms.base import WIRE_DTYPES, Algorithm
from tap_core.algorithms.participant import FinishOutcome, Participant, RoundOutcome
from tap_core.cohorts import federated_components
from tap_core.model.tap_model import Tensors
from tap_core.names import ComponentName, DeviceName
from tap_core.samplers import SAMPLERS
from tap_core.server import advance
from tap_core.settings.federation import FederationConfig, RoundsConfig

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

    def tell(t: int, outcomes: Mapping[str, Mapping[DeviceName, RoundOutcome]]) -> None:
        if on_round is not None:
            on_round(t, outcomes[""])

    return _along({"": config}, participants, components, tell, enrolled)[""]


def simulate_all(
    configs: Mapping[str, FederationConfig],
    participants: Mapping[DeviceName, Participant],
    components: Tensors,
    *,
    on_round: Callable[[int, Mapping[str, Mapping[DeviceName, RoundOutcome]]], None] | None = None,
    enrolled: Callable[[int], Collection[DeviceName]] | None = None,
) -> dict[str, SimulationResult]:
    """`simulate` for several algorithms, by a name of the caller's: the same bits, in less time.

    ``configs`` differ in their algorithm alone. Those that follow the common federated trajectory are driven along one
    run of it; any other has a run of its own. ``on_round`` is told the outcomes by name and device, once for each run.
    """
    first = next(iter(configs.values()))
    if any(config.model_copy(update={"algorithm": first.algorithm}) != first for config in configs.values()):
        raise ValueError("the settings differ in more than the algorithm")
    algorithms = {name: algorithm_of(config) for name, config in configs.items()}
    together = [name for name, algorithm in algorithms.items() if algorithm.follows()]
    together.sort(key=lambda name: type(algorithms[name]).shares is not Algorithm.shares)  # one that shares all leads
    runs = [together, *([name] for name in configs if name not in together)]
    found: dict[str, SimulationResult] = {}
    for names in runs:
        if names:
            found |= _along({name: configs[name] for name in names}, participants, components, on_round, enrolled)
    return {name: found[name] for name in configs}


def _along(
    configs: Mapping[str, FederationConfig],
    participants: Mapping[DeviceName, Participant],
    components: Tensors,
    on_round: Callable[[int, Mapping[str, Mapping[DeviceName, RoundOutcome]]], None] | None,
    enrolled: Callable[[int], Collection[DeviceName]] | None,
) -> dict[str, SimulationResult]:
    """One federated trajectory, and every named algorithm's personal sets along it."""
    config = next(iter(configs.values()))
    W, versions = dict(components), dict.fromkeys(components, 0)
    drives = {
        name: {i: p if p.config is c else p.with_algorithm(c) for i, p in participants.items()}
        for name, c in configs.items()
    }
    leads = next(iter(drives.values()))
    states = {name: {i: p.initial_state() for i, p in drive.items()} for name, drive in drives.items()}
    moments: dict[tuple[ComponentName, str], np.ndarray] = {}
    of_lead = next(iter(states.values()))
    sample = SAMPLERS.named(config.rounds.sampler)
    members, home = sorted(participants), dict[ComponentName, int]()
    for t in range(config.rounds.total):
        if enrolled is not None:
            members = sorted(enrolled(t))
        home = at_home(versions, (participants[i] for i in members), config.rounds.min_cohort)
        outcomes: dict[str, dict[DeviceName, RoundOutcome]] = {name: {} for name in drives}
        for i in sample(config.seed, t, 0, members, config.rounds.clients_per_round):
            part = leads[i].federate(t, owned(W, leads[i]), of_lead[i], home=owned(home, leads[i]))
            for name, drive in drives.items():
                outcomes[name][i] = drive[i].personalize(part, states[name][i])
                states[name][i] = outcomes[name][i].state
        changed = next_components(W, next(iter(outcomes.values())), config)
        if config.rounds.server != "plain":
            changed = advanced(W, changed, moments, config.rounds)
        W = W | {r: {**W[r], **group} for r, group in changed.items()}
        versions |= dict.fromkeys(changed, t + 1)
        if on_round is not None:
            on_round(t, outcomes)
    results = {}
    for name, drive in drives.items():
        last = {i: drive[i] for i in members}
        finished = {i: p.finish(owned(W, p), states[name][i], home=owned(home, p)) for i, p in last.items()}
        results[name] = SimulationResult(W, finished)
    return results


def owned(values: Mapping[ComponentName, Value], participant: Participant) -> dict[ComponentName, Value]:
    """Of values by component those of the components that a device owns."""
    return {r: values[r] for r in participant.model.components if r in values}


def at_home(
    versions: Mapping[ComponentName, int], participants: Iterable[Participant], min_cohort: int
) -> dict[ComponentName, int]:
    """The components that stay at home while these devices are enrolled, each with its version."""
    federated = federated_components((participant.tasks for participant in participants), min_cohort)
    return {r: version for r, version in versions.items() if r not in federated}


def advanced(
    W: Tensors, averages: Tensors, moments: dict[tuple[ComponentName, str], np.ndarray], settings: RoundsConfig
) -> Tensors:
    """The server's optimizer on the components that a round changes. ``moments``, by component and tensor, follow."""
    changed = Tensors()
    for r, group in averages.items():
        changed[r] = {}
        for n, average in group.items():
            changed[r][n], moments[r, n] = advance(average, W[r][n], moments.get((r, n)), settings)
    return changed


def next_components(W: Tensors, outcomes: Mapping[DeviceName, RoundOutcome], config: FederationConfig) -> Tensors:
    """The components that the round changes, of each the tensors that are shared: W_r <- the aggregate over S_r
    (`aggregation`), if S_r is large enough."""
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

"""How large an update may be: the limit that `rounds.max_update_norm` sets to the norm of a component's change.

The norm is ||w_{i,r} - W_r||, W_r being the version that the device was sent. A number is an absolute limit. A factor,
as in ``10x``, is one of the running median of the norms that were accepted, each in units of its round's learning rate,
for that grows in the first rounds. Beside a factor no update may be larger than the federation's own optimizer can make
it, whatever the gradients (`tap_core.training.optimizer.reach`): that holds from the first round on, and for an honest
device. It knows numbers and settings; it does not know bytes, devices or what happens to an update that is too large.
"""

import math
import statistics
from collections.abc import Iterable, Mapping

import ml_dtypes

from protocol.tensors import DTYPES
from tap_core.names import ComponentName
from tap_core.settings.federation import FederationConfig
from tap_core.training.optimizer import Reach, reach, warmed_up

WINDOW = 10
"""Versions of a component whose norms enter the running median."""

ENOUGH = 3
"""Norms from which on the running median is used."""

_ROUNDING = 2.0**-22
"""The most that float32 arithmetic adds to a value in one step of training, as a share of it; generous."""

_SLACK = 1.01
"""For the rounding of the optimizer's own means."""

Norms = tuple[tuple[int, float], ...]
"""(round, norm) of the last versions of one component, oldest first."""


def median(norms: Iterable[float | None]) -> float | None:
    """The median of those that were measured; None if none was."""
    measured = [norm for norm in norms if norm is not None]
    return statistics.median(measured) if measured else None


def after(
    recent: Mapping[ComponentName, Norms], round_number: int, made: Mapping[ComponentName, float | None]
) -> dict[ComponentName, Norms]:
    """``recent`` by component, once the round has made a new version, of that norm, of each component of ``made``."""
    grown = {
        name: (*recent.get(name, ()), (round_number, norm))[-WINDOW:] for name, norm in made.items() if norm is not None
    }
    return {**recent, **grown}


class Bound:
    """The limit of one federation."""

    def __init__(self, config: FederationConfig):
        text = config.rounds.max_update_norm
        is_factor = text.endswith("x")
        self._config, self._wire = config, ml_dtypes.finfo(DTYPES[config.wire.dtype])
        self._factor = float(text[:-1]) if is_factor else None
        self._absolute = math.inf if is_factor or text == "none" else float(text)
        self._reach: dict[int, Reach] = {}

    @property
    def exists(self) -> bool:
        """Whether norms are limited, and so measured, at all."""
        return self._factor is not None or self._absolute < math.inf

    def limit(self, round_number: int, values: int, base: float, recent: Norms) -> float:
        """The largest norm that counts, of a component of so many values whose W_r has norm ``base``.

        It grows with ``base``; infinite if there is no limit.
        """
        if self._factor is None:
            return self._absolute
        rate = warmed_up(self._config, round_number)
        shares = [norm / warmed_up(self._config, number) for number, norm in recent[-WINDOW:] if norm > 0]
        usual = self._factor * statistics.median(shares) * rate if len(shares) >= ENOUGH else math.inf
        return min(usual, self._farthest(round_number, values, base))

    def _farthest(self, round_number: int, values: int, base: float) -> float:
        """The optimizer's reach, and what is rounded: in each step of training, and once to the wire's dtype."""
        if round_number not in self._reach:
            self._reach = {round_number: reach(self._config, round_number)}
        farthest, root = self._reach[round_number], math.sqrt(values)
        moved = farthest.per_value * root + farthest.per_norm * base
        rounded = _ROUNDING * self._config.training.steps + float(self._wire.eps)
        return _SLACK * moved + rounded * (base + moved) + float(self._wire.smallest_subnormal) * root

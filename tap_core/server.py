"""What the coordinator makes of a round's average: FedOpt (Reddi et al., arXiv 2003.00295), value by value.

With D = average - W, the change that the round asks for:

    plain      W <- average
    momentum   m <- b1 m + D;             W <- W + rate m
    adam       m <- b1 m + (1 - b1) D;    v <- b2 v + (1 - b2) D^2;    W <- W + rate m / (sqrt(v) + e)

m starts at 0 and v at e^2. Everything is computed in float64; W is rounded once to its dtype and the moments once to
float32, so that simulator and coordinator, which both call this, have the same bits. It knows arrays; it does not know
files, rounds or sockets, and needs no torch.
"""

import numpy as np

from tap_core.aggregation import round_once
from tap_core.settings.federation import RoundsConfig


def advance(
    average: np.ndarray, current: np.ndarray, moments: np.ndarray | None, settings: RoundsConfig
) -> tuple[np.ndarray, np.ndarray]:
    """The next values and moments of some values. ``moments``: float32 (2, ...), m and v; None before the first."""
    if moments is None:
        moments = np.zeros((2, *current.shape), np.float32)
        moments[1] = settings.server_epsilon**2
    m, v = moments.astype(np.float64)
    W = current.astype(np.float64)
    change = average.astype(np.float64) - W
    first, second = settings.server_momentum, settings.server_second
    if settings.server == "momentum":
        m = first * m + change
        step = m
    else:
        m = first * m + (1 - first) * change
        v = second * v + (1 - second) * change**2
        step = m / (np.sqrt(v) + settings.server_epsilon)
    return round_once(W + settings.server_rate * step, current.dtype), np.stack([m, v]).astype(np.float32)

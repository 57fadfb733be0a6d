"""Samplers: which devices take part in a round; one file each, one line below. No torch.

A sampler is a function of the federation's seed, the round's number, the attempt at it, the names that may be drawn and
how many to draw; it returns distinct names, sorted. It must depend on nothing else, and not on the order of the names:
the simulator and the coordinator both call it, and a run must be repeatable.
"""

from collections.abc import Callable, Sequence

from tap_core.names import DeviceName
from tap_core.registry import Registry

__all__ = ["SAMPLERS", "Sampler"]

Sampler = Callable[[int, int, int, Sequence[DeviceName], int], tuple[DeviceName, ...]]

SAMPLERS: Registry[Sampler] = Registry("sampler", "tap_edge.samplers")
SAMPLERS.add("uniform", "tap_core.samplers.uniform:sample_devices")

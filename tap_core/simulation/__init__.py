"""A federation in one process: what the network must compute too. Importing this loads no torch."""

from typing import TYPE_CHECKING

from tap_core.faces import imported_when_asked

__all__ = ["SimulationResult", "simulate"]

if TYPE_CHECKING:
    from tap_core.simulation.in_process import SimulationResult, simulate
else:
    __getattr__ = imported_when_asked(__name__, {"in_process": ("SimulationResult", "simulate")})

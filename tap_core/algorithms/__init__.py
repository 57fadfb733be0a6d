"""Algorithms of personalization: one file each, one line below (docs/method.md section 10). This loads no torch."""

from typing import TYPE_CHECKING

from tap_core.registry import Registry

if TYPE_CHECKING:
    from tap_core.algorithms.base import Algorithm

__all__ = ["ALGORITHMS"]

ALGORITHMS: "Registry[type[Algorithm]]" = Registry("algorithm", "tap_edge.algorithms")
ALGORITHMS.add("tap", "tap_core.algorithms.tap:Tap")

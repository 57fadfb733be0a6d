"""Triggers: when a device takes over what was federated (docs/method.md section 9). Importing this loads no torch.

A trigger is two choices, each a class in a file of its own and a line below: an indicator scores examples, a decision
says from scores or losses whether to replace.
"""

from tap_core.registry import Registry
from tap_core.triggers.base import Decision, Evidence, Indicator

__all__ = ["DECISIONS", "INDICATORS", "Decision", "Evidence", "Indicator"]

INDICATORS: Registry[type[Indicator]] = Registry("indicator", "tap_edge.indicators")
INDICATORS.add("loss", "tap_core.triggers.loss:Loss")

DECISIONS: Registry[type[Decision]] = Registry("decision", "tap_edge.decisions")
DECISIONS.add("fixed", "tap_core.triggers.fixed:Fixed")

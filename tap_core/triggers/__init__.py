"""Triggers: when a device takes over what was federated (docs/method.md section 9). Importing this loads no torch.

A trigger is two choices, each a class in a file of its own and a line below: an indicator scores examples or
components, a decision says from scores or losses whether to replace.
"""

from tap_core.registry import Registry
from tap_core.triggers.base import ComponentIndicator, Decision, Evidence, ExampleIndicator

__all__ = ["DECISIONS", "INDICATORS", "ComponentIndicator", "Decision", "Evidence", "ExampleIndicator"]

INDICATORS: Registry[type[ExampleIndicator] | type[ComponentIndicator]] = Registry("indicator", "tap_edge.indicators")
INDICATORS.add("loss", "tap_core.triggers.loss:Loss")
INDICATORS.add("error", "tap_core.triggers.error:Error")
INDICATORS.add("uncertainty", "tap_core.triggers.uncertainty:Uncertainty")
INDICATORS.add("alignment", "tap_core.triggers.alignment:Alignment")
INDICATORS.add("gradient", "tap_core.triggers.gradient:Gradient")

DECISIONS: Registry[type[Decision]] = Registry("decision", "tap_edge.decisions")
DECISIONS.add("fixed", "tap_core.triggers.fixed:Fixed")
DECISIONS.add("paired", "tap_core.triggers.paired:Paired")
DECISIONS.add("always", "tap_core.triggers.always:Always")

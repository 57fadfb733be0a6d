"""Margin replacement: histories, margins and both policies for components that several tasks use."""

import math
from typing import Literal

import pytest

from tap_core.algorithms.replacement import replaced_components
from tap_core.algorithms.tap import TapSettings
from tap_core.components import components_of_task
from tap_core.settings.federation import TaskConfig
from tap_core.settings.per_kind import Margins
from tap_core.triggers.base import Evidence
from tap_core.triggers.fixed import Fixed

LABEL = TaskConfig(name="label", kind="image_classification", inputs=("image",), classes=("a", "b"))
GROUP = TaskConfig(name="group", kind="image_classification", inputs=("image",), classes=("a", "b"))
TEXT = TaskConfig(name="text", kind="text_classification", inputs=("text",), classes=("a", "b"))
TAP = TapSettings(margins=Margins(image_classification=0.25, text_classification=0.5))


def fires(task: TaskConfig, federated: float, personal: float) -> bool:
    return Fixed(TAP).replaces(Evidence(task, federated, personal, held_out=lambda: pytest.fail("not needed")))


@pytest.mark.parametrize(
    ("federated", "personal", "triggered"),
    [(1.0, math.inf, True), (1.0, 1.5, True), (1.0, 1.25, False), (1.0, 1.0, False), (math.inf, math.inf, False)],
)
def test_the_federated_loss_must_be_better_by_more_than_the_margin(
    federated: float, personal: float, triggered: bool
) -> None:
    assert fires(LABEL, federated, personal) == triggered


def test_each_kind_has_its_own_margin() -> None:
    assert fires(LABEL, 1.0, 1.4) and not fires(TEXT, 1.0, 1.4)


@pytest.mark.parametrize("policy", ["all", "any"])
def test_trap_4_a_trigger_on_an_image_task_leaves_text_components_alone(policy: Literal["all", "any"]) -> None:
    replaced = set(replaced_components([LABEL, TEXT], {"label": True, "text": False}, policy))
    only_label = set(components_of_task(LABEL)) - set(components_of_task(TEXT))
    shared = set(components_of_task(LABEL)) & set(components_of_task(TEXT))
    assert shared  # the backbone's shared experts
    assert replaced == (only_label if policy == "all" else only_label | shared)
    assert "encoder/text" not in replaced and "decoder/text" not in replaced


@pytest.mark.parametrize("policy", ["all", "any"])
def test_if_every_task_triggers_everything_is_replaced(policy: Literal["all", "any"]) -> None:
    replaced = replaced_components([LABEL, GROUP], {"label": True, "group": True}, policy)
    assert set(replaced) == set(components_of_task(LABEL)) | {"decoder/group"}
    assert replaced_components([LABEL, GROUP], {"label": False, "group": False}, policy) == ()

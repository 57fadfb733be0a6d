"""The one map from tasks to components."""

import pytest

from tap_core.components import (
    PATHS,
    components_of_task,
    examples_per_component,
    family,
    owned_components,
)
from tap_core.settings.federation import TaskConfig

LABEL = TaskConfig(name="label", kind="image_classification", inputs=("image",), classes=("a", "b"))
ASK = TaskConfig(name="ask", kind="text_generation", inputs=("image", "text"))


def test_a_task_with_one_modality_uses_its_four_paths_and_no_more() -> None:
    assert components_of_task(LABEL) == (
        "decoder/label",
        "encoder/image",
        "mome/attention/image_classification",
        "mome/attention/shared",
        "mome/expert/image_classification/image",
        "mome/expert/image_classification/shared",
        "mome/expert/shared/image",
        "mome/expert/shared/shared",
        "mote/attention/image",
        "mote/attention/shared",
        "mote/expert/image/image_classification",
        "mote/expert/image/shared",
        "mote/expert/shared/image_classification",
        "mote/expert/shared/shared",
    )


def test_a_task_with_two_modalities_keeps_four_paths() -> None:
    names = components_of_task(ASK)
    assert len(PATHS) == 4
    assert [n for n in names if n.startswith("mome/attention")] == [
        "mome/attention/shared",
        "mome/attention/text_generation",
    ]
    assert "mote/expert/text/text_generation" in names and "mote/expert/image/text_generation" in names
    assert not any("classification" in name for name in names)


def test_a_device_owns_the_union_over_its_tasks() -> None:
    assert set(owned_components([LABEL, ASK])) == set(components_of_task(LABEL)) | set(components_of_task(ASK))


def test_examples_of_a_component_are_those_of_all_tasks_that_use_it() -> None:
    counts = examples_per_component([LABEL, ASK], {"label": 10, "ask": 7})
    assert counts["decoder/label"] == 10 and counts["decoder/ask"] == 7
    assert counts["encoder/image"] == 17 and counts["encoder/text"] == 7
    assert set(counts) == set(owned_components([LABEL, ASK]))


def test_family_reads_back_every_name_and_refuses_others() -> None:
    assert {family(name) for name in components_of_task(ASK)} == {
        "encoder",
        "mote/attention",
        "mote/expert",
        "mome/attention",
        "mome/expert",
        "decoder",
    }
    with pytest.raises(ValueError, match="not a component name"):
        family("backbone/0")

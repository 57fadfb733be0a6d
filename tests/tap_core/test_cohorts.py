"""Who owns enough to share, and whose value at home counts."""

from types import SimpleNamespace

from tap_core.cohorts import federated_components, own_values
from tap_core.components import components_of_task, owned_components

PHOTOS = SimpleNamespace(name="photos", kind="image_classification", inputs=("image",))
LABELS = SimpleNamespace(name="labels", kind="image_classification", inputs=("image",))
WORDS = SimpleNamespace(name="words", kind="text_classification", inputs=("text",))


def test_a_component_is_federated_with_enough_owners_and_not_before() -> None:
    devices = [[PHOTOS], [PHOTOS, LABELS], [WORDS]]
    everything = owned_components([PHOTOS, LABELS, WORDS])
    assert federated_components(devices, 1) == everything
    assert federated_components(devices, 2) == components_of_task(PHOTOS)  # all of words but the shared ones is one's
    common = set(components_of_task(PHOTOS)) & set(components_of_task(WORDS))
    assert set(federated_components(devices, 3)) == common and "mome/attention/shared" in common
    assert federated_components(devices, 4) == federated_components([], 1) == ()


def test_two_tasks_of_one_device_are_one_owner() -> None:
    assert federated_components([[PHOTOS, LABELS]], 2) == ()


def test_ones_own_value_counts_until_the_coordinators_is_newer() -> None:
    home = {"a": 0, "b": 4, "c": 5, "d": 0}
    assert own_values(home, {"a", "b", "c"}, 4) == ("a", "b")  # version 5 is what round 4 made
    assert own_values(home, {"a", "b", "c"}, -1) == own_values(home, {}, 4) == own_values({}, {"a"}, 4) == ()

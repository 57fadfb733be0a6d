"""Entry points of other packages: one that cannot be loaded, and names that are claimed twice, are one line."""

from importlib.metadata import EntryPoint

import pytest

from tap_core.errors import UsageError
from tap_core.registry import Registry

GROUP = "tap_edge.tests"


@pytest.fixture
def registry(monkeypatch):
    """Make a registry, with one thing of its own, where packages have these entry points."""

    def make(**values):
        points = [EntryPoint(name, value, GROUP) for name, found in values.items() for value in found]
        monkeypatch.setattr("tap_core.registry.entry_points", lambda group: points if group == GROUP else [])
        found = Registry("thing", GROUP)
        found.add("own", "tap_core.errors:UsageError")
        return found

    return make


def test_an_entry_point_is_loaded_when_it_is_asked_for(registry):
    things = registry(tap=["tap_core.errors:TapError"] * 2, broken=["no_such_module:Thing"])
    assert list(things) == ["own", "tap", "broken"] and things.named("tap").__name__ == "TapError"
    assert things["tap"] is things.named("tap") and things["own"] is UsageError


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("no_such_module:Thing", "ModuleNotFoundError (No module named 'no_such_module')"),
        ("tap_core.errors:Missing", "AttributeError (module 'tap_core.errors' has no attribute 'Missing')"),
        ("not an entry point", "Error ("),
    ],
)
def test_one_that_cannot_be_loaded_is_one_line(registry, value, why):
    things = registry(broken=[value])
    things.require("broken")
    for ask in (things.named, things.__getitem__):
        with pytest.raises(UsageError) as caught:
            ask("broken")
        said = str(caught.value)
        assert "the thing 'broken'" in said and f"({value}) in [{GROUP}]" in said and why in said and "\n" not in said


@pytest.mark.parametrize(
    ("name", "values", "who"),
    [
        ("own", ["tap_core.errors:TapError"], "tap-edge itself and a package (tap_core.errors:TapError)"),
        ("two", ["a:A", "b:B"], "a package (a:A) and a package (b:B)"),
    ],
)
def test_a_name_that_is_claimed_twice_is_nobodys(registry, name, values, who):
    things = registry(**{name: values, "other": ["tap_core.errors:TapError"]})
    for ask in (things.require, things.named, things.__getitem__):
        with pytest.raises(UsageError, match="is there twice, from ") as caught:
            ask(name)
        assert who in str(caught.value) and f"[{GROUP}]" in str(caught.value)
    assert things.named("other").__name__ == "TapError"

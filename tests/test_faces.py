"""What a package offers under its own name: each name is there, and its docstring says how to use it."""

import importlib
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

ROOT = Path(__file__).parents[1]
FACES = sorted(
    ".".join(path.parent.relative_to(ROOT).parts)
    for package in ("protocol", "tap_core", "coordinator", "edge_client", "deploy")
    for path in (ROOT / package).rglob("__init__.py")
    if "__all__ = [" in path.read_text(encoding="utf-8")
)
OFFERED = [(face, name) for face in FACES for name in importlib.import_module(face).__all__]


def test_what_an_extension_is_written_with_has_a_face() -> None:
    packages = {"algorithms", "export", "foundations", "samplers", "settings", "simulation", "tasks", "triggers"}
    assert set(FACES) >= {"protocol", *(f"tap_core.{package}" for package in packages)}


def functions_of(name: str, thing: Any) -> dict[str, Any]:
    """A function itself, or a class's public methods, and how it is made where that has a docstring of its own."""
    if inspect.isfunction(thing):
        return {name: thing}
    own = vars(thing) if inspect.isclass(thing) else {}
    return {
        f"{name}.{key}": inspect.unwrap(getattr(value, "__func__", value))
        for key, value in own.items()
        if inspect.isfunction(getattr(value, "__func__", value)) and key != "forward"  # torch's, called by the module
        if not key.startswith("_") or (key == "__init__" and value.__doc__)
    }


def lacking(name: str, function: Any) -> list[str]:
    """The parts that a function's docstring must have and has not."""
    said = inspect.getdoc(function) or ""
    signature = inspect.signature(function)
    parameters = [parameter for parameter in signature.parameters if parameter not in ("self", "cls")]
    missing = [f"{name}: {parameter}" for parameter in parameters if f"\n    {parameter}: " not in f"{said}\n"]
    if signature.return_annotation not in (None, "None") and parameters and "\nReturns:\n" not in said:
        missing.append(f"{name}: Returns")
    if parameters and "\nArgs:\n" not in said:
        missing.append(f"{name}: Args")
    return missing if said else [f"{name}: a docstring"]


@pytest.mark.parametrize(("face", "name"), OFFERED)
def test_every_name_is_there_and_documented(face: str, name: str) -> None:
    thing = getattr(importlib.import_module(face), name)
    if inspect.isclass(thing):
        assert thing.__doc__ and (thing.__doc__ != BaseModel.__doc__)
    assert [part for key, function in functions_of(name, thing).items() for part in lacking(key, function)] == []


@pytest.mark.parametrize("face", FACES)
def test_a_face_offers_what_it_says_and_nothing_else(face: str) -> None:
    module = importlib.import_module(face)
    assert module.__doc__ and len(set(module.__all__)) == len(module.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing_of_this_name'"):
        _ = module.nothing_of_this_name


def test_each_name_can_be_the_first_that_is_imported() -> None:
    """No order of imports is needed: every name, alone, in an interpreter that forgets the packages in between.

    It is one interpreter for all names, because torch and transformers cost seconds each time.
    """
    program = (
        "import importlib, sys, traceback\n"
        f"for face, name in {OFFERED!r}:\n"
        "    for module in [m for m in sys.modules if m.partition('.')[0] in ('protocol', 'tap_core')]:\n"
        "        del sys.modules[module]\n"
        "    try:\n"
        "        getattr(importlib.import_module(face), name)\n"
        "    except Exception:\n"
        "        sys.exit(f'{face}.{name}: {traceback.format_exc()}')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


def test_the_checks_see_what_is_missing() -> None:
    def mute(a: int) -> int:
        return a

    def half(a: int, b: int) -> int:
        """Adds.

        Args:
            a: One.
        """
        return a + b

    assert lacking("mute", mute) == ["mute: a docstring"]
    assert lacking("half", half) == ["half: b", "half: Returns"]

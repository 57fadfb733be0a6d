"""How a package offers names of modules that are heavy to import: each when it is first asked for. No torch."""

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def imported_when_asked(package: str, names: Mapping[str, Sequence[str]]) -> Callable[[str], Any]:
    """The ``__getattr__`` of a package that offers names without importing the modules that have them.

    Args:
        package: The package's ``__name__``.
        names: The names offered, by the module that has them: ``base`` for ``package.base``.

    Returns:
        A function from a name to what it stands for. It raises AttributeError for a name that is not offered, and what
        the module's import raises, such as ModuleNotFoundError where an extra is not installed.
    """
    module_of = {name: f"{package}.{module}" for module, offered in names.items() for name in offered}

    def get(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(module_of[name]), name)
        setattr(sys.modules[package], name, value)  # from now on Python finds it without asking
        return value

    return get

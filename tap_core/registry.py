"""Named things of one sort, each in a file of its own that is imported when it is first asked for. No torch.

A package outside this one adds its own either by calling `add`, or with an entry point in the registry's group:

    [project.entry-points."tap_edge.task_kinds"]
    rating = "my_package.rating:Rating"

A name that two of them claim is nobody's: who asks for it is told of both.
"""

from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from tap_core.errors import UsageError, did_you_mean

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """Things by name. ``what`` they are is for messages; ``group`` names the entry points of other packages."""

    def __init__(self, what: str, group: str) -> None:
        self.what, self.group = what, group
        self._found: dict[str, Any] = {}
        self._clashes: dict[str, str] = {}
        """Names that are claimed twice, with who claims them; a package that is found twice says the same twice."""
        self._looked = False

    def add(self, name: str, thing: "T | str") -> None:
        """Add a thing, or where to import it from: ``"package.module:attribute"``.

        Raises ValueError if the name is taken by another.
        """
        if self._found.setdefault(name, thing) is not thing:
            raise ValueError(f"there is a {self.what} {name!r} already; choose another name")

    def __getitem__(self, name: str) -> T:
        """Raises UsageError if an entry point's thing cannot be imported, or its name is not its own."""
        self._look()
        thing = self._found[name]
        self._require_one(name)
        if isinstance(thing, EntryPoint):
            thing = self._found[name] = self._loaded(thing)
        elif isinstance(thing, str):
            module, _, attribute = thing.partition(":")
            thing = self._found[name] = getattr(import_module(module), attribute)
        imported: T = thing
        return imported

    def __iter__(self) -> Iterator[str]:
        self._look()
        return iter(self._found)

    def __len__(self) -> int:
        self._look()
        return len(self._found)

    def __contains__(self, name: object) -> bool:
        self._look()
        return name in self._found

    def named(self, name: str) -> T:
        """The thing of this name, imported if need be. Raises UsageError as `require` does."""
        self.require(name)
        return self[name]

    def require(self, name: str) -> None:
        """Raise UsageError, with the nearest known name, unless there is one thing of this name. Imports nothing."""
        if name not in self:
            hint = did_you_mean(name, self) or f"known are {', '.join(self)}"
            raise UsageError(f"no {self.what} {name!r}; {hint}")
        self._require_one(name)

    def _require_one(self, name: str) -> None:
        if name in self._clashes:
            raise UsageError(
                f"the {self.what} {name!r} is there twice, from {self._clashes[name]}; rename one in the entry points "
                f"[{self.group}] of its package, or uninstall that package"
            )

    def _loaded(self, point: EntryPoint) -> Any:
        try:
            return point.load()
        except (ImportError, AttributeError) as error:
            raise UsageError(
                f"the {self.what} {point.name!r} cannot be loaded: the entry point of {_package(point)} in "
                f"[{self.group}] fails with {type(error).__name__} ({error}); correct the package or uninstall it"
            ) from error

    def _look(self) -> None:
        if not self._looked:
            self._looked = True
            for point in entry_points(group=self.group):
                first = self._found.setdefault(point.name, point)
                if not isinstance(first, EntryPoint):
                    self._clashes[point.name] = f"tap-edge itself and {_package(point)}"
                elif first.value != point.value:
                    self._clashes[point.name] = f"{_package(first)} and {_package(point)}"


def _package(point: EntryPoint) -> str:
    return f"{point.dist.name if point.dist else 'a package'} ({point.value})"

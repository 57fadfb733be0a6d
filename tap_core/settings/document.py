"""The page of federation.toml's settings, drawn from the models: `python -m tap_core.settings.document`.

It knows how fields are declared. It does not know what they mean: that is in their descriptions. No torch.
"""

import json
from collections.abc import Iterable, Iterator
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from tap_core.algorithms import ALGORITHMS
from tap_core.names import TaskName
from tap_core.settings.base import AlgorithmSettings
from tap_core.settings.federation import FederationConfig
from tap_core.settings.per_kind import PerKind
from tap_core.tasks import KINDS

HEAD = """\
# The settings of a federation

Every key of `federation.toml`, drawn from `tap_core/settings/federation.py` by `make settings`; a test fails when this
page is not current. Unknown keys are refused, with the nearest known one. Every device is told the settings when it
connects. What the quantities do is in [the method](method.md); the settings of a device are in [device.md](device.md),
those of the service in [operator.md](operator.md).
"""

WORDS: dict[Any, str] = {int: "whole number", float: "number", str: "text", TaskName: "text", bool: "true or false"}
BOUNDS = {"ge": "{} or more", "gt": "above {}", "le": "at most {}", "lt": "below {}"}


def page() -> str:
    """The whole page in Markdown, without a last line break."""
    parts = [HEAD, "## Top level\n", _table(_rows(FederationConfig))]
    for name, field in FederationConfig.model_fields.items():
        model = model_inside(field.annotation)
        if model is None:
            continue
        if model is AlgorithmSettings:
            parts += [f"\n## [{name}]\n", f"{field.description}\n", *_algorithms()]
            continue
        of_each = ".NAME" if get_origin(field.annotation) is dict else ""
        rows = (row for row in _rows(model) if not (of_each and row[0] == "name"))  # a table's name is in its heading
        parts += [f"\n## [{name}{of_each}]\n", f"{field.description}\n", _table(rows)]
    return "\n".join(parts)


def model_inside(annotation: Any) -> type[BaseModel] | None:
    """The table of settings in a field's annotation, such as ``TaskConfig`` or ``dict[str, TaskConfig]``, if any."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := model_inside(part))), None)


Row = tuple[str, str, str, str]
"""Key, values, default and meaning."""


def _rows(model: type[BaseModel]) -> Iterator[Row]:
    """A row for each value; of a table in line one for each of its values; tables that have a heading are left out."""
    for key, field in model.model_fields.items():
        inner = model_inside(field.annotation)
        if inner is None:
            default = "must be given" if field.is_required() else _shown(field.default)
            yield key, values(field), default, field.description or ""
        elif model is not FederationConfig and not issubclass(inner, PerKind):
            for name, leaf in inner.model_fields.items():
                if model_inside(leaf.annotation) is not None:
                    continue
                default = _shown(getattr(field.default, name))
                yield f"{key}.{name}", values(leaf), default, f"{field.description} {leaf.description}"


def _algorithms() -> Iterator[str]:
    """A heading and a table for each algorithm that stands in tap_core, and those of its inner tables of kinds."""
    for name, algorithm in ALGORITHMS.items():
        if algorithm.__module__.startswith("tap_core."):
            model = algorithm.Settings
            yield f'### name = "{name}"\n'
            yield f"{(model.__doc__ or '').splitlines()[0]}\n"
            yield _table(row for row in _rows(model) if row[0] != "name")
            yield from _tables_of_kinds("algorithm", model)


def _tables_of_kinds(where: str, model: type[BaseModel]) -> Iterator[str]:
    for key, field in model.model_fields.items():
        inner = model_inside(field.annotation)
        if inner is not None and issubclass(inner, PerKind):
            yield from (f"\n#### [{where}.{key}]\n", f"{field.description}\n", _table(_kinds(inner)))
        elif inner is not None:
            yield from _tables_of_kinds(f"{where}.{key}", inner)


def _kinds(model: type[PerKind]) -> Iterator[Row]:
    """A row for each of the task kinds that stand in tap_core."""
    for name, kind in KINDS.items():
        if kind.__module__.startswith("tap_core."):
            yield name, "0 or more", _shown(getattr(kind, model.default)), f"Tasks of {kind.words}."


def values(field: FieldInfo) -> str:
    """What may stand there, in words: its type and its limits."""
    said = _type(field.annotation)
    limits = [
        words.format(_shown(getattr(limit, name)).strip("`"))
        for limit in field.metadata
        for name, words in BOUNDS.items()
        if getattr(limit, name, None) is not None
    ]
    return ", ".join([said, *limits])


def _type(annotation: Any) -> str:
    if annotation in WORDS:
        return WORDS[annotation]
    origin, arguments = get_origin(annotation), [a for a in get_args(annotation) if a not in (type(None), Ellipsis)]
    if origin is Literal:
        return " or ".join(f"`{json.dumps(value)}`" for value in arguments)
    if origin is tuple:
        return f"list of {_type(arguments[0])}"
    if origin in (Union, UnionType):
        return " or ".join(_type(argument) for argument in arguments)
    return _type(arguments[0])  # Annotated: what is annotated


def _shown(value: Any) -> str:
    if value is None:
        return "left out"
    if isinstance(value, float):
        return f"`{value:.10g}`"
    return f"`{json.dumps(value)}`"


def _table(rows: Iterable[Row]) -> str:
    lines = [f"| `{key}` | {allowed} | {default} | {meaning} |" for key, allowed, default, meaning in rows]
    return "\n".join(["| key | values | default | meaning |", "|---|---|---|---|", *lines])


if __name__ == "__main__":
    print(page())

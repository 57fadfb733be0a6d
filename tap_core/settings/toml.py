"""TOML files as settings, and what is wrong with them in one line.

It knows pydantic's errors and the nearest known key. It does not know what the settings mean. No torch.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_origin

from pydantic import BaseModel, ValidationError

from tap_core.errors import UsageError, did_you_mean
from tap_core.settings.base import NAME_PATTERN

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Model = TypeVar("Model", bound=BaseModel)

_PLAIN = {
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "must be a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "must be a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "must be true or false"),
    "string_type": "must be text in quotes",
    "tuple_type": 'must be a list, as in ["a", "b"]',
    "too_short": "must not be empty",
}
"""Pydantic's problems in the words of TOML."""


def load_toml(path: Path, model: type[Model]) -> Model:
    """Read a TOML file into a settings model.

    Args:
        path: The file.
        model: What it must hold.

    Returns:
        The settings.

    Raises:
        UsageError: The file is missing, is not TOML, or holds a wrong value or an unknown key. One line, which names
            the nearest known key.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file; give the path of an existing TOML file") from None
    except IsADirectoryError:
        raise UsageError(f"{path} is a directory; give the path of a TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from None
    return validate(values, model, source=str(path))


def validate(values: Any, model: type[Model], *, source: str) -> Model:
    """Settings from values that were parsed already.

    Args:
        values: Tables as dictionaries.
        model: What they must hold.
        source: Where they are from, for the message.

    Returns:
        The settings.

    Raises:
        UsageError: A value is wrong or a key is unknown. One line, headed by ``source``, with the first problem.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise UsageError(f"{source}: {explain(error, model)}") from None


def explain(error: ValidationError, model: type[BaseModel], whole: str = "the file: ") -> str:
    """The first problem of a validation error in one line, with the nearest known key for an unknown one.

    Unknown keys go first: a misspelt key is also a missing one, and its own name says more. A problem of no single key
    begins with ``whole``.
    """
    problems = error.errors(include_url=False)
    problem = min(problems, key=lambda candidate: candidate["type"] != "extra_forbidden")
    where = ".".join(str(part) for part in problem["loc"] if part != "[key]")
    if problem["type"] == "extra_forbidden":
        known = _keys_at(model, problem["loc"][:-1])
        hint = did_you_mean(str(problem["loc"][-1]), known) or f"known keys: {', '.join(sorted(known))}"
        return f"unknown key {where!r}; {hint}"
    message = _PLAIN.get(problem["type"], problem["msg"].removeprefix("Value error, "))
    if problem.get("ctx", {}).get("pattern") == NAME_PATTERN:
        message = "is a name of lower-case letters, digits, '_' and '-', 64 at most, a letter or digit first"
    if problem["type"] == "missing":
        return f"key {where!r} is missing; add it"
    refused = problem.get("input")
    told = isinstance(refused, (Mapping, list)) or repr(refused) in message
    received = "" if told else f" (got {json.dumps(refused, default=str)})"
    return f"{f'{where}: ' if where else whole}{message}{received}"


def _keys_at(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The keys known at a location inside a model: steps through nested models and dictionaries of models."""
    current: Any = model
    for part in location:
        if not (isinstance(current, type) and issubclass(current, BaseModel)):
            current = _model_inside(current)  # `part` is a key or index of a container, not a field
            continue
        field = current.model_fields.get(str(part))
        if field is None:
            return []
        is_container = get_origin(field.annotation) in (dict, list, tuple)
        current = field.annotation if is_container else _model_inside(field.annotation)
    return list(current.model_fields) if isinstance(current, type) and issubclass(current, BaseModel) else []


def _model_inside(annotation: Any) -> Any:
    """The model in an annotation such as ``dict[str, TaskConfig]`` or ``TaskConfig | None``; else the annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in reversed(getattr(annotation, "__args__", ())):
        inside = _model_inside(argument)
        if isinstance(inside, type) and issubclass(inside, BaseModel):
            return inside
    return annotation

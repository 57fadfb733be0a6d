"""Tables with one number for each task kind. It knows the kinds' names and defaults; no torch."""

from typing import Annotated, ClassVar

from pydantic import ConfigDict, Field, model_validator

from tap_core.errors import UsageError
from tap_core.settings.base import Settings
from tap_core.tasks import KINDS, task_kind


class PerKind(Settings):
    """One number for each task kind; a kind that is not named has its own default (`tap_core.tasks`)."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Annotated[float, Field(ge=0, strict=True)]] = Field(init=False)
    default: ClassVar[str]
    """Which attribute of a task kind is its default."""

    @model_validator(mode="after")
    def _names_kinds(self) -> "PerKind":
        for name in self.__pydantic_extra__:
            try:
                KINDS.require(name)
            except UsageError as error:
                raise ValueError(str(error)) from None
        return self

    def of(self, kind: str) -> float:
        """The number of a kind."""
        value: float = self.__pydantic_extra__.get(kind, getattr(task_kind(kind), self.default))
        return value


class Margins(PerKind):
    """Margin of each task kind: how much lower the federated loss must be (docs/method.md section 6)."""

    default = "margin"


class Betas(PerKind):
    """Weight of distillation of each task kind."""

    default = "beta"

"""What every table of settings is: frozen, unknown keys refused; and what may be a name. No torch."""

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from tap_core.errors import UsageError
from tap_core.names import DeviceName, TaskName
from tap_core.registry import Registry

NAME_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,63}$"
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
"""A name of a federation, device or task: lower-case letters, digits, "_" and "-", 64 characters at most."""
DeviceField = Annotated[DeviceName, Field(pattern=NAME_PATTERN)]
TaskField = Annotated[TaskName, Field(pattern=NAME_PATTERN)]


class Settings(BaseModel):
    """Base of every settings table: frozen, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_not_1(cls, value: Any, info: ValidationInfo) -> Any:
        """Pydantic alone would take true for a number."""
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise ValueError("takes neither true nor false; docs/settings.md says what it takes")
        return value


class AlgorithmSettings(Settings):
    """The `[algorithm]` table: the name of an algorithm, and in its subclass what that algorithm can be told."""

    name: str = Field(default="tap", description="What devices do in a round and at the end.")

    @property
    def needs_decision_set(self) -> bool:
        """Whether it looks at examples that are cut from the training items and never trained on."""
        return False


def one_of(registry: Registry[Any]) -> AfterValidator:
    """A name that the registry has."""

    def known(name: str) -> str:
        try:
            registry.require(name)
        except UsageError as error:
            raise ValueError(str(error)) from None
        return name

    return AfterValidator(known)

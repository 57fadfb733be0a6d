"""What every table of settings is: frozen, unknown keys refused; and what may be a name. No torch."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from tap_core.names import DeviceName, TaskName

NAME_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,63}$"
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
"""A name of a federation, device or task: lower-case letters, digits, "_" and "-", 64 characters at most."""
DeviceField = Annotated[DeviceName, Field(pattern=NAME_PATTERN)]
TaskField = Annotated[TaskName, Field(pattern=NAME_PATTERN)]


class Settings(BaseModel):
    """Base of every settings table: frozen, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

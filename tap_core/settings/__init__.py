"""Settings as frozen pydantic models: of a federation (`federation.toml`), and of the machine that a device trains on.

docs/settings.md has every key. No torch; the models are imported when they are asked for, because what they check names
with (task kinds, algorithms, triggers, samplers) may use `tap_core.settings.base`.
"""

from typing import TYPE_CHECKING

from tap_core.faces import imported_when_asked

__all__ = ["FederationConfig", "Runtime", "Settings", "TaskConfig", "load_toml", "validate"]

if TYPE_CHECKING:
    from tap_core.settings.base import Settings
    from tap_core.settings.federation import FederationConfig, TaskConfig
    from tap_core.settings.runtime import Runtime
    from tap_core.settings.toml import load_toml, validate
else:
    __getattr__ = imported_when_asked(
        __name__,
        {
            "base": ("Settings",),
            "federation": ("FederationConfig", "TaskConfig"),
            "runtime": ("Runtime",),
            "toml": ("load_toml", "validate"),
        },
    )

"""A personal model as a directory that applications run without torch (docs/device.md). This loads no torch itself."""

from typing import TYPE_CHECKING

from tap_core.faces import imported_when_asked

__all__ = ["TOLERANCE", "export_task"]

if TYPE_CHECKING:
    from tap_core.export.directory import TOLERANCE, export_task
else:
    __getattr__ = imported_when_asked(__name__, {"directory": ("TOLERANCE", "export_task")})

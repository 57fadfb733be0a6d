"""Names in a federation, as types of their own: no program that passes a device where a task is meant passes mypy.

They are made where names come in (settings, the wire, the database) and by `tap_core.components`.
"""

from typing import NewType

DeviceName = NewType("DeviceName", str)

TaskName = NewType("TaskName", str)

ComponentName = NewType("ComponentName", str)
"""One of the names that the functions of `tap_core.components` make."""

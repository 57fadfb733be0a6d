"""The codes of `tap.v1`: why a device is refused, an update rejected, a round declined, a connection ended.

Both sides take them from here; a message's `code` is the value of one of these. A device must bear a code that it does
not know (a later coordinator may have more): the text beside it says what is wrong. It knows numbers and names only.
"""

from enum import Enum, IntEnum


class _Code(str, Enum):
    """A code that is its own text."""

    def __str__(self) -> str:
        return str(self.value)


class RefusalCode(_Code):
    """Why a hello is refused (Refuse). None of them mends itself."""

    WRONG_DEVICE = "wrong_device"
    WRONG_FEDERATION = "wrong_federation"
    SCHEMA = "schema"
    FOUNDATION = "foundation"
    UNKNOWN_TASK = "unknown_task"
    TASK_NOT_ALLOWED = "task_not_allowed"
    EXAMPLES = "examples"
    REVOKED = "revoked"


class RejectionCode(_Code):
    """Why an update does not count (Rejected)."""

    LATE = "late"
    EXAMPLES = "examples"
    COMPONENTS = "components"
    VERSION = "version"
    SIZE = "size"
    TENSORS = "tensors"
    NORM = "norm"


class DeclineCode(_Code):
    """Why a device sits a round out (Decline)."""

    DIVERGED = "diverged"


class ByeCode(_Code):
    """Why the coordinator ends a connection in good order (Bye)."""

    DONE = "done"
    REPLACED = "replaced"
    REVOKED = "revoked"
    SHUTDOWN = "shutdown"


class CloseCode(IntEnum):
    """WebSocket close codes (RFC 6455, section 7.4.1) that either side gives."""

    NORMAL = 1000
    GOING_AWAY = 1001
    PROTOCOL_VIOLATION = 1002
    """A message that the state or the rules do not allow."""
    TEXT = 1003
    """A text message."""
    INVALID_DATA = 1007
    """Bytes that are no valid message, or tensors that are not the announced ones."""
    POLICY = 1008
    """Refused, replaced, revoked, too slow or too often."""
    TOO_BIG = 1009
    """A message or a transfer over its limit."""
    TROUBLE = 1011
    """A fault of the coordinator's own: connect again."""

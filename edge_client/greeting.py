"""The first words of a connection: the device's hello, the coordinator's answer, and what a bye means.

It knows hello, welcome, refuse and bye. It knows no work, no data and no socket: those are the agent's and the
connection's business.
"""

import json
from collections.abc import Mapping

from edge_client.config import ClientConfig
from edge_client.connection import Connection, TokenRefused
from edge_client.outages import Disconnected
from protocol.codes import ByeCode, RefusalCode
from protocol.messages import Bye, Hello, Refuse, Welcome
from protocol.names import Digest
from tap_core.errors import TapError, UsageError
from tap_core.manifest import SCHEMA_VERSION
from tap_core.names import TaskName
from tap_core.settings.federation import FederationConfig
from tap_core.settings.toml import validate


async def greet(
    connection: Connection, config: ClientConfig, foundation: str, examples: Mapping[TaskName, int]
) -> FederationConfig:
    """Say hello and return the federation's settings.

    ``foundation``: its digest. ``examples``: training examples of each of the device's tasks; with them it becomes a
    member, which may be asked to train. Empty: it looks at the settings, nothing else, and the coordinator closes the
    connection. Raises UsageError if the device is refused, and what `sent_away` returns if it is sent away.
    """
    hello = Hello(
        device=config.device_id,
        federation=config.federation,
        tasks={name: count for name, count in examples.items()},
        foundation=Digest(foundation),
        schema_version=SCHEMA_VERSION,
    )
    await connection.send(hello)
    while True:
        for event in await connection.receive():
            match event:
                case Welcome():
                    federation = parse_settings(event.settings)
                    federation.tasks_named(config.tasks)
                    return federation
                case Refuse():
                    kind = TokenRefused if event.code == RefusalCode.REVOKED else UsageError
                    raise kind(f"the coordinator refuses this device: {event.why}; {event.fix}")
                case Bye():
                    raise sent_away(event, config)


def sent_away(bye: Bye, config: ClientConfig) -> Exception:
    """What a bye means: most say that the service stops, so that this device waits for it."""
    if bye.code == ByeCode.REPLACED:
        return TapError(
            f"another process has joined as {config.device_id!r}; stop one of the two, or give this one a "
            "device_id and a token of its own"
        )
    if bye.code == ByeCode.REVOKED:
        return TokenRefused(
            f"the token of {config.device_id!r} is void: revoked, expired or replaced; ask the operator for a new "
            f"one and put it into {config.token_file}"
        )
    return Disconnected(f"bye: {bye.code}", reached=True)


def parse_settings(text: str) -> FederationConfig:
    """The federation's settings from the coordinator's welcome. Raises TapError if they are not understood."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):  # no JSON, or brackets without end
        raise TapError("the coordinator's settings are not JSON; use the same version of tap-edge on both") from None
    return validate(values, FederationConfig, source="the coordinator's settings")

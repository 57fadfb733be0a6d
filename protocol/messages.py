"""The messages of `tap.v1`: one frozen pydantic class each, every field bounded.

The bounds are such that every valid message fits into MAX_MESSAGE. This module knows what a message is made of; which
message may follow which is in `states`, and how it becomes bytes is in `codec`. Types are strict: a message that says
`"3"` or `true` where a number belongs is refused, not converted.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeAlias, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from protocol.errors import one_line
from protocol.names import ComponentName, Digest

SUBPROTOCOL = "tap.v1"
"""Name of the WebSocket subprotocol."""

MAX_MESSAGE = 2 * 1024 * 1024
"""Most bytes of one message, and the `max_size` to give to the WebSocket library."""

CHUNK = 1024 * 1024
"""Most bytes of a transfer that one Chunk carries."""

MAX_SETTINGS = 512 * 1024
"""Most bytes (UTF-8) of the settings in a Welcome."""

MAX_COMPONENTS = 2048
"""Most components that one message names."""

MAX_TASKS = 256
"""Most tasks of one device."""

MAX_BLOB = 4 * 1024**3
"""Most bytes of one transfer."""

MAX_ROUND = 2**31 - 1
MAX_COUNT = 2**53

Name = Annotated[str, Field(strict=True, pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
ComponentField = Annotated[ComponentName, Field(strict=True, pattern=r"^[a-z0-9][a-z0-9_/-]{0,191}$")]
DigestField = Annotated[Digest, Field(strict=True, pattern=r"^[0-9a-f]{64}$")]
Code = Annotated[str, Field(strict=True, pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
Line = Annotated[str, Field(strict=True, max_length=1024), AfterValidator(one_line)]
PhaseName = Annotated[str, Field(strict=True, max_length=64), AfterValidator(one_line)]
Round = Annotated[int, Field(strict=True, ge=0, le=MAX_ROUND)]
Count = Annotated[int, Field(strict=True, ge=0, le=MAX_COUNT)]
Examples = Annotated[int, Field(strict=True, ge=1, le=MAX_COUNT)]
Offset = Annotated[int, Field(strict=True, ge=0, lt=MAX_BLOB)]
Seconds = Annotated[float, Field(strict=True, ge=0, le=1e9, allow_inf_nan=False)]


AnyName = TypeVar("AnyName", bound=str)


def _fits(settings: str) -> str:
    if len(settings.encode()) > MAX_SETTINGS:
        raise ValueError(f"has more than {MAX_SETTINGS} bytes")
    return settings


def _distinct(values: tuple[AnyName, ...]) -> tuple[AnyName, ...]:
    if len(set(values)) != len(values):
        raise ValueError("names a value twice")
    return values


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_bytes="base64", val_json_bytes="base64")


class ComponentRef(_Part):
    """One version of a component, named by the digest of its bytes."""

    name: ComponentField = Field(description="Component name, for example `mote/expert/image/shared`.")
    version: Round = Field(description="Rounds that went into it; in an Update, the round itself.")
    digest: DigestField = Field(description="sha256 of the safetensors bytes, in hexadecimal.")
    size: int = Field(strict=True, ge=1, le=MAX_BLOB, description="Number of bytes.")


def _consistent(components: tuple[ComponentRef, ...]) -> tuple[ComponentRef, ...]:
    _distinct(tuple(component.name for component in components))
    sizes: dict[Digest, int] = {}
    for component in components:
        if sizes.setdefault(component.digest, component.size) != component.size:
            raise ValueError("gives one digest two sizes")
    return components


Components = Annotated[tuple[ComponentRef, ...], Field(max_length=MAX_COMPONENTS), AfterValidator(_consistent)]


class Hello(_Part):
    """The device introduces itself: the first message of every connection."""

    type: Literal["hello"] = "hello"
    device: Name = Field(description="The device's name; must be the one that the token was given to.")
    federation: Name = Field(description="The federation's name.")
    tasks: dict[Name, Examples] = Field(
        max_length=MAX_TASKS,
        description="The manifest: n training examples by task. Empty: the device only looks at the settings; it gets "
        "its welcome, does not become a member, and the connection is closed.",
    )
    foundation: DigestField = Field(description="Digest of the frozen weights that the device holds.")
    schema_version: Round = Field(description="Version of component names, shapes and meanings that the device has.")


class Welcome(_Part):
    """The coordinator accepts the device."""

    type: Literal["welcome"] = "welcome"
    session: Code = Field(description="Name of this connection, for the logs of both sides.")
    settings: Annotated[str, Field(strict=True), AfterValidator(_fits)] = Field(
        description="The federation's settings as JSON, 512 KiB at most."
    )
    owned: Annotated[tuple[ComponentField, ...], Field(max_length=MAX_COMPONENTS), AfterValidator(_distinct)] = Field(
        description="Components that the device owns; no other may be offered in either direction."
    )


class Refuse(_Part):
    """The coordinator does not accept the device; the connection ends."""

    type: Literal["refuse"] = "refuse"
    code: Code = Field(description="Machine-readable reason.")
    why: Line = Field(description="What is wrong, in one line.")
    fix: Line = Field(description="What to do about it, in one line.")


class _Offer(_Part):
    """Components for the device, some of which it keeps to itself."""

    @model_serializer(mode="wrap")
    def _without_an_empty_home(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Where nothing stays at home the message is what it was before there was a ``home``."""
        return {name: value for name, value in write(self).items() if name != "home" or value}

    @model_validator(mode="after")
    def _offers_what_stays(self) -> "_Offer":
        offer: Any = self
        if not {component.name for component in offer.components}.issuperset(offer.home):
            raise ValueError("home names a component that is not among components")
        return self


Home = Annotated[tuple[ComponentField, ...], Field(max_length=MAX_COMPONENTS), AfterValidator(_distinct)]


class Train(_Offer):
    """The coordinator asks an idle device to take part in a round."""

    type: Literal["train"] = "train"
    round: Round = Field(description="Number of the round, from 0.")
    deadline: Seconds = Field(description="Seconds left until the round closes.")
    components: Components = Field(description="The components that the device owns, each with its global value.")
    home: Home = Field(
        default=(),
        description="Those of them that stay at home: the device starts from its own value, unless it has none or the "
        "version offered is newer than its last participation, and does not send them. Left out if empty.",
    )


class Fetch(_Part):
    """The device asks for the offered components that its cache lacks, each from the offset that it has come to."""

    type: Literal["fetch"] = "fetch"
    digests: Annotated[
        tuple[DigestField, ...], Field(min_length=1, max_length=MAX_COMPONENTS), AfterValidator(_distinct)
    ] = Field(description="What to send, all different.")
    offsets: Annotated[tuple[Offset, ...], Field(min_length=1, max_length=MAX_COMPONENTS)] = Field(
        description="Where to start each, in bytes; as many as digests."
    )

    @model_validator(mode="after")
    def _pairs(self) -> "Fetch":
        if len(self.digests) != len(self.offsets):
            raise ValueError("digests and offsets differ in number")
        return self


class Chunk(_Part):
    """A piece of a transfer, from either side; the pieces of one transfer come in order and without gaps."""

    type: Literal["chunk"] = "chunk"
    digest: DigestField = Field(description="Names the transfer.")
    offset: Offset = Field(description="Where the piece belongs, in bytes.")
    data: Annotated[bytes, Field(strict=True, min_length=1, max_length=CHUNK)] = Field(description="1 byte to 1 MiB.")


class Update(_Part):
    """The device has trained; names its components by digest, their bytes follow when wanted."""

    type: Literal["update"] = "update"
    round: Round = Field(description="The round of the Train that it answers.")
    examples: dict[ComponentField, Examples] = Field(
        max_length=MAX_COMPONENTS, description="Training examples by component, the weights of the average."
    )
    components: Components = Field(description="The trained components that others share; their version is the round.")

    @model_validator(mode="after")
    def _agrees(self) -> "Update":
        if {component.name for component in self.components} != self.examples.keys():
            raise ValueError("examples and components name different components")
        if any(component.version != self.round for component in self.components):
            raise ValueError("a component's version is not the round")
        return self


class Decline(_Part):
    """The device cannot take part in this round: it keeps the state of before, and waits to be asked for the next."""

    type: Literal["decline"] = "decline"
    round: Round = Field(description="The round of the Train that it answers.")
    code: Code = Field(description="Machine-readable reason.")
    why: Line = Field(description="The reason in one line.")


class Want(_Part):
    """The coordinator asks for one blob of the update, from the offset that it has come to."""

    type: Literal["want"] = "want"
    digest: DigestField = Field(description="What to send.")
    offset: Offset = Field(description="Where to start, in bytes.")


class Accepted(_Part):
    """The update is durable at the coordinator: the device may forget it."""

    type: Literal["accepted"] = "accepted"
    round: Round = Field(description="The round of the Update.")


class Rejected(_Part):
    """The update is not used; transfers of it that are under way are called off."""

    type: Literal["rejected"] = "rejected"
    round: Round = Field(description="The round of the Update.")
    code: Code = Field(description="Machine-readable reason.")
    why: Line = Field(description="The reason in one line.")


class Heartbeat(_Part):
    """The device is alive and this far."""

    type: Literal["heartbeat"] = "heartbeat"
    phase: PhaseName = Field(description="What the device does, in a few words.")
    step: Count = Field(description="Steps done in this phase.")
    steps: Count = Field(description="Steps of this phase; 0 if unknown.")


class Finish(_Offer):
    """The last round is over: the final components, for stage 2."""

    type: Literal["finish"] = "finish"
    components: Components = Field(description="The final global components that the device owns.")
    home: Home = Field(
        default=(), description="Those of them whose final value is the device's own, as in a train. Left out if empty."
    )


class Done(_Part):
    """The device has ended stage 2."""

    type: Literal["done"] = "done"


class Bye(_Part):
    """The coordinator ends the connection; may come at any time."""

    type: Literal["bye"] = "bye"
    code: Code = Field(description="Machine-readable reason.")


AnyMessage: TypeAlias = (
    Hello
    | Welcome
    | Refuse
    | Train
    | Fetch
    | Chunk
    | Update
    | Decline
    | Want
    | Accepted
    | Rejected
    | Heartbeat
    | Finish
    | Done
    | Bye
)
Message = Annotated[AnyMessage, Field(discriminator="type")]
"""Any message, told apart by its field `type`."""

MESSAGE_CLASSES: tuple[type[AnyMessage], ...] = get_args(AnyMessage)
DEVICE_MESSAGES: frozenset[str] = frozenset({"hello", "fetch", "chunk", "update", "decline", "heartbeat", "done"})
COORDINATOR_MESSAGES: frozenset[str] = frozenset(
    {"welcome", "refuse", "train", "chunk", "want", "accepted", "rejected", "finish", "bye"}
)


def sizes_by_digest(components: Sequence[ComponentRef]) -> dict[Digest, int]:
    """Number of bytes of each distinct blob among `components`."""
    return {component.digest: component.size for component in components}

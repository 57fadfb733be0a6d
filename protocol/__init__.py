"""The wire of tap-edge: messages, and a connection seen from one end. Bytes in, events out; no socket, clock or torch.

`Session` is where to begin. docs/protocol.md is the page for whoever speaks it from another program.
"""

from protocol.codec import decode, encode
from protocol.codes import ByeCode, CloseCode, DeclineCode, RefusalCode, RejectionCode
from protocol.errors import LocalProtocolError, NotFinite, ProtocolError, RemoteProtocolError
from protocol.messages import (
    MAX_MESSAGE,
    SUBPROTOCOL,
    Accepted,
    Bye,
    Chunk,
    ComponentRef,
    Decline,
    Done,
    Fetch,
    Finish,
    Heartbeat,
    Hello,
    Refuse,
    Rejected,
    Train,
    Update,
    Want,
    Welcome,
)
from protocol.session import BlobReceived, Session
from protocol.tensors import DTYPES, ComponentTensors, decode_tensors, digest_of, encode_tensors, encoded_size_limit
from protocol.transfer import Incoming

__all__ = [
    "Session",
    "BlobReceived",
    "Incoming",
    "SUBPROTOCOL",
    "MAX_MESSAGE",
    "encode",
    "decode",
    "Hello",
    "Welcome",
    "Refuse",
    "Train",
    "Fetch",
    "Chunk",
    "Update",
    "Decline",
    "Want",
    "Accepted",
    "Rejected",
    "Heartbeat",
    "Finish",
    "Done",
    "Bye",
    "ComponentRef",
    "DTYPES",
    "ComponentTensors",
    "encode_tensors",
    "decode_tensors",
    "encoded_size_limit",
    "digest_of",
    "RefusalCode",
    "RejectionCode",
    "DeclineCode",
    "ByeCode",
    "CloseCode",
    "ProtocolError",
    "LocalProtocolError",
    "RemoteProtocolError",
    "NotFinite",
]

"""What can go wrong between two peers, and whose fault it is.

```
ProtocolError
├── LocalProtocolError    this side was about to break the protocol: a bug of ours; nothing was sent
└── RemoteProtocolError   the peer broke the protocol; close the connection with `close_code`
    └── NotFinite         tensors of the right form hold a value that is no finite number
```

These are the only errors of the package that its callers must expect. It knows no sockets: the close codes (`codes`)
are numbers which the caller hands to its WebSocket library.
"""

from protocol.codes import CloseCode


class ProtocolError(Exception):
    """Root of the errors of the wire."""


class LocalProtocolError(ProtocolError):
    """This side tried to send what its state does not allow."""


class RemoteProtocolError(ProtocolError):
    """The peer sent what it must not send.

    `close_code` is the WebSocket close code to answer with. The message is one printable line of 300 characters at
    most, whatever the peer sent, and so is safe for a log or a terminal.
    """

    def __init__(self, why: str, close_code: int = CloseCode.PROTOCOL_VIOLATION) -> None:
        super().__init__(one_line(why)[:300])
        self.close_code = int(close_code)


class NotFinite(RemoteProtocolError):
    """Tensors of the right names and shapes hold a value that is infinite or no number."""


def one_line(text: str) -> str:
    """`text` with every character that is not printable (line ends, escapes, direction marks) as a space."""
    return text if text.isprintable() else "".join(c if c.isprintable() else " " for c in text)

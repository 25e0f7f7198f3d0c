"""What the live channel asks of a WebSocket, whichever library speaks it: text that comes, text that goes, an end.

`websocket_trio` and `websocket_anyio` fulfil it. Each has `connected(session)`, which yields an open `Socket` and
closes it at the end of the block.
"""

from __future__ import annotations

from typing import Final, Protocol

from .credentials import Header
from .errors import ProtocolViolation
from .session import Session

PATH: Final = "/transfers/ws"
SUBPROTOCOL: Final = "visor.progress.v1"
READ_BYTES: Final = 65536
MESSAGE_LIMIT: Final = 64 * 1024 * 1024  # characters of one message: a snapshot of very many transfers
GOODBYE_SECONDS: Final = 1.0  # a dead gateway must not keep its client

NO_ANSWER: Final = "The gateway does not answer"
NO_GOODBYE: Final = "The gateway closed the live channel without a goodbye"
NO_WEBSOCKET: Final = "What came on the live channel is no WebSocket"
NO_TEXT: Final = "A message on the live channel is no text"
TOO_LONG: Final = "A message on the live channel is too long"

#: Close codes that one side sends when it can make nothing of what came (RFC 6455, 7.4.1).
_VIOLATIONS: Final = {1002: NO_WEBSOCKET, 1003: NO_TEXT, 1007: NO_TEXT, 1009: TOO_LONG}


class Socket(Protocol):
    """An open WebSocket. The caller bounds the time of `send` and `receive`; both may be cancelled."""

    async def send(self, text: str) -> None:
        """Send one message. Raises `ConnectionBroken`."""
        ...

    async def receive(self) -> str | None:
        """The next message; None once the gateway has said goodbye.

        Raises:
            ConnectionBroken: The connection ended without a goodbye.
            ProtocolViolation: What came is no WebSocket, no text, or longer than `MESSAGE_LIMIT`.
        """
        ...

    async def aclose(self) -> None:
        """Say goodbye, for which `GOODBYE_SECONDS` are given, and close the connection."""
        ...


def check_goodbye(code: int) -> None:
    """Raise `ProtocolViolation` where a close code tells of one."""
    if code in _VIOLATIONS:
        raise ProtocolViolation(_VIOLATIONS[code])


def check_subprotocol(chosen: str | None) -> None:
    """Raise `ProtocolViolation` where the gateway chose another subprotocol than ours, or none."""
    if chosen != SUBPROTOCOL:
        raise ProtocolViolation(f"The gateway does not speak {SUBPROTOCOL}")


def upgrade_headers(session: Session, path: str = PATH) -> list[Header]:
    """The headers of the upgrade, signed, but for Host: the libraries write that themselves."""
    headers = session.headers("GET", session.target(path), [])
    return [(name, value) for name, value in headers if name != b"host"]

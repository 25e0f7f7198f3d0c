"""What the socket edge offers to whoever moves bytes: the seam between `server` and `routes`, which never import
each other. The connection puts itself into the ASGI scope as ``scope["state"]["connection"]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol


@dataclass
class LentBody:
    """The rest of a request body, for a borrower to read.

    Attributes:
        sock: A duplicate of the socket (non-blocking). Only the lender closes it.
        lead: The first bytes, which were read already.
        left: How many bytes after these are still to be read from `sock`. The borrower counts it down as it reads and
            never reads more: what follows is the next request.
        stall_timeout: Seconds without a byte after which the client is given up.
        min_rate: Bytes per second that it must reach on average once it was waited for `stall_timeout` in all.
    """

    sock: int
    lead: bytes
    left: int
    stall_timeout: float
    min_rate: float


class ClientConnection(Protocol):
    """One client's connection, as a transfer sees it.

    Attributes:
        lends: Whether `lend` and `lend_body` are to be had: on plain TCP, where the kernel alone can tell how the
            client is doing.
    """

    lends: bool

    def unacknowledged(self) -> int:
        """Bytes handed to the kernel that the client's kernel has not acknowledged (SIOCOUTQ); after a reset, those
        that never were."""
        ...

    def lend(self, length: int) -> AbstractAsyncContextManager[int]:
        """Lend a duplicate of the socket (non-blocking) to send exactly `length` bytes of the response body.

        Only where `lends`, after `http.response.start` with a Content-Length, and before the last
        `http.response.body`. The head is sent first. The borrower must have let go of the descriptor when the block
        ends; nobody but the lender closes it. Left by an exception, the connection is reset.

        Raises:
            OSError: The client is gone, or the connection was reset meanwhile (which cancels the block).
        """
        ...

    def lend_body(self) -> AbstractAsyncContextManager[LentBody]:
        """Lend the read side for what is left of the request's body.

        Only where `lends`, for a body with a Content-Length. `100 Continue` is sent first to a client that waits for
        it. The borrower must have let go of the descriptor when the block ends. If it has read the whole body then,
        the connection can be used again; if not, nothing more of the body can be had, the request can be answered all
        the same, and the connection ends with the answer.

        Raises:
            ConnectionError: The client is gone, or the connection was reset meanwhile (which cancels the block).
        """
        ...

    async def wait_gone(self) -> None:
        """Wait until the client has closed its side, or the connection is gone or was reset. Reads nothing: what the
        client has sent stays where it is. For as long as nothing of the answer has been sent."""
        ...

    async def send_texts(self, texts: Sequence[str], *, ping: bool = False) -> None:
        """Send text messages over the connection's WebSocket, which was accepted, in one write. A text that many
        connections are sent is framed once for all. With `ping`, a ping goes with them; at most one is unanswered.

        Raises:
            OSError: The client is gone. Cancelled, the connection is reset, because half a message may be out.
        """
        ...

    @property
    def sends_now(self) -> bool:
        """Whether `send_texts_now` is to be had: on a WebSocket without TLS that is open, while nobody sends on it and
        its client's kernel has taken what was sent before."""
        ...

    def send_texts_now(self, texts: Sequence[str], *, ping: bool = False) -> bool:
        """Send as `send_texts` does, without waiting: what the kernel does not take goes out before whatever
        `send_texts` sends next. Whether it took all; false as well where the client is gone. Only where `sends_now`.
        """
        ...

    @property
    def pinged_at(self) -> float | None:
        """When the ping was sent that the client has not answered, on Trio's clock; None where it has answered."""
        ...

    def reset(self) -> None:
        """End the connection so that the client can't take what it has for a whole answer: SO_LINGER 0 and close, a
        TCP RST. Does not block; whatever is being sent or received on the connection fails with an `OSError`."""
        ...

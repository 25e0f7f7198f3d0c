"""The error tree: whose side an error is on, its HTTP status, and whether trying again can help.

Every error that may reach a client is a `GatewayError`. Its message names what was wrong and
never holds a secret, a file path of this host or a stack trace, so it can be sent as it is.
Foreign exceptions (of the database driver, of the socket, of the file system) are translated once,
in the module that calls the foreign code, with ``raise ... from exc``.
"""

from __future__ import annotations

import enum
from typing import ClassVar


class Side(enum.Enum):
    """Who has to act for the error to go away."""

    CLIENT = "client"
    STORE = "store"
    METADATA = "metadata"
    OURS = "ours"


class GatewayError(Exception):
    """An error that may be told to a client.

    Attributes:
        message: One sentence for the client.
        status: HTTP status of the answer.
        side: Who has to act.
        retryable: Whether the same request may succeed later.
        retry_after: Seconds to name in `Retry-After`, or None for no such header.
        headers: Further headers of the answer, such as `Allow`.
    """

    status: ClassVar[int] = 500
    side: ClassVar[Side] = Side.OURS
    retryable: ClassVar[bool] = False
    retry_after: ClassVar[int | None] = None

    def __init__(self, message: str, *, headers: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.headers = headers


# --- the client's side -------------------------------------------------------------------------


class ClientError(GatewayError):
    """The request can't be served as it was sent."""

    status = 400
    side = Side.CLIENT


class InvalidRequest(ClientError):
    """The request is malformed or contradicts itself."""


class InvalidField(ClientError):
    """A field of a record is missing, unknown, read-only or has a value it may not have."""


class DigestMismatch(ClientError):
    """The bytes that arrived do not have the digest that the client named."""


class UnsafeImage(ClientError):
    """The bytes contradict the declared format, or refer to data outside themselves."""


class BodyIncomplete(ClientError):
    """The client stopped sending before its body was whole: gone, stalled or cut."""


class Forbidden(ClientError):
    """The caller may not do this."""

    status = 403


class CredentialsRefused(Forbidden):
    """Credentials are missing or wrong. One message for every cause: it tells a guesser nothing."""

    def __init__(self) -> None:
        super().__init__("Access denied: credentials are missing or not valid for this request.")


class NotFound(ClientError):
    """What the request names does not exist, or does not exist for this caller."""

    status = 404


class MethodNotAllowed(ClientError):
    """The path exists, with other methods."""

    status = 405

    def __init__(self, allowed: tuple[str, ...]) -> None:
        names = ", ".join(sorted(allowed))
        super().__init__(f"Method not allowed, use: {names}", headers=(("allow", names),))


class Conflict(ClientError):
    """The state of the resource does not admit the request."""

    status = 409


class PreconditionFailed(ClientError):
    """`If-Match` or `If-Unmodified-Since` does not hold (RFC 9110, 13.1)."""

    status = 412


class TooLarge(ClientError):
    """The body is longer than the gateway takes."""

    status = 413


class UnsupportedMedia(ClientError):
    """The body has a coding that the gateway does not take."""

    status = 415


class RangeNotSatisfiable(ClientError):
    """No byte of the requested range exists (RFC 9110, 15.5.17)."""

    status = 416

    def __init__(self, size: int) -> None:
        super().__init__(
            f"The requested range is outside the image, which has {size} bytes",
            headers=(("content-range", f"bytes */{size}"),),
        )


# --- the stores' side --------------------------------------------------------------------------


class StoreError(GatewayError):
    """A store failed or can't be reached."""

    status = 503
    side = Side.STORE
    retryable = True
    retry_after: ClassVar[int | None] = 5


class ObjectExists(StoreError):
    """An object of that key is in the store already; it was not touched."""

    status = 409
    retryable = False
    retry_after = None


class ObjectMissing(StoreError):
    """The store answers, and has no such object."""


class ObjectChanged(StoreError):
    """The object is no longer the one that the record describes."""

    status = 502
    retryable = False
    retry_after = None


class StoreFull(StoreError):
    """The store has no room for the bytes."""


class StoreUnreachable(StoreError):
    """The store does not answer, or answers with its own failure."""


# --- the metadata's side -----------------------------------------------------------------------


class MetadataUnavailable(GatewayError):
    """The database of records or accounts can't be used now."""

    status = 503
    side = Side.METADATA
    retryable = True
    retry_after = 5


class AttemptLost(GatewayError):
    """The lease of this writing attempt is over: another attempt or a delete took the image."""

    status = 409
    side = Side.METADATA


# --- ours --------------------------------------------------------------------------------------


class ConfigError(GatewayError):
    """The configuration can't be used. The message is one line that names file, key and what was expected."""


class Draining(GatewayError):
    """The gateway is stopping and starts nothing new."""

    status = 503
    retryable = True
    retry_after = 5


class QueueFull(GatewayError):
    """All slots are taken, and as many transfers wait for one as may."""

    status = 503
    retryable = True
    retry_after = 5

    def __init__(self) -> None:
        super().__init__("The gateway is busy: too many transfers wait already")


class TransferCancelled(GatewayError):
    """A transfer was ended on purpose.

    Attributes:
        reason: Why, as shown in the live channel: "request", "delete", "drain" or "stall".
    """

    status = 409

    def __init__(self, reason: str) -> None:
        super().__init__(f"The transfer was cancelled: {reason}")
        self.reason = reason

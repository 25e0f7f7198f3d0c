"""What a call of the client library can raise: one class per kind of failure.

Messages are one line, hold no secret and no control character, and can be shown as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, ClassVar, Final

import msgspec

SKEW_LIMIT: Final = 300  # seconds by which a gateway lets clocks differ (contract: 5 minutes)
MESSAGE_LIMIT: Final = 500  # characters of a foreign message that are worth a line


class VisorError(Exception):
    """Anything that went wrong in a call.

    Attributes:
        message: One line.
        status: HTTP status of the gateway's answer; None where there was none.
    """

    status: int | None = None

    def __init__(self, message: str) -> None:
        self.message = printable(message)
        super().__init__(self.message)


class Refused(VisorError):
    """The gateway answered with an error.

    Attributes:
        retry_after: Seconds that the gateway asks to wait, None where it names none.
    """

    retry_after: float | None = None

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        if status is not None:
            self.status = status


class BadRequest(Refused):
    """400: the request or a field is not valid."""

    status = 400


class Forbidden(Refused):
    """403: credentials are missing or wrong, or do not permit this."""

    status = 403


class NotFound(Refused):
    """404: what was named does not exist, or not for this caller."""

    status = 404


class Conflict(Refused):
    """409: the state of the image or account does not admit the request."""

    status = 409


class PreconditionFailed(Refused):
    """412: the image is not the one that was expected."""

    status = 412


class TooLarge(Refused):
    """413: the image is larger than the gateway takes."""

    status = 413


class RangeNotSatisfiable(Refused):
    """416: the image has no byte of the range."""

    status = 416


class ServerFailed(Refused):
    """5xx: the gateway or a store behind it failed."""

    status = 500


class Unavailable(ServerFailed):
    """502, 503 and 504: a part that the request needs is not there now. A later try may succeed."""

    status = 503


class NoBytes(Conflict):
    """The image is a record without bytes."""


class RedirectRefused(VisorError):
    """The gateway redirects. That is never followed: credentials are meant for the gateway alone."""


class Unreachable(VisorError):
    """No connection to the gateway could be made."""


class ConnectionBroken(VisorError):
    """The connection ended or stalled before the answer was whole."""


class ProtocolViolation(VisorError):
    """The answer contradicts itself or what was asked for."""


class DigestMismatch(VisorError):
    """The bytes are not those of the image: their SHA-256 differs."""


class ImageChanged(VisorError):
    """The image changed while it was read, and what was read can't be taken back."""


class SourceChanged(VisorError):
    """The file that is uploaded changed while it was read."""


class TargetBusy(VisorError):
    """Another process writes the same file."""


class CredentialsInvalid(VisorError):
    """Credentials are incomplete, or their file can't be used."""


class _Kinds:
    by_status: ClassVar[Mapping[int, type[Refused]]] = {
        400: BadRequest,
        403: Forbidden,
        404: NotFound,
        409: Conflict,
        412: PreconditionFailed,
        413: TooLarge,
        416: RangeNotSatisfiable,
        502: Unavailable,
        503: Unavailable,
        504: Unavailable,
    }


def refusal(status: int, headers: Mapping[str, str], content: bytes) -> VisorError:
    """The error that an answer of 300 and above stands for.

    Args:
        headers: Names in lower case.
        content: The body, as far as it was read; may be empty, as it is for HEAD.
    """
    if 300 <= status < 400:
        return RedirectRefused(f"The gateway answers with a redirect ({status}), which is never followed")
    kind = _Kinds.by_status.get(status) or (ServerFailed if status >= 500 else Refused)
    message = _told(content) or headers.get("x-error-message") or f"The gateway answered with status {status}"
    if status == 403 and (skew := _skew(headers.get("date"))) is not None:
        message += f" This host's clock and the gateway's differ by {skew:.0f} s."
    error = kind(message, status)
    error.retry_after = _seconds(headers.get("retry-after"))
    return error


def printable(text: str) -> str:
    """`text` on one line and without control characters: it may come from other people, and go to a terminal."""
    line = " ".join(text.split())
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)[:MESSAGE_LIMIT]


def _told(content: bytes) -> str | None:
    try:
        body: Any = msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    message = body.get("message") if isinstance(body, dict) else None
    return message if isinstance(message, str) else None


def _skew(date: str | None) -> float | None:
    try:
        there = parsedate_to_datetime(date or "")
    except ValueError:
        return None
    skew = abs((datetime.now(UTC) - there.replace(tzinfo=there.tzinfo or UTC)).total_seconds())
    return skew if skew > SKEW_LIMIT else None


def _seconds(value: str | None) -> float | None:
    return float(value) if value is not None and value.isascii() and value.isdigit() else None

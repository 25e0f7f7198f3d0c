"""What the metadata repositories are. This package is the specification; the suite in `tests/meta` holds each to it.

Two ideas carry it. *Attempts*: bytes are written under an attempt that holds a lease; the record becomes
`available` by one statement that demands that the attempt still holds the image, so records never lead
bytes and of two writers one wins. *Tombstones*: a delete first hides the record in one transaction; what
remains to be done is in the database, so a crash at any point is finished by the sweep.

A coroutine runs its statements in a worker thread under the repository's own limiter; one that reads a record by its
key may answer at once, without a checkpoint. A call whose statements have begun is not abandoned by a cancellation:
they finish, the outcome is returned, and `Cancelled` is raised at the caller's next checkpoint. `Cancelled` out of a
method means that nothing was done.
Times are aware UTC datetimes; leases are judged by the database's clock. Errors that may escape:
`MetadataUnavailable`, and those that a method names. It says that nothing was done, but where a database on a server
did not tell in time how a commit ended: what is written under an attempt may then be tried again.
"""

from __future__ import annotations

from .accounts import AccountRepository, Token, User
from .history import EndedTransfer, HistoryQuery, HistoryRepository
from .images import (
    LEASE_SECONDS,
    RENEW_SECONDS,
    Attempt,
    ImageQuery,
    ImageRepository,
    Location,
    Written,
)

__all__ = [
    "LEASE_SECONDS",
    "RENEW_SECONDS",
    "AccountRepository",
    "Attempt",
    "EndedTransfer",
    "HistoryQuery",
    "HistoryRepository",
    "ImageQuery",
    "ImageRepository",
    "Location",
    "Token",
    "User",
    "Written",
]

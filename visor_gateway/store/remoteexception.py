"""What a refusal by HDFS means, from the `RemoteException` of its answer. Sans-IO.

Of such an answer only the exception's class is ever told: its message holds paths, and from DataNodes stack traces.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from ..errors import ObjectExists, ObjectMissing, StoreError, StoreFull, StoreUnreachable

_CLASS: Final = re.compile(r"[A-Za-z][\w$]{0,99}\Z", re.ASCII)

#: Said by a NameNode that does not serve now: it is not the active one, starts, or keeps its file system read-only.
NOT_NOW: Final = frozenset({
    "StandbyException",
    "RetriableException",
    "SafeModeException",
    "ObserverRetryOnActiveException",
})
_NO_ROOM: Final = frozenset({
    "DSQuotaExceededException",
    "NSQuotaExceededException",
    "QuotaExceededException",
    "QuotaByStorageTypeExceededException",
    "DiskOutOfSpaceException",
})  # fmt: skip
#: DataNodes pass some refusals on without their class. No DataNode takes a block; a NameNode in safe mode.
_NO_DATANODE_TAKES: Final = re.compile(r"could only be (?:replicated|written) to \d+ ")
_SAFE_MODE: Final = "in safe mode"


class NotServing(StoreUnreachable):
    """A NameNode does not serve now. Another one may, or the same one later."""


class Refused(StoreError):
    """HDFS refuses, and would refuse again."""


class _Exception(msgspec.Struct, frozen=True):
    exception: str = ""
    message: str = ""


class _Refusal(msgspec.Struct, frozen=True):
    remote: _Exception = msgspec.field(name="RemoteException", default_factory=_Exception)


def error_of(status: int, content: bytes, store: str) -> StoreError:
    """The error that an answer stands for, to be raised.

    Args:
        status: The answer's status, not a successful one.
        content: Its body.
        store: The store's name, for the message.
    """
    try:
        remote = msgspec.json.decode(content, type=_Refusal, strict=False).remote
    except (msgspec.DecodeError, UnicodeError):
        remote = _Exception()
    name = remote.exception
    if not _CLASS.match(name):
        return StoreUnreachable(f"The store '{store}' answers with status {status}, and not as WebHDFS does")
    if name == "FileNotFoundException":
        return ObjectMissing(f"The store '{store}' has no such object")
    if name == "FileAlreadyExistsException":
        return ObjectExists(f"The store '{store}' has an object of that key already")
    if name in NOT_NOW:
        return NotServing(f"The store '{store}' does not serve now: {name}")
    if _SAFE_MODE in remote.message:
        return NotServing(f"The store '{store}' does not serve now: SafeModeException")
    if name in _NO_ROOM or _NO_DATANODE_TAKES.search(remote.message):
        return StoreFull(f"The store '{store}' has no room: {name}")
    return Refused(f"The store '{store}' refuses: {name}")

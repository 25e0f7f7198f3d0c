"""Calls to the NameNodes of one HDFS file system, by WebHDFS.

Several may be named; one of them is active. A call goes to the one that served last, and on to the next where that
gives no answer or says that it does not serve now. So a call may be made twice, and only such are made here that may:
a rename that was done already answers false, and its caller looks what is there.

A NameNode answers to reads and creations with the URL of a DataNode. Its redirects are the only ones that are followed,
by hand, and only here.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from email.utils import parsedate_to_datetime
from typing import Final, TypeVar
from urllib.parse import quote, urlencode, urlsplit

import msgspec

from ..errors import StoreUnreachable
from ..outbound import (
    BadResponse,
    Outbound,
    OutboundError,
    RedirectRefused,
    Response,
    StaleConnection,
    Unreachable,
    Untrusted,
)
from .remoteexception import NotServing, Refused, error_of
from .trust import untrusted

T = TypeVar("T")

ANSWER_SECONDS: Final = 20.0  # for a NameNode that does not answer; it may collect garbage for some seconds
DATANODE_TRIES: Final = 3  # DataNodes that are asked for one creation or read
ANSWER_LIMIT: Final = 64 * 1024 * 1024  # bytes; a listing has some 250 for each image

_log: Final = logging.getLogger(__name__)


class FileStatus(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What a NameNode knows of a file or directory.

    Attributes:
        file_id: The inode; 0 where a server does not tell.
        length: Bytes of a closed file.
        modification_time: Milliseconds since 1970, by the NameNode's clock.
        path_suffix: The name, in a listing.
    """

    type: str
    length: int
    modification_time: int
    block_size: int = 0
    replication: int = 0
    file_id: int = 0
    path_suffix: str = ""

    @property
    def is_file(self) -> bool:
        return self.type == "FILE"


class Found(msgspec.Struct, frozen=True):
    """Answer to GETFILESTATUS."""

    status: FileStatus = msgspec.field(name="FileStatus")


class Entries(msgspec.Struct, frozen=True):
    """Part of the answer to LISTSTATUS."""

    status: tuple[FileStatus, ...] = msgspec.field(name="FileStatus")


class Listing(msgspec.Struct, frozen=True):
    """Answer to LISTSTATUS."""

    entries: Entries = msgspec.field(name="FileStatuses")


class Blocks(msgspec.Struct, frozen=True, rename="camel"):
    """Part of the answer to GET_BLOCK_LOCATIONS."""

    is_under_construction: bool


class Located(msgspec.Struct, frozen=True):
    """Answer to GET_BLOCK_LOCATIONS."""

    blocks: Blocks = msgspec.field(name="LocatedBlocks")


class Space(msgspec.Struct, frozen=True, rename="camel"):
    """Part of the answer to GETCONTENTSUMMARY: bytes with all replicas; a quota of -1 is none."""

    space_consumed: int = 0
    space_quota: int = -1


class Summary(msgspec.Struct, frozen=True):
    """Answer to GETCONTENTSUMMARY."""

    space: Space = msgspec.field(name="ContentSummary")


class Done(msgspec.Struct, frozen=True):
    """Answer to MKDIRS, RENAME and DELETE: whether there was something to be done, and it was."""

    boolean: bool


class Nothing(msgspec.Struct, frozen=True):
    """Answer without content."""


class NameNodes:
    """The NameNodes of one file system, and which of them serves.

    Args:
        store: The store's name, for messages.
        outbound: The way out. The caller closes it.
        endpoints: Their http addresses, at least one.
        username: In whose name calls are made.

    Attributes:
        now: The time in milliseconds since 1970 by the clock of the NameNode that answered last; 0 before.

    Every call raises `NotServing` or `StoreUnreachable` where no NameNode serves, and what `remoteexception` makes of a
    refusal. Cancelled, it may have been carried out or not.
    """

    def __init__(self, store: str, outbound: Outbound, endpoints: Sequence[str], username: str) -> None:
        self.now = 0
        self._store = store
        self._outbound = outbound
        self._endpoints = tuple(endpoints)
        self._username = username
        self._active = 0

    async def status(self, path: str) -> FileStatus:
        """What is at `path`. Raises `ObjectMissing` if nothing is."""
        return (await self._call("GET", "GETFILESTATUS", path, {}, Found)).status

    async def list(self, path: str) -> tuple[FileStatus, ...]:
        """What is in the directory `path`. Raises `ObjectMissing` if it is not there."""
        return (await self._call("GET", "LISTSTATUS", path, {}, Listing)).entries.status

    async def delete(self, path: str) -> bool:
        """Remove a file, or a directory that is empty. False if there is none."""
        return (await self._call("DELETE", "DELETE", path, {"recursive": "false"}, Done)).boolean

    async def rename(self, path: str, destination: str) -> bool:
        """Rename a file. False if it is not there, or the destination is. May be true where it was done before."""
        return (await self._call("PUT", "RENAME", path, {"destination": destination}, Done)).boolean

    async def make_directory(self, path: str, permission: str) -> bool:
        """Make a directory with its parents. One that is there is a success."""
        return (await self._call("PUT", "MKDIRS", path, {"permission": permission}, Done)).boolean

    async def check_access(self, path: str, action: str) -> None:
        """Raises `Refused` where the user may not do `action`, such as `rwx`, at `path`."""
        await self._call("GET", "CHECKACCESS", path, {"fsaction": action}, Nothing)

    async def is_closed(self, path: str) -> bool:
        """Whether nobody writes to a file any more. True where a server can't tell."""
        try:
            located = await self._call("GET", "GET_BLOCK_LOCATIONS", path, {"offset": "0", "length": "1"}, Located)
        except Refused:
            return True
        return not located.blocks.is_under_construction

    async def space_left(self, path: str) -> int | None:
        """Bytes, all replicas counted, that the quota of a directory leaves; None without a quota of its own."""
        space = (await self._call("GET", "GETCONTENTSUMMARY", path, {}, Summary)).space
        return space.space_quota - space.space_consumed if space.space_quota >= 0 else None

    async def at_datanode(
        self, method: str, operation: str, path: str, visit: Callable[[str], Awaitable[T]], **parameters: str
    ) -> T:
        """Have a DataNode carry out an OPEN or CREATE: what `visit` makes of its URL.

        Where `visit` raises `Unreachable`, the next URL is one of another host, for `DATANODE_TRIES` of them.

        Raises:
            StoreUnreachable: No NameNode serves, or no DataNode answered.
            StoreError: What a NameNode or `visit` says.
        """
        excluded: list[str] = []
        while True:
            others = {"excludedatanodes": ",".join(excluded)} if excluded else {}
            url = await self._datanode(method, operation, path, {**parameters, **others})
            try:
                return await visit(url)
            except OutboundError as exc:
                excluded.append(urlsplit(url).hostname or "")
                if not isinstance(exc, Unreachable) or len(excluded) == DATANODE_TRIES:
                    raise datanode_gone(self._store) from exc

    async def _datanode(self, method: str, operation: str, path: str, parameters: dict[str, str]) -> str:
        """The URL at which a DataNode carries out an operation."""

        async def ask(url: str) -> str:
            async with self._outbound.request(method, url, follow=False, head_seconds=ANSWER_SECONDS) as response:
                if response.status != 307:
                    raise error_of(response.status, await content_of(response), self._store)
                self._note_time(response)
                return _redirected(url, response)

        return await self._ask(ask, operation, path, parameters)

    async def _call(self, method: str, operation: str, path: str, parameters: dict[str, str], answer: type[T]) -> T:
        async def ask(url: str) -> T:
            async with self._outbound.request(method, url, follow=False, head_seconds=ANSWER_SECONDS) as response:
                content = await content_of(response)
                if response.status != 200:
                    raise error_of(response.status, content, self._store)
                self._note_time(response)
            if answer is Nothing:
                return answer()
            try:
                return msgspec.json.decode(content, type=answer)
            except (msgspec.DecodeError, UnicodeError) as exc:
                raise BadResponse(f"no answer to {operation}") from exc

        return await self._ask(ask, operation, path, parameters)

    async def _ask(
        self, ask: Callable[[str], Awaitable[T]], operation: str, path: str, parameters: dict[str, str]
    ) -> T:
        """Ask one NameNode after the other, beginning with the one that served last."""
        query = urlencode({"op": operation, "user.name": self._username, **parameters})
        failure: StoreUnreachable | None = None
        for turn in range(len(self._endpoints)):
            index = (self._active + turn) % len(self._endpoints)
            try:
                result = await self._ask_one(ask, f"{self._endpoints[index]}/webhdfs/v1{quote(path)}?{query}")
            except NotServing as error:
                # Says more than that another one can't be reached.
                failure = error
            except OutboundError as exc:
                _log.debug("NameNode %s: %s", self._endpoints[index], exc)
                failure = failure or self._unanswered(exc)
            else:
                self._active = index
                return result
        raise failure or StoreUnreachable(f"The store '{self._store}' has no NameNode")

    def _unanswered(self, cause: OutboundError) -> StoreUnreachable:
        if isinstance(cause, Untrusted):
            return untrusted(self._store, cause)
        error = StoreUnreachable(f"The store '{self._store}' does not answer")
        error.__cause__ = cause
        return error

    async def _ask_one(self, ask: Callable[[str], Awaitable[T]], url: str) -> T:
        while True:
            try:
                return await ask(url)
            except StaleConnection:
                # Ends: each turn uses up one idle connection of the pool.
                continue

    def _note_time(self, response: Response) -> None:
        try:
            self.now = round(parsedate_to_datetime(response.header("date") or "").timestamp() * 1000)
        except ValueError:
            self.now = self.now or 0


def datanode_gone(store: str) -> StoreUnreachable:
    """The error of a DataNode that gives no answer."""
    return StoreUnreachable(f"The store '{store}' broke off: its DataNode does not answer")


async def content_of(response: Response) -> bytes:
    """The whole body of an answer. Raises `BadResponse` where it has more than `ANSWER_LIMIT` bytes."""
    content = bytearray()
    while data := await response.stream.receive_some():
        content += data
        if len(content) > ANSWER_LIMIT:
            raise BadResponse(f"the answer has more than {ANSWER_LIMIT} bytes")
    return bytes(content)


def _redirected(url: str, response: Response) -> str:
    """Where a NameNode sends to. Its own address counts as well: gateways in front of HDFS name themselves."""
    location = response.header("location") or ""
    schemes = urlsplit(url).scheme, urlsplit(location).scheme
    if schemes[1] not in {"http", "https"} or schemes == ("https", "http"):
        raise RedirectRefused("a redirect that names no http or https address, or leaves https")
    return location

"""Users of a VISOR Auth server: what its answers mean, how long they hold, and what is used while it is away.

Anybody who reaches that server can write to it. Every value is checked for its form; an answer about another user than
the one that was asked for is none.
"""

from __future__ import annotations

import time
from typing import Any, Final

import msgspec
import structlog
import trio

from ...errors import Conflict, InvalidField, MetadataUnavailable, NotFound
from ...visor_documents import InvalidDocument, UserDocument, read_user, read_users, user_request
from .server import Answer, VisorServer

#: For so long an answer holds: a secret that was changed there, or a user who is gone, counts here after that.
FRESH_SECONDS: Final = 2.0
#: For a whole exchange about one user.
ASK_SECONDS: Final = 5.0
#: How long a server that did not answer is left alone.
REST_SECONDS: Final = 1.0
LIST_BYTES: Final = 16 << 20  # some 60,000 users
KEPT: Final = 4096  # users, in memory alone
_KEPT_UNKNOWN: Final = 1024
#: Users who are asked about at a time.
_TURNS: Final = 32
#: An access key that nobody can have had registered by us; whether there is such a user does not matter.
_PROBE: Final = "/users/visor-gateway"
#: What could end a text in that server's SQL.
_PRINTABLE: Final = frozenset(map(chr, range(0x21, 0x7F))) - frozenset("'\"\\`")

_log = structlog.get_logger("visor_gateway.meta.visor")


class AuthServer:
    """The users of an Auth server, as they were seen last."""

    def __init__(self, server: VisorServer, *, stale_if_error: float = 0) -> None:
        """Users are used for `stale_if_error` seconds after they were seen, while the server is away."""
        self._server = server
        self._stale_seconds = stale_if_error
        self.fresh_seconds = FRESH_SECONDS
        self.rest_seconds = REST_SECONDS
        server.document_seconds = ASK_SECONDS
        server.list_bytes = LIST_BYTES
        self._seen: dict[str, tuple[UserDocument, float]] = {}
        self._unknown: dict[str, float] = {}
        self._turns = [trio.Lock() for _ in range(_TURNS)]
        self._contact = 0.0
        self._rests_until = 0.0
        self._away = False

    async def check(self) -> None:
        """Raises `MetadataUnavailable` unless the server answers."""
        if self._away or time.monotonic() - self._contact > self.fresh_seconds:
            await self._ask("GET", _PROBE)

    async def get(self, access_key: str) -> UserDocument | None:
        """A user as he was `FRESH_SECONDS` ago or later, or, while the server is away, within `stale_if_error`.

        Raises:
            MetadataUnavailable: The server does not answer, and the user was not seen for too long.
        """
        if (known := self._kept(access_key, self._usable_seconds())) is not None:
            return known
        # Whoever asks for the same user meanwhile shares the answer.
        async with self._turns[hash(access_key) % _TURNS]:
            if (known := self._kept(access_key, self.fresh_seconds)) is not None:
                return known
            if self._was_unknown(access_key):
                return None
            try:
                return await self.look(access_key)
            except MetadataUnavailable:
                known = self._kept(access_key, self._stale_seconds)
                if known is None:
                    raise
                return known

    async def look(self, access_key: str) -> UserDocument | None:
        """A user as he is now. Raises `MetadataUnavailable`."""
        answer = await self._ask("GET", f"/users/{access_key}")
        if answer.status == 200:
            return self._noted(access_key, _one(answer, access_key))
        if answer.status == 404:
            return self._noted(access_key, None)
        raise _unexpected(answer)

    async def users(self) -> list[UserDocument]:
        """All users, as they are now. Raises `MetadataUnavailable`."""
        answer = await self._ask("GET", "/users", is_list=True)
        if answer.status == 404:
            return []
        if answer.status != 200:
            raise _unexpected(answer)
        try:
            found, refused = await trio.to_thread.run_sync(read_users, answer.body)
        except InvalidDocument as exc:
            raise MetadataUnavailable("The Auth server answered with something else than users") from exc
        if refused:
            _log.warning("users of the Auth server are left out", count=refused)
        return found

    async def create(self, access_key: str, email: str) -> UserDocument:
        """Register a user. The server makes the secret.

        Raises:
            Conflict: The access key is taken.
            InvalidField: The server can't hold this email address.
            MetadataUnavailable: There was no answer. The user may have been registered.
        """
        _check_sendable(email)
        answer = await self._ask("POST", "/users", user_request({"access_key": access_key, "email": email}))
        self.forget(access_key)
        if answer.status == 409:
            raise Conflict(f"The access_key '{access_key}' was already taken.")
        return self._written(answer, access_key)

    async def change_email(self, access_key: str, email: str) -> UserDocument:
        """Raises `NotFound`, and as `create`."""
        _check_sendable(email)
        answer = await self._ask("PUT", f"/users/{access_key}", user_request({"email": email}))
        self.forget(access_key)
        if answer.status == 404:
            raise NotFound(f"No user found with access_key '{access_key}'.")
        return self._written(answer, access_key)

    async def delete(self, access_key: str) -> bool | None:
        """Remove a user. False: there was none any more. None: the server does not remove this one.

        Raises:
            MetadataUnavailable: There was no answer. The user may have been removed.
        """
        answer = await self._ask("DELETE", f"/users/{access_key}")
        self.forget(access_key)
        if answer.status in {400, 409}:
            return None
        return answer.status == 200

    def forget(self, access_key: str) -> None:
        """Ask again before this user is used again."""
        self._seen.pop(access_key, None)
        self._unknown.pop(access_key, None)

    # --- what was seen ---------------------------------------------------------------------------

    def _kept(self, access_key: str, seconds: float) -> UserDocument | None:
        found = self._seen.get(access_key)
        return None if found is None or time.monotonic() - found[1] > seconds else found[0]

    def _usable_seconds(self) -> float:
        """For how long what was seen is used without asking."""
        is_resting = time.monotonic() < self._rests_until
        return max(self.fresh_seconds, self._stale_seconds if is_resting else 0)

    def _was_unknown(self, access_key: str) -> bool:
        return time.monotonic() - self._unknown.get(access_key, -self.fresh_seconds) < self.fresh_seconds

    def _noted(self, access_key: str, found: UserDocument | None) -> UserDocument | None:
        self.forget(access_key)
        if found is None:
            _make_room(self._unknown, _KEPT_UNKNOWN)
            self._unknown[access_key] = time.monotonic()
        else:
            _make_room(self._seen, KEPT)
            self._seen[access_key] = found, time.monotonic()
        return found

    # --- exchanges -------------------------------------------------------------------------------

    def _written(self, answer: Answer, access_key: str) -> UserDocument:
        """The user that a POST or PUT answers with."""
        if answer.status == 400:
            raise InvalidField("The Auth server refuses this access_key or email.")
        if answer.status != 200:
            raise _unexpected(answer)
        found = _one(answer, access_key)
        if found is None:
            raise MetadataUnavailable("The Auth server answered with another user, or one that no user can be")
        self._noted(access_key, found)
        return found

    async def _ask(self, method: str, path: str, body: bytes | None = None, *, is_list: bool = False) -> Answer:
        """An answer of the server's kind. One that failed just now is not waited for again.

        Raises:
            MetadataUnavailable: There was none.
        """
        if time.monotonic() < self._rests_until:
            raise MetadataUnavailable("The Auth server can't be reached now")
        if self._away:
            # One finds out; the others need not wait with him.
            self._rests_until = time.monotonic() + ASK_SECONDS
        asked = self._server.list(path) if is_list else self._server.ask(method, path, body)
        try:
            answer = _of_its_kind(await asked)
        except MetadataUnavailable as exc:
            self._rests_until = time.monotonic() + self.rest_seconds
            if not self._away:
                _log.warning("the Auth server can't be used now", error=exc.message)
            self._away = True
            raise
        self._contact, self._rests_until, self._away = time.monotonic(), 0.0, False
        return answer


def _of_its_kind(answer: Answer) -> Answer:
    """The answer, unless it is an error that something else than an Auth server wrote."""
    if answer.status != 200 and not answer.message:
        raise MetadataUnavailable(f"The Auth server failed: status {answer.status} without a message")
    return answer


def _one(answer: Answer, access_key: str) -> UserDocument | None:
    """The user that was asked for; None where the answer is about another one, or has a value that no user can have.

    Raises:
        MetadataUnavailable: It is about no user at all.
    """
    try:
        found = read_user(answer.body)
    except InvalidDocument as exc:
        if not _is_about_user(answer.body):
            raise MetadataUnavailable("The Auth server answered with something else than a user") from exc
        _log.warning("a user of the Auth server is left out", user=access_key, why=str(exc))
        return None
    # MySQL compares without regard to case: `Bob` finds `bob`.
    return found if found.access_key == access_key else None


def _is_about_user(body: bytes) -> bool:
    try:
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return False
    return isinstance(found, dict) and isinstance(found.get("user"), dict)


def _unexpected(answer: Answer) -> MetadataUnavailable:
    return MetadataUnavailable(f"The Auth server failed: status {answer.status}")


def _check_sendable(email: str) -> None:
    if not _PRINTABLE.issuperset(email):
        raise InvalidField("The Auth server can't hold this email: printable ASCII without quotes and backslashes")


def _make_room(kept: dict[str, Any], limit: int) -> None:
    while len(kept) >= limit:
        del kept[next(iter(kept))]

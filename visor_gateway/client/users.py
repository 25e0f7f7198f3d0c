"""Accounts and their tokens (docs/protocol.md). For admins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .entity import Record
from .errors import NotFound
from .session import Session, segment


class Users:
    """The users API of a gateway. Every method raises `VisorError` as its classes say."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def list(self, filters: Mapping[str, str] | None = None) -> Sequence[Record]:
        """Every account, or those whose fields equal `filters`; empty where there is none."""
        try:
            reply = await self._session.call("GET", "/users", query=list((filters or {}).items()))
        except NotFound as exc:
            # A list without a match is a 404 of this message; any other 404 means a wrong address.
            if not exc.message.startswith("No users found"):
                raise
            return []
        found: Sequence[Record] = reply.json("users")
        return found

    async def caller(self) -> Record:
        """Whom the gateway takes this client for: `access_key` and `role`. For every user."""
        session: Record = (await self._session.call("GET", "/session")).json("session")
        return session

    async def get(self, access_key: str) -> Record:
        """One account. Raises `NotFound`."""
        return await self._user("GET", self._path(access_key))

    async def add(self, fields: Mapping[str, str]) -> Record:
        """A new account of `access_key`, `email` and `role`. The answer is the only one that holds its `secret_key`."""
        return await self._user("POST", "/users", json={"user": dict(fields)})

    async def update(self, access_key: str, fields: Mapping[str, str]) -> Record:
        """Change `email` or `role`."""
        return await self._user("PUT", self._path(access_key), json={"user": dict(fields)})

    async def delete(self, access_key: str) -> Record:
        """Remove an account with its tokens and links. Its access key is never given again."""
        return await self._user("DELETE", self._path(access_key))

    async def rotate(self, access_key: str) -> Record:
        """Give an account a new secret, which only this answer holds. The old one is void at once."""
        return await self._user("POST", self._path(access_key, "/rotate"))

    async def tokens(self, access_key: str) -> Sequence[Record]:
        """An account's tokens, without their text."""
        found: Sequence[Record] = (await self._session.call("GET", self._path(access_key, "/tokens"))).json("tokens")
        return found

    async def issue_token(
        self, access_key: str, *, expires_in: int | None = None, read_only: bool = False, name: str | None = None
    ) -> Record:
        """A new token; its text is in this answer only.

        Args:
            expires_in: Seconds; None for what the gateway gives.
        """
        wanted = {"expires_in": expires_in, "read_only": read_only, "name": name}
        fields = {key: value for key, value in wanted.items() if value is not None}
        reply = await self._session.call("POST", self._path(access_key, "/tokens"), json={"token": fields})
        token: Record = reply.json("token")
        return token

    async def revoke_token(self, access_key: str, token_id: str) -> Record:
        """Void a token."""
        path = self._path(access_key, f"/tokens/{segment(token_id)}")
        token: Record = (await self._session.call("DELETE", path)).json("token")
        return token

    async def _user(self, method: str, path: str, *, json: object = None) -> Record:
        user: Record = (await self._session.call(method, path, json=json)).json("user")
        return user

    @staticmethod
    def _path(access_key: str, rest: str = "") -> str:
        return f"/users/{segment(access_key)}{rest}"

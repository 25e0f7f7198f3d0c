"""Accounts of which users are at a VISOR Auth server, and all else is in the local database.

Accounts of the local database come first, whatever the server says: it never takes one's place, and none of its users
is ever an admin.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from functools import partial
from typing import Final, TypeVar

import sqlalchemy as sa

from ...errors import Conflict, InvalidField, NotFound
from ...image import timestamp
from ...visor_documents import UserDocument
from .. import credentials
from ..account import SHOWN, check_access_key, check_email, check_role
from ..accounts import ADMIN
from ..contract import AccountRepository, Token, User
from ..database import Database
from ..fresh import Fresh
from ..sql import Metadata
from . import users
from .auth import AuthServer
from .server import VisorServer, way_to

ENTRIES_BYTES: Final = 1 << 20
_ENTRY_SIZE: Final = 512  # bytes of an entry with its objects, rounded up
T = TypeVar("T")


class AuthAccountRepository:
    """`contract.AccountRepository` over an Auth server and the repository of the local database."""

    def __init__(self, server: AuthServer, local: AccountRepository, database: Database) -> None:
        self._server = server
        self._local = local
        self._database = database
        self._entries: Fresh[str, tuple[users.Entry | None]] = Fresh(ENTRIES_BYTES)

    async def check(self) -> None:
        await self._server.check()

    async def get(self, access_key: str) -> User | None:
        return await self._local.get(access_key) or await self._remote(access_key)

    async def find(self, filters: Sequence[tuple[str, str]] = ()) -> list[User]:
        if any(name not in SHOWN for name, _ in filters):
            return []
        local = await self._local.find(filters)
        closed = await self._database.read(users.closed_keys) | {ADMIN}
        found = [_user(document) for document in await self._server.users() if document.access_key not in closed]
        remote = [user for user in found if all(_shown(user, name) == value for name, value in filters)]
        return sorted([*local, *remote], key=lambda user: user.access_key)

    async def rights(self, access_keys: Collection[str]) -> dict[str, str]:
        found = await self._local.rights(access_keys)
        for access_key in set(access_keys) - found.keys():
            if (user := await self._remote(access_key)) is not None:
                found[access_key] = user.rights
        return found

    async def create(self, access_key: str, email: str, role: str) -> User:
        """A user is registered at the server, an admin here."""
        check_access_key(access_key)
        check_email(email)
        check_role(role)
        taken = Conflict(f"The access_key '{access_key}' was already taken.")
        known = await self._entry(access_key)
        if known is not None and (role == "admin" or known.closed):
            raise taken
        if role == "admin":
            if await self._server.look(access_key) is not None:
                raise taken
            return await self._local.create(access_key, email, role)
        if access_key == ADMIN:
            raise taken
        return _user(await self._server.create(access_key, email))

    async def ensure_admin(self) -> User | None:
        return await self._local.ensure_admin()

    async def change(self, access_key: str, *, email: str | None = None, role: str | None = None) -> User:
        if await self._local.get(access_key) is not None:
            return await self._local.change(access_key, email=email, role=role)
        if email is not None:
            check_email(email)
        if role is not None:
            check_role(role)
        user = await self._present(access_key)
        if role == "admin":
            raise Conflict(
                f"The user '{access_key}' is kept by the Auth server, whose users can't be admin: add an admin with an"
                " access_key of its own."
            )
        return user if email is None else _user(await self._server.change_email(access_key, email))

    async def rotate(self, access_key: str) -> User:
        if await self._local.get(access_key) is not None:
            return await self._local.rotate(access_key)
        await self._present(access_key)
        raise Conflict(
            f"The secret of '{access_key}' is kept by the Auth server, which can't give a user another one: change it"
            " there, or delete the user."
        )

    async def delete(self, access_key: str) -> User:
        if await self._local.get(access_key) is not None:
            return await self._local.delete(access_key)
        user = await self._deletable(access_key)
        known = await self._entry(access_key)
        # Before the server is asked: should its answer be lost, the user is refused all the same.
        is_marked = known is not None and known.deleted
        account_id = known.account_id if known and is_marked else await self._write(user, lambda _, entered: entered)
        await self._database.write(partial(users.mark_deleted, account_id=account_id, deleted=True))
        deleted = await self._server.delete(access_key)
        if deleted is None:
            await self._database.write(partial(users.mark_deleted, account_id=account_id, deleted=False))
            raise Conflict("The Auth server refuses to delete this user.")
        await self._database.write(partial(users.drop_credentials, access_key=access_key))
        if not deleted:
            raise _unknown(access_key)
        return user

    # --- tokens, tickets, and what is used once --------------------------------------------------

    async def issue_token(
        self, access_key: str, *, expires_at: datetime, read_only: bool, name: str | None
    ) -> tuple[Token, str]:
        if await self._local.get(access_key) is not None:
            return await self._local.issue_token(access_key, expires_at=expires_at, read_only=read_only, name=name)
        return await self._write(
            await self._required(access_key),
            lambda connection, account_id: credentials.issue_token(
                connection, access_key, expires_at, read_only, name, account_id
            ),
        )

    async def tokens(self, access_key: str) -> list[Token]:
        if await self._local.get(access_key) is not None:
            return await self._local.tokens(access_key)
        return await self._write(
            await self._required(access_key),
            lambda connection, account_id: credentials.tokens_of(connection, access_key, account_id),
        )

    async def revoke_token(self, access_key: str, token_id: str) -> Token:
        if await self._local.get(access_key) is not None:
            return await self._local.revoke_token(access_key, token_id)
        return await self._write(
            await self._required(access_key),
            lambda connection, account_id: credentials.revoke_token(connection, access_key, token_id, account_id),
        )

    async def find_token(self, text: str) -> tuple[Token, User] | None:
        if (found := await self._local.find_token(text)) is not None:
            return found
        issued = await self._database.read(partial(users.find_token, text=text))
        if issued is None:
            return None
        token, remote_id = issued
        user = await self._remote(token.access_key)
        return None if user is None or user.id != remote_id else (token, user)

    async def use_once(self, kind: str, value: str, expires_at: datetime) -> bool:
        return await self._local.use_once(kind, value, expires_at)

    async def issue_ticket(self, access_key: str, route: str, expires_at: datetime) -> str:
        if await self._local.get(access_key) is not None:
            return await self._local.issue_ticket(access_key, route, expires_at)
        return await self._write(
            await self._required(access_key),
            lambda connection, account_id: credentials.issue_ticket(
                connection, access_key, route, expires_at, account_id
            ),
        )

    async def redeem_ticket(self, text: str, route: str) -> User | None:
        # Guesses must not queue up for the write lock.
        if not await self._database.read(partial(credentials.ticket_exists, text=text)):
            return None
        issued = await self._database.write(partial(users.redeem_ticket, text=text, route=route))
        if issued is None:
            return None
        access_key, remote_id = issued
        user = await (self._local.get(access_key) if remote_id is None else self._remote(access_key))
        return None if user is None or (remote_id is not None and user.id != remote_id) else user

    async def rotate_master(self) -> int:
        return await self._local.rotate_master()

    # --- users of the server ---------------------------------------------------------------------

    async def _remote(self, access_key: str) -> User | None:
        """A user of the server whose access key is not that of an account that is or was here."""
        if not await self._may_be_remote(access_key):
            return None
        found = await self._server.get(access_key)
        return None if found is None else _user(found)

    async def _required(self, access_key: str) -> User:
        user = await self._remote(access_key)
        if user is None:
            raise _unknown(access_key)
        return user

    async def _present(self, access_key: str) -> User:
        """As `_required`, of what the server says now: for changes."""
        found = await self._server.look(access_key) if await self._may_be_remote(access_key) else None
        if found is None:
            raise _unknown(access_key)
        return _user(found)

    async def _deletable(self, access_key: str) -> User:
        """As `_present`, or one who was deleted through the gateway, of which the server may not have heard."""
        known = await self._entry(access_key)
        if known is None or not known.deleted:
            return await self._present(access_key)
        found = await self._server.look(access_key)
        if found is None or found.id != known.remote_id:
            raise _unknown(access_key)
        return _user(found)

    async def _may_be_remote(self, access_key: str) -> bool:
        try:
            check_access_key(access_key)
        except InvalidField:
            return False
        if access_key == ADMIN:
            return False
        known = await self._entry(access_key)
        return known is None or not known.closed

    async def _entry(self, access_key: str) -> users.Entry | None:
        version = await self._database.version()
        kept = self._entries.find(version, access_key)
        if kept is None:
            kept = (await self._database.read(partial(users.entry, access_key=access_key)),)
            self._entries.keep(version, access_key, kept, _ENTRY_SIZE)
        return kept[0]

    async def _write(self, user: User, work: Callable[[sa.Connection, str], T]) -> T:
        return await self._database.write(
            partial(users.with_account, access_key=user.access_key, remote_id=user.id, work=work)
        )


@asynccontextmanager
async def open_accounts(url: str, metadata: Metadata, *, stale_if_error: float = 0) -> AsyncGenerator[AuthServer, None]:
    """Have the users of `metadata` at an Auth server within the block. The server need not be there yet.

    Args:
        url: `visor+http://host:port`.
        metadata: Its `accounts` are replaced.
        stale_if_error: Seconds for which users are used who can't be asked about any more.

    Raises:
        ConfigError: The URL can't be used.
    """
    async with way_to(url) as outbound:
        server = AuthServer(VisorServer(url, outbound, kind="Auth"), stale_if_error=stale_if_error)
        metadata.accounts = AuthAccountRepository(server, metadata.accounts, metadata.database)
        yield server


def _user(document: UserDocument) -> User:
    """An account. Nothing that the server says makes it more than a user's."""
    return User(
        id=document.id,
        access_key=document.access_key,
        secret_key=document.secret_key,
        email=document.email,
        role="user",
        created_at=document.created_at,
        updated_at=document.updated_at,
    )


def _shown(user: User, name: str) -> str | None:
    value = getattr(user, "id" if name == "_id" else name)
    return timestamp(value) if isinstance(value, datetime) else value


def _unknown(access_key: str) -> NotFound:
    return NotFound(f"No user found with access_key '{access_key}'.")

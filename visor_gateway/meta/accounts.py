"""Accounts, tokens and tickets in SQL.

Secrets are sealed under the master key; the rules that keep a rotation of it from losing one are in `master_key`.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Hashable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, TypeVar

import sqlalchemy as sa

from ..errors import ConfigError, Conflict, MetadataUnavailable, NotFound
from . import credentials
from .account import SHOWN, check_access_key, check_email, check_role, digest, new_secret
from .account_rows import AccountRow, AccountRows
from .contract import Token, User
from .database import Database
from .last_read import LastRead
from .master_key import MasterKey, Sealed, UnknownKey
from .query import NUL
from .schema import Timestamp, accounts, tickets, tokens

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")

ADMIN: Final = "admin"
ADMIN_EMAIL: Final = "admin@localhost.localdomain"
_ALIVE: Final = accounts.c.deleted_at.is_(None)
# Every request with credentials reads one account: built once, as building costs more than running.
_ONE: Final = sa.select(accounts).where(accounts.c.access_key == sa.bindparam("access_key"), _ALIVE)
_READ_TRIES: Final = 3


class SqlAccountRepository:
    """`contract.AccountRepository` over a `Database` and a `MasterKey`."""

    def __init__(self, database: Database, master_key: MasterKey, *, stale_if_error: float = 0) -> None:
        """Accounts can be read for `stale_if_error` seconds after the last time, while the database is away."""
        self._database = database
        self._last: LastRead[str, AccountRow] = LastRead(stale_if_error)
        self._last_tokens: LastRead[bytes, tuple[Token, AccountRow]] = LastRead(stale_if_error)
        self._master_key = master_key
        self._rows = AccountRows(database)

    async def check(self) -> None:
        """Nothing: they are in the database of the images."""

    async def get(self, access_key: str) -> User | None:
        version = await self._database.version()
        with suppress(LookupError, UnknownKey):
            row = self._rows.by_key(version, access_key)
            return None if row is None else self._user(row)
        stored = await self._stored(self._last, access_key, partial(self._find_row, access_key=access_key))
        if stored is None:
            return None
        self._rows.keep_account(version, access_key, stored)
        return self._unsealed(stored)

    async def find(self, filters: Sequence[tuple[str, str]] = ()) -> list[User]:
        if any(name not in SHOWN for name, _ in filters):
            return []
        return await self._read(partial(self._select, criteria=[_equals(*item) for item in filters]))

    async def rights(self, access_keys: Collection[str]) -> dict[str, str]:
        wanted = accounts.c.access_key.in_([key for key in access_keys if NUL not in key])
        return {user.access_key: user.rights for user in await self._read(partial(self._select, criteria=[wanted]))}

    async def create(self, access_key: str, email: str, role: str) -> User:
        check_access_key(access_key)
        check_email(email)
        check_role(role)
        return await self._write(partial(self._create, access_key=access_key, email=email, role=role))

    async def ensure_admin(self) -> User | None:
        return await self._write(self._ensure_admin)

    async def change(self, access_key: str, *, email: str | None = None, role: str | None = None) -> User:
        values: dict[str, str] = {}
        if email is not None:
            check_email(email)
            values["email"] = email
        if role is not None:
            check_role(role)
            values["role"] = role
        return await self._write(partial(self._change, access_key=access_key, values=values))

    async def rotate(self, access_key: str) -> User:
        return await self._write(partial(self._rotate, access_key=access_key))

    async def delete(self, access_key: str) -> User:
        return await self._write(partial(self._delete, access_key=access_key))

    async def issue_token(
        self, access_key: str, *, expires_at: datetime, read_only: bool, name: str | None
    ) -> tuple[Token, str]:
        return await self._database.write(
            partial(
                credentials.issue_token, access_key=access_key, expires_at=expires_at, read_only=read_only, name=name
            )
        )

    async def tokens(self, access_key: str) -> list[Token]:
        return await self._database.read(partial(credentials.tokens_of, access_key=access_key))

    async def revoke_token(self, access_key: str, token_id: str) -> Token:
        return await self._write(partial(credentials.revoke_token, access_key=access_key, token_id=token_id))

    async def find_token(self, text: str) -> tuple[Token, User] | None:
        version, mark = await self._database.version(), digest(text)
        with suppress(LookupError, UnknownKey):
            found = self._rows.by_token(version, mark)
            return None if found is None else (found[0], self._user(found[1]))
        stored = await self._stored(self._last_tokens, mark, partial(self._find_token, text=text))
        if stored is None or stored[0].expires_at <= datetime.now(UTC):
            return None
        self._rows.keep_token(version, mark, stored)
        return stored[0], self._unsealed(stored[1])

    async def use_once(self, kind: str, value: str, expires_at: datetime) -> bool:
        return await self._database.write(partial(credentials.use_once, kind=kind, value=value, expires_at=expires_at))

    async def issue_ticket(self, access_key: str, route: str, expires_at: datetime) -> str:
        return await self._database.write(
            partial(credentials.issue_ticket, access_key=access_key, route=route, expires_at=expires_at)
        )

    async def redeem_ticket(self, text: str, route: str) -> User | None:
        # Guesses must not queue up for the write lock.
        if not await self._database.read(partial(credentials.ticket_exists, text=text)):
            return None
        return await self._write(partial(self._redeem_ticket, text=text, route=route))

    async def rotate_master(self) -> int:
        count = await self._database.write(self._seal_anew)
        await self._database.write(self._drop_old_keys)
        await self._database.wipe_log()
        return count

    # --- transactions that meet secrets ---

    async def _read(self, work: Callable[[sa.Connection], T]) -> T:
        """Read, and read again with a fresh look at the key file where a rotation came in between."""

        def reading(connection: sa.Connection) -> T:
            try:
                return work(connection)
            except UnknownKey:
                self._load_keys()
                raise

        for _ in range(_READ_TRIES):
            try:
                return await self._database.read(reading)
            except UnknownKey as exc:
                unknown = exc
        raise MetadataUnavailable("The secret of an account is encrypted under an unknown master key") from unknown

    async def _stored(self, last: LastRead[K, T], key: K, work: Callable[[sa.Connection], T | None]) -> T | None:
        """What `work` reads, or what it read the last time while the database is away. Its secret is sealed."""
        version = self._database.seen.version
        try:
            found = await self._read(work)
        except MetadataUnavailable:
            if (kept := last.find(key, self._database.seen)) is None:
                raise
            return kept
        if found is None:
            last.drop(key)
        else:
            last.keep(key, found, version)
        return found

    def _unsealed(self, row: AccountRow) -> User:
        try:
            return self._user(row)
        except UnknownKey as exc:  # rotated since it was read
            raise MetadataUnavailable("The secret of an account is encrypted under an unknown master key") from exc

    async def _write(self, work: Callable[[sa.Connection], T]) -> T:
        # Whatever changes, no account is from now on what was read before.
        self._last.clear()
        self._last_tokens.clear()

        def writing(connection: sa.Connection) -> T:
            self._load_keys()  # under the write lock, so that no rotation is half-way
            try:
                return work(connection)
            except UnknownKey as exc:
                raise MetadataUnavailable("The secret of an account is encrypted under an unknown master key") from exc

        return await self._database.write(writing)

    def _load_keys(self) -> None:
        try:
            self._master_key.load()
        except ConfigError as exc:  # its message is the operator's
            raise MetadataUnavailable("The master key can't be read") from exc

    # --- plain functions on a connection ---

    def _select(self, connection: sa.Connection, criteria: Sequence[sa.ColumnElement[bool]]) -> list[User]:
        rows = connection.execute(sa.select(accounts).where(_ALIVE, *criteria).order_by(accounts.c.access_key))
        return [self._user(row) for row in rows]

    def _get(self, connection: sa.Connection, access_key: str) -> User | None:
        row = self._find_row(connection, access_key)
        return None if row is None else self._user(row)

    def _require(self, connection: sa.Connection, access_key: str) -> User:
        user = self._get(connection, access_key)
        if user is None:
            raise NotFound(f"No user found with access_key '{access_key}'.")
        return user

    def _user(self, row: sa.Row[Any] | AccountRow) -> User:
        return User(
            id=row.id,
            access_key=row.access_key,
            secret_key=self._master_key.unseal(Sealed(row.key_id, row.secret), row.id),
            email=row.email,
            role=row.role,
            created_at=row.created_at,
            updated_at=row.updated_at,
        )

    def _sealed(self, secret: str, account_id: str) -> dict[str, Any]:
        sealed = self._master_key.seal(secret, account_id)
        return {"key_id": sealed.key_id, "secret": sealed.text}

    def _create(self, connection: sa.Connection, access_key: str, email: str, role: str) -> User:
        if _taken(connection, access_key):
            raise Conflict(f"The access_key '{access_key}' was already taken.")
        user = User(
            id=str(uuid.uuid4()),
            access_key=access_key,
            secret_key=new_secret(),
            email=email,
            role=role,
            created_at=datetime.now(UTC),
        )
        connection.execute(
            accounts.insert().values(
                id=user.id,
                access_key=access_key,
                email=email,
                role=role,
                created_at=user.created_at,
                **self._sealed(user.secret_key, user.id),
            )
        )
        return user

    def _ensure_admin(self, connection: sa.Connection) -> User | None:
        if _taken(connection, ADMIN):
            return None
        return self._create(connection, ADMIN, ADMIN_EMAIL, "admin")

    def _change(self, connection: sa.Connection, access_key: str, values: dict[str, str]) -> User:
        user = self._require(connection, access_key)
        if values.get("role", user.role) != user.role:
            _check_not_last_admin(connection, user, "can't lose its role")
        _update(connection, user, updated_at=datetime.now(UTC), **values)
        return self._require(connection, access_key)

    def _rotate(self, connection: sa.Connection, access_key: str) -> User:
        user = self._require(connection, access_key)
        _update(connection, user, updated_at=datetime.now(UTC), **self._sealed(new_secret(), user.id))
        return self._require(connection, access_key)

    def _delete(self, connection: sa.Connection, access_key: str) -> User:
        user = self._require(connection, access_key)
        _check_not_last_admin(connection, user, "can't be deleted")
        for table in (tokens, tickets):
            connection.execute(table.delete().where(table.c.account_id == user.id))
        _update(connection, user, deleted_at=datetime.now(UTC), email=None, key_id=None, secret=None)
        return user

    def _find_row(self, connection: sa.Connection, access_key: str) -> AccountRow | None:
        if NUL in access_key:
            return None
        row = connection.execute(_ONE, {"access_key": access_key}).one_or_none()
        if row is None:
            return None
        self._user(row)  # may raise UnknownKey, here where that is tried again
        return AccountRow._make(getattr(row, name) for name in AccountRow._fields)

    def _find_token(self, connection: sa.Connection, text: str) -> tuple[Token, AccountRow] | None:
        token = credentials.find_token(connection, text)
        row = None if token is None else self._find_row(connection, token.access_key)
        return None if token is None or row is None else (token, row)

    def _redeem_ticket(self, connection: sa.Connection, text: str, route: str) -> User | None:
        access_key = credentials.redeem_ticket(connection, text, route)
        return None if access_key is None else self._require(connection, access_key)

    # --- rotation of the master key: the steps of `master_key` ---

    def _seal_anew(self, connection: sa.Connection) -> int:
        self._master_key.prepend()
        users = self._select(connection, [])
        for user in users:
            _update(connection, user, **self._sealed(user.secret_key, user.id))
        return len(users)

    def _drop_old_keys(self, connection: sa.Connection) -> None:
        self._master_key.drop_unused(key_ids(connection))


def key_ids(connection: sa.Connection) -> set[str]:
    """Ids of the master keys that seal a secret."""
    return set(connection.execute(sa.select(accounts.c.key_id).where(accounts.c.key_id.is_not(None))).scalars())


def _taken(connection: sa.Connection, access_key: str) -> bool:
    return connection.execute(sa.select(accounts.c.id).where(accounts.c.access_key == access_key)).first() is not None


def _update(connection: sa.Connection, user: User, **values: Any) -> None:
    connection.execute(accounts.update().where(accounts.c.id == user.id).values(values))


def _check_not_last_admin(connection: sa.Connection, user: User, what: str) -> None:
    others = sa.select(accounts.c.id).where(_ALIVE, accounts.c.role == "admin", accounts.c.id != user.id).limit(1)
    if user.role == "admin" and connection.execute(others).first() is None:
        raise Conflict(f"The last admin {what}.")


def _equals(name: str, value: str) -> sa.ColumnElement[bool]:
    column = accounts.c["id" if name == "_id" else name]
    return (sa.type_coerce(column, sa.String) if isinstance(column.type, Timestamp) else column) == value

"""Accounts as every request needs them: rows by access key or token, kept while the database stays as it is."""

from __future__ import annotations

from collections.abc import Hashable
from datetime import datetime
from typing import Any, Final, NamedTuple

import sqlalchemy as sa

from . import reader
from .contract import Token
from .database import Database
from .fresh import Fresh
from .schema import accounts, tokens

KEPT_BYTES: Final = 1 << 20
_SIZE: Final = 1024  # bytes of a row with its objects, rounded up


class AccountRow(NamedTuple):
    """An account as it is stored, so with its secret sealed."""

    id: str
    access_key: str
    key_id: str
    secret: bytes
    email: str
    role: str
    created_at: datetime
    updated_at: datetime | None


_COLUMNS: Final = tuple(accounts.c[name] for name in AccountRow._fields)
_ALIVE: Final = accounts.c.deleted_at.is_(None)
_BY_KEY: Final = reader.text(sa.select(*_COLUMNS).where(accounts.c.access_key == sa.bindparam("access_key"), _ALIVE))
_BY_TOKEN: Final = reader.text(
    sa
    .select(*_COLUMNS, tokens.c.id, tokens.c.read_only, tokens.c.created_at, tokens.c.expires_at, tokens.c.name)
    .join(accounts, accounts.c.id == tokens.c.account_id)
    .where(tokens.c.digest == sa.bindparam("digest"), _ALIVE)
)


class AccountRows:
    """Rows that are kept, or read in the event loop. `by_key` and `by_token` raise `LookupError` where a row is not
    kept and can't be read there: who reads it otherwise then tells `keep_account` or `keep_token`. `version` is what
    the database told since the request came.

    Secrets are kept sealed: one in clear lives no longer than the request that it is compared for.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._accounts: Fresh[str, AccountRow] = Fresh(KEPT_BYTES)
        self._tokens: Fresh[bytes, tuple[Token, AccountRow]] = Fresh(KEPT_BYTES)

    def by_key(self, version: Hashable | None, access_key: str) -> AccountRow | None:
        """The account of that access key, unless it was deleted."""
        row = self._accounts.find(version, access_key)
        if row is None and (found := self._read(_BY_KEY, access_key=access_key)):
            row = _account(found[0])
            self.keep_account(version, access_key, row)
        return row

    def by_token(self, version: Hashable | None, mark: bytes) -> tuple[Token, AccountRow] | None:
        """The token of that digest and its account, unless it is over."""
        kept = self._tokens.find(version, mark)
        if kept is None and (found := self._read(_BY_TOKEN, digest=mark)):
            kept = _token(found[0])
            self.keep_token(version, mark, kept)
        return kept if kept is not None and kept[0].expires_at > self._database.now() else None

    def keep_account(self, version: Hashable | None, access_key: str, row: AccountRow) -> None:
        """Keep an account that was read after the version was told."""
        self._accounts.keep(version, access_key, row, _SIZE)

    def keep_token(self, version: Hashable | None, mark: bytes, found: tuple[Token, AccountRow]) -> None:
        """Keep a token that was read after the version was told, and its account."""
        self._tokens.keep(version, mark, found, _SIZE)

    def _read(self, statement: str, **parameters: object) -> list[tuple[Any, ...]]:
        rows = self._database.read_now(statement, **parameters)
        if rows is None:
            raise LookupError(statement)
        return rows


def _account(values: tuple[Any, ...]) -> AccountRow:
    *stored, created_at, updated_at = values[: len(_COLUMNS)]
    return AccountRow._make([*stored, datetime.fromisoformat(created_at), _moment(updated_at)])


def _token(values: tuple[Any, ...]) -> tuple[Token, AccountRow]:
    account = _account(values)
    token_id, read_only, created_at, expires_at, name = values[len(_COLUMNS) :]
    token = Token(
        id=token_id,
        access_key=account.access_key,
        read_only=bool(read_only),
        created_at=datetime.fromisoformat(created_at),
        expires_at=datetime.fromisoformat(expires_at),
        name=name,
    )
    return token, account


def _moment(stored: str | None) -> datetime | None:
    return None if stored is None else datetime.fromisoformat(stored)

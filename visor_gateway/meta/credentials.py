"""Tokens, tickets, and values that are used once, as statements on a connection.

`contract` says what each does and raises. Only digests are stored. What is over is purged a few rows at a time, by
those who add rows.

`account_id` is given for a user of an Auth server, whose row in `accounts` is that of a deleted account.
"""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa

from ..errors import NotFound
from .account import digest, new_text
from .contract import Token
from .schema import accounts, database_time, tickets, tokens, used

PURGE_ROWS: Final = 64  # each call adds one row and removes up to this many, so a table can't grow for ever
#: Used values are kept this much longer than asked, so that a clock that is set back lets none be used again.
USED_MARGIN: Final = timedelta(hours=1)

_TOKEN: Final = sa.select(
    tokens.c.id,
    accounts.c.access_key,
    tokens.c.read_only,
    tokens.c.created_at,
    tokens.c.expires_at,
    tokens.c.name,
).join(accounts, accounts.c.id == tokens.c.account_id)


def issue_token(
    connection: sa.Connection,
    access_key: str,
    expires_at: datetime,
    read_only: bool,
    name: str | None,
    account_id: str | None = None,
) -> tuple[Token, str]:
    account_id, text = account_id or _account_id(connection, access_key), new_text()
    _purge(connection, tokens, tokens.c.id)
    token = Token(
        id=str(uuid.uuid4()),
        access_key=access_key,
        read_only=read_only,
        created_at=datetime.now(UTC),
        expires_at=expires_at,
        name=name,
    )
    connection.execute(
        tokens.insert().values(
            id=token.id,
            digest=digest(text),
            account_id=account_id,
            read_only=read_only,
            name=name,
            created_at=token.created_at,
            expires_at=expires_at,
        )
    )
    return token, text


def tokens_of(connection: sa.Connection, access_key: str, account_id: str | None = None) -> list[Token]:
    account_id = account_id or _account_id(connection, access_key)
    valid = _TOKEN.where(tokens.c.account_id == account_id, tokens.c.expires_at > database_time())
    return [_token(row) for row in connection.execute(valid.order_by(tokens.c.created_at, tokens.c.id))]


def revoke_token(connection: sa.Connection, access_key: str, token_id: str, account_id: str | None = None) -> Token:
    account_id = account_id or _account_id(connection, access_key)
    row = connection.execute(_TOKEN.where(tokens.c.account_id == account_id, tokens.c.id == token_id)).one_or_none()
    if row is None:
        raise NotFound(f"No token found with id '{token_id}'.")
    connection.execute(tokens.delete().where(tokens.c.id == token_id))
    return _token(row)


def find_token(connection: sa.Connection, text: str) -> Token | None:
    row = connection.execute(
        _TOKEN.where(tokens.c.digest == digest(text), tokens.c.expires_at > database_time())
    ).one_or_none()
    return None if row is None else _token(row)


def use_once(connection: sa.Connection, kind: str, value: str, expires_at: datetime) -> bool:
    _purge(connection, used, used.c.digest)
    mark = digest(kind, value)
    if connection.execute(sa.select(used.c.digest).where(used.c.digest == mark)).first() is not None:
        return False
    connection.execute(used.insert().values(digest=mark, expires_at=expires_at + USED_MARGIN))
    return True


def issue_ticket(
    connection: sa.Connection, access_key: str, route: str, expires_at: datetime, account_id: str | None = None
) -> str:
    account_id, text = account_id or _account_id(connection, access_key), new_text()
    _purge(connection, tickets, tickets.c.digest)
    connection.execute(
        tickets.insert().values(digest=digest(text), account_id=account_id, route=route, expires_at=expires_at)
    )
    return text


def ticket_exists(connection: sa.Connection, text: str) -> bool:
    return connection.execute(sa.select(tickets.c.digest).where(tickets.c.digest == digest(text))).first() is not None


def redeem_ticket(connection: sa.Connection, text: str, route: str) -> str | None:
    """Use a ticket up, also when it is for another route. Returns the access key, or None."""
    row = connection.execute(
        sa
        .select(accounts.c.access_key, tickets.c.route, tickets.c.expires_at > database_time())
        .join(accounts, accounts.c.id == tickets.c.account_id)
        .where(tickets.c.digest == digest(text))
    ).one_or_none()
    if row is None:
        return None
    connection.execute(tickets.delete().where(tickets.c.digest == digest(text)))
    access_key, ticket_route, valid = row
    return str(access_key) if valid and ticket_route == route else None


def _account_id(connection: sa.Connection, access_key: str) -> str:
    found = connection.execute(
        sa.select(accounts.c.id).where(accounts.c.access_key == access_key, accounts.c.deleted_at.is_(None))
    ).scalar_one_or_none()
    if found is None:
        raise NotFound(f"No user found with access_key '{access_key}'.")
    return str(found)


def _token(row: Any) -> Token:
    return Token(**row._mapping)


def _purge(connection: sa.Connection, table: sa.Table, key: sa.Column[Any]) -> None:
    over = sa.select(key).where(table.c.expires_at < database_time()).limit(PURGE_ROWS)
    connection.execute(table.delete().where(key.in_(over)))

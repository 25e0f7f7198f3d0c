"""What the local database keeps of an Auth server's users: statements on a connection.

A user is entered when something of him has to be kept: a token, a ticket, or that he was deleted through the gateway.
The row in `accounts` is that of a deleted account, so to all other code there is no such account, and its access key is
taken.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import NamedTuple, TypeVar

import sqlalchemy as sa

from ...errors import NotFound
from .. import credentials
from ..contract import Token
from ..schema import accounts, auth_users, tickets, tokens

T = TypeVar("T")


class Entry(NamedTuple):
    """What is known here of an access key.

    Attributes:
        account_id: Of the row in `accounts`.
        remote_id: The `_id` that the server's user had; None: it is the key of an account of this database, or was.
        deleted: He was deleted through the gateway.
    """

    account_id: str
    remote_id: str | None
    deleted: bool

    @property
    def closed(self) -> bool:
        """Whether no user of the server may have this access key here."""
        return self.remote_id is None or self.deleted


_ENTRY = sa.select(
    accounts.c.access_key, accounts.c.id, auth_users.c.remote_id, auth_users.c.deleted
).outerjoin(auth_users, auth_users.c.account_id == accounts.c.id)  # fmt: skip


def entry(connection: sa.Connection, access_key: str) -> Entry | None:
    row = connection.execute(_ENTRY.where(accounts.c.access_key == access_key)).one_or_none()
    return None if row is None else Entry(row.id, row.remote_id, bool(row.deleted))


def closed_keys(connection: sa.Connection) -> set[str]:
    """Access keys that no user of the server may have here."""
    rows = connection.execute(_ENTRY.where(auth_users.c.remote_id.is_(None) | auth_users.c.deleted))
    return {row.access_key for row in rows}


def with_account(
    connection: sa.Connection, access_key: str, remote_id: str, work: Callable[[sa.Connection, str], T]
) -> T:
    """What `work` does with the connection and the id of this user's account, which is entered if need be.

    Raises:
        NotFound: The access key is not that of a user of the server any more.
    """
    return work(connection, _entered(connection, access_key, remote_id))


def _entered(connection: sa.Connection, access_key: str, remote_id: str) -> str:
    known = entry(connection, access_key)
    if known is None:
        return _enter(connection, access_key, remote_id)
    if known.closed:
        raise NotFound(f"No user found with access_key '{access_key}'.")
    if known.remote_id != remote_id:
        # Somebody else has the access key now: what was issued to the one before is not his.
        _void(connection, known.account_id)
        _update(connection, known.account_id, remote_id=remote_id)
    return known.account_id


def _enter(connection: sa.Connection, access_key: str, remote_id: str) -> str:
    account_id, now = str(uuid.uuid4()), datetime.now(UTC)
    connection.execute(
        accounts.insert().values(id=account_id, access_key=access_key, role="user", created_at=now, deleted_at=now)
    )
    connection.execute(auth_users.insert().values(account_id=account_id, remote_id=remote_id, deleted=False))
    return account_id


def mark_deleted(connection: sa.Connection, account_id: str, *, deleted: bool) -> None:
    """Refuse the user from now on, or not after all."""
    _update(connection, account_id, deleted=deleted)


def drop_credentials(connection: sa.Connection, access_key: str) -> None:
    """Void the tokens and tickets of a user."""
    known = entry(connection, access_key)
    if known is not None and known.remote_id is not None:
        _void(connection, known.account_id)


def find_token(connection: sa.Connection, text: str) -> tuple[Token, str] | None:
    """A valid token of one of the server's users, and the `_id` that he had when it was issued."""
    token = credentials.find_token(connection, text)
    known = None if token is None else entry(connection, token.access_key)
    return None if token is None or known is None or known.remote_id is None else (token, known.remote_id)


def redeem_ticket(connection: sa.Connection, text: str, route: str) -> tuple[str, str | None] | None:
    """Use a ticket up. Returns the access key, and the `_id` of the server's user, if it is one of them."""
    access_key = credentials.redeem_ticket(connection, text, route)
    known = None if access_key is None else entry(connection, access_key)
    return None if access_key is None or known is None else (access_key, known.remote_id)


def _void(connection: sa.Connection, account_id: str) -> None:
    for table in (tokens, tickets):
        connection.execute(table.delete().where(table.c.account_id == account_id))


def _update(connection: sa.Connection, account_id: str, **values: object) -> None:
    connection.execute(auth_users.update().where(auth_users.c.account_id == account_id).values(values))

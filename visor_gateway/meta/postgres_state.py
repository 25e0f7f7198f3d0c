"""A look into a database on a server that changes nothing. Blocks."""

from __future__ import annotations

import sqlalchemy as sa

from ..errors import MetadataUnavailable
from .accounts import key_ids
from .postgres import Postgres
from .sqlite_copy import DatabaseState


def examine_server(url: str) -> DatabaseState:
    """Revision and master keys of a PostgreSQL database. What keeps its pages whole is the server's own affair.

    Raises:
        ConfigError: The URL is none of PostgreSQL's, or its driver is not installed.
        MetadataUnavailable: The server does not answer, or refuses the user.
    """
    engine = Postgres(url, connections=1)
    try:
        return engine.read(_state)
    except sa.exc.SQLAlchemyError as exc:
        # The driver's own words would name the user, and whatever else stands in the URL.
        raise MetadataUnavailable("it does not answer, refuses the user, or has no such database") from exc
    finally:
        engine.close()


def _state(connection: sa.Connection) -> DatabaseState:
    tables = set(sa.inspect(connection).get_table_names())
    if not {"alembic_version", "accounts"} <= tables:
        return DatabaseState(None, frozenset(), (), True)
    found = connection.scalars(sa.text("SELECT version_num FROM alembic_version")).all()
    return DatabaseState(max(map(str, found), default=None), frozenset(key_ids(connection)), (), True)

"""Transfers that ended, in the database (`contract.HistoryRepository`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec
import sqlalchemy as sa

from .contract import EndedTransfer, HistoryQuery
from .database import Database
from .schema import history

_COLUMNS: Final = tuple(history.c[name] for name in EndedTransfer.__struct_fields__)


class SqlHistoryRepository:
    """Keeps the last `keep` transfers; 0 for none."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, ended: Sequence[EndedTransfer], *, keep: int) -> None:
        rows = [_row(each) for each in ended[-keep:]] if keep else []
        await self._database.write(lambda connection: _add(connection, rows, keep))

    async def find(self, query: HistoryQuery) -> list[EndedTransfer]:
        return await self._database.read(lambda connection: _find(connection, query))


def _row(ended: EndedTransfer) -> dict[str, Any]:
    """Its columns but the number, which the database gives."""
    return {name: value for name, value in msgspec.structs.asdict(ended).items() if name != "number"}


def _add(connection: sa.Connection, rows: list[dict[str, Any]], keep: int) -> None:
    if rows:
        connection.execute(history.insert(), rows)
    newest = connection.execute(sa.select(sa.func.max(history.c.number))).scalar_one_or_none()
    if newest is not None:
        connection.execute(history.delete().where(history.c.number <= newest - keep))


def _find(connection: sa.Connection, query: HistoryQuery) -> list[EndedTransfer]:
    wanted: list[sa.ColumnElement[bool]] = [history.c[name].in_(values) for name, values in query.filters]
    if query.user is not None:
        wanted.append(history.c.user == query.user)
    if query.before is not None:
        wanted.append(history.c.number < query.before)
    rows = connection.execute(sa.select(*_COLUMNS).where(*wanted).order_by(history.c.number.desc()).limit(query.limit))
    return [EndedTransfer(**row._mapping) for row in rows]

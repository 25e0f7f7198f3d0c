"""The type of a column of text."""

from __future__ import annotations

import sqlalchemy as sa


def text(length: int | None = None) -> sa.String:
    """Text, of at most `length` characters if told, that is equal and in order by its code points in every database.

    That is SQLite's way. In PostgreSQL the order would else be that of whoever made the database.
    """
    plain, by_code_point = (
        (sa.String(length), sa.String(length, collation="C")) if length else (sa.Text(), sa.Text(collation="C"))
    )
    return plain.with_variant(by_code_point, "postgresql")

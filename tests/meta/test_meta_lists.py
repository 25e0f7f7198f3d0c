"""How lists are read: off an index, however many images there are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from visor_gateway.meta.contract import ImageQuery
from visor_gateway.meta.query import SORTABLE, page

IMAGES = 20_000
FEW = 200
#: Rows that the worst of these lists may read: a part of all that is the smaller the more there are.
READ = 6_000
#: Texts of any length, which PostgreSQL sorts; and what is sorted by whom one may see.
SORTED = ("access", "checksum", "kernel", "location", "ramdisk")

_FILL = """
INSERT INTO images (id, name, architecture, owner, access, status, type, format, store, size, sha256,
    created_at, updated_at, uploaded_at, accessed_at, access_count)
SELECT md5(i::text)::uuid::text, 'image-' || md5(i::text), CASE WHEN h(i, 'a') < 20 THEN 'i386' ELSE 'x86_64' END,
    'user' || (h(i, 'u') % 40), CASE WHEN h(i, 'p') < 50 THEN 'public' ELSE 'private' END, status,
    CASE WHEN h(i, 't') < 10 THEN 'kernel' WHEN h(i, 't') < 80 THEN 'machine' END,
    (ARRAY['qcow2', 'raw', 'iso', 'vmdk', 'vdi'])[1 + h(i, 'f') % 5], (ARRAY['file', 's3', 'hdfs'])[1 + h(i, 's') % 3],
    CASE status WHEN 'available' THEN h(i, 'b') * 1000 END, CASE status WHEN 'available' THEN md5(i::text) END,
    moment, CASE WHEN h(i, 'c') < 30 THEN moment END, CASE status WHEN 'available' THEN moment END,
    CASE WHEN h(i, 'd') < 25 THEN moment END, h(i, 'e')
FROM (
    SELECT i, CASE WHEN h(i, 'x') < 1 THEN 'error' WHEN h(i, 'x') < 9 THEN 'locked' ELSE 'available' END AS status,
        to_char(timestamp '2026-01-01' + i * interval '1 minute', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS moment
    FROM generate_series(1, :images) AS i
) AS made
"""


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("visor_gateway.meta.query.FEW", FEW)


def fill(connection: sa.Connection) -> None:
    connection.execute(sa.text("SET LOCAL statement_timeout = 0"))
    for statement in (
        # The same images in every run.
        "CREATE FUNCTION h(i integer, salt text) RETURNS integer LANGUAGE sql IMMUTABLE AS"
        " $$ SELECT ('x' || substr(md5(salt || i), 1, 7))::bit(28)::integer % 100 $$",
        _FILL,
        "INSERT INTO attributes"
        " SELECT id, 'distro', CASE WHEN access_count < 40 THEN 'debian' ELSE 'fedora' END FROM images",
        "INSERT INTO attributes SELECT id, 'build', (access_count % 50)::text FROM images",
        "ANALYZE images, attributes",
    ):
        connection.execute(sa.text(statement).bindparams(**({"images": IMAGES} if ":images" in statement else {})))


def scanned(plan: dict[str, Any]) -> int:
    """How many rows a plan's scans have looked at."""
    own = 0
    if plan["Node Type"].endswith("Scan") and plan["Node Type"] not in ("Bitmap Index Scan", "Subquery Scan"):
        removed = plan.get("Rows Removed by Filter", 0) + plan.get("Rows Removed by Index Recheck", 0)
        own = (plan["Actual Rows"] + removed) * plan["Actual Loops"]
    return own + sum(scanned(each) for each in plan.get("Plans", ()))


def lists() -> Iterator[ImageQuery]:
    filters = [
        (),
        *[
            (item,)
            for item in [
                ("status", "available"), ("status", "error"), ("format", "iso"), ("type", "kernel"), ("owner", "user7"),
                ("access", "private"), ("access_count", "7"), ("size", "7000"), ("kernel", "none"),
                ("distro", "debian"), ("build", "7"), ("build", "none"),
            ]
        ],
        (("format", "iso"), ("architecture", "i386")),
    ]  # fmt: skip
    for chosen in filters:
        for sort in SORTABLE:
            if sort not in SORTED:
                for descending in (False, True):
                    yield ImageQuery(viewer="user7", filters=chosen, sort=sort, descending=descending, limit=FEW // 10)


async def test_no_list_of_postgresql_reads_more_than_a_part_of_all_images(postgres_backend):
    def read(connection: sa.Connection, query: ImageQuery) -> int:
        asked: list[tuple[str, Any]] = []

        def note(connection: Any, cursor: Any, statement: str, parameters: Any, *rest: Any) -> None:
            asked.append((statement, parameters))

        sa.event.listen(connection, "before_cursor_execute", note)
        connection.execute(page(connection, query))
        sa.event.remove(connection, "before_cursor_execute", note)
        rows = 0
        for statement, parameters in asked:
            explained = connection.exec_driver_sql(
                f"EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) {statement}", parameters
            )
            rows += scanned(explained.scalar_one()[0]["Plan"])
        return rows

    async with postgres_backend.open() as metadata:
        database = metadata.images._database
        await database.write(fill)

        def read_all(connection: sa.Connection) -> dict[ImageQuery, int]:
            return {query: read(connection, query) for query in lists()}

        rows = await database.read(read_all)
        assert len(rows) > 300
        worst = max(rows, key=lambda query: rows[query])
        assert rows[worst] <= READ, worst


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("sort", SORTABLE)
async def test_a_list_of_sqlite_is_in_the_order_of_an_index(sqlite_backend, monkeypatch, sort, descending):
    monkeypatch.setattr("visor_gateway.meta.query.FEW", -1)
    query = ImageQuery(
        viewer="alice", filters=(("format", "raw"), ("distro", "debian")), sort=sort, descending=descending
    )

    def explain(connection: sa.Connection) -> list[str]:
        statement = page(connection, query).compile(connection, compile_kwargs={"literal_binds": True})
        return [row[3] for row in connection.execute(sa.text(f"EXPLAIN QUERY PLAN {statement}"))]

    async with sqlite_backend.open() as metadata:
        plan = await metadata.images._database.read(explain)
    # Images of one owner are at most put in order by their id.
    assert "USE TEMP B-TREE FOR ORDER BY" not in plan
    assert any("USING" in line and "INDEX" in line for line in plan)

"""The Meta server that tests use, against what was recorded with VISOR's."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
from servers.recorded import exchanges
from servers.visor_meta import MetaServer

RECORDED_ID = "d12e6c03-f15c-4249-8b9a-b7390653ea94"
UUID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
MOMENT = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \+0000"


@pytest.fixture
def server() -> Iterator[MetaServer]:
    server = MetaServer()
    try:
        yield server
    finally:
        server.close()


def plain(answer: object) -> str:
    """An answer without what differs between any two runs. It has the same keys, in the same order."""
    return re.sub(MOMENT, "MOMENT", re.sub(UUID, "ID", json.dumps(answer)))


def test_it_answers_as_the_original_did(server: MetaServer) -> None:
    for one in exchanges("Meta"):
        known = next(iter(server.rows), RECORDED_ID)
        status, answer = server.answer(one.method, one.path.replace(RECORDED_ID, known), one.body)
        assert (one.name, status) == (one.name, one.status)
        assert plain(answer) == plain(json.loads(one.answer)), one.name
    assert server.failures == []


@pytest.mark.parametrize("fields", [
    {"name": "a', owner='admin"}, {"name": "a\\"}, {"type": None}, {"size": 1 << 31}, {"name": "x" * 46},
    {"location": "file:///" + "x" * 255}, {"distro": "x" * 255}, {"distro": 'say "x"'}, {"name": "🐧"},
])  # fmt: skip
def test_what_its_sql_does_not_survive_is_noted(server: MetaServer, fields: dict[str, object]) -> None:
    known = server.add()
    status, _ = server.answer("PUT", f"/images/{known}", json.dumps({"image": fields}).encode())
    assert status == 500
    assert len(server.failures) == 1


def test_a_filter_that_is_no_column_fails(server: MetaServer) -> None:
    assert server.answer("GET", "/images?distro=x", b"")[0] == 500

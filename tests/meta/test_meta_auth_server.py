"""The Auth server that tests use, against what was recorded with VISOR's."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
from servers.recorded import exchange, exchanges
from servers.visor_auth import AuthServer

UUID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
MOMENT = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \+0000"
SECRET = r'"secret_key": "[A-Za-z0-9]{40}"'


@pytest.fixture
def server() -> Iterator[AuthServer]:
    server = AuthServer()
    try:
        yield server
    finally:
        server.close()


def plain(answer: object) -> str:
    """An answer without what differs between any two runs. It has the same keys, in the same order."""
    return re.sub(SECRET, "SECRET", re.sub(MOMENT, "MOMENT", re.sub(UUID, "ID", json.dumps(answer))))


def test_it_answers_as_the_original_did(server: AuthServer) -> None:
    [foo] = json.loads(exchange("Auth", "all users").answer)["users"]
    server.add(foo["access_key"], email=foo["email"])
    recorded = exchanges("Auth")
    assert len(recorded) == 11
    for one in recorded:
        status, answer = server.answer(one.method, one.path, one.body)
        assert (one.name, status) == (one.name, one.status)
        assert plain(answer) == plain(json.loads(one.answer)), one.name
    assert server.failures == []


@pytest.mark.parametrize("email", ["a'@b.example", 'a"@b.example', "a\\@b.example", "ü@b.example"])
def test_what_its_sql_does_not_survive_is_noted(server: AuthServer, email: str) -> None:
    body = json.dumps({"user": {"access_key": "bar", "email": email}}).encode()
    assert server.answer("POST", "/users", body)[0] == 500
    assert len(server.failures) == 1

"""`visor copy` and `visor copies`, and the client's methods behind them."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner, Result
from fake_gateway import Script, Serve, answering, refusing

from visor_gateway.cli import visor

pytestmark = pytest.mark.usefixtures("with_token")

LOCATIONS = [
    {"store": "file", "status": "available", "size": 2048, "location": "file:///a/b", "verified_at": None},
    {"store": "s3", "status": "copying", "size": 2048, "location": None, "verified_at": None},
]


def run(*words: str) -> Result:
    return CliRunner().invoke(visor.cli, list(words), prog_name="visor")


def told(**answer: object) -> Script:
    return answering(json.dumps(answer).encode())


def test_a_copy_is_asked_for_and_its_transfer_told(serve: Serve) -> None:
    fake = serve(told(transfer={"id": "a-transfer"}))
    result = run("copy", "an-id", "s3")
    assert (result.exit_code, result.stdout) == (0, "copying: a-transfer\n"), result.output
    (asked,) = fake.asked
    assert (asked.method, asked.target, json.loads(asked.body)) == ("POST", "/images/an-id/copies", {"store": "s3"})
    assert "content-digest" in asked.headers


def test_copies_are_shown_in_their_order(serve: Serve) -> None:
    fake = serve(told(copies=LOCATIONS), told(copies=LOCATIONS))
    result = run("copies", "an-id")
    assert result.exit_code == 0, result.output
    assert [line.split()[:2] for line in result.stdout.splitlines()[1:]] == [["file", "available"], ["s3", "copying"]]
    assert json.loads(run("copies", "an-id", "--json").stdout) == {"copies": LOCATIONS}
    assert [(asked.method, asked.target) for asked in fake.asked] == [("GET", "/images/an-id/copies")] * 2


def test_a_copy_is_removed(serve: Serve) -> None:
    fake = serve(told(copies=LOCATIONS[:1]))
    assert run("copies", "an-id", "--remove", "s3").exit_code == 0
    assert [(asked.method, asked.target) for asked in fake.asked] == [("DELETE", "/images/an-id/copies/s3")]


def test_a_refusal_is_one_line(serve: Serve) -> None:
    serve(refusing(409, b'{"code": 409, "message": "Image \'an-id\' is in the store \'s3\' already"}'))
    result = run("copy", "an-id", "s3")
    assert (result.exit_code, result.stderr) == (1, "visor: Image 'an-id' is in the store 's3' already\n")

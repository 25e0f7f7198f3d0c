"""`visor-admin cache`, and the client's methods behind it."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner, Result
from fake_gateway import FakeGateway, Script, Serve, answering, refusing

from visor_gateway.cli import admin

pytestmark = pytest.mark.usefixtures("with_token")

ENTRY = {"image": "an-id", "size": 2048, "sha256": "ab" * 32, "used_at": "2026-11-22T10:00:00.000000Z"}
STATE = {"max_bytes": 4096, "bytes": 2048, "entries": [ENTRY]}


def answered(**payload: object) -> Script:
    return answering(json.dumps(payload).encode())


def run(*words: str) -> Result:
    return CliRunner().invoke(admin.cli, ["cache", *words], prog_name="visor-admin")


def asked(fake: FakeGateway) -> list[tuple[str, str]]:
    return [(each.method, each.target) for each in fake.asked]


def test_list_shows_the_entries(serve: Serve) -> None:
    fake = serve(answered(cache=STATE))
    first, heading, row = run("list").stdout.splitlines()
    assert (first, heading.split()) == ("2.0 KiB of 4.0 KiB", ["IMAGE", "SIZE", "USED"])
    assert row.split() == ["an-id", "2.0", "KiB", "2026-11-22", "10:00:00"]
    assert asked(fake) == [("GET", "/cache")]


def test_list_says_that_the_cache_is_off(serve: Serve) -> None:
    serve(answered(cache={"max_bytes": 0, "bytes": 0, "entries": []}))
    assert run("list").stdout == "the cache is off\n"


def test_list_for_machines(serve: Serve) -> None:
    serve(answered(cache=STATE))
    assert json.loads(run("list", "--json").stdout) == {"cache": STATE}


def test_warm_asks_for_each_image(serve: Serve) -> None:
    fake = serve(answered(cache=STATE), answered(cache=STATE))
    assert run("warm", "one", "two").stdout == "warming one\nwarming two\n"
    assert asked(fake) == [("POST", "/cache")] * 2
    assert [json.loads(each.body) for each in fake.asked] == [{"image": "one"}, {"image": "two"}]


def test_an_image_that_can_not_be_warmed_ends_with_1_and_one_line(serve: Serve) -> None:
    serve(refusing(409, b'{"code": 409, "message": "The cache is off"}'))
    result = run("warm", "one")
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)


def test_purge_removes_what_is_named(serve: Serve) -> None:
    fake = serve(answered(removed=[ENTRY]))
    assert run("purge", "an-id").stdout == "removed an-id\n"
    assert asked(fake) == [("DELETE", "/cache/an-id")]


def test_purge_all_removes_everything(serve: Serve) -> None:
    fake = serve(answered(removed=[ENTRY]))
    assert json.loads(run("purge", "--all", "--json").stdout) == {"removed": [ENTRY]}
    assert asked(fake) == [("DELETE", "/cache")]


@pytest.mark.parametrize("words", [["purge"], ["purge", "one", "--all"], ["warm"]])
def test_wrong_usage(words: list[str]) -> None:
    assert run(*words).exit_code == 2

"""`visor-admin scrub`, and the client's methods behind it."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner, Result
from fake_gateway import Script, Serve, answering, refusing

from visor_gateway.cli import admin

pytestmark = pytest.mark.usefixtures("with_token")

IDLE = {"image": None, "bytes": 0, "size": None, "waiting": 0, "bad": []}
BAD = {"_id": "an-id", "name": "disk", "store": "file", "bad_since": "2026-11-22T10:00:00.000000Z", "scrubbed_at": None}


def state(**fields: object) -> Script:
    return answering(json.dumps({"scrub": IDLE | fields}).encode())


def run(*words: str) -> Result:
    return CliRunner().invoke(admin.cli, ["scrub", *words], prog_name="visor-admin")


def test_without_images_the_state_is_shown(serve: Serve) -> None:
    fake = serve(state(image="an-id", waiting=2, bad=[BAD]))
    result = run()
    assert result.exit_code == 0, result.output
    first, *table = result.stdout.splitlines()
    assert first == "under way: an-id, waiting: 2, bad: 1"
    assert table[1].split()[:3] == ["an-id", "disk", "file"]
    assert [(asked.method, asked.target) for asked in fake.asked] == [("GET", "/scrub")]


def test_images_that_are_named_are_asked_for_together(serve: Serve) -> None:
    fake = serve(state(waiting=2))
    result = run("one", "two")
    assert result.stdout == "under way: none, waiting: 2, bad: 0\n"
    assert [(asked.method, asked.target) for asked in fake.asked] == [("POST", "/scrub")]
    assert json.loads(fake.asked[0].body) == {"images": ["one", "two"]}


def test_all_are_asked_for_without_names(serve: Serve) -> None:
    fake = serve(state(waiting=7))
    assert json.loads(run("--all", "--json").stdout) == {"scrub": IDLE | {"waiting": 7}}
    assert [(asked.method, asked.target) for asked in fake.asked] == [("POST", "/scrub")]
    assert json.loads(fake.asked[0].body) == {}


def test_images_and_all_together_are_wrong_usage() -> None:
    assert run("one", "--all").exit_code == 2


def test_an_image_that_can_not_be_scrubbed_ends_with_1_and_one_line(serve: Serve) -> None:
    serve(refusing(409, b'{"code": 409, "message": "Image one is not available"}'))
    result = run("one")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.count("\n") == 1

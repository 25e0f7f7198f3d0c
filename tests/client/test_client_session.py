"""Requests carry what they must, and failures have names."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from email.utils import formatdate, parsedate_to_datetime
from pathlib import Path

import pytest
from fake_gateway import Asked, Connection, answering, digest_of, gateway, on_both_backends, refusing, talking

from visor_gateway import signature
from visor_gateway.client import (
    BadRequest,
    Client,
    Conflict,
    ConnectionBroken,
    CredentialsInvalid,
    Forbidden,
    KeyPair,
    NotFound,
    ProtocolViolation,
    RedirectRefused,
    Refused,
    ServerFailed,
    Token,
    Unavailable,
    VisorError,
)
from visor_gateway.client import credentials as credentials_module

PAIR = KeyPair("foo", "s3cret")


def is_signed(asked: Asked, scheme: str = signature.SHA256) -> bool:
    headers = [(name.encode(), value.encode()) for name, value in asked.headers.items()]
    claim = signature.parse(asked.headers["authorization"])
    assert claim is not None
    assert claim.scheme == scheme
    return signature.verify(claim, asked.method, asked.target.encode(), headers, "s3cret")


@on_both_backends
async def test_every_kind_of_request_is_signed(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(b"bytes")
    scripts = [
        answering(b'{"images": []}'),
        answering(b"", x_image_meta_name="x"),
        answering(b'{"image": {}}'),
        answering(b'{"image": {}}'),
        answering(b'{"image": {}}'),
        answering(b'{"user": {}}'),
        answering(b"bytes", etag='"e"'),
    ]
    async with talking(*scripts, credentials=PAIR) as (fake, client):
        await client.brief([("name", "a b&c=d"), ("ä", "ö/?")], sort="name", descending=True)
        await client.head("an id/with?odd#things")
        await client.create({"name": "é", "architecture": "i386"}, tmp_path / "image")
        await client.update("id", {"name": "other"})
        await client.delete("id")
        await client.users.add({"access_key": "bar"})
        await client.download("id", tmp_path / "copy")
    assert all(is_signed(asked) for asked in fake.asked)
    assert len({asked.headers["x-visor-nonce"] for asked in fake.asked}) == len(fake.asked)
    assert "s3cret" not in str(fake.asked)


@on_both_backends
async def test_a_json_body_carries_its_digest() -> None:
    async with talking(answering(b'{"user": {}}'), credentials=PAIR) as (fake, client):
        await client.users.add({"access_key": "bar", "email": "b@example.org"})
    asked = fake.asked[0]
    assert json.loads(asked.body) == {"user": {"access_key": "bar", "email": "b@example.org"}}
    assert asked.headers["content-digest"] == digest_of(asked.body)
    assert asked.headers["content-type"] == "application/json"


@on_both_backends
async def test_equal_changes_in_one_second_have_signatures_of_their_own_in_the_old_scheme() -> None:
    old = KeyPair("foo", "s3cret", signature.SHA1)
    async with talking(*[answering(b'{"image": {}}')] * 3, credentials=old) as (fake, client):
        for _ in range(3):
            await client.delete("id")
    assert all(is_signed(asked, signature.SHA1) for asked in fake.asked)
    assert len({asked.headers["authorization"] for asked in fake.asked}) == 3
    dates = [parsedate_to_datetime(asked.headers["date"]).timestamp() for asked in fake.asked]
    assert max(dates) - time.time() < 10


@on_both_backends
async def test_a_token_travels_as_a_bearer_and_nobody_as_nobody() -> None:
    async with talking(refusing(404), credentials=Token("t0ken")) as (fake, client):
        with pytest.raises(NotFound):
            await client.delete("id")
    assert fake.asked[0].headers["authorization"] == "Bearer t0ken"
    async with talking(refusing(404)) as (fake, client):
        with pytest.raises(NotFound):
            await client.delete("id")
    assert "authorization" not in fake.asked[0].headers


def test_secrets_are_in_no_representation() -> None:
    assert "s3cret" not in repr(PAIR)
    assert "t0ken" not in repr(Token("t0ken"))


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, BadRequest),
        (403, Forbidden),
        (404, NotFound),
        (409, Conflict),
        (418, Refused),
        (500, ServerFailed),
        (503, Unavailable),
        (301, RedirectRefused),
        (308, RedirectRefused),
    ],
)
@on_both_backends
async def test_each_refusal_has_its_class(status: int, kind: type[VisorError]) -> None:
    body = json.dumps({"code": status, "message": "Because\nof \x1b[31mthat."}).encode()
    async with talking(refusing(status, body)) as (_, client):
        with pytest.raises(kind) as caught:
            await client.delete("id")
    assert type(caught.value) is kind
    if status >= 400:
        assert caught.value.message == "Because of \N{REPLACEMENT CHARACTER}[31mthat."
        assert caught.value.status == status


@on_both_backends
async def test_the_refusal_of_a_head_is_read_from_its_headers() -> None:
    script = refusing(404, x_error_code="404", x_error_message="No image found with id 'x'.")
    async with talking(script) as (_, client):
        with pytest.raises(NotFound, match="No image found with id 'x'"):
            await client.head("x")


@on_both_backends
async def test_a_refusal_without_words_names_its_status() -> None:
    async with talking(refusing(502, b"<html>bad gateway</html>")) as (_, client):
        with pytest.raises(Unavailable, match="502"):
            await client.delete("x")


@on_both_backends
async def test_a_clock_that_is_wrong_is_told() -> None:
    script = refusing(403, date=formatdate(time.time() - 3600, usegmt=True))
    async with talking(script) as (_, client):
        with pytest.raises(Forbidden, match=r"clock.*3(599|600|601) s"):
            await client.delete("x")


@on_both_backends
async def test_an_answer_of_another_form_is_told() -> None:
    async with talking(answering(b"[]"), answering(b"<"), answering(b'{"images": []}')) as (_, client):
        for _ in range(3):
            with pytest.raises(ProtocolViolation):
                await client.delete("x")


async def hang_up(connection: Connection) -> None:
    await connection.head()


@on_both_backends
async def test_a_reading_request_is_sent_once_more_when_its_connection_breaks() -> None:
    async with talking(hang_up, answering(b'{"images": [{"_id": "a"}]}')) as (_, client):
        assert await client.brief() == [{"_id": "a"}]
    async with talking(hang_up, hang_up) as (_, client):
        with pytest.raises(ConnectionBroken):
            await client.brief()


@on_both_backends
async def test_a_changing_request_is_sent_once() -> None:
    async with talking(hang_up, answering(b'{"image": {}}')) as (fake, client):
        with pytest.raises(ConnectionBroken):
            await client.delete("x")
        assert fake.left == 1


@on_both_backends
async def test_lists_are_read_page_by_page() -> None:
    pages = [
        answering(b'{"images": [{"_id": "a"}, {"_id": "b"}]}', link='<http://elsewhere/images?marker=b>; rel="next"'),
        answering(b'{"images": [{"_id": "c"}]}'),
    ]
    async with talking(*pages) as (fake, client):
        found = await client.detail({"format": "iso"}, sort="name")
    assert [image["_id"] for image in found] == ["a", "b", "c"]
    assert [asked.target for asked in fake.asked] == [
        "/images/detail?format=iso&sort=name&limit=1000",
        "/images/detail?format=iso&sort=name&limit=1000&marker=b",
    ]


@on_both_backends
async def test_no_more_is_read_than_was_asked_for() -> None:
    page = answering(b'{"images": [{"_id": "a"}, {"_id": "b"}]}', link='<x>; rel="next"')
    async with talking(page) as (fake, client):
        assert len(await client.brief(limit=2)) == 2
    assert fake.asked[0].target == "/images?limit=2"


@on_both_backends
async def test_an_empty_list_is_empty_and_a_wrong_address_is_an_error() -> None:
    empty = b'{"code": 404, "message": "No public images found with given parameters."}'
    no_users = b'{"code": 404, "message": "No users found."}'
    other = b'{"code": 404, "message": "Invalid operation or path."}'
    scripts = [refusing(404, body) for body in (empty, other, no_users, other)]
    async with talking(*scripts) as (_, client):
        assert await client.brief() == []
        with pytest.raises(NotFound):
            await client.brief()
        assert await client.users.list() == []
        with pytest.raises(NotFound):
            await client.users.list()


@on_both_backends
async def test_a_record_in_headers_is_read_as_text_but_for_its_size() -> None:
    script = answering(b"", x_image_meta_name="007", x_image_meta_root_device="é", x_image_meta_size="12")
    async with talking(script) as (_, client):
        assert await client.head("x") == {"name": "007", "root_device": "é", "size": 12}


@on_both_backends
async def test_a_gateway_behind_a_path_is_asked_there() -> None:
    async with gateway(answering(b'{"images": []}')) as fake, Client(f"{fake.url}/visor/", PAIR) as client:
        await client.brief()
    assert fake.asked[0].target == "/visor/images?limit=1000"
    assert is_signed(fake.asked[0])


@pytest.mark.parametrize(
    "url", ["", "gateway", "ftp://gateway", "http://", "http://user:pw@gateway", "http://gateway?x=1", "http://g:99999"]
)
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(VisorError) as caught:
        Client(url)
    assert "pw" not in caught.value.message


def test_a_file_of_credentials_is_read(tmp_path: Path) -> None:
    path = tmp_path / "admin.toml"
    path.write_text('url = "http://gateway"\naccess_key = "foo"\nsecret_key = "s3cret"\n')
    read = credentials_module.read(path)
    assert (read.url, read.credentials) == ("http://gateway", PAIR)


@pytest.mark.parametrize(
    "content", ["access_key = 's3cret'", "secret_key = 's3cret'", "access_key = 1", "s3cret", "url = ['s3cret']"]
)
def test_a_file_of_credentials_that_is_none_is_named_and_not_shown(tmp_path: Path, content: str) -> None:
    path = tmp_path / "c.toml"
    path.write_text(content)
    with pytest.raises(CredentialsInvalid) as caught:
        credentials_module.read(path)
    assert str(path) in caught.value.message
    assert "s3cret" not in caught.value.message


def test_digests_in_tests_are_those_of_the_standard() -> None:
    assert re.fullmatch(r"sha-256=:[A-Za-z0-9+/]{43}=:", digest_of(b"x"))
    assert base64.b64encode(hashlib.sha256(b"x").digest()).decode() in digest_of(b"x")

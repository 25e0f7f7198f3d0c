"""Over TLS every kind of request works, and none goes to whom the client does not trust."""

from __future__ import annotations

import os
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme
from fake_gateway import QUICK, FakeGateway, Script, answering, gateway, on_both_backends, part, refusing, whole

from visor_gateway.client import Client, Forbidden, Unreachable

DATA = os.urandom(300_000)
AUTHORITY = trustme.CA()


def serving() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    AUTHORITY.issue_cert("127.0.0.1").configure_cert(context)
    return context


def trusting() -> ssl.SSLContext:
    context = ssl.create_default_context()
    AUTHORITY.configure_trust(context)
    return context


@asynccontextmanager
async def talking(*scripts: Script, tls: ssl.SSLContext) -> AsyncGenerator[tuple[FakeGateway, Client]]:
    async with gateway(*scripts, tls=tls) as fake, Client(fake.url, tls=trusting(), timing=QUICK) as client:
        yield fake, client


@on_both_backends
async def test_records_uploads_and_downloads_go_over_tls(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(DATA)
    scripts = answering(b'{"images": []}'), answering(b'{"image": {}}'), whole(DATA, sent=1000), part(DATA, 1000)
    async with talking(*scripts, tls=serving()) as (fake, client):
        assert await client.brief() == []
        await client.create({"name": "x"}, tmp_path / "image")
        await client.download("x", tmp_path / "copy")
    assert fake.asked[1].body == DATA
    assert (tmp_path / "copy").read_bytes() == DATA


@on_both_backends
async def test_a_refusal_of_an_upload_is_heard_over_tls(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(DATA)
    async with talking(refusing(403), refusing(403), tls=serving()) as (_, client):
        with pytest.raises(Forbidden):
            await client.create({"name": "x"}, tmp_path / "image")
        with pytest.raises(Forbidden):
            async with client.watch():
                pytest.fail("It was refused")


@on_both_backends
async def test_a_gateway_that_is_not_trusted_is_never_talked_to(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(DATA)
    impostor = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(impostor)
    async with talking(tls=impostor) as (fake, client):
        with pytest.raises(Unreachable, match="TLS"):
            await client.brief()
        with pytest.raises(Unreachable, match="TLS"):
            await client.create({"name": "x"}, tmp_path / "image")
        with pytest.raises(Unreachable, match="TLS"):
            await client.download("x", tmp_path / "copy")
        with pytest.raises(Unreachable, match="TLS"):
            async with client.watch():
                pytest.fail("It was never open")
    assert fake.asked == []

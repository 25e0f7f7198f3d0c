"""The canary finds a secret in everything that a gateway gives out: each way is given one that it must find."""

from __future__ import annotations

import logging
import secrets
import shutil
import socket
import sqlite3
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import trio
from canary import Canary, canary
from gateway_process import Gateway, launch
from live import subscribed
from wire import Wire


@pytest.fixture
def planted() -> Iterator[str]:
    """What is a secret for the length of a test."""
    value = f"planted{secrets.token_hex(8)}"
    canary.keep("planted", value)
    yield value
    canary.forget(value)


@contextmanager
def finding(where: str) -> Generator[None]:
    with canary.expected() as found:
        yield
    assert f"planted in {where}" in found


def test_what_was_found_fails_a_test_once() -> None:
    own = Canary()
    own.look("an answer", f"a {own.secret('key')} b")
    with pytest.raises(AssertionError, match="a key of a store, or a password in an answer"):
        own.check()
    own.check()


@contextmanager
def answering(data: bytes) -> Generator[Wire]:
    """A connection to a server that sends this."""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        Wire(f"http://127.0.0.1:{server.getsockname()[1]}") as wire,
    ):
        peer, _ = server.accept()
        with peer:
            peer.sendall(data)
        yield wire


def test_a_secret_in_a_location_is_found(planted: str) -> None:
    head = f"HTTP/1.1 200 OK\r\nLocation: http://u:{planted}@h/\r\nContent-Length: 0\r\n\r\n".encode()
    with answering(head) as wire, finding("an answer"):
        wire.read_head()


def test_a_secret_that_comes_in_pieces_far_behind_is_found() -> None:
    own = Canary()
    look = own.stream()
    for piece in (bytes(1 << 20), bytes(99) + own.mark[:9].encode(), own.mark[9:].encode() + bytes(99)):
        look("an answer", piece)
    with pytest.raises(AssertionError):
        own.check()


@pytest.mark.parametrize(
    ("target", "answer"),
    [
        ("/users", '{"user": {"access_key": "a", "secret_key": "%s"}}'),
        ("/users/a/rotate", '{"user": {"secret_key": "%s"}}'),
        ("/users/a/tokens", '{"token": {"id": "1", "token": "%s"}}'),
        ("/tickets", '{"ticket": {"ticket": "%s", "expires_at": "x"}}'),
        ("/images/1/links", '{"link": {"uri": "http://h/images/1?key=a&sig=%s&expires=1"}}'),
    ],
)
def test_what_an_answer_shows_once_is_found_when_it_is_shown_again(target: str, answer: str) -> None:
    own, made = Canary(), secrets.token_hex(16)
    own.look("an answer", answer % made)
    own.answered("POST", target, (answer % made).encode())
    own.check()
    own.look("an answer", f'{{"any": "{made}"}}')
    with pytest.raises(AssertionError):
        own.check()


def test_the_log_of_this_process_is_looked_through(planted: str) -> None:
    with finding("a log"):
        logging.getLogger("visor_gateway.test").warning("the value is %s", planted)


def test_databases_of_this_process_are_looked_through_before_they_are_closed(planted: str, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "db.sqlite")) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("CREATE TABLE t (v TEXT)")
        database.execute("INSERT INTO t VALUES (?)", (planted,))
        database.commit()
        with finding("the file db.sqlite-wal"):
            canary.look_through_databases(tmp_path)


def test_a_master_key_that_is_no_longer_for_its_owner_alone_is_found(tmp_path: Path) -> None:
    (tmp_path / "master.key").write_text("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n")
    (tmp_path / "notes").write_bytes(bytes(range(32)))
    own = Canary()
    own.look_through_data(tmp_path)
    with pytest.raises(AssertionError, match="a master key in the file notes"):
        own.check()


@pytest.fixture
def telling(planted: str, tmp_path: Path) -> Iterator[Gateway]:
    """A daemon that tells everybody what is a secret: it is the name of a store and the key of a user."""
    with canary.expected():
        gateway = launch(tmp_path / "gateway", config=f'[stores.{planted}]\ntype = "file"\ndirectory = "shelf"\n')
    yield gateway
    with canary.expected():
        gateway.kill()
    shutil.rmtree(tmp_path / "gateway")


@pytest.mark.real
async def test_a_daemon_is_looked_through_wherever_it_speaks(telling: Gateway, planted: str) -> None:
    with canary.expected() as found:
        document = {"access_key": planted, "email": "a@example.org"}
        user = telling.admin.send_json("POST", "/users", document).json()["user"]
        client = telling.client(planted, user["secret_key"])
        assert telling.admin.get("/metrics").status == 200
        async with subscribed(client) as live:
            with client.start("GET", "/transfers/events") as stream:
                await trio.to_thread.run_sync(lambda: client.add(b"bytes"))
                await live.until(lambda message: message["type"] == "event")
                stream.read_through(b"event: event\n")
                stream.read_through(b"\n\n")
        telling.admin.get(f"/users/{planted}")
        assert await trio.to_thread.run_sync(telling.stop) == 0
    ways = {"POST /users", "GET /metrics", "POST /images", "GET /transfers/events"}
    ways |= {"a live message", "a log", "the file visor.sqlite3"}
    assert {f"planted in {way}" for way in ways} <= set(found)

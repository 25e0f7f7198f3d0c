"""One other gateway, over real sockets, that lies, is slow, or is not there."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
import wsproto
from wsproto import events

from visor_gateway import peers
from visor_gateway.errors import Conflict, Forbidden, GatewayError, NotFound
from visor_gateway.outbound import CONFIGURED, Outbound
from visor_gateway.peers import PeerLink
from visor_gateway.transfer.foreign import PeerUnavailable, Wish
from visor_gateway.transfer.hub import Hub
from visor_gateway.transfer.view import EVERYTHING

ID = "6f8b2a1c-0000-4000-8000-000000000001"
WAIT = dict.fromkeys(("client", "store", "limit", "disk"), 0)
TOLD = {
    "id": ID, "kind": "pull", "image": "i", "store": "file", "client": None, "user": "anne", "state": "running",
    "bytes": 10, "size": 100, "offset": 0, "rate": 5, "rate_avg": 5, "eta_s": 18.0,
    "started_at": "2026-01-01T00:00:00.000000Z", "wait": WAIT, "waiters": 0, "attempt": 1, "limit_bytes_per_s": None,
    "error": None,
}  # fmt: skip
SNAPSHOT = json.dumps({"type": "snapshot", "seq": 1, "transfers": [TOLD], "totals": {}})
WISH = Wish("anne", False, ID)

Serve = Callable[[trio.SocketStream], Awaitable[None]]
Link = Callable[..., PeerLink]


class Keys:
    def own(self) -> tuple[str, str]:
        return "@0123456789abcdef", "a-secret-of-this-test"

    async def secret(self, access_key: str) -> str | None:
        raise AssertionError


@asynccontextmanager
async def served(serve: Serve) -> AsyncGenerator[str, None]:
    """The URL of a server that serves every connection so."""

    async def one(stream: trio.SocketStream) -> None:
        try:
            await serve(stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, one, 0, host="127.0.0.1"))
        try:
            yield f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        finally:
            nursery.cancel_scope.cancel()


@pytest.fixture
async def link() -> AsyncGenerator[Link, None]:
    """Makes what is tested: another gateway at a URL, shown in a hub."""
    outbound = Outbound(CONFIGURED, stall_timeout=60)
    keys: Any = Keys()
    yield lambda url, hub=None: PeerLink(hub or Hub("this"), keys, outbound, "other", url)
    await outbound.aclose()


# --- asking --------------------------------------------------------------------------------------


def answering(body: bytes, status: str = "200 OK", *, length: int | None = None, headers: str = "") -> Serve:
    async def serve(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        count = len(body) if length is None else length
        await stream.send_all(f"HTTP/1.1 {status}\r\nContent-Length: {count}\r\n{headers}\r\n".encode() + body)
        await trio.sleep_forever()

    return serve


def answer(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


async def test_an_answer_is_what_may_be_shown_and_names_its_gateway(link: Link) -> None:
    async with served(answering(answer(transfers=[TOLD | {"gateway": "an imposture", "more": 1}]))) as url:
        assert await link(url).ask(WISH) == [TOLD | {"gateway": "other"}]


@pytest.mark.parametrize(
    ("serve", "error"),
    [
        (answering(answer(refused={"status": 404, "message": "n"})), NotFound),
        (answering(answer(refused={"status": 409, "message": "c"})), Conflict),
        (answering(answer(refused={"status": 403, "message": "f"})), Forbidden),
        (answering(answer(refused={"status": 500, "message": "f"})), PeerUnavailable),
        (answering(answer(code=403, message="no"), "403 Forbidden"), PeerUnavailable),
        (answering(b"", "302 Found", headers="Location: http://127.0.0.1:1/\r\n"), PeerUnavailable),
        (answering(b"", "101 Switching Protocols"), PeerUnavailable),
        (answering(b"no JSON"), PeerUnavailable),
        (answering(b"[]"), PeerUnavailable),
        (answering(b"[" * 100_000), PeerUnavailable),
        (answering(answer(transfers=[{}])), PeerUnavailable),
        (answering(answer(transfers=[TOLD | {"bytes": -1}])), PeerUnavailable),
        (answering(answer(transfers=[TOLD | {"user": "u" * 9999}])), PeerUnavailable),
        (answering(b"x" * 200_000), PeerUnavailable),
    ],
)
async def test_another_answer_is_a_refusal_or_none(
    serve: Serve, error: type[GatewayError], monkeypatch: pytest.MonkeyPatch, link: Link
) -> None:
    monkeypatch.setattr(peers, "ASK_SECONDS", 60.0)
    monkeypatch.setattr(peers, "ANSWER_LIMIT", 100_000)
    async with served(serve) as url:
        with trio.fail_after(60), pytest.raises(error) as caught:
            await link(url).ask(WISH)
    assert type(caught.value) is error
    assert "secret" not in str(caught.value)


async def test_an_answer_that_does_not_end_is_given_up(monkeypatch: pytest.MonkeyPatch, link: Link) -> None:
    monkeypatch.setattr(peers, "ASK_SECONDS", 0.3)
    async with served(answering(b"{", length=10)) as url:
        with trio.fail_after(60), pytest.raises(PeerUnavailable):
            await link(url).ask(WISH)


async def test_a_refusal_is_told_in_bounds(link: Link) -> None:
    async with served(answering(answer(refused={"status": 404, "message": "n" * 5000}))) as url:
        with pytest.raises(NotFound) as caught:
            await link(url).ask(WISH)
    assert len(caught.value.message) == 500


async def test_who_is_not_there_is_told_as_that(link: Link) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        with pytest.raises(PeerUnavailable, match="'other'"):
            await link(f"http://127.0.0.1:{closed.getsockname()[1]}").ask(WISH)


# --- watching ------------------------------------------------------------------------------------


class Channel:
    """A gateway that accepts every WebSocket, says what it is to say, and answers pings if it is `alive`."""

    def __init__(self, *said: str | bytes, alive: bool = True) -> None:
        self.connections = 0
        self.targets: list[str] = []
        self._said = said
        self._alive = alive

    async def __call__(self, stream: trio.SocketStream) -> None:
        self.connections += 1
        protocol = wsproto.WSConnection(wsproto.ConnectionType.SERVER)
        while data := await stream.receive_some():
            protocol.receive_data(data)
            for event in protocol.events():
                if isinstance(event, events.Request):
                    self.targets.append(event.target)
                    await stream.send_all(protocol.send(events.AcceptConnection(subprotocol="visor.progress.v1")))
                    for each in self._said:
                        message = events.TextMessage(each) if isinstance(each, str) else events.BytesMessage(each)
                        await stream.send_all(protocol.send(message))
                elif isinstance(event, events.Ping) and self._alive:
                    await stream.send_all(protocol.send(event.response()))
                elif isinstance(event, events.CloseConnection):
                    await stream.send_all(protocol.send(event.response()))
                    return


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(12_000):
        if condition():
            return
        await trio.sleep(0.005)
    raise AssertionError("it did not come true")


def shown(hub: Hub) -> list[str]:
    return [transfer.id for transfer in hub.live_for(EVERYTHING)]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "PAUSE_SECONDS", (0.01, 0.02))


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    "lie", ["{", '{"type": "boast"}', b"bytes", "[" * 2000, json.dumps({"type": "x" * 5000}), "\0"], ids=range(6)
)
async def test_a_gateway_that_lies_is_left_and_asked_again(
    lie: str | bytes, monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery, link: Link
) -> None:
    monkeypatch.setattr(peers, "MESSAGE_LIMIT", 4000)
    monkeypatch.setattr(peers, "GRACE_SECONDS", 60.0)
    hub, channel = Hub("this"), Channel(SNAPSHOT, lie)
    async with served(channel) as url:
        nursery.start_soon(link(url, hub).run)
        await until(lambda: shown(hub) == [ID])
        await until(lambda: channel.connections >= 3)
        # What it told before it lied stays for as long as it is back in time.
        assert shown(hub) == [ID]
    assert set(channel.targets) == {"/peers/other/transfers/ws"}


@pytest.mark.usefixtures("impatient")
async def test_a_gateway_that_is_gone_leaves_the_view_after_a_while(
    monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery, link: Link
) -> None:
    monkeypatch.setattr(peers, "GRACE_SECONDS", 0.3)
    hub = Hub("this")
    async with served(Channel(SNAPSHOT)) as url:
        nursery.start_soon(link(url, hub).run)
        await until(lambda: shown(hub) == [ID])
    await until(lambda: shown(hub) == [])


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("bound", ["SILENT_SECONDS", "UNHEARD_SECONDS"])
async def test_a_gateway_that_is_silent_is_left(
    bound: str, monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery, link: Link
) -> None:
    monkeypatch.setattr(peers, bound, 0.2)
    hub, channel = Hub("this"), Channel(SNAPSHOT, alive=bound != "SILENT_SECONDS")
    async with served(channel) as url:
        nursery.start_soon(link(url, hub).run)
        await until(lambda: channel.connections >= 2)


async def test_a_gateway_that_is_not_looked_at_any_more_leaves_the_view(nursery: trio.Nursery, link: Link) -> None:
    hub = Hub("this")
    async with served(Channel(SNAPSHOT)) as url:
        async with trio.open_nursery() as watching:
            watching.start_soon(link(url, hub).run)
            await until(lambda: shown(hub) == [ID])
            watching.cancel_scope.cancel()
        assert shown(hub) == []

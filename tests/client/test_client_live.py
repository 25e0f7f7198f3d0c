"""The live channel: messages as they come, its end told apart from its break."""

from __future__ import annotations

import json
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import anyio
import pytest
import sniffio
import trio_websocket
import trustme
import wsproto
from fake_gateway import Connection, Script, gateway, on_both_backends, refusing, talking
from wsproto import events

from visor_gateway.cli.follow import Following
from visor_gateway.client import (
    Client,
    ConnectionBroken,
    Forbidden,
    KeyPair,
    Message,
    NotFound,
    ProtocolViolation,
    Timing,
    VisorError,
    websocket_anyio,
    websocket_trio,
)
from visor_gateway.client.view import TransferView
from visor_gateway.client.websocket import GOODBYE_SECONDS

TRANSFER = {"id": "t", "kind": "pull", "image": "i", "state": "running", "bytes": 1, "size": 10, "rate": 5}
OTHER = TRANSFER | {"id": "o", "image": "other"}
HELLO = {"type": "hello", "epoch": "e", "seq": 0, "hz": 2, "heartbeat_s": 10}
BYE = {"type": "bye", "reason": "drain"}


def snapshot(*transfers: dict[str, Any]) -> dict[str, Any]:
    return {"type": "snapshot", "seq": 1, "transfers": list(transfers), "totals": {"rate": 5}}


def event(kind: str, transfer: dict[str, Any]) -> dict[str, Any]:
    states = {"started": "running", "stalled": "running"}
    return {"type": "event", "seq": 2, "kind": kind, "transfer": transfer | {"state": states.get(kind, kind)}}


class Socket:
    """The gateway's side of an accepted WebSocket."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.protocol = wsproto.WSConnection(wsproto.ConnectionType.SERVER)
        self._events: list[Any] = []

    async def accept(self, subprotocol: str | None = "visor.progress.v1") -> events.Request:
        request = await self.next()
        assert isinstance(request, events.Request)
        await self.send(events.AcceptConnection(subprotocol=subprotocol))
        return request

    async def next(self) -> Any:
        while not self._events:
            self.protocol.receive_data(await self._connection.stream.receive())
            self._events.extend(self.protocol.events())
        return self._events.pop(0)

    async def send(self, event: events.Event) -> None:
        await self._connection.raw(self.protocol.send(event))

    async def raw(self, data: bytes) -> None:
        await self._connection.raw(data)

    async def say(self, *messages: dict[str, Any]) -> None:
        for message in messages:
            await self.send(events.TextMessage(data=json.dumps(message)))


def socket(*messages: dict[str, Any], then: Callable[[Socket], Awaitable[None]] | None = None) -> Script:
    """Accept, send messages, then close as a WebSocket does, or do what is said."""

    async def script(connection: Connection) -> None:
        accepted = Socket(connection)
        await accepted.accept()
        await accepted.say(*messages)
        if then is not None:
            await then(accepted)
            return
        await accepted.send(events.CloseConnection(code=1000))
        assert isinstance(await accepted.next(), events.CloseConnection)

    return script


async def hang_up(accepted: Socket) -> None:
    """End without a goodbye."""


async def stay(accepted: Socket) -> None:
    """Say nothing more until the client leaves."""
    event = await accepted.next()
    assert isinstance(event, events.CloseConnection)
    await accepted.send(event.response())


@on_both_backends
async def test_messages_come_in_order_and_bye_tells_why_it_ended() -> None:
    async with talking(socket(HELLO, snapshot(TRANSFER), BYE)) as (_, client), client.watch() as channel:
        assert [message["type"] async for message in channel] == ["hello", "snapshot", "bye"]
        assert channel.bye == "drain"


@on_both_backends
async def test_the_channel_goes_over_tls() -> None:
    authority, serving = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(serving)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    async with (
        gateway(socket(HELLO, then=stay), tls=serving) as fake,
        Client(fake.url, tls=trusting) as client,
        client.watch() as channel,
    ):
        assert (await anext(channel))["type"] == "hello"


@on_both_backends
async def test_the_upgrade_is_signed_and_names_the_protocol() -> None:
    requests: list[events.Request] = []

    async def script(connection: Connection) -> None:
        accepted = Socket(connection)
        requests.append(await accepted.accept())

    async with talking(script, credentials=KeyPair("foo", "s3cret")) as (fake, client), client.watch():
        pass
    headers = dict(requests[0].extra_headers)
    assert requests[0].target == "/transfers/ws"
    assert requests[0].host == fake.url.removeprefix("http://")
    assert requests[0].subprotocols == ["visor.progress.v1"]
    assert headers[b"authorization"].startswith(b"VISOR-HMAC-SHA256 foo:")
    assert b"origin" not in headers


@on_both_backends
async def test_a_refused_upgrade_is_the_refusal() -> None:
    script = refusing(403, b'{"code": 403, "message": "Access denied."}')
    async with talking(script) as (_, client):
        with pytest.raises(Forbidden, match="Access denied"):
            async with client.watch():
                pytest.fail("It was refused")


@on_both_backends
async def test_a_server_that_speaks_something_else_is_refused() -> None:
    async def other(connection: Connection) -> None:
        await Socket(connection).accept(subprotocol=None)

    async def babble(connection: Connection) -> None:
        await connection.raw(b"220 ready\r\n\r\n")

    async def forge(connection: Connection) -> None:
        await connection.head()
        await connection.begin(101, upgrade="websocket", connection="upgrade", sec_websocket_accept="forged")

    async with talking(other, babble, forge) as (_, client):
        for _ in range(3):
            with pytest.raises(ProtocolViolation):
                async with client.watch():
                    pytest.fail("It is no live channel")


@on_both_backends
async def test_trio_websocket_speaks_under_trio_and_wsproto_under_asyncio(monkeypatch: pytest.MonkeyPatch) -> None:
    spoken: list[str] = []

    def spied(module: Any, name: str, library: str) -> None:
        original = getattr(module, name)

        def spy(*args: Any, **options: Any) -> Any:
            spoken.append(library)
            return original(*args, **options)

        monkeypatch.setattr(module, name, spy)

    spied(trio_websocket, "wrap_client_stream", "trio-websocket")
    spied(websocket_anyio, "AnyioSocket", "wsproto")
    async with talking(socket(HELLO, then=stay)) as (_, client), client.watch() as channel:
        assert (await anext(channel))["type"] == "hello"
    assert spoken == [{"trio": "trio-websocket", "asyncio": "wsproto"}[sniffio.current_async_library()]]


@on_both_backends
async def test_a_connection_that_ends_before_it_is_upgraded_is_broken_at_once() -> None:
    async def leave(connection: Connection) -> None:
        await connection.head()

    async def cut(connection: Connection) -> None:
        await connection.head()
        await connection.reset()

    async def begin(connection: Connection) -> None:
        await connection.head()
        await connection.begin(403, content_length="100")
        await connection.raw(b"{")

    async with talking(leave, cut, begin) as (_, client):
        for _ in range(3):
            with anyio.fail_after(60), pytest.raises(ConnectionBroken):
                async with client.watch():
                    pytest.fail("It was never open")


@on_both_backends
async def test_a_gateway_that_does_not_answer_is_not_waited_for_longer_than_was_said() -> None:
    async def mute(connection: Connection) -> None:
        await anyio.sleep_forever()

    async with talking(mute, timing=Timing(answer=0.1)) as (_, client):
        with pytest.raises(ConnectionBroken, match="does not answer"):
            async with client.watch():
                pytest.fail("It was never open")


@on_both_backends
async def test_leaving_says_goodbye_also_to_a_gateway_that_talks_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[Any] = []
    # trio-websocket gives up where a ping crosses its goodbye, and does not say so.
    monkeypatch.setattr(websocket_trio, "GOODBYE_SECONDS", 0.1)

    async def crosses(accepted: Socket) -> None:
        heard.append(await accepted.next())
        # Sent before the gateway heard of the goodbye, as far as the client can tell.
        await accepted.raw(b"\x89\x04ping" + b"\x81\x02{}" * 3)
        await accepted.send(heard[0].response())

    async with talking(socket(then=crosses)) as (_, client), client.watch():
        pass
    assert [type(event) for event in heard] == [events.CloseConnection]


@on_both_backends
async def test_what_callers_raise_comes_out_as_it_is() -> None:
    mistake = ZeroDivisionError()

    async def fails(client: Client) -> None:
        async with client.watch() as channel:
            await anext(channel)
            raise mistake

    async with talking(socket(HELLO, then=stay)) as (_, client):
        with pytest.raises(ZeroDivisionError) as caught:
            await fails(client)
    assert caught.value is mistake
    assert mistake.__context__ is None


@on_both_backends
async def test_a_watcher_that_is_cancelled_leaves_no_connection() -> None:
    left = anyio.Event()

    async def notice(accepted: Socket) -> None:
        with suppress(anyio.EndOfStream, anyio.BrokenResourceError):
            while True:
                await accepted.next()
        left.set()

    async with talking(socket(HELLO, then=notice)) as (_, client):
        began = anyio.current_time()
        with anyio.CancelScope() as scope:
            async with client.watch() as channel:
                async for _ in channel:
                    scope.cancel()
        assert scope.cancelled_caught
        assert anyio.current_time() < began + GOODBYE_SECONDS
        await left.wait()


@on_both_backends
async def test_an_end_without_goodbye_is_a_broken_connection() -> None:
    async with talking(socket(HELLO, then=hang_up)) as (_, client), client.watch() as channel:
        assert (await anext(channel))["type"] == "hello"
        with pytest.raises(ConnectionBroken):
            await anext(channel)


@on_both_backends
async def test_silence_longer_than_the_heartbeat_is_a_broken_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("visor_gateway.client.live.SILENCE_SECONDS", 0.1)
    async with talking(socket(then=stay)) as (_, client), client.watch() as channel:
        with pytest.raises(ConnectionBroken):
            await anext(channel)


@on_both_backends
async def test_pings_are_answered_and_fragments_put_together() -> None:
    pongs: list[Any] = []

    async def pings(accepted: Socket) -> None:
        await accepted.send(events.Ping(payload=b"x"))
        await accepted.send(events.TextMessage(data='{"type": "heart', message_finished=False))
        pongs.append(await accepted.next())
        await accepted.send(events.TextMessage(data='beat"}'))
        await stay(accepted)

    async with talking(socket(then=pings)) as (_, client), client.watch() as channel:
        assert await anext(channel) == {"type": "heartbeat"}
    assert isinstance(pongs[0], events.Pong)


@pytest.mark.parametrize(
    "frame",
    [
        b"\x81\x02[]",
        b"\x81\x01{",
        b"\x82\x02{}",  # binary
        b"\x81\x02\xff\xff",  # text that is not UTF-8
        b"\xf1\x02{}",  # bits that nobody agreed on
        b"\x81\x82\0\0\0\0{}",  # masked, as only clients do
        b"\x81\x09" + b'{"a":"bc"}'[:9],  # longer than the limit below
    ],
)
@on_both_backends
async def test_what_is_no_message_is_told(frame: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (websocket_anyio, websocket_trio):
        monkeypatch.setattr(module, "MESSAGE_LIMIT", 8)

    async def babbles(accepted: Socket) -> None:
        await accepted.raw(frame)
        with suppress(anyio.EndOfStream, wsproto.utilities.LocalProtocolError):
            await accepted.next()

    async with talking(socket(then=babbles)) as (_, client), client.watch() as channel:
        with pytest.raises(ProtocolViolation):
            await anext(channel)


@on_both_backends
async def test_a_subscription_that_can_not_be_sent_is_a_broken_connection() -> None:
    async with talking(socket(HELLO)) as (_, client), client.watch() as channel:
        assert [message["type"] async for message in channel] == ["hello"]
        with pytest.raises(ConnectionBroken):
            await channel.subscribe(hz=1)


@on_both_backends
async def test_a_subscription_is_sent() -> None:
    heard: list[Any] = []

    async def hears(accepted: Socket) -> None:
        heard.append(json.loads((await accepted.next()).data))
        await accepted.say(HELLO)

    async with talking(socket(then=hears)) as (_, client), client.watch() as channel:
        await channel.subscribe(only={"kind": "pull"}, hz=1)
        await anext(channel)
    assert heard == [{"type": "subscribe", "filter": {"kind": "pull"}, "hz": 1}]


def test_a_view_adds_up_what_was_told() -> None:
    view = TransferView()
    view.apply(snapshot(TRANSFER, OTHER, TRANSFER | {"id": "old", "state": "finished"}))
    assert list(view.transfers) == ["t", "o"]
    assert view.totals == {"rate": 5}
    view.apply({"type": "delta", "seq": 2, "u": [["t", 7, 3, 1.0, "running", {}], ["unknown", 1]], "removed": ["o"]})
    assert (view.transfers["t"]["bytes"], view.transfers["t"]["rate"]) == (7, 3)
    assert list(view.transfers) == ["t"]
    view.apply(event("started", OTHER))
    view.apply(event("finished", TRANSFER))
    view.apply({"type": "something new"})
    assert list(view.transfers) == ["o"]


# --- what `visor watch` makes of it ---


class Shown(list[Message]):
    def __call__(self, message: Message, view: TransferView) -> None:
        self.append(message)


@pytest.mark.parametrize(("kind", "code"), [("finished", 0), ("failed", 1), ("cancelled", 1)])
@on_both_backends
async def test_the_outcome_of_one_transfer_is_the_exit_code(kind: str, code: int) -> None:
    shown = Shown()
    messages = [HELLO, snapshot(TRANSFER, OTHER), event("finished", OTHER), event(kind, TRANSFER)]
    async with talking(socket(*messages, then=stay)) as (_, client):
        assert await Following(client, "t", {}, shown).run() == code
    assert [message["type"] for message in shown] == ["snapshot", "event"]
    assert shown[0]["transfers"] == [TRANSFER]


@on_both_backends
async def test_a_transfer_that_ended_before_is_told_from_the_listing() -> None:
    listed = refusing(200, json.dumps({"transfer": TRANSFER | {"state": "failed"}}).encode())
    async with talking(socket(HELLO, snapshot(), then=stay), listed, listed) as (_, client):
        assert await Following(client, "t", {}, Shown()).run() == 1


@on_both_backends
async def test_an_image_is_followed_until_the_last_of_its_transfers_has_ended() -> None:
    second = TRANSFER | {"id": "t2"}
    messages = [
        HELLO,
        snapshot(OTHER),
        event("started", TRANSFER),
        event("started", second),
        event("failed", TRANSFER),
        {
            "type": "delta",
            "seq": 5,
            "u": [["o", 1, 1, 1, "running", {}], ["t2", 9, 1, 1, "running", {}]],
            "removed": [],
        },
        event("finished", second),
    ]
    shown = Shown()
    scripts = socket(*messages, then=stay), refusing(404), refusing(200, b"", x_image_meta_name="x")
    async with talking(*scripts) as (_, client):
        assert await Following(client, "i", {}, shown).run() == 1
    assert [message["type"] for message in shown] == ["snapshot", *["event"] * 3, "delta", "event"]
    assert [update[0] for update in shown[4]["u"]] == ["t2"]


@on_both_backends
async def test_what_is_neither_image_nor_transfer_is_told() -> None:
    async with talking(socket(HELLO, snapshot(), then=stay), refusing(404), refusing(404)) as (_, client):
        with pytest.raises(NotFound, match="No image or transfer found with id 'nope'"):
            await Following(client, "nope", {}, Shown()).run()


@on_both_backends
async def test_a_lost_channel_is_opened_again_and_the_outcome_not_missed() -> None:
    listed = refusing(200, json.dumps({"transfer": TRANSFER | {"state": "finished"}}).encode())
    scripts = socket(HELLO, snapshot(TRANSFER), then=hang_up), socket(HELLO, snapshot(), then=stay), listed
    async with talking(*scripts) as (_, client):
        assert await Following(client, "t", {}, Shown(), pause=0).run() == 0


@on_both_backends
async def test_a_channel_that_hangs_up_at_once_is_not_opened_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("visor_gateway.cli.follow.TRIES", 2)
    scripts = [socket(HELLO, snapshot(TRANSFER), then=hang_up), *[socket(then=hang_up)] * 3]
    async with talking(*scripts) as (fake, client):
        with pytest.raises(ConnectionBroken):
            await Following(client, None, {}, Shown(), pause=0).run()
        assert fake.left == 0


@on_both_backends
async def test_credentials_that_end_meanwhile_end_the_watching() -> None:
    async with talking(socket(HELLO, {"type": "bye", "reason": "auth"})) as (_, client):
        with pytest.raises(VisorError, match="credentials"):
            await Following(client, None, {}, Shown(), pause=0).run()

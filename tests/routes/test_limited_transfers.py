"""Slots and rates over real sockets: who waits is told, who leaves is forgotten, and the kernel moves limited pulls."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import trio
import trio.testing
from gateway import OCTETS, RECORD, Gateway, running_gateway

from visor_gateway.metrics import Metrics
from visor_gateway.server.listen import Server, ServerSettings
from visor_gateway.transfer.limits import Rates
from visor_gateway.transfer.transfer import Transfer

DATA = os.urandom(6 << 20)
PATIENCE = 60.0  # seconds that a test waits for what must come


class Client:
    """One client with a small receive buffer, which reads as it likes."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.received = bytearray()

    async def ask(self, method: str, target: str, **headers: str) -> None:
        lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        await self.stream.send_all("\r\n".join([f"{method} {target} HTTP/1.1", "host: g", *lines, "", ""]).encode())

    async def head(self) -> str:
        """The next response head."""
        with trio.fail_after(PATIENCE):
            while b"\r\n\r\n" not in self.received:
                self.received += await self._some()
        head, _, rest = bytes(self.received).partition(b"\r\n\r\n")
        self.received = bytearray(rest)
        return head.decode().lower()

    async def answer(self) -> tuple[str, bytes]:
        """Head and body of an answer with a Content-Length."""
        head = await self.head()
        (length,) = [int(line[16:]) for line in head.split("\r\n") if line.startswith("content-length: ")]
        with trio.fail_after(PATIENCE):
            while len(self.received) < length:
                self.received += await self._some()
        body = bytes(self.received[:length])
        del self.received[:length]
        return head, body

    async def _some(self) -> bytes:
        data = await self.stream.receive_some(1 << 18)
        if not data:
            raise EOFError
        return bytes(data)


class Setting:
    """A gateway behind a real server."""

    def __init__(self, gateway: Gateway, server: Server) -> None:
        self.gateway = gateway
        self.server = server
        self.clients: list[Client] = []

    async def client(self) -> Client:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        sock.setblocking(False)
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        await stream.socket.connect(self.server.addresses[0])
        self.clients.append(Client(stream))
        return self.clients[-1]

    async def pull(self, image: dict[str, Any]) -> tuple[Client, str]:
        """A client that has asked for an image, and the id of its transfer."""
        client, id = await self.client(), str(uuid4())
        await client.ask("GET", f"/images/{image['_id']}", x_transfer_id=id)
        return client, id

    async def push(self, id: str, **headers: str) -> Client:
        """A client that has asked to send an image."""
        client = await self.client()
        token = {"authorization": f"Bearer {await self._token()}", "x_transfer_id": id}
        await client.ask("POST", "/images", **RECORD, **OCTETS, **token, **headers)
        return client

    async def _token(self) -> str:
        reply = await self.gateway.json("POST", "/users/admin/tokens", {"name": str(uuid4())})
        return str(reply.json()["token"]["token"])

    async def until(self, id: str, holds: Callable[[Transfer], bool]) -> Transfer:
        """The transfer, once something holds of it."""
        with trio.fail_after(PATIENCE):
            while (found := self.gateway.services.hub.find(id)) is None or not holds(found):
                await trio.lowlevel.checkpoint()
        return found

    async def shown(self, id: str) -> dict[str, Any]:
        """The transfer as `GET /transfers/{id}` shows it."""
        found: dict[str, Any] = (await self.gateway.call("GET", f"/transfers/{id}")).json()["transfer"]
        return found

    def watch(self) -> None:
        """Let the server look at its clients as if an hour had passed without anything."""
        now = trio.current_time()
        self.server.watch(now)
        self.server.watch(now + 3600)

    def sample(self, name: str) -> float | None:
        return self.gateway.services.metrics.registry.get_sample_value(name)


@asynccontextmanager
async def setting(tmp_path: Path, **limits: object) -> AsyncGenerator[Setting, None]:
    environ = {f"VISOR_GATEWAY__LIMITS__{name.upper()}": str(value) for name, value in limits.items()}
    environ["VISOR_GATEWAY__AUTH__ANONYMOUS_PULL"] = "true"
    async with running_gateway(tmp_path, environ=environ) as gateway, trio.open_nursery() as nursery:
        server = Server(gateway.app, ServerSettings(bind=("127.0.0.1:0",)), Metrics())
        await nursery.start(server.serve)
        made = Setting(gateway, server)
        try:
            yield made
        finally:
            for client in made.clients:
                client.stream.socket.close()
            nursery.cancel_scope.cancel()


def queued(transfer: Transfer) -> bool:
    return transfer.state == "queued"


def running(transfer: Transfer) -> bool:
    return transfer.state == "running" and transfer.meter.moved > 0


def ended(transfer: Transfer) -> bool:
    return transfer.ended.is_set()


# --- slots -------------------------------------------------------------------------------------------


async def test_with_one_slot_pulls_go_one_after_the_other_and_who_waits_is_told_where(tmp_path: Path) -> None:
    async with setting(tmp_path, transfers=1) as s:
        image = await s.gateway.add(DATA)
        first, first_id = await s.pull(image)
        await s.until(first_id, running)
        second, second_id = await s.pull(image)
        await s.until(second_id, queued)
        third, third_id = await s.pull(image)
        await s.until(third_id, queued)
        assert [(await s.shown(id)).get("position", 0) for id in (first_id, second_id, third_id)] == [0, 1, 2]
        assert (await s.shown(second_id))["state"] == "queued"
        assert (await s.gateway.call("GET", "/transfers?state=queued")).json()["totals"]["transfers"] == 2
        assert s.sample("visor_transfers_queued") == 2
        for client, id in ((first, first_id), (second, second_id), (third, third_id)):
            assert (await client.answer())[1] == DATA
            transfer = await s.until(id, ended)
            assert (transfer.state, transfer.position) == ("finished", None)
        assert s.sample("visor_transfers_queued") == 0


async def test_what_moves_no_image_bytes_never_waits(tmp_path: Path) -> None:
    async with setting(tmp_path, transfers=1) as s:
        image = await s.gateway.add(DATA)
        _, id = await s.pull(image)
        await s.until(id, running)
        client = await s.client()
        for method, target in (("HEAD", f"/images/{image['_id']}"), ("GET", "/images"), ("GET", "/status")):
            await client.ask(method, target)
            if method == "HEAD":
                assert " 200 " in (await client.head()).split("\r\n")[0]
            else:
                assert " 200 " in (await client.answer())[0].split("\r\n")[0]
        locked = await s.gateway.call("POST", "/images", RECORD)
        assert locked.status == 200


async def test_a_client_that_leaves_the_queue_gives_up_its_place_at_once(tmp_path: Path) -> None:
    async with setting(tmp_path, transfers=1) as s:
        image = await s.gateway.add(DATA)
        first, first_id = await s.pull(image)
        await s.until(first_id, running)
        leaving, leaving_id = await s.pull(image)
        await s.until(leaving_id, queued)
        staying, staying_id = await s.pull(image)
        await s.until(staying_id, queued)
        await leaving.stream.aclose()
        left = await s.until(leaving_id, ended)
        assert (left.state, left.meter.bytes) == ("failed", 0)
        assert (await s.shown(staying_id))["position"] == 1
        await first.answer()
        assert (await staying.answer())[1] == DATA


async def test_a_queued_transfer_can_be_cancelled(tmp_path: Path) -> None:
    async with setting(tmp_path, transfers=1) as s:
        image = await s.gateway.add(DATA)
        first, first_id = await s.pull(image)
        await s.until(first_id, running)
        client, id = await s.pull(image)
        await s.until(id, queued)
        reply = await s.gateway.call("DELETE", f"/transfers/{id}")
        assert reply.status == 200
        assert reply.json()["transfer"]["state"] == "cancelled"
        with pytest.raises((OSError, trio.BrokenResourceError, EOFError)):
            await client.head()
        assert (await first.answer())[1] == DATA


async def test_a_full_queue_is_a_503_and_nothing_is_stored(tmp_path: Path) -> None:
    async with setting(tmp_path, transfers=1, queue_limit=0) as s:
        image = await s.gateway.add(DATA)
        first, first_id = await s.pull(image)
        await s.until(first_id, running)
        second, _ = await s.pull(image)
        head, body = await second.answer()
        assert " 503 " in head.split("\r\n")[0]
        assert "retry-after: 5" in head
        assert b"too many transfers" in body
        locked = (await s.gateway.call("POST", "/images", RECORD)).json()["image"]
        before = (await s.gateway.call("GET", "/images/detail")).body
        for method, target in (("POST", "/images"), ("PUT", f"/images/{locked['_id']}")):
            headers = {**RECORD, **OCTETS, "x-image-meta-name": "another"}
            reply = await s.gateway.call(method, target, headers, b"bytes", client="192.0.2.9")
            assert (reply.status, reply.headers["retry-after"]) == (503, "5")
        assert (await s.gateway.call("GET", "/images/detail")).body == before
        assert s.sample("visor_transfers_refused_total") == 3
        assert (await first.answer())[1] == DATA


async def test_a_push_is_asked_for_its_body_only_when_it_has_its_slot(tmp_path: Path) -> None:
    async with setting(tmp_path, transfers=1) as s:
        image = await s.gateway.add(DATA)
        first, first_id = await s.pull(image)
        await s.until(first_id, running)
        id = str(uuid4())
        client = await s.push(id, content_length="5", expect="100-continue")
        await s.until(id, queued)
        assert len((await s.gateway.call("GET", "/images")).json()["images"]) == 1
        with trio.move_on_after(0.05) as waited:
            await client.head()
        assert waited.cancelled_caught
        await first.answer()
        assert " 100 " in await client.head()
        await client.stream.send_all(b"bytes")
        head, body = await client.answer()
        assert " 200 " in head.split("\r\n")[0]
        assert b'"size":5' in body


async def test_a_queued_push_whose_client_leaves_stores_nothing(tmp_path: Path) -> None:
    async with setting(tmp_path, transfers=1) as s:
        image = await s.gateway.add(DATA)
        first, first_id = await s.pull(image)
        await s.until(first_id, running)
        id = str(uuid4())
        client = await s.push(id, transfer_encoding="chunked")
        await client.stream.send_all(b"5\r\nbytes\r\n")  # what lies unread does not hide the end
        await s.until(id, queued)
        await client.stream.aclose()
        assert (await s.until(id, ended)).state == "failed"
        assert len((await s.gateway.call("GET", "/images")).json()["images"]) == 1
        assert (await first.answer())[1] == DATA


async def test_watchers_hear_that_a_transfer_waits_and_that_it_runs(tmp_path: Path) -> None:
    async with setting(tmp_path, transfers=1) as s:
        image = await s.gateway.add(DATA)
        told: list[tuple[str, str]] = []
        publish = s.gateway.services.hub.publish

        def listening(kind: Any, transfer: Transfer) -> None:
            if transfer.id == second_id:
                told.append((kind, transfer.state))
            publish(kind, transfer)

        s.gateway.services.hub.publish = listening  # type: ignore[method-assign]
        second_id = ""
        first, first_id = await s.pull(image)
        await s.until(first_id, running)
        second, second_id = await s.pull(image)
        await s.until(second_id, queued)
        await first.answer()
        await second.answer()
        await s.until(second_id, ended)
        assert told == [("started", "queued"), ("resumed", "running"), ("finished", "finished")]


async def test_a_drain_serves_the_queue_first(tmp_path: Path) -> None:
    async with setting(tmp_path, transfers=1) as s:
        image = await s.gateway.add(DATA)
        pulls = []
        for holds in (running, queued, queued):
            client, id = await s.pull(image)
            await s.until(id, holds)
            pulls.append(client)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(s.server.drain, PATIENCE)
            for client in pulls:
                head, body = await client.answer()
                assert body == DATA
                assert "connection: close" in head or client is pulls[0]  # whose head was out before
                await client.stream.aclose()


async def test_who_waits_for_a_slot_has_not_stalled(tmp_path: Path) -> None:
    async with setting(tmp_path, transfers=1) as s, trio.open_nursery() as nursery:
        image = await s.gateway.add(DATA)
        go_on = trio.Event()

        async def hold(transfer: Transfer) -> None:
            await go_on.wait()

        nursery.start_soon(s.gateway.services.engine.run, holder(image["_id"]), hold)
        await trio.testing.wait_all_tasks_blocked()
        puller, pull_id = await s.pull(image)
        push_id = str(uuid4())
        pusher = await s.push(push_id, content_length="5")
        await pusher.stream.send_all(b"by")
        for id in (pull_id, push_id):
            await s.until(id, queued)
        s.watch()
        go_on.set()
        assert (await puller.answer())[1] == DATA
        await pusher.stream.send_all(b"tes")
        assert " 200 " in (await pusher.answer())[0].split("\r\n")[0]


def holder(image: str) -> Transfer:
    """A transfer that takes a slot."""
    return Transfer(
        id=str(uuid4()), kind="pull", image=image, store="file", client="192.0.2.3", user="holder", size=None
    )


# --- rates -------------------------------------------------------------------------------------------


async def test_a_limited_pull_is_paced_and_whole_and_moved_by_the_kernel(tmp_path: Path, sent: list[int]) -> None:
    rate = 8 << 20
    async with setting(tmp_path, bytes_per_s_per_transfer=rate) as s:
        s.gateway.services.engine._rates.limit(0)
        image = await s.gateway.add(DATA)
        began = trio.current_time()
        client, id = await s.pull(image)
        assert (await client.answer())[1] == DATA
        took = trio.current_time() - began
        transfer = await s.until(id, ended)
    assert took >= len(DATA) / rate - 0.25
    assert sum(sent) > len(DATA) * 0.9
    assert transfer.limit_bytes_per_s == rate
    assert transfer.shown()["limit_bytes_per_s"] == rate
    assert transfer.meter.waited["limit"] > 250


async def test_a_client_that_waits_for_a_limit_has_not_stalled(tmp_path: Path) -> None:
    now = 0.0
    async with setting(tmp_path) as s:
        image = await s.gateway.add(DATA)
        s.gateway.services.engine._rates = Rates(1 << 20, now=lambda: now)
        client, id = await s.pull(image)
        await client.head()
        with trio.fail_after(PATIENCE):
            while len(client.received) < 128 << 10:
                client.received += await client.stream.receive_some(1 << 18)
        # The client has taken all there is, and nothing more comes while the limiter's clock stands still.
        await s.until(id, lambda t: t.meter.unacknowledged() == 0 and t.meter.bytes <= 256 << 10)
        s.watch()
        now = 1000.0
        s.gateway.services.engine._rates.limit(0)
        with trio.fail_after(PATIENCE):
            while len(client.received) < len(DATA):
                client.received += await client.stream.receive_some(1 << 18)
        assert bytes(client.received) == DATA


async def test_a_limited_push_is_paced_and_whole(tmp_path: Path) -> None:
    rate = 8 << 20
    async with setting(tmp_path, bytes_per_s=rate) as s:
        id = str(uuid4())
        client = await s.push(id, content_length=str(len(DATA)))
        began = trio.current_time()
        await client.stream.send_all(DATA)
        head, body = await client.answer()
        took = trio.current_time() - began
        assert " 200 " in head.split("\r\n")[0]
        assert f'"size":{len(DATA)}'.encode() in body
        transfer = await s.until(id, ended)
    assert took >= len(DATA) / rate - 0.25
    assert transfer.meter.waited["limit"] > 250

"""Pulls over real sockets: the kernel moves the bytes; framing, progress, cancellation and cuts stay as they were."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from uuid import uuid4

import pytest
import trio
from gateway import Gateway, running_gateway
from pulling_client import connecting

from visor_gateway.routes.delivery import LAST_BLOCK
from visor_gateway.transfer.transfer import Transfer

DATA = os.urandom(24 << 20)


class Pull:
    """One client with a small receive buffer that reads as it likes."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.received = bytearray()

    async def ask(self, target: str, **headers: str) -> None:
        lines = [
            f"GET {target} HTTP/1.1",
            "host: gateway.test",
            *(f"{k.replace('_', '-')}: {v}" for k, v in headers.items()),
        ]
        await self.stream.send_all("\r\n".join([*lines, "", ""]).encode())

    async def read(self, enough: Callable[[bytes], bool]) -> bytes:
        while not enough(bytes(self.received[-4096:]) if len(self.received) > 4096 else bytes(self.received)):
            data = await self.stream.receive_some(1 << 16)
            if not data:
                break
            self.received += data
        return bytes(self.received)

    async def answer(self) -> tuple[bytes, bytes]:
        """Head and body of one answer with a Content-Length."""
        while b"\r\n\r\n" not in self.received:
            self.received += await self.stream.receive_some(1 << 16)
        head, _, _ = bytes(self.received).partition(b"\r\n\r\n")
        length = next(int(line[16:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length: "))
        end = len(head) + 4 + length
        while len(self.received) < end:
            data = await self.stream.receive_some(1 << 18)
            if not data:
                raise EOFError
            self.received += data
        body = bytes(self.received[len(head) + 4 : end])
        del self.received[:end]
        return head, body


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncGenerator[Gateway, None]:
    environ = {"VISOR_GATEWAY__AUTH__ANONYMOUS_PULL": "true"}
    async with running_gateway(tmp_path, environ=environ) as running:
        yield running


@pytest.fixture
async def connect(gateway: Gateway) -> AsyncGenerator[Callable[[], object], None]:
    async with connecting(gateway, Pull) as opened:
        yield opened


def transfer_of(gateway: Gateway, id: str) -> Transfer:
    found = gateway.services.hub.find(id)
    assert found is not None
    return found


async def under_way(gateway: Gateway, id: str) -> Transfer:
    """The transfer, once its client has something and its socket is full."""
    with trio.fail_after(60):
        while (found := gateway.services.hub.find(id)) is None or not found.meter.bytes:
            await trio.lowlevel.checkpoint()
    return found


async def test_the_kernel_moves_a_large_image_and_the_connection_lives_on(gateway, connect, sent: list[int]) -> None:
    image = await gateway.add(DATA)
    client = await connect()
    for begin, length in ((0, len(DATA)), (5, len(DATA) - 10)):
        await client.ask(f"/images/{image['_id']}", range=f"bytes={begin}-{begin + length - 1}")
        _, body = await client.answer()
        assert body == DATA[begin : begin + length]
    # All but the last blocks, which wait until the file is known to be unchanged.
    assert sum(sent) == 2 * len(DATA) - 10 - 2 * LAST_BLOCK
    await client.ask("/status")
    assert (await client.answer())[1] == b"OK"


async def test_a_small_image_is_not_worth_a_pump(gateway, connect, sent: list[int]) -> None:
    image = await gateway.add(DATA[:100_000])
    client = await connect()
    await client.ask(f"/images/{image['_id']}")
    assert (await client.answer())[1] == DATA[:100_000]
    assert sent == []


async def test_a_client_that_reads_nothing_is_seen_waiting_and_can_be_cut(gateway, connect) -> None:
    image = await gateway.add(DATA)
    client, id = await connect(), str(uuid4())
    await client.ask(f"/images/{image['_id']}", x_transfer_id=id)
    transfer = await under_way(gateway, id)
    transfer.meter.sample()
    assert 0 < transfer.meter.bytes < 4 << 20
    transfer.cancel("request")
    with pytest.raises(trio.BrokenResourceError) as caught:
        await client.read(lambda _: False)
    assert isinstance(caught.value.__cause__, ConnectionResetError)
    with trio.fail_after(60):
        await transfer.ended.wait()
    assert transfer.state == "cancelled"
    # Not one byte is counted that the client's kernel did not take.
    assert transfer.meter.bytes <= len(client.received) + (1 << 18)
    assert transfer.meter.bytes < len(DATA)


async def test_a_client_that_leaves_ends_its_transfer_as_failed(gateway, connect) -> None:
    image = await gateway.add(DATA)
    client, id = await connect(), str(uuid4())
    await client.ask(f"/images/{image['_id']}", x_transfer_id=id)
    transfer = await under_way(gateway, id)
    client.stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await client.stream.aclose()
    with trio.fail_after(60):
        await transfer.ended.wait()
    assert (transfer.state, transfer.error) == ("failed", "the client is gone or takes nothing")
    assert transfer.meter.bytes < len(DATA)


async def test_a_file_that_shrinks_under_a_pull_ends_in_a_reset(gateway, connect) -> None:
    image = await gateway.add(DATA)
    client, id = await connect(), str(uuid4())
    await client.ask(f"/images/{image['_id']}", x_transfer_id=id)
    transfer = await under_way(gateway, id)
    (file,) = gateway.files()
    os.truncate(file, 20 << 20)
    with pytest.raises(trio.BrokenResourceError):
        await client.read(lambda _: False)
    with trio.fail_after(60):
        await transfer.ended.wait()
    assert (transfer.state, len(client.received) < len(DATA)) == ("failed", True)


async def test_a_pull_outlives_the_delete_of_its_image(gateway, connect) -> None:
    image = await gateway.add(DATA)
    client, id = await connect(), str(uuid4())
    await client.ask(f"/images/{image['_id']}", x_transfer_id=id)
    await under_way(gateway, id)
    assert (await gateway.call("DELETE", f"/images/{image['_id']}")).status == 200
    assert gateway.files() == []
    assert (await client.answer())[1] == DATA


async def test_fifty_clients_that_read_nothing_hold_no_other_up(gateway, connect) -> None:
    image = await gateway.add(DATA)
    stalled = [await connect() for _ in range(50)]
    for client in stalled:
        await client.ask(f"/images/{image['_id']}")
    with trio.fail_after(60):
        while len(gateway.services.hub.live()) < 50:
            await trio.lowlevel.checkpoint()
    client = await connect()
    await client.ask(f"/images/{image['_id']}")
    assert (await client.answer())[1] == DATA
    assert len(gateway.services.hub.live()) >= 50

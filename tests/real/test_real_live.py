"""The live channel of the real daemon beside other programs: nginx before it, a page of another site, metrics."""

from __future__ import annotations

import contextlib
import json
import re
import select
import socket
import time
import uuid
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from gateway_process import Gateway, running
from servers import nginx
from wire import Client, Wire, eventually, store_image, upgrade_headers

from benchmarks.crowd import Subscriber


@contextmanager
def streaming(client: Client) -> Generator[Wire]:
    with client.start("GET", "/transfers/events") as wire:
        head = wire.read_head()
        assert (head.status, head.header("content-type")) == (200, "text/event-stream")
        yield wire


def next_message(wire: Wire, wanted: str) -> dict:
    while True:
        found = re.search(rb"data: (.*)\n\n", wire.read_through(b"\n\n"))
        assert found
        message: dict = json.loads(found[1])
        if message["type"] == wanted:
            return message


def test_events_pass_nginx_with_its_default_settings_at_once(gateway: Gateway, tmp_path: Path) -> None:
    with nginx.start(tmp_path, more=f"location / {{ proxy_pass {gateway.url}; }}") as proxy:
        through = Client(proxy.url, gateway.access_key, gateway.secret_key)
        with streaming(through) as wire:
            next_message(wire, "snapshot")
            image = store_image(gateway.admin)
            while next_message(wire, "event")["transfer"]["image"] != image.id:
                pass
            transfer_id = gateway.admin.get(image.path).header("x-transfer-id")
            while next_message(wire, "event")["transfer"]["id"] != transfer_id:
                pass


def test_a_page_of_another_site_gets_nothing(gateway: Gateway) -> None:
    origin = ("Origin", "http://evil.example")
    preflight = gateway.client().request(
        "OPTIONS",
        "/transfers/events",
        [origin, ("Access-Control-Request-Method", "GET"), ("Access-Control-Request-Headers", "authorization")],
    )
    assert preflight.status in (403, 404, 405)
    answers = [preflight, gateway.client().get("/transfers/events", origin), gateway.admin.get("/transfers", origin)]
    assert not [name for answer in answers for name, _ in answer.headers if name.startswith("access-control")]
    assert answers[1].status == 403


def test_a_stream_of_events_is_counted_and_is_no_slow_request(start: Callable[..., Gateway]) -> None:
    gateway = start()

    def untimed() -> float:
        text = gateway.admin.get("/metrics").body.decode()
        counted = re.findall(r'^visor_http_requests_total\{method="GET",.*\} (\S+)$', text, re.MULTILINE)
        timed = re.findall(r'^visor_http_request_duration_seconds_count\{method="GET"\} (\S+)$', text, re.MULTILINE)
        return sum(map(float, counted)) - sum(map(float, timed))

    assert untimed() == 0
    with streaming(gateway.admin) as wire:
        next_message(wire, "snapshot")
    eventually(lambda: untimed() == 1, what="a stream that is counted and not timed")


# --- many transfers, many subscribers ------------------------------------------------------------

PULLS = 120
SUBSCRIBERS = 6


@pytest.fixture(scope="module", params=[1, 2], ids=["one", "two"])
def gateway_of(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Generator[Gateway]:
    """A gateway of one process, and one of two workers."""
    config = f"[server]\nworkers = {request.param}\n"
    with running(tmp_path_factory.mktemp("live"), config=config) as gateway:
        yield gateway


def token_of(gateway: Gateway) -> str:
    made = gateway.admin.send_json("POST", "/users/admin/tokens", {"token": {"name": "crowd"}}).json()
    return str(made["token"]["token"])


def until(crowd: Sequence[Subscriber], holds: Callable[[], object]) -> None:
    """Wait, and read meanwhile what comes to all of them: who answers no ping is closed."""

    def look() -> object:
        assert all([each.read() for each in crowd])
        return holds()

    eventually(look)


def test_every_end_is_told_to_all_once_and_in_order_though_connections_break(gateway_of: Gateway) -> None:
    """Each subscriber but the first breaks its connection again and again, and resumes."""
    image, port = store_image(gateway_of.admin), int(gateway_of.url.rpartition(":")[2])
    token = token_of(gateway_of)
    crowd = [Subscriber(port, token) for _ in range(SUBSCRIBERS)]
    ids = [str(uuid.uuid4()) for _ in range(PULLS)]
    until(crowd, lambda: all(each.seen["snapshot"] for each in crowd))
    for number, id in enumerate(ids):
        assert gateway_of.admin.get(image.path, ("X-Transfer-Id", id)).status == 200
        one = crowd[number % SUBSCRIBERS]
        if one is not crowd[0] and number % 4 == 0:
            before = one.seen["snapshot"]
            one.come_back()
            until(crowd, lambda one=one, before=before: one.seen["snapshot"] > before)
    until(crowd, lambda: all(set(ids) <= set(each.record.ends) and not each.record.live for each in crowd))
    for each in crowd:
        ends = [id for id in each.record.ends if id in set(ids)]
        assert len(ends) == PULLS
        assert (each.record.again, each.record.disorder, each.record.gaps) == (0, 0, 0)
        each.sock.close()
    # A pull may end a moment after its client has the last byte, so the order is the gateway's and not that of `ids`.
    whole = [id for id in crowd[0].record.ends if id in set(ids)]
    assert sorted(whole) == sorted(ids)
    assert sum(each.record.cuts for each in crowd) >= PULLS // 8


def test_who_stops_reading_is_reset_and_costs_others_nothing(tmp_path: Path) -> None:
    """Both kinds of stream, of workers. `tests/server` has the same of one process, without the wait."""
    with running(tmp_path, config="[server]\nworkers = 2\n") as gateway, contextlib.ExitStack() as stack:
        image, token = store_image(gateway.admin), token_of(gateway)
        stopped = [
            stack.enter_context(gateway.admin.start("GET", target, more, receive_buffer=2048))
            for target, more in (("/transfers/ws", upgrade_headers()), ("/transfers/events", []))
        ]
        assert [wire.read_head().status for wire in stopped] == [101, 200]
        other, pulls = Subscriber(int(gateway.url.rpartition(":")[2]), token), 0
        deadline = time.monotonic() + 120
        while not all(has_been_reset(wire.sock) for wire in stopped):
            assert time.monotonic() < deadline
            assert gateway.admin.get(image.path).status == 200
            pulls += 1
            assert other.read()
        until([other], lambda: len(other.record.ends) >= pulls)
        assert other.record.gaps == 0
        other.sock.close()


def has_been_reset(sock: socket.socket) -> bool:
    """Whether the other end has sent a reset, without reading a byte."""
    with select.epoll() as poll:
        poll.register(sock, 0)
        return any(events & (select.EPOLLERR | select.EPOLLHUP) for _, events in poll.poll(0.05))

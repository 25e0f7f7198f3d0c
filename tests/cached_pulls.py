"""Pulls through the cache of a real daemon, and what it says of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from gateway_process import Gateway
from servers.nginx import Nginx
from wire import Client

CACHED = """
[auth]
anonymous_pull = true
[cache]
max_bytes = "1 GiB"
min_free = 0
[locations]
deny_private = false
"""
CONFIG = (
    CACHED
    + """
[server]
stall_timeout = 60
"""
)
MIB = 1 << 20


def refer(
    gateway: Gateway, origin: Nginx, data: bytes, name: str = "disk", *, url: str | None = None, **fields: str
) -> str:
    """A reference to an image of these bytes at the origin, which is reached at `url`. Returns its path."""
    (origin.files / name).write_bytes(data)
    answer = gateway.admin.add(
        store="http", location=f"{url or origin.url}/{name}", name=name, architecture="x86_64", **fields
    )
    assert answer.status == 200, answer.body
    return f"/images/{answer.json()['image']['_id']}"


def digest_of(
    client: Client,
    path: str,
    taken: Callable[[int], None] = lambda count: None,
    begun: Callable[[int], None] = lambda port: None,
) -> str:
    """The SHA-256 of a whole answer, which is read piece by piece. `begun` is told the client's port, with the head."""
    with client.start("GET", path) as wire:
        head = wire.read_head()
        assert head.status == 200, head.status
        begun(wire.sock.getsockname()[1])
        left, digest = int(head.header("content-length") or 0), hashlib.sha256()
        while left:
            piece = wire.read_exactly(min(left, 256 * 1024))
            digest.update(piece)
            left -= len(piece)
            taken(len(piece))
    return digest.hexdigest()


def pulls(gateway: Gateway, path: str, count: int) -> list[str]:
    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(lambda _: digest_of(gateway.client(), path), range(count)))


def hurry(gateway: Gateway, path: str) -> None:
    """Lift the limit of all that moves this image."""
    target = f"/transfers?image={path.rpartition('/')[2]}"
    assert gateway.admin.send_json("PATCH", target, {"limit_bytes_per_s": 1 << 30}).status == 200


def fills(gateway: Gateway) -> list[dict[str, object]]:
    found: list[dict[str, object]] = gateway.admin.get("/transfers?kind=fill").json()["transfers"]
    return found


def entries(gateway: Gateway) -> list[dict[str, object]]:
    found: list[dict[str, object]] = gateway.admin.get("/cache").json()["cache"]["entries"]
    return found

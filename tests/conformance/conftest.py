"""A gateway to hold to the wire contract: the one that `VISOR_URL` names, else a daemon of this session's own.

With `VISOR_URL` go `VISOR_ACCESS_KEY` and `VISOR_SECRET_KEY` of an admin. Tests that need a gateway with settings of
its own, or an empty one, always start a daemon.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from gateway_cluster import behind_haproxy
from gateway_process import Gateway, running
from origin_server import Origin
from wire import Client, Stored, store_image


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Through a proxy, leave out what is said of connections to the gateway itself, and pulls of `big` by clients who
    read nothing: what is between the two may hold all of it, and so end the transfer. Of several gateways, leave out
    what asks another one for a transfer that it need not know yet, or at all."""
    count = config.getoption("--haproxy")
    if not count:
        return
    left_out = [
        item
        for item in items
        if item.get_closest_marker("direct")
        or "big" in _fixtures(item)
        or (count > 1 and item.get_closest_marker("one_gateway"))
    ]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


def _fixtures(item: pytest.Item) -> Sequence[str]:
    return item.fixturenames if isinstance(item, pytest.Function) else ()


@pytest.fixture(scope="session")
def gateway(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """The gateway under test."""
    if url := os.environ.get("VISOR_URL"):
        yield Gateway(url.rstrip("/"), os.environ["VISOR_ACCESS_KEY"], os.environ["VISOR_SECRET_KEY"])
        return
    count = request.config.getoption("--haproxy")
    directory = tmp_path_factory.mktemp("gateway")
    with behind_haproxy(directory, count) if count > 1 else running(directory) as gateway:
        yield gateway


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Gateway]:
    """A gateway with nothing in it but its first user."""
    with running(tmp_path) as gateway:
        yield gateway


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Gateway]]:
    """Start gateways with settings of a test's own: `start(config)`."""
    with contextlib.ExitStack() as stack:
        count = 0

        def begin(config: str | None = None, **options: Any) -> Gateway:
            nonlocal count
            count += 1
            return stack.enter_context(running(tmp_path / str(count), config=config, **options))

        yield begin


@pytest.fixture(scope="session")
def origin() -> Iterator[Origin]:
    """An HTTP origin on loopback."""
    origin = Origin()
    yield origin
    origin.close()


@pytest.fixture(scope="session")
def locating(tmp_path_factory: pytest.TempPathFactory, origin: Origin) -> Iterator[Gateway]:
    """A gateway that may fetch from `origin`, and takes images of at most 1 MiB."""
    config = (
        f'[locations]\nallow_hosts = ["127.0.0.1:{origin.port}"]\n[server]\nmax_image_size = {1 << 20}\n'
        "[auth]\nanonymous_pull = true\n"
    )
    with running(tmp_path_factory.mktemp("locating"), config=config) as gateway:
        yield gateway


@pytest.fixture(scope="session")
def admin(gateway: Gateway) -> Client:
    return gateway.admin


@pytest.fixture(scope="session")
def anonymous(gateway: Gateway) -> Client:
    """Somebody without credentials."""
    return gateway.client()


@pytest.fixture(scope="session")
def make_user(gateway: Gateway) -> Callable[..., Client]:
    """Make an account on the shared gateway: `make_user("carol")`."""
    return gateway.new_user


@pytest.fixture(scope="session")
def alice(gateway: Gateway) -> Client:
    """A user."""
    return gateway.new_user("alice")


@pytest.fixture(scope="session")
def bob(gateway: Gateway) -> Client:
    """Another user."""
    return gateway.new_user("bob")


@pytest.fixture(scope="session")
def stored(alice: Client) -> Stored:
    """A public image of alice's with known bytes."""
    return store_image(alice)

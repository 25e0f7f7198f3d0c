"""A gateway that serves roles for other servers, and the peers that ask it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from canary import canary
from gateway_process import Gateway, reserve_port, running
from servers.recorded import Exchange
from wire import Client, Headers, Response, eventually

KEY = canary.secret("shared-key-")
PEER = "VISOR Image System - 10.0.0.1:4568"
TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \+0000")


class Role:
    """One role of a running gateway.

    Attributes:
        peer: Signs with the shared key.
        anybody: Sends no credentials.
        list, document: A path of a list, and what may be sent there, for tests of all roles alike.
    """

    def __init__(self, gateway: Gateway, port: int, scheme: str = "http", tls: Any = None) -> None:
        self.gateway = gateway
        self.url = f"{scheme}://127.0.0.1:{port}"
        self.peer = Client(self.url, "peer", KEY, tls=tls)
        self.anybody = Client(self.url, tls=tls)
        self.list = ""
        self.document: dict[str, Any] = {}


Start = Callable[..., Role]


@contextlib.contextmanager
def serving(directory: Path, role: str, settings: str | None = None, **options: Any) -> Generator[Role, None, None]:
    """A gateway with one role beside that of images. `settings` are those of the role; by default the shared key."""
    scheme = "https" if options.get("role_tls") is not None else "http"
    tls = options.pop("role_tls", None)
    with reserve_port() as reserved:
        port = reserved.getsockname()[1]
        own = f'shared_key = "{KEY}"' if settings is None else settings
        config = f'[server]\nroles = ["image", "{role}"]\n[{role}_server]\nbind = ["127.0.0.1:{port}"]\n{own}\n'
        with running(directory, config=config + options.pop("config", ""), **options) as gateway:
            yield Role(gateway, port, scheme, tls)


def bearer(key: str = KEY) -> tuple[str, str]:
    return "Authorization", f"Bearer {key}"


def recorded_headers(one: Exchange) -> Headers:
    """The headers of a recorded request, as an image server of 2012 sent them."""
    return [
        ("Content-Type", "application/json"),
        ("Accept", "application/json"),
        ("User-Agent", PEER),
        ("Connection", "close"),
    ]


def replay(client: Client, one: Exchange, identity: dict[str, str]) -> Response:
    """Send a recorded request. `identity` maps ids that were recorded to those of the gateway."""
    path = one.path
    for recorded, own in identity.items():
        path = path.replace(recorded, own)
    return client.request(one.method, path, recorded_headers(one), one.body or None)


def without_moments(document: Any) -> Any:
    """The document with every moment in VISOR's form replaced by a word: its form is compared, not its value."""
    if isinstance(document, dict):
        return {name: without_moments(value) for name, value in document.items()}
    if isinstance(document, list):
        return [without_moments(value) for value in document]
    return "MOMENT" if isinstance(document, str) and TIMESTAMP.fullmatch(document) else document


def logged(gateway: Gateway, text: str) -> None:
    """Wait until the log holds a text."""
    eventually(lambda: text in gateway.logged(), what=text)

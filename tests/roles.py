"""A gateway that serves roles for other servers, and the peers that ask it."""

from __future__ import annotations

import contextlib
import json
import re
import uuid
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from canary import canary
from gateway_process import Gateway, reserve_port, running
from servers.recorded import Exchange, exchange, exchanges
from wire import Client, Headers, Response, eventually

KEY = canary.secret("shared-key-")
CENTOS = "d12e6c03-f15c-4249-8b9a-b7390653ea94"  # the image of the recorded exchanges
PEER = "VISOR Image System - 10.0.0.1:4568"
TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \+0000")
SECRET = re.compile(r"[A-Za-z0-9]{40}")


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
        self.peer = Client(self.url, "peer", KEY, tls=tls, is_told_secrets=True)
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


def replay(client: Client, one: Exchange, identity: dict[str, str], *more: tuple[str, str]) -> Response:
    """Send a recorded request. `identity` maps ids that were recorded to those of the gateway."""
    path = one.path
    for recorded, own in identity.items():
        path = path.replace(recorded, own)
    return client.request(one.method, path, [*recorded_headers(one), *more], one.body or None)


def check_meta_exchanges(client: Client) -> None:
    """Every recorded request to a Meta server is answered as it was. The catalogue is empty before."""
    identity: dict[str, str] = {}
    for one in exchanges("Meta"):
        answer = replay(client, one, identity)
        expected = one.answer.decode()
        if one.name == "register":
            identity[CENTOS] = answer.image["_id"]
        for recorded, own in identity.items():
            expected = expected.replace(recorded, own)
        assert answer.status == one.status, one.name
        assert answer.header("content-type") == "application/json"
        found, wanted = answer.json(), json.loads(expected)
        if one.name == "invalid value":
            # The gateway knows more architectures.
            assert found["message"].startswith(wanted["message"])
            found["message"] = wanted["message"]
        assert without_moments(found) == without_moments(wanted), one.name
        assert _order(found) == _order(wanted), one.name


def check_auth_exchanges(client: Client, *more: tuple[str, str]) -> None:
    """Every recorded request to an Auth server is answered as it was. There is no user yet but the first one.

    Args:
        more: Headers that were not recorded.
    """
    foo = json.loads(exchange("Auth", "all users").answer)["users"][0]
    body = json.dumps({"user": {name: foo[name] for name in ("access_key", "email")}}).encode()
    assert client.request("POST", "/users", more, body).status == 200
    for one in exchanges("Auth"):
        answer = replay(client, one, {}, *more)
        assert answer.status == one.status, one.name
        assert answer.header("content-type") == "application/json"
        found, wanted = answer.json(), json.loads(one.answer)
        if one.name == "all users":
            found["users"] = [user for user in found["users"] if user["access_key"] != "admin"]
        assert without_moments(_without_secrets(found)) == without_moments(_without_secrets(wanted)), one.name
        assert _order(found) == _order(wanted), one.name


def _without_secrets(document: Any) -> Any:
    """The document with ids and secrets, which are random, replaced by words, if they have the right form."""
    if isinstance(document, list):
        return [_without_secrets(value) for value in document]
    if not isinstance(document, dict):
        return document
    shown = {name: _without_secrets(value) for name, value in document.items()}
    if SECRET.fullmatch(str(shown.get("secret_key"))):
        shown["secret_key"] = "SECRET"
    if "_id" in shown:
        shown["_id"] = str(uuid.UUID(shown["_id"]).version)
    return shown


def _order(document: Any) -> list[str]:
    """The names of the first object in it, in order: old clients show them so."""
    inner = next(iter(document.values()))
    inner = inner[0] if isinstance(inner, list) else inner
    return [*inner] if isinstance(inner, dict) else [*document]


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

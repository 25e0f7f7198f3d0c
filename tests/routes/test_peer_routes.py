"""What other gateways may ask, and that nobody else may."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from routes.gateway import Gateway

from visor_gateway.meta.contract import User
from visor_gateway.meta.gateways import PeerKeys
from visor_gateway.meta.master_key import MasterKey
from visor_gateway.routes.request import Peering
from visor_gateway.routes.routes import ROUTES
from visor_gateway.routes.table import Kind
from visor_gateway.transfer.foreign import ForeignTransfer, Told
from visor_gateway.transfer.hub import Hub
from visor_gateway.transfer.transfer import Transfer

STEER = "/peers/this/transfers"
ID = "6f8b2a1c-0000-4000-8000-000000000001"


def keys(tmp_path: Path) -> PeerKeys:
    master_key = MasterKey(tmp_path / "master.key")
    master_key.load()
    return PeerKeys(master_key)


@pytest.fixture
def peered(gateway: Gateway, tmp_path: Path) -> Gateway:
    """A gateway that shares its view under the name `this`."""
    gateway.app.revise(msgspec.structs.replace(gateway.services, peering=Peering("this", keys(tmp_path))))
    return gateway


@pytest.fixture
def neighbour(gateway: Gateway, tmp_path: Path) -> User:
    """What another gateway signs by."""
    access_key, secret = keys(tmp_path).own()
    return msgspec.structs.replace(gateway.admin, access_key=access_key, secret_key=secret)


@pytest.fixture
def transfer(peered: Gateway) -> Transfer:
    hub = peered.services.hub
    assert isinstance(hub, Hub)
    transfer = Transfer(id=ID, kind="pull", image="i", store="file", client=None, user="anne", size=None)
    hub.add(transfer)
    transfer.state = "running"
    return transfer


def wish(**fields: Any) -> dict[str, Any]:
    return {"access_key": "anne", "is_admin": False, "id": ID} | fields


async def test_another_gateway_steers_on_behalf_of_a_client(
    peered: Gateway, neighbour: User, transfer: Transfer
) -> None:
    reply = await peered.json("POST", STEER, wish(change={"paused": True, "limit_bytes_per_s": 7}), user=neighbour)
    assert reply.status == 200
    (shown,) = reply.json()["transfers"]
    assert (shown["id"], shown["state"], shown["limit_bytes_per_s"]) == (ID, "paused", 7)
    by_filter = wish(id=None, filters={"user": ["anne"]}, change={"paused": False})
    assert (await peered.json("POST", STEER, by_filter, user=neighbour)).json()["transfers"][0]["state"] == "running"


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        (wish(access_key="bob"), 404),
        (wish(id="unknown"), 404),
        (wish(change={}), 400),
        (wish(change={"speed": 1}), 400),
        (wish(id=None, filters={"color": ["red"]}), 400),
    ],
)
async def test_what_the_client_may_not_is_told_as_its_refusal(
    peered: Gateway, neighbour: User, transfer: Transfer, asked: dict[str, Any], status: int
) -> None:
    reply = await peered.json("POST", STEER, asked, user=neighbour)
    assert (reply.status, reply.json()["refused"]["status"]) == (200, status)
    assert transfer.state == "running"


async def test_the_schema_knows_the_field_where_a_view_is_shared(peered: Gateway) -> None:
    described = (await peered.call("GET", "/transfers/schema.json")).json()["$defs"]["Transfer"]["properties"]
    peered.app.revise(peered.services)
    alone = (await peered.call("GET", "/transfers/schema.json")).json()["$defs"]["Transfer"]["properties"]
    assert described.keys() == alone.keys() | {"gateway"}


async def test_a_request_is_not_handed_on_to_a_third_gateway(peered: Gateway, neighbour: User) -> None:
    class Third:
        gateway = "third"

        async def ask(self, wish: object) -> list[dict[str, Any]]:
            raise AssertionError

    told = {"id": ID, "kind": "push", "image": "i", "store": None, "client": None, "user": "anne", "state": "running"}
    told |= {"bytes": 0, "size": None, "offset": 0, "rate": 0, "rate_avg": 0, "started_at": "2026-01-01T00:00:00Z"}
    told |= {"wait": {}, "waiters": 0, "attempt": 1, "limit_bytes_per_s": None, "error": None}
    hub = peered.services.hub
    assert isinstance(hub, Hub)
    assert hub.show(ForeignTransfer(msgspec.convert(told, Told), Third()))
    assert (await peered.call("GET", f"/transfers/{ID}")).json()["transfer"]["gateway"] == "third"
    refused = (await peered.json("POST", STEER, wish(is_admin=True), user=neighbour)).json()["refused"]
    assert refused["status"] == 404


@pytest.mark.parametrize("body", [[], {"id": ID}, {"access_key": 1, "is_admin": True}, wish(filters=[])])
async def test_what_is_no_wish_is_refused(peered: Gateway, neighbour: User, body: object) -> None:
    assert (await peered.json("POST", STEER, body, user=neighbour)).status == 400


async def test_nobody_else_is_let_in(peered: Gateway, neighbour: User, transfer: Transfer) -> None:
    strangers = [
        peered.admin,
        await peered.user("bob"),
        msgspec.structs.replace(neighbour, secret_key="0" * 64),
        msgspec.structs.replace(neighbour, access_key="@0123456789abcdef"),
        msgspec.structs.replace(neighbour, access_key=neighbour.access_key.removeprefix("@")),
    ]
    for stranger in strangers:
        assert (await peered.json("POST", STEER, wish(is_admin=True), user=stranger)).status == 403
        assert (await peered.call("GET", "/peers/this/transfers/ws", user=stranger)).status == 403
    token = (await peered.json("POST", f"/users/{peered.admin.access_key}/tokens", {})).json()["token"]["token"]
    headers = {"authorization": f"Bearer {token}"}
    assert (await peered.call("GET", "/peers/this/transfers/ws", headers)).status == 403
    ticket = (await peered.json("POST", "/tickets", {})).json()["ticket"]["ticket"]
    assert (await peered.raw("GET", f"/peers/this/transfers/ws?ticket={ticket}", {"host": "h"}, [])).status == 403
    assert transfer.state == "running"


async def test_what_was_signed_for_one_gateway_is_of_no_use_at_another(peered: Gateway, neighbour: User) -> None:
    assert (await peered.call("GET", "/peers/this/transfers/ws", user=neighbour)).status == 426
    assert (await peered.call("GET", "/peers/that/transfers/ws", user=neighbour)).status == 403
    assert (await peered.json("POST", "/peers/that/transfers", wish(), user=neighbour)).status == 403


async def test_a_signature_of_another_gateway_is_good_once_for_a_change(peered: Gateway, neighbour: User) -> None:
    sent = {"host": "gateway.test", "content-length": "0"}
    signed = sent | peered._signed("POST", STEER, sent, neighbour)
    assert (await peered.raw("POST", STEER, signed, [])).status == 400  # no wish
    assert (await peered.raw("POST", STEER, signed, [])).status == 403
    old = sent | {"authorization": f"VISOR {neighbour.access_key}:AAAA"}
    assert (await peered.raw("POST", STEER, old, [])).status == 403


async def test_another_gateways_credentials_open_nothing_else(peered: Gateway, neighbour: User) -> None:
    for entry in ROUTES:
        if entry.kind is not Kind.PAGE:
            path = entry.path.replace("{id}", ID).replace("{access_key}", "x").replace("{store}", "file")
            reply = await peered.call(entry.method, path.replace("{name}", "that"), user=neighbour)
            assert reply.status == 403, path


async def test_a_gateway_that_shares_its_view_with_nobody_lets_no_gateway_in(gateway: Gateway, neighbour: User) -> None:
    assert (await gateway.json("POST", STEER, wish(), user=neighbour)).status == 403

"""Credentials at the gate, where sockets and time can't easily be had otherwise."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from pathlib import Path

import pytest
from gateway import Gateway, running_gateway
from hypothesis import given
from hypothesis import strategies as st

from visor_gateway import signature
from visor_gateway.routes.access import within

NONCE = "0123456789abcdef"


def signed(
    gateway: Gateway, method: str, target: str, headers: dict[str, str], scheme: str = signature.SHA256
) -> dict[str, str]:
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    admin = gateway.admin
    value = signature.authorization(scheme, method, target.encode(), raw, admin.access_key, admin.secret_key)
    return {**headers, "authorization": value}


@pytest.mark.parametrize(("seconds", "status"), [(-290, 404), (290, 404), (-310, 403), (310, 403)])
async def test_a_date_counts_for_five_minutes_either_way(gateway: Gateway, seconds: int, status: int) -> None:
    moment = (datetime.now(UTC) + timedelta(seconds=seconds)).timestamp()
    headers = signed(gateway, "GET", "/images", {"date": formatdate(moment, usegmt=True)})
    assert (await gateway.raw("GET", "/images", headers, [])).status == status


@pytest.mark.parametrize("nonce", [None, "short", "n" * 65])
async def test_a_change_needs_a_nonce_of_16_to_64_characters(gateway: Gateway, nonce: str | None) -> None:
    headers = {"date": formatdate(usegmt=True), **({"x-visor-nonce": nonce} if nonce else {})}
    reply = await gateway.raw("DELETE", "/images/x", signed(gateway, "DELETE", "/images/x", headers), [])
    assert reply.status == 403


async def test_a_change_counts_once_and_a_look_again_and_again(gateway: Gateway) -> None:
    headers = {"date": formatdate(usegmt=True), "x-visor-nonce": NONCE}
    change = signed(gateway, "DELETE", "/images/x", headers)
    assert [(await gateway.raw("DELETE", "/images/x", change, [])).status for _ in range(2)] == [404, 403]
    look = signed(gateway, "GET", "/images", headers)
    assert [(await gateway.raw("GET", "/images", look, [])).status for _ in range(2)] == [404, 404]


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        ("GET", "/images", 404),
        ("GET", "/images?name=x", 404),
        ("DELETE", "/all", 200),
        ("DELETE", "/images/x?y=z", 403),
        ("GET", "/users", 403),
        ("GET", "/transfers", 403),
        ("POST", "/tickets", 403),
    ],
)
async def test_the_old_scheme_opens_the_old_routes_only(
    gateway: Gateway, method: str, target: str, status: int
) -> None:
    headers = signed(gateway, method, target, {"date": formatdate(usegmt=True)}, signature.SHA1)
    assert (await gateway.raw(method, target, headers, [])).status == status


async def test_the_old_scheme_can_be_switched_off(tmp_path: Path) -> None:
    async with running_gateway(tmp_path, environ={"VISOR_GATEWAY__AUTH__VISOR_SHA1": "false"}) as gateway:
        headers = signed(gateway, "GET", "/images", {"date": formatdate(usegmt=True)}, signature.SHA1)
        assert (await gateway.raw("GET", "/images", headers, [])).status == 403


async def test_every_refusal_of_credentials_reads_the_same(gateway: Gateway) -> None:
    date = {"date": formatdate(usegmt=True)}
    good = signed(gateway, "GET", "/images", date)
    attempts = [
        {},
        date,
        {**date, "authorization": "nonsense"},
        {**date, "authorization": "Basic YTpi"},
        {**date, "authorization": "Bearer nonsense"},
        {**date, "authorization": "VISOR nobody:c2ln"},
        {**date, "authorization": "VISOR admin:c2ln"},
        {**date, "authorization": good["authorization"][:-4] + "AAA="},
        {"authorization": good["authorization"]},
        {**good, "date": "yesterday"},
        {**good, "content-md5": "AAAAAAAAAAAAAAAAAAAAAA=="},
    ]
    bodies = {(reply.status, reply.body) for reply in [await gateway.raw("GET", "/images", a, []) for a in attempts]}
    assert len(bodies) == 1
    assert next(iter(bodies))[0] == 403


async def test_tokens_open_and_read_only_ones_do_not_change(gateway: Gateway) -> None:
    expires_at = datetime.now(UTC) + timedelta(hours=1)
    bob = await gateway.user("bob")
    for read_only, status in ((True, 403), (False, 404)):
        _, text = await gateway.services.accounts.issue_token(
            bob.access_key, expires_at=expires_at, read_only=read_only, name=None
        )
        headers = {"authorization": f"bearer {text}"}
        assert (await gateway.raw("GET", "/images", headers, [])).status == 404
        assert (await gateway.raw("DELETE", "/images/x", headers, [])).status == status


async def test_a_link_opens_its_image_until_its_issuer_is_rotated(gateway: Gateway) -> None:
    bob = await gateway.user("bob")
    image = await gateway.add(b"private", user=bob, access="private")
    other = await gateway.add(b"private", user=bob, access="private")
    link = (await gateway.json("POST", f"/images/{image['_id']}/links", {"expires_in": 60}, user=bob)).json()["link"]
    target = link["uri"].removeprefix("http://gateway.test")
    reply = await gateway.raw("GET", target, {}, [])
    assert (reply.status, reply.body) == (200, b"private")
    assert (await gateway.raw("HEAD", target, {}, [])).status == 200
    assert (await gateway.raw("DELETE", target, {}, [])).status == 403
    assert (await gateway.raw("GET", target.replace(image["_id"], other["_id"]), {}, [])).status == 403
    assert (await gateway.raw("GET", target.replace("expires=", "expires=9"), {}, [])).status == 403
    assert (await gateway.raw("GET", target[:-2], {}, [])).status == 403
    await gateway.services.accounts.rotate("bob")
    assert (await gateway.raw("GET", target, {}, [])).status == 403


async def test_an_expired_link_is_refused(gateway: Gateway) -> None:
    image = await gateway.add()
    admin = gateway.admin
    made = signature.link_signature(admin.secret_key, image["_id"], admin.access_key, 1000)
    target = f"/images/{image['_id']}?key={admin.access_key}&expires=1000&sig={made}"
    assert (await gateway.raw("GET", target, {}, [])).status == 403


async def test_anonymous_pulls_are_of_public_images_and_only_where_allowed(tmp_path: Path) -> None:
    async with running_gateway(tmp_path, environ={"VISOR_GATEWAY__AUTH__ANONYMOUS_PULL": "true"}) as gateway:
        public, private = await gateway.add(b"public"), await gateway.add(b"private", access="private")
        assert (await gateway.raw("GET", f"/images/{public['_id']}", {}, [])).body == b"public"
        assert (await gateway.raw("GET", f"/images/{private['_id']}", {}, [])).status == 404
        listed = (await gateway.raw("GET", "/images", {}, [])).json()["images"]
        assert [image["_id"] for image in listed] == [public["_id"]]
        assert (await gateway.raw("DELETE", f"/images/{public['_id']}", {}, [])).status == 403
        wrong = {"authorization": "Bearer nonsense"}
        assert (await gateway.raw("GET", f"/images/{public['_id']}", wrong, [])).status == 403


@pytest.mark.parametrize(
    ("client", "headers", "status"),
    [
        ("127.0.0.1", {}, 200),
        ("::1", {}, 200),
        ("::ffff:127.0.0.1", {}, 200),
        ("192.0.2.7", {}, 403),
        ("127.0.0.1", {"x-forwarded-for": "127.0.0.1"}, 403),
        ("127.0.0.1", {"forwarded": "for=127.0.0.1"}, 403),
        ("127.0.0.1", {"via": "1.1 proxy"}, 403),
    ],
)
async def test_metrics_are_open_to_allowed_networks_that_speak_for_themselves(
    gateway: Gateway, client: str, headers: dict[str, str], status: int
) -> None:
    assert (await gateway.raw("GET", "/metrics", headers, [], client=client)).status == status


async def test_forwarding_headers_count_from_trusted_proxies_only(tmp_path: Path) -> None:
    environ = {"VISOR_GATEWAY__SERVER__TRUSTED_PROXIES": "10.0.0.0/8"}
    headers = {"x-forwarded-for": "203.0.113.9, 198.51.100.1, 10.0.0.2", "x-forwarded-proto": "https"}
    async with running_gateway(tmp_path, environ=environ) as gateway:
        image = await gateway.add()
        for client, shown, scheme in (("10.0.0.1", "198.51.100.1", "https"), ("192.0.2.7", "192.0.2.7", "http")):
            reply = await gateway.call("GET", f"/images/{image['_id']}", headers, client=client)
            transfer = gateway.services.hub.find(reply.headers["x-transfer-id"])
            assert transfer is not None
            assert transfer.client == shown
            assert reply.headers["x-image-meta-uri"].startswith(f"{scheme}://")


@given(st.text(max_size=40))
def test_no_text_is_taken_for_an_address_that_is_none(text: str) -> None:
    assert not within(text, [])

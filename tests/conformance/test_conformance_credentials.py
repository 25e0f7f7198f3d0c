"""Contract section 6: signatures, tokens, links, and who may do what."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import time
from email.utils import formatdate, parsedate_to_datetime

import pytest
from wire import (
    OCTETS,
    Client,
    Headers,
    Response,
    content_digest,
    eventually,
    head_bytes,
    meta,
    signature,
    signed_text,
    store_image,
    unique,
)

VISOR, SHA256 = "VISOR", "VISOR-HMAC-SHA256"
SCHEMES = [VISOR, SHA256]


def in_scheme(client: Client, scheme: str) -> Client:
    return Client(client.url, client.access_key, client.secret_key, scheme)


def send(client: Client, method: str, target: str, headers: Headers) -> Response:
    """Send exactly these headers, with no signature added."""
    with client.connect() as wire:
        wire.send(head_bytes(method, target, headers))
        return wire.read_response(method)


def ago(seconds: float) -> str:
    return formatdate(time.time() - seconds, usegmt=True)


def a_second_before(date: str) -> str:
    """Count from the date that was signed: by the clock, a second may have gone since."""
    return formatdate(parsedate_to_datetime(date).timestamp() - 1, usegmt=True)


# --- our own signer, against what VISOR really sent --------------------------------------------

SECRET = "2nBHth08Q27IiBtjpA50R93K6xWfnBINTvrrMToF"
DATE = ("Date", "Sun, 22 Nov 2026 10:09:46 GMT")


@pytest.mark.parametrize(
    ("method", "target", "headers", "expected"),
    [
        ("GET", "/images", [DATE], "QJVxWvhVRmFdWsx0Dv59SBWLGgQ="),
        (
            "GET",
            "/images?architecture=x86_64",
            [("Date", "Sun, 22 Nov 2026 10:09:47 GMT")],
            "WLIuKNyjd1FRwMGTOq1jV3Wac8Q=",
        ),
        ("POST", "/images", [*meta(name="meta only", architecture="i386"), DATE], "zRXN54wJOdMhS9plcYXUydB1WVI="),
        (
            "POST",
            "/images",
            [*meta(name="with bytes", architecture="x86_64", format="iso", store="file"), OCTETS, DATE],
            "cIVjalhzbvOJQtgr1mvzuONeEAo=",
        ),
    ],
)
def test_the_tests_sign_as_visor_clients_did(method, target, headers, expected) -> None:
    assert signature(VISOR, SECRET, method, target, headers) == expected


def test_the_text_under_a_sha256_signature_covers_digest_nonce_and_sorted_query() -> None:
    headers = [DATE, ("X-Visor-Nonce", "n" * 16), ("Content-Digest", "d"), *meta(name="n")]
    text = signed_text(SHA256, "GET", "/images?b=2&a=1&a=0", headers)
    assert (
        text == b"GET\nd\n\n\nSun, 22 Nov 2026 10:09:46 GMT\nx-image-meta-name:n\nnnnnnnnnnnnnnnnn\n/images?a=0&a=1&b=2"
    )


# --- both schemes ------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_signed_request_is_served(alice: Client, stored, scheme) -> None:
    client = in_scheme(alice, scheme)
    assert client.get(stored.path).body == stored.data
    assert client.head(stored.path).status == 200
    image = client.add(b"signed bytes", note=unique("n")).image
    assert client.put(image["_id"], note="changed").image["note"] == "changed"
    assert client.get(f"/images?note=changed&_id={image['_id']}").status == 200
    assert client.delete(f"/images/{image['_id']}").status == 200


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_content_md5_is_part_of_the_signature(alice: Client, scheme) -> None:

    client = in_scheme(alice, scheme)
    digest = base64.b64encode(hashlib.md5(b"bytes").digest()).decode()
    assert client.add(b"bytes", [("Content-MD5", digest)]).status == 200
    headers = [*meta(name=unique("n"), architecture="i386"), OCTETS, ("Content-Length", "0")]
    assert (
        send(client, "POST", "/images", [*client.signed("POST", "/images", headers), ("Content-MD5", digest)]).status
        == 403
    )


@pytest.mark.parametrize("scheme", SCHEMES)
def test_header_names_and_order_do_not_change_a_signature(alice: Client, scheme) -> None:
    client = in_scheme(alice, scheme)
    headers = [("X-IMAGE-META-NAME", unique("Z")), ("x-Image-Meta-architecture", "i386"), ("Content-Length", "0")]
    headers = client.signed("POST", "/images", headers)
    assert send(client, "POST", "/images", headers[::-1]).status == 200


@pytest.mark.parametrize("scheme", SCHEMES)
def test_utf8_values_are_signed_as_bytes(alice: Client, scheme) -> None:
    client = in_scheme(alice, scheme)
    name = unique("Ümläut 映像")
    assert client.add(name=name).image["name"] == name


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_path_is_signed_raw_as_sent(alice: Client, stored, scheme) -> None:
    client = in_scheme(alice, scheme)
    coded = "/images/" + stored.id.replace("-", "%2D")
    assert client.get(coded).status == 200
    headers = client.signed("GET", stored.path)
    assert send(client, "GET", coded, headers).status == 403
    headers = client.signed("GET", stored.path + "/")
    assert send(client, "GET", stored.path, headers).status == 403


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("offset", [-290, 290])
def test_a_date_within_five_minutes_is_served(alice: Client, stored, scheme, offset) -> None:
    assert in_scheme(alice, scheme).get(stored.path, ("Date", ago(offset))).status == 200


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("offset", [-320, 320, 86400, 1e9])
def test_a_date_outside_is_403(alice: Client, stored, scheme, offset) -> None:
    assert in_scheme(alice, scheme).get(stored.path, ("Date", ago(offset))).status == 403


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("value", ["", "now", "2026-11-22T10:00:00Z", "0", "Sun, 99 Nov 2026 10:09:46 GMT"])
def test_a_date_that_is_none_is_403(alice: Client, stored, scheme, value) -> None:
    assert in_scheme(alice, scheme).get(stored.path, ("Date", value)).status == 403


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_request_without_date_is_403(alice: Client, stored, scheme) -> None:
    code = signature(scheme, alice.secret_key, "GET", stored.path, [])
    headers = [("Host", "x"), ("Authorization", f"{scheme} {alice.access_key}:{code}")]
    assert send(alice, "GET", stored.path, headers).status == 403


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_changing_request_is_accepted_once(alice: Client, scheme) -> None:
    client = in_scheme(alice, scheme)
    headers = client.signed(
        "POST", "/images", [*meta(name=unique("once"), architecture="i386"), ("Content-Length", "0")]
    )
    assert send(client, "POST", "/images", headers).status == 200
    assert send(client, "POST", "/images", headers).status == 403
    image_id = client.add(note=unique("put")).image["_id"]
    headers = client.signed("PUT", f"/images/{image_id}", [*meta(note="n"), ("Content-Length", "0")])
    assert send(client, "PUT", f"/images/{image_id}", headers).status == 200
    assert send(client, "PUT", f"/images/{image_id}", headers).status == 403
    headers = client.signed("DELETE", f"/images/{image_id}")
    assert send(client, "DELETE", f"/images/{image_id}", headers).status == 200
    assert send(client, "DELETE", f"/images/{image_id}", headers).status == 403


@pytest.mark.parametrize("scheme", SCHEMES)
def test_of_equal_changing_requests_at_once_one_is_accepted(alice: Client, scheme) -> None:
    client = in_scheme(alice, scheme)
    name = unique("raced")
    headers = client.signed("POST", "/images", [*meta(name=name, architecture="i386"), ("Content-Length", "0")])
    wires = [client.connect() for _ in range(6)]
    try:
        for wire in wires:
            wire.send(head_bytes("POST", "/images", headers))
        statuses = sorted(wire.read_response().status for wire in wires)
    finally:
        for wire in wires:
            wire.close()
    assert statuses == [200, 403, 403, 403, 403, 403]


def test_a_replayed_upload_is_refused_before_its_bytes_are_asked_for(alice: Client) -> None:
    client = in_scheme(alice, VISOR)
    full = [
        *meta(name=unique("replay"), architecture="i386"),
        OCTETS,
        ("Content-Length", "5"),
        ("Expect", "100-continue"),
    ]
    headers = client.signed("POST", "/images", full)
    for expected in (200, 403):
        with client.connect() as wire:
            wire.send(head_bytes("POST", "/images", headers))
            if expected == 200:
                assert wire.read_line().startswith(b"HTTP/1.1 100")
                while wire.read_line():
                    pass
                wire.send(b"bytes")
            answer = wire.read_response()
            assert (answer.status, answer.interim) == (expected, [])


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_repeated_get_or_head_is_served(alice: Client, stored, scheme, method) -> None:
    headers = in_scheme(alice, scheme).signed(method, stored.path)
    assert [send(alice, method, stored.path, headers).status for _ in range(3)] == [200, 200, 200]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_whatever_is_signed_can_not_be_changed(alice: Client, stored, scheme) -> None:
    client = in_scheme(alice, scheme)
    headers = client.signed("GET", stored.path)
    assert send(client, "HEAD", stored.path, headers).status == 403
    assert send(client, "DELETE", stored.path, headers).status == 403
    assert send(client, "GET", "/images/detail", headers).status == 403
    assert send(client, "GET", stored.path, [*headers, ("x-image-meta-note", "added")]).status == 403
    base = [*meta(name=unique("t"), architecture="i386"), ("Content-Length", "0")]
    headers = client.signed("POST", "/images", base)
    changed = [(name, "other" if name == "x-image-meta-name" else value) for name, value in headers]
    assert send(client, "POST", "/images", changed).status == 403
    assert send(client, "POST", "/images", [pair for pair in headers if pair[0] != "x-image-meta-name"]).status == 403
    assert send(client, "POST", "/images", [*headers, OCTETS]).status == 403
    shifted = [(name, a_second_before(value) if name == "Date" else value) for name, value in headers]
    assert send(client, "POST", "/images", shifted).status == 403
    assert send(client, "POST", "/images", headers).status == 200


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_signed_header_sent_twice_is_400(alice: Client, stored, scheme) -> None:
    client = in_scheme(alice, scheme)
    for name, value in (
        ("Date", ago(0)),
        ("Content-Type", "application/octet-stream"),
        ("Content-MD5", "AAAA"),
        ("x-image-meta-note", "n"),
    ):
        headers = [pair for pair in [*client.signed("GET", stored.path)] if pair[0] != name]
        assert send(client, "GET", stored.path, [*headers, (name, value), (name, value)]).status == 400, name


def test_digest_nonce_and_authorization_sent_twice_are_400(alice: Client, stored) -> None:
    headers = [pair for pair in alice.signed("GET", stored.path) if pair[0] != "X-Visor-Nonce"]
    for name in ("Content-Digest", "X-Visor-Nonce", "X-Visor-Date"):
        assert send(alice, "GET", stored.path, [*headers, (name, "a" * 16), (name, "a" * 16)]).status == 400, name
    assert send(alice, "GET", stored.path, [*headers, headers[-1]]).status in (400, 403)


def test_two_names_that_fold_to_one_field_are_400(alice: Client) -> None:
    headers = [*meta(name=unique("n"), architecture="i386"), ("x-image-meta-a-b", "1"), ("x-image-meta-a_b", "2")]
    assert alice.request("POST", "/images", headers).status == 400


@pytest.mark.parametrize("target", [b"/images#x", b"/images/\xe9", b"/images?a=\xc3\xa9", b"/images?name=a#b"])
def test_a_fragment_or_non_ascii_in_the_target_is_400(alice: Client, target) -> None:
    headers = alice.signed("GET", target.decode("latin-1"))
    with alice.connect() as wire:
        wire.send(head_bytes("GET", "/X", headers).replace(b"/X", target, 1))
        assert wire.read_response().status == 400


@pytest.mark.direct("HAProxy joins folded lines, as RFC 9112 lets a proxy do")
def test_folded_lines_and_broken_utf8_are_400_under_a_signature(alice: Client) -> None:
    headers = alice.signed("GET", "/images/detail")
    with alice.connect() as wire:
        wire.send(head_bytes("GET", "/images/detail", headers)[:-2] + b"x-image-meta-a: b\r\n\tc\r\n\r\n")
        assert wire.read_response().status == 400
    assert alice.get("/images/detail", ("x-image-meta-a", b"\xff")).status == 400


# --- the scheme of VISOR 2012 ------------------------------------------------------------------


def test_visor_is_accepted_on_images_only(admin: Client, stored) -> None:
    client = in_scheme(admin, VISOR)
    assert client.get("/images").status == 200
    assert client.get("/images/detail").status == 200
    assert client.get(stored.path).status == 200
    for path in ("/users", f"/users/{admin.access_key}", "/transfers", "/transfers/x"):
        assert client.get(path).status == 403
    body = b'{"user": {"access_key": "x", "email": "x@example.org"}}'
    assert client.request("POST", "/users", [("Content-Type", "application/json")], body).status == 403
    assert client.delete("/transfers/x").status == 403


def test_visor_is_accepted_on_delete_all(fresh) -> None:
    client = in_scheme(fresh.admin, VISOR)
    image = client.add(b"x").image
    assert client.delete("/all").status == 200
    assert client.get(f"/images/{image['_id']}").status == 404


def test_visor_is_never_accepted_on_a_changing_request_with_a_query(alice: Client) -> None:
    client = in_scheme(alice, VISOR)
    image_id = client.add(note=unique("q")).image["_id"]
    headers = [*meta(name=unique("q"), architecture="i386"), ("Content-Length", "0")]
    assert client.request("POST", "/images?a=b", headers).status == 403
    assert client.request("PUT", f"/images/{image_id}?a=b", [("x-image-meta-note", "x")]).status == 403
    assert client.delete(f"/images/{image_id}?a=b").status == 403
    assert client.get(f"/images/{image_id}").status == 200


def test_visor_signs_no_query_of_a_get(alice: Client, stored) -> None:
    headers = in_scheme(alice, VISOR).signed("GET", "/images")
    assert send(alice, "GET", f"/images?_id={stored.id}", headers).status == 200


def test_an_operator_can_switch_visor_off(start) -> None:
    gateway = start("[auth]\nvisor_sha1 = false\n")
    image = gateway.admin.add(b"x").image
    assert in_scheme(gateway.admin, VISOR).get(f"/images/{image['_id']}").status == 403
    assert in_scheme(gateway.admin, VISOR).add().status == 403


# --- HMAC-SHA256 -------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [16, 32, 64])
def test_a_nonce_of_16_to_64_characters_is_taken(alice: Client, length) -> None:
    assert alice.add(None, [("X-Visor-Nonce", secrets.token_hex(32)[:length])]).status == 200


@pytest.mark.parametrize("nonce", ["", "n" * 15, "n" * 65])
def test_other_nonces_are_403_on_changing_requests(alice: Client, nonce) -> None:
    assert alice.add(None, [("X-Visor-Nonce", nonce)]).status == 403


def without_nonce(client: Client, method: str, target: str, headers: Headers) -> Response:
    full = [("Host", "x"), ("Date", ago(0)), *headers]
    code = signature(SHA256, client.secret_key, method, target, full)
    return send(client, method, target, [*full, ("Authorization", f"{SHA256} {client.access_key}:{code}")])


def test_a_changing_request_without_nonce_is_403(alice: Client) -> None:
    headers = [*meta(name=unique("n"), architecture="i386"), ("Content-Length", "0")]
    assert without_nonce(alice, "POST", "/images", headers).status == 403


def test_a_get_needs_no_nonce(alice: Client, stored) -> None:
    assert without_nonce(alice, "GET", stored.path, []).status == 200


def test_x_visor_date_takes_the_place_of_date(alice: Client, stored) -> None:
    assert alice.get(stored.path, ("X-Visor-Date", ago(0))).status == 200
    assert alice.get(stored.path, ("X-Visor-Date", ago(0)), ("Date", ago(86400))).status == 200
    assert alice.get(stored.path, ("X-Visor-Date", ago(86400)), ("Date", ago(0))).status == 403
    assert in_scheme(alice, VISOR).get(stored.path, ("X-Visor-Date", ago(0)), ("Date", ago(86400))).status == 403


def test_the_query_is_signed_in_any_order(alice: Client, stored) -> None:
    target = f"/images?owner={alice.access_key}&_id={stored.id}&access=public"
    assert alice.get(target).status == 200
    headers = alice.signed("GET", target)
    turned = f"/images?access=public&_id={stored.id}&owner={alice.access_key}"
    assert send(alice, "GET", turned, headers).status == 200


def test_a_changed_query_is_403(alice: Client, stored) -> None:
    headers = alice.signed("GET", f"/images?_id={stored.id}")
    for target in (
        "/images",
        f"/images?_id={stored.id}&a=b",
        "/images?_id=x",
        f"/images?_id={stored.id[:-1]}%{ord(stored.id[-1]):x}",
    ):
        assert send(alice, "GET", target, headers).status == 403


def test_a_json_body_must_carry_a_content_digest(admin: Client) -> None:
    key = unique("undigested")
    body = json.dumps({"access_key": key, "email": f"{key}@example.org"}).encode()
    answer = admin.request("POST", "/users", [("Content-Type", "application/json")], body)
    assert answer.status in (400, 403)
    assert admin.get(f"/users/{key}").status == 404


def test_a_json_body_of_another_digest_is_refused(admin: Client) -> None:
    key = unique("swapped")
    body = json.dumps({"access_key": key, "email": f"{key}@example.org"}).encode()
    headers = [("Content-Type", "application/json"), ("Content-Digest", content_digest(b"{}"))]
    assert admin.request("POST", "/users", headers, body).status in (400, 403)
    assert admin.get(f"/users/{key}").status == 404


# --- refusals ----------------------------------------------------------------------------------

BAD_AUTHORIZATION = [
    "", "VISOR", "VISOR ", "VISOR x", "VISOR :", "VISOR nobody:", "VISOR nobody:AAAA", "VISOR-HMAC-SHA256 nobody:AAAA",
    "Basic YWRtaW46YWRtaW4=", "Bearer", "Bearer ", "Bearer nonsense", "bearer ' or 1=1 --", "Digest x", "nonsense",
    "VISOR-HMAC-SHA512 nobody:AAAA", "VISOR a:b:c", "VISOR é:x", "AWS a:b",
]  # fmt: skip


@pytest.mark.parametrize("value", BAD_AUTHORIZATION)
def test_wrong_credentials_are_403(anonymous: Client, stored, value) -> None:
    headers = [("Date", ago(0)), ("Authorization", value), ("X-Visor-Nonce", "n" * 16)]
    for method in ("GET", "DELETE"):
        assert anonymous.request(method, stored.path, headers).status == 403


def test_every_refusal_has_one_message_and_no_challenge(alice: Client, anonymous: Client, stored) -> None:
    wrong = Client(alice.url, alice.access_key, "wrong")
    unknown = Client(alice.url, "nobody-has-this-key", alice.secret_key)
    headers = alice.signed("DELETE", "/images/fake")
    answers = [
        anonymous.get(stored.path),
        wrong.get(stored.path),
        in_scheme(wrong, VISOR).get(stored.path),
        unknown.get(stored.path),
        in_scheme(unknown, VISOR).get(stored.path),
        alice.get(stored.path, ("Date", ago(9999))),
        alice.add(None, [("X-Visor-Nonce", "short")]),
        anonymous.get(stored.path, ("Authorization", "Bearer x")),
        anonymous.get(f"{stored.path}?sig=x&expires=99999999999"),
        in_scheme(alice, VISOR).get("/transfers"),
        send(alice, "DELETE", "/images/fake", headers) and send(alice, "DELETE", "/images/fake", headers),
    ]
    assert {answer.status for answer in answers} == {403}
    assert len({answer.message for answer in answers}) == 1
    assert all(answer.header("www-authenticate") is None for answer in answers)


def test_a_refused_request_does_not_tell_whether_an_image_exists(anonymous: Client, stored) -> None:
    assert anonymous.get(stored.path).body == anonymous.get("/images/fake").body


# --- tokens ------------------------------------------------------------------------------------


def make_token(gateway, user: Client, **options) -> tuple[dict, str]:
    answer = gateway.admin.send_json("POST", f"/users/{user.access_key}/tokens", options)
    assert answer.status == 200, answer.body
    token = answer.json()["token"]
    return token, token["token"]


def bearing(client: Client, text: str):
    """A function that sends requests with a token."""

    def request(method: str, target: str, *headers, body=None) -> Response:
        return Client(client.url).request(method, target, [("Authorization", f"Bearer {text}"), *headers], body)

    return request


def test_a_token_stands_for_its_user(gateway, alice: Client, make_user) -> None:
    user = make_user("tokened")
    private = store_image(user, access="private")
    _, text = make_token(gateway, user)
    request = bearing(user, text)
    assert request("GET", private.path).body == private.data
    headers = [*meta(name=unique("by token"), architecture="i386"), OCTETS]
    image = request("POST", "/images", *headers, body=b"bytes").image
    assert image["owner"] == user.access_key
    assert request("DELETE", f"/images/{image['_id']}").status == 200
    assert request("GET", "/users").status == 403


def test_a_read_only_token_reads_and_changes_nothing(gateway, make_user) -> None:
    user = make_user("reader")
    private = store_image(user, access="private")
    _, text = make_token(gateway, user, read_only=True)
    request = bearing(user, text)
    assert request("GET", private.path).status == 200
    assert request("HEAD", private.path).status == 200
    assert request("GET", "/images").status == 200
    assert request("GET", "/transfers").status == 200
    assert request("DELETE", private.path).status == 403
    assert request("PUT", private.path, ("x-image-meta-note", "n")).status == 403
    assert request("POST", "/images", *meta(name=unique("n"), architecture="i386")).status == 403
    body = b"{}"
    json_headers = (("Content-Type", "application/json"), ("Content-Digest", content_digest(body)))
    assert request("POST", f"{private.path}/links", *json_headers, body=body).status == 403
    assert user.head(private.path).status == 200


def test_a_token_expires(gateway, make_user) -> None:
    user = make_user("brief")
    token, text = make_token(gateway, user, expires_in=1)
    assert token["expires_at"]
    eventually(lambda: bearing(user, text)("GET", "/transfers").status == 403, what="expiry")


def test_a_revoked_token_is_void(gateway, make_user) -> None:
    user = make_user("revoked")
    token, text = make_token(gateway, user)
    assert bearing(user, text)("GET", "/transfers").status == 200
    assert gateway.admin.delete(f"/users/{user.access_key}/tokens/{token['id']}").status == 200
    assert bearing(user, text)("GET", "/transfers").status == 403
    assert gateway.admin.delete(f"/users/{user.access_key}/tokens/{token['id']}").status == 404


def test_listed_tokens_do_not_show_their_text(gateway, make_user) -> None:
    user = make_user("listed")
    token, text = make_token(gateway, user, read_only=True)
    answer = gateway.admin.get(f"/users/{user.access_key}/tokens")
    (listed,) = answer.json()["tokens"]
    assert text not in answer.body.decode()
    assert listed["id"] == token["id"]
    assert listed["expires_at"] == token["expires_at"]
    assert listed["read_only"] is True


def test_a_deleted_users_token_is_void(gateway, make_user) -> None:
    user = make_user("leaver")
    _, text = make_token(gateway, user)
    assert gateway.admin.delete(f"/users/{user.access_key}").status == 200
    assert bearing(user, text)("GET", "/transfers").status == 403
    assert user.get("/transfers").status == 403


def test_tokens_are_for_admins_to_issue(gateway, alice: Client, bob: Client) -> None:
    for client in (alice, bob):
        assert client.send_json("POST", f"/users/{alice.access_key}/tokens", {}).status == 403
        assert client.get(f"/users/{alice.access_key}/tokens").status == 403
    assert gateway.admin.send_json("POST", "/users/nobody-has-this-key/tokens", {}).status == 404
    assert gateway.admin.get("/users/nobody-has-this-key/tokens").status == 404


# --- links -------------------------------------------------------------------------------------


def make_link(client: Client, path: str, **options) -> str:
    """A link's target, with what makes it valid."""
    answer = client.send_json("POST", f"{path}/links", options)
    assert answer.status == 200, answer.body
    link = answer.json()["link"]
    assert link["expires_at"]
    assert link["uri"].startswith(f"{client.url}{path}?")
    return link["uri"].removeprefix(client.url)


def test_a_link_gives_get_and_head_of_one_image_without_credentials(alice: Client, anonymous: Client) -> None:
    image = store_image(alice, access="private")
    target = make_link(alice, image.path)
    answer = anonymous.get(target)
    assert (answer.status, answer.body) == (200, image.data)
    assert anonymous.head(target).header("content-length") == str(len(image.data))
    assert anonymous.get(target, ("Range", "bytes=5-9")).body == image.data[5:10]
    assert anonymous.get(target).body == image.data


def test_a_link_needs_no_body_to_be_made(alice: Client, anonymous: Client, stored) -> None:
    answer = alice.request("POST", f"{stored.path}/links")
    assert answer.status == 200
    assert anonymous.get(answer.json()["link"]["uri"].removeprefix(alice.url)).body == stored.data


def test_a_link_changes_nothing_and_opens_nothing_else(alice: Client, anonymous: Client) -> None:
    image, other = store_image(alice), store_image(alice)
    target = make_link(alice, image.path)
    query = target.partition("?")[2]
    assert anonymous.delete(target).status == 403
    assert anonymous.request("PUT", target, [("x-image-meta-note", "n")]).status == 403
    assert anonymous.request("POST", f"{image.path}/links?{query}").status == 403
    for path in (other.path, "/images", "/images/detail", "/transfers", "/users", "/images/fake"):
        assert anonymous.get(f"{path}?{query}").status in (403, 404)
    assert anonymous.get(f"{other.path}?{query}").status == 403
    assert alice.head(image.path).status == 200


def test_a_changed_link_is_403(alice: Client, anonymous: Client, stored) -> None:
    path, _, query = make_link(alice, stored.path).partition("?")
    parts = dict(part.split("=", 1) for part in query.split("&"))
    for name, value in parts.items():
        changed = str(int(value) + 1) if value.isdigit() else ("A" if value[0] != "A" else "B") + value[1:]
        bad = "&".join(f"{key}={changed if key == name else kept}" for key, kept in parts.items())
        assert anonymous.get(f"{path}?{bad}").status == 403, name
        assert anonymous.get(f"{path}?{'&'.join(p for p in query.split('&') if not p.startswith(name))}").status == 403


def test_a_link_expires(alice: Client, anonymous: Client, stored) -> None:
    target = make_link(alice, stored.path, expires_in=1)
    eventually(lambda: anonymous.get(target).status == 403, what="expiry")


def test_a_link_is_void_when_its_issuer_is_rotated_or_deleted(gateway, anonymous: Client, make_user, stored) -> None:
    user = make_user("issuer")
    target = make_link(user, stored.path)
    assert anonymous.get(target).status == 200
    answer = gateway.admin.send_json("POST", f"/users/{user.access_key}/rotate", {})
    assert anonymous.get(target).status == 403
    renewed = Client(user.url, user.access_key, answer.json()["user"]["secret_key"])
    target = make_link(renewed, stored.path)
    assert anonymous.get(target).status == 200
    gateway.admin.delete(f"/users/{user.access_key}")
    assert anonymous.get(target).status == 403


def test_nobody_links_what_he_can_not_see(alice: Client, bob: Client) -> None:
    hidden = store_image(alice, access="private")
    answer = bob.send_json("POST", f"{hidden.path}/links", {})
    assert (answer.status, answer.message) == (404, f"No image found with id '{hidden.id}'.")


def test_a_link_stops_when_its_issuer_may_no_longer_see_the_image(
    alice: Client, bob: Client, anonymous: Client
) -> None:
    image = store_image(alice)
    target = make_link(bob, image.path)
    assert anonymous.get(target).status == 200
    assert alice.put(image.id, access="private").status == 200
    assert anonymous.get(target).status in (403, 404)


def test_answers_to_a_link_send_no_referrer_on(alice: Client, anonymous: Client, stored) -> None:
    target = make_link(alice, stored.path)
    for answer in (anonymous.get(target), anonymous.head(target), alice.request("POST", f"{stored.path}/links")):
        assert answer.header("referrer-policy") == "no-referrer"


def test_signatures_of_links_are_masked_wherever_they_are_shown(
    alice: Client, anonymous: Client, gateway, stored
) -> None:
    target = make_link(alice, stored.path)
    text = dict(part.split("=", 1) for part in target.partition("?")[2].split("&"))["sig"]
    answer = anonymous.get(target)
    anonymous.get(target + "x")
    anonymous.get(f"/nothing?{target.partition('?')[2]}")
    transfer = alice.get(f"/transfers/{answer.header('x-transfer-id')}")
    for shown in (answer.headers, transfer.body, alice.get("/transfers").body, alice.get("/metrics").body):
        assert text not in str(shown)
    if gateway.log:
        assert text not in gateway.logged()


def test_a_link_is_built_like_the_images_uri(start) -> None:
    gateway = start('[server]\npublic_url = "https://images.example"\n')
    image = gateway.admin.add(b"x").image
    answer = gateway.admin.send_json("POST", f"/images/{image['_id']}/links", {})
    assert answer.json()["link"]["uri"].startswith(f"https://images.example/images/{image['_id']}?")


# --- anonymous pulls ---------------------------------------------------------------------------


def test_reading_public_images_without_credentials_is_possible_where_allowed(locating) -> None:
    anonymous = locating.client()
    image = store_image(locating.admin)
    assert anonymous.get(image.path).body == image.data
    assert anonymous.head(image.path).status == 200
    assert anonymous.get(f"/images?_id={image.id}").status == 200
    assert anonymous.get(image.path, ("Authorization", "VISOR nobody:AAAA")).status == 403


def test_anonymous_pull_opens_nothing_but_reading_public_images(locating) -> None:
    anonymous = locating.client()
    image, hidden = store_image(locating.admin), store_image(locating.admin, access="private")
    assert anonymous.get(hidden.path).message == f"No image found with id '{hidden.id}'."
    assert anonymous.get(f"/images?_id={hidden.id}").status == 404
    assert anonymous.add().status == 403
    assert anonymous.put(image.id, note="n").status == 403
    for method, path in (
        ("DELETE", image.path),
        ("DELETE", "/all"),
        ("GET", "/users"),
        ("POST", f"{image.path}/links"),
        ("POST", "/tickets"),
        ("GET", "/transfers"),
    ):
        assert anonymous.request(method, path).status == 403, path


# --- others' images ----------------------------------------------------------------------------


def test_others_private_images_do_not_exist(alice: Client, bob: Client) -> None:
    hidden = store_image(alice, access="private")
    expected = {"code": 404, "message": f"No image found with id '{hidden.id}'."}
    assert bob.get(hidden.path).json() == expected
    assert bob.delete(hidden.path).json() == expected
    assert bob.put(hidden.id, note="n").json() == expected
    assert bob.put(hidden.id, b"bytes").json() == expected
    assert bob.head(hidden.path).header("x-error-message") == expected["message"]
    assert alice.get(hidden.path).body == hidden.data


def test_others_public_images_can_be_read_but_not_changed(alice: Client, bob: Client, stored) -> None:
    assert bob.get(stored.path).body == stored.data
    for answer in (bob.delete(stored.path), bob.put(stored.id, note="n"), bob.put(stored.id, b"bytes")):
        assert answer.status == 403
    locked = alice.add().image
    assert bob.put(locked["_id"], b"bytes").status == 403
    assert alice.get(f"/images?_id={stored.id}").status == 200
    assert alice.record(locked["_id"])["status"] == "locked"


def test_an_image_made_private_is_gone_for_others_at_once(alice: Client, bob: Client) -> None:
    image = store_image(alice)
    assert bob.head(image.path).status == 200
    alice.put(image.id, access="private")
    assert bob.head(image.path).status == 404
    alice.put(image.id, access="public")
    assert bob.head(image.path).status == 200


def test_an_admin_may_delete_anyones_public_image(admin: Client, alice: Client) -> None:
    image = store_image(alice)
    assert admin.delete(image.path).status == 200
    assert alice.head(image.path).status == 404

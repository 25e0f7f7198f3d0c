"""Attacks that hit other image services, tried on this one (docs/protocol.md)."""

from __future__ import annotations

import json
import uuid
from urllib.parse import quote

import pytest
from canary import canary
from live import refusal, subscribed
from wire import OCTETS, Client, Response, content_digest, eventually, head_bytes, meta, store_image, unique

FORWARDED = [
    ("X-Forwarded-For", "127.0.0.1"),
    ("X-Forwarded-For", "203.0.113.9"),
    ("X-Real-IP", "127.0.0.1"),
    ("Forwarded", "for=127.0.0.1"),
    ("Via", "1.1 proxy"),
    ("X-Forwarded-Proto", "https"),
    ("X-Forwarded-Host", "localhost"),
]


def described(client: Client) -> list[tuple[str, str]]:
    """(method, path pattern) of every route in the API description."""
    answer = client.get("/openapi.json")
    assert answer.status == 200, answer.body
    methods = {"get", "put", "post", "delete", "head", "patch", "options"}
    return [
        (method.upper(), path)
        for path, operations in answer.json()["paths"].items()
        for method in operations
        if method in methods
    ]


def filled(pattern: str, image_id: str) -> str:
    path = pattern
    while "{" in path:
        before, _, rest = path.partition("{")
        path = before + image_id + rest.partition("}")[2]
    return path


OPEN = {"/status", "/ready", "/transfers/schema.json"}


def test_the_description_names_every_route_of_the_contract(admin: Client) -> None:
    routes = {(method, pattern) for method, pattern in described(admin)}
    paths = {(method, filled(pattern, "*")) for method, pattern in routes}
    assert paths >= {
        ("GET", "/status"), ("GET", "/ready"), ("GET", "/metrics"), ("GET", "/images"), ("POST", "/images"),
        ("GET", "/images/detail"), ("HEAD", "/images/*"), ("GET", "/images/*"), ("PUT", "/images/*"),
        ("DELETE", "/images/*"), ("DELETE", "/all"), ("POST", "/images/*/links"), ("GET", "/users"),
        ("POST", "/users"), ("GET", "/users/*"), ("PUT", "/users/*"), ("DELETE", "/users/*"),
        ("POST", "/users/*/rotate"), ("GET", "/users/*/tokens"), ("POST", "/users/*/tokens"),
        ("DELETE", "/users/*/tokens/*"), ("GET", "/transfers"), ("GET", "/transfers/*"), ("DELETE", "/transfers/*"),
        ("GET", "/transfers/ws"), ("POST", "/tickets"),
    }  # fmt: skip


def test_every_route_without_credentials_is_403(admin: Client, anonymous: Client, stored) -> None:
    open_routes = set()
    for method, pattern in described(admin):
        path = filled(pattern, stored.id)
        status = anonymous.request(method, path).status
        if status == 403:
            continue
        open_routes.add((method, pattern))
        assert status == 200, (method, path, status)
    assert {pattern for _, pattern in open_routes} <= OPEN | {"/metrics", "/openapi.json"}
    assert admin.get(stored.path).body == stored.data


@pytest.mark.parametrize("header", FORWARDED)
def test_with_forwarding_headers_loopback_grants_nothing(admin: Client, anonymous: Client, stored, header) -> None:
    assert anonymous.get("/metrics", header).status == 403
    for method, pattern in described(admin):
        if pattern not in OPEN | {"/metrics", "/openapi.json"}:
            assert anonymous.request(method, filled(pattern, stored.id), [header]).status == 403, (method, pattern)


def test_open_routes_stay_open_with_forwarding_headers(anonymous: Client) -> None:
    for path in OPEN:
        assert anonymous.get(path, FORWARDED[0]).status == 200


async def test_the_websocket_without_credentials_is_403(anonymous: Client) -> None:
    assert refusal(anonymous) == 403
    assert refusal(anonymous, headers=[FORWARDED[0]]) == 403


def test_method_override_headers_do_nothing(alice: Client, bob: Client, stored) -> None:
    for header in ("X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"):
        assert bob.get(stored.path, (header, "DELETE")).body == stored.data
    assert bob.get(f"{stored.path}?_method=DELETE").status == 200
    assert alice.head(stored.path).status == 200


def test_cors_is_not_opened(alice: Client, stored) -> None:
    for answer in (
        alice.get(stored.path, ("Origin", "https://evil.example")),
        alice.get("/images", ("Origin", "https://evil.example")),
        alice.request("OPTIONS", "/images", [("Origin", "https://evil.example")]),
    ):
        assert answer.header("access-control-allow-origin") is None
        assert answer.header("set-cookie") is None


@pytest.mark.parametrize(
    "path",
    [
        "/images/../../etc/passwd",
        "/images/..%2f..%2f..%2fetc%2fpasswd",
        "/images/%2e%2e/%2e%2e/etc/passwd",
        "/images/....//....//etc/passwd",
        "//etc/passwd",
        "/images/%00",
        "/images/x%00y",
        "/images\\..\\x",
        "/%2e%2e/admin.toml",
        "/images/file:%2f%2f%2fetc%2fpasswd",
    ],
)
def test_no_path_leads_out(alice: Client, path) -> None:
    answer = alice.get(path)
    assert answer.status in (400, 404)
    assert b"root:" not in answer.body


def test_an_absolute_target_is_served_like_its_path_or_refused(alice: Client, stored) -> None:
    target = f"http://evil.example{stored.path}"
    with alice.connect() as wire:
        wire.send(head_bytes("GET", target, alice.signed("GET", target)))
        assert wire.read_response().status in (200, 400, 403, 404)


@pytest.mark.one_gateway
async def test_a_private_image_is_invisible_on_every_route(alice: Client, bob: Client) -> None:
    note = unique("hidden")
    hidden = store_image(alice, access="private", note=note, name=unique("private"))
    transfer = alice.get(hidden.path).header("x-transfer-id")
    for method, pattern in described(alice):
        path = filled(pattern, hidden.id)
        if "{" not in pattern or not pattern.startswith("/images"):
            continue
        answer = bob.request(method, path)
        assert answer.status == 404, (method, path)
        assert b"private-" not in answer.body
    queries = ("", f"?note={note}", f"?_id={hidden.id}", "?access=private", f"?owner={alice.access_key}&limit=1000")
    for path in ("/images", "/images/detail"):
        for query in queries:
            assert hidden.id not in bob.get(path + query).body.decode()
            assert hidden.id not in bob.get(path + query, ("Accept", "application/xml")).body.decode()
    for path in (
        "/transfers",
        f"/transfers?image={hidden.id}",
        f"/transfers/{transfer}",
        f"/images?marker={hidden.id}",
    ):
        body = bob.get(path).body.decode().replace(path, "").replace(transfer or "-", "")
        assert hidden.record["name"] not in body
    assert bob.get(f"/transfers/{transfer}").status == 404
    async with subscribed(bob) as live:
        await live.next()
        await live.next()
        alice.get(hidden.path)
        own = bob.add(b"mine").header("x-transfer-id")
        await live.event("finished", own or "")
        assert hidden.id not in json.dumps(live.seen)


def test_a_deleted_image_leaves_no_bytes_to_pull_warm_or_cold(alice: Client, bob: Client) -> None:
    image = store_image(alice)
    assert bob.get(image.path).body == image.data
    assert alice.delete(image.path).status == 200
    for client in (alice, bob):
        for headers in ([], [("Range", "bytes=0-9")], [("If-None-Match", '"x"')]):
            assert client.request("GET", image.path, headers).status == 404


def test_an_available_images_bytes_can_not_be_swapped(alice: Client, stored) -> None:
    attempts = [
        alice.put(stored.id, b"other bytes"),
        alice.put(stored.id, [b"other bytes"]),
        alice.put(stored.id, status="locked"),
        alice.put(stored.id, status="error"),
        alice.put(stored.id, location="http://images.example/a"),
        alice.put(stored.id, store="http"),
        alice.put(stored.id, store="http", location="http://images.example/a"),
        alice.put(stored.id, size="1"),
        alice.put(stored.id, checksum="0" * 64),
    ]
    assert all(answer.status in (400, 404, 409) for answer in attempts)
    assert alice.get(stored.path).body == stored.data


def test_names_reach_no_header_line_of_their_own(alice: Client) -> None:
    image = store_image(alice, b"x", name='n"; filename="evil.sh', note="v: w")
    answer = alice.get(image.path)
    assert answer.header("content-disposition")
    assert 'filename="evil.sh"' not in (answer.header("content-disposition") or "")


def test_text_of_a_record_is_never_a_formula_of_the_database(alice: Client) -> None:
    for text in ("'; DROP TABLE images; --", "%' OR '1'='1", "${7*7}", "{{7*7}}", "\\", "NULL"):
        name = unique(text)
        image = alice.add(name=name, note=text).image
        assert image["note"] == text
        answer = alice.get(f"/images?name={quote(name)}&note={quote(text)}")
        assert [entry["_id"] for entry in answer.json()["images"]] == [image["_id"]]


@pytest.mark.direct("the proxy settles the framing: gateways see one length, or nothing")
def test_smuggled_requests_are_not_served(alice: Client, bob: Client) -> None:
    """A body whose framing is ambiguous never becomes a second request."""
    name = unique("smuggled")
    inner = head_bytes("POST", "/images", bob.signed("POST", "/images", [*meta(name=name, architecture="i386")]))
    base = [*meta(name=unique("outer"), architecture="i386"), OCTETS]
    head = head_bytes("POST", "/images", alice.signed("POST", "/images", base))[:-2]
    for framing in (
        b"Content-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
        b"Content-Length: 0\r\nContent-Length: 4\r\n\r\n",
        b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    ):
        with alice.connect() as wire:
            wire.send(head + framing + inner)
            assert wire.read_response().status in (400, 501)
            wire.finish_sending()
            wire.ends()
    assert bob.named(name) is None


# --- canary ------------------------------------------------------------------------------------


class Transcript:
    """Everything that a gateway said after the secrets were given out."""

    def __init__(self) -> None:
        self.text: list[str] = []

    def note(self, answer: Response) -> Response:
        self.text.append(str(answer.headers) + answer.body.decode("utf-8", "replace"))
        return answer

    def holds(self, secret: str) -> bool:
        forms = {secret, quote(secret), quote(secret, safe="")}
        return any(form in text for text in self.text for form in forms)


async def test_no_secret_is_ever_said_again(start) -> None:
    """Secrets, tokens, signatures, tickets and link signatures: in no answer, log line, metric or event."""
    gateway = start('[log]\nlevel = "debug"\nformat = "json"\n')
    admin = gateway.admin
    secrets: dict[str, str] = {"admin's secret": gateway.secret_key}
    user = gateway.new_user("canary")
    secrets["user's secret"] = user.secret_key
    made = admin.send_json("POST", f"/users/{user.access_key}/tokens", {}).json()["token"]
    secrets["token"] = made["token"]
    image = store_image(user, access="private")
    uri = user.send_json("POST", f"{image.path}/links", {}).json()["link"]["uri"]
    link = uri.removeprefix(gateway.url)
    secrets["link"] = dict(part.split("=", 1) for part in link.partition("?")[2].split("&"))["sig"]
    issued = user.send_json("POST", "/tickets", {"route": "/transfers/ws"}).json()["ticket"]
    secrets["ticket"] = issued if isinstance(issued, str) else issued["ticket"]
    said = Transcript()
    anonymous = gateway.client()

    def signed(client: Client, method: str, target: str, *headers) -> None:
        """A request whose signature becomes one of the secrets."""
        full = client.signed(method, target, [*headers, ("Content-Length", "0")])
        secrets[f"signature {len(secrets)}"] = str(full[-1][1]).rpartition(":")[2]
        with client.connect() as wire:
            wire.send(head_bytes(method, target, full))
            said.note(wire.read_response(method))

    async with subscribed(anonymous, target=f"/transfers/ws?ticket={secrets['ticket']}") as live:
        await live.next()
        await live.next()
        old = Client(user.url, user.access_key, user.secret_key, "VISOR")
        for client in (user, old):
            signed(client, "GET", image.path)
            signed(client, "HEAD", image.path)
            signed(client, "GET", "/images/fake")
            signed(client, "POST", "/images", *meta(name=unique("c"), architecture="i386"))
            signed(client, "POST", "/images", *meta(name=unique("c"), architecture="vax"))
            signed(client, "GET", "/users")
        bearer = ("Authorization", f"Bearer {secrets['token']}")
        for path in (image.path, "/images", "/transfers", "/users", "/nothing", "/metrics"):
            said.note(anonymous.get(path, bearer))
        for target in (
            link,
            link + "x",
            f"{link}&a=b",
            f"/nothing?{link.partition('?')[2]}",
            f"/images?{link.partition('?')[2]}",
        ):
            said.note(anonymous.get(target))
            said.note(anonymous.head(target))
        said.note(anonymous.get(f"/transfers/ws?ticket={secrets['ticket']}"))
        said.note(anonymous.get(f"/transfers?ticket={secrets['ticket']}"))
        said.note(anonymous.get(image.path, ("Authorization", f"Bearer {secrets['token']}x")))
        canary.forget(secrets["token"])  # whoever asks for it as a path has spread it himself
        said.note(anonymous.get(f"/{secrets['token']}"))
        for path in ("/users", f"/users/{user.access_key}", f"/users/{user.access_key}/tokens", "/transfers"):
            said.note(admin.get(path))
        body = json.dumps({
            "access_key": unique("x"),
            "email": "a@example.org",
            "secret_key": secrets["token"],
        }).encode()
        headers = [("Content-Type", "application/json"), ("Content-Digest", content_digest(body))]
        said.note(admin.request("POST", "/users", headers, body))
        chosen = str(uuid.uuid4())
        said.note(user.add(b"bytes", [("X-Transfer-Id", chosen)]))
        await live.event("finished", chosen)
        said.text.append(json.dumps(live.seen))
    said.note(anonymous.get("/metrics"))
    said.note(anonymous.get("/ready"))
    eventually(lambda: gateway.logged(), what="a log")
    said.text.append(gateway.logged().replace(f"/{secrets['token']}", ""))
    assert [name for name, secret in secrets.items() if said.holds(secret)] == []


def test_a_database_holds_no_secret_in_clear(fresh) -> None:
    user = fresh.new_user("stored")
    made = fresh.admin.send_json("POST", f"/users/{user.access_key}/tokens", {}).json()["token"]
    files = [
        path for path in fresh.data_dir.rglob("*") if path.is_file() and path.name not in ("admin.toml", "master.key")
    ]
    assert files
    for path in files:
        content = path.read_bytes()
        for secret in (user.secret_key, fresh.secret_key, made["token"]):
            assert secret.encode() not in content, path.name

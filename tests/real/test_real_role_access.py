"""Whom roles for other servers let in."""

from __future__ import annotations

import contextlib
import json
import secrets
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
import trustme
from canary import canary
from gateway_process import clean_environment, reserve_port
from roles import KEY, Role, bearer, logged, serving
from wire import Client, Headers, Reset, Short, Wire, content_digest, eventually, head_bytes, signature

REFUSED = "Access denied: credentials are missing or not valid for this request."
LOOPBACK = 'allow = ["127.0.0.0/8"]'
#: Of each role: a list, something that is changed, and what is sent for it.
ASKED: dict[str, tuple[str, dict[str, Any]]] = {
    "meta": ("/images", {"image": {"name": "x", "architecture": "i386", "owner": "foo"}}),
    "auth": ("/users", {"user": {"access_key": "x", "email": "x@example.org"}}),
}


@pytest.fixture(scope="module", params=[*ASKED])
def role(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Role]:
    """A role that lets in who has the key."""
    with serving(tmp_path_factory.mktemp("role"), request.param) as role:
        role.list, role.document = ASKED[request.param]
        yield role


def signed(role: Role, method: str, target: str, body: bytes = b"", *, key: str = KEY, **changes: Any) -> Headers:
    """The headers of a signed request; `changes` replace some, None leaves one out."""
    headers = {
        "Date": formatdate(usegmt=True),
        "X-Visor-Nonce": secrets.token_hex(16),
        "Content-Digest": content_digest(body) if body else None,
        **{name.replace("_", "-"): value for name, value in changes.items() if name != "scheme"},
    }
    kept = [(name, value) for name, value in headers.items() if value is not None]
    scheme = changes.get("scheme", "VISOR-HMAC-SHA256")
    return [*kept, ("Authorization", f"{scheme} peer:{signature(scheme, key, method, target, kept)}")]


def known(role: Role) -> Client:
    """Signs nothing by itself, and may be told what a known peer is told."""
    return Client(role.url, is_told_secrets=True)


def test_both_ways_to_show_the_key_are_taken(role: Role) -> None:
    for headers in ([bearer()], signed(role, "GET", role.list)):
        assert known(role).request("GET", role.list, headers).status in (200, 404)


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer wrong",
        f"Bearer {KEY}x",
        f"Bearer {KEY[:-1]}",
        f"Basic {KEY}",
        KEY,
        "Bearer \xff",
        "VISOR peer:x",
        "VISOR-HMAC-SHA256 peer:x",
        "VISOR-HMAC-SHA256 x",
    ],
    ids=["none", "empty", "nothing", "other", "longer", "shorter", "basic", "bare", "binary", "sha1", "false", "cut"],
)
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
def test_without_the_key_nobody_is_let_in(role: Role, authorization: str | None, method: str) -> None:
    headers = [] if authorization is None else [("Authorization", authorization.encode("latin-1"))]
    answer = role.anybody.request(method, role.list, headers, json.dumps(role.document).encode())
    assert answer.status == 403
    if method != "HEAD":
        assert answer.message == REFUSED


def test_a_user_of_the_gateway_is_no_peer(role: Role) -> None:
    admin = role.gateway.admin
    assert Client(role.url, admin.access_key, admin.secret_key).get(role.list).status == 403
    token = admin.send_json("POST", f"/users/{admin.access_key}/tokens", {}).json()["token"]["token"]
    assert role.anybody.get(role.list, bearer(token)).status == 403
    assert Client(role.gateway.url, "peer", KEY).get("/users").status == 403
    assert Client(role.gateway.url).get("/users", bearer()).status == 403


@pytest.mark.parametrize(
    "changes",
    [
        {"key": "a-wrong-key-of-24-letters"},
        {"scheme": "VISOR"},
        {"Date": "Sun, 22 Nov 2020 10:09:46 GMT"},
        {"Date": "yesterday"},
        {"Date": None},
        {"X_Visor_Nonce": None},
        {"X_Visor_Nonce": "short"},
    ],
    ids=["key", "scheme", "old", "no date", "without date", "without nonce", "short nonce"],
)
def test_a_signature_that_is_not_good_is_refused(role: Role, changes: dict[str, Any]) -> None:
    body = json.dumps(role.document).encode()
    answer = role.anybody.request("POST", role.list, signed(role, "POST", role.list, body, **changes), body)
    assert (answer.status, answer.message) == (403, REFUSED)


def test_a_signature_is_good_for_its_method_path_query_and_body_alone(role: Role) -> None:
    body = json.dumps(role.document).encode()
    for method, target in (("GET", role.list), ("POST", f"{role.list}/x"), ("POST", f"{role.list}?a=b")):
        assert role.anybody.request("POST", role.list, signed(role, method, target, body), body).status == 403
    other = role.anybody.request("POST", role.list, signed(role, "POST", role.list, body), body[:-1] + b" ")
    assert other.status == 400
    without = role.anybody.request("POST", role.list, signed(role, "POST", role.list), body)
    assert (without.status, without.message) == (400, "A signed request with a body must carry Content-Digest")


def test_a_change_cannot_be_sent_again(role: Role) -> None:
    body = b"{}"  # refused for what it is, once it was let in
    headers = signed(role, "POST", role.list, body)
    assert role.anybody.request("POST", role.list, headers, body).status == 400
    again = role.anybody.request("POST", role.list, headers, body)
    assert (again.status, again.message) == (403, REFUSED)
    got = signed(role, "GET", role.list)
    assert [known(role).request("GET", role.list, got).status in (200, 404) for _ in range(2)] == [True, True]


# --- networks ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def allowed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Role]:
    """A role that lets in this host."""
    settings = f'{LOOPBACK}\nshared_key = "{KEY}"'
    with serving(tmp_path_factory.mktemp("allowed"), "meta", settings) as role:
        yield role


def test_an_allowed_network_needs_no_key(allowed: Role) -> None:
    body = json.dumps(ASKED["meta"][1]).encode()
    assert allowed.anybody.request("POST", "/images", (), body).status == 200


def test_a_wrong_key_is_refused_from_an_allowed_network_too(allowed: Role) -> None:
    assert allowed.anybody.get("/images", bearer("wrong")).status == 403


@pytest.mark.parametrize(
    "header",
    [
        ("X-Forwarded-For", "127.0.0.1"),
        ("Forwarded", "for=127.0.0.1"),
        ("Via", "1.1 proxy"),
        ("X-Real-IP", "127.0.0.1"),
        ("Origin", "http://evil.example"),
        ("Sec-Fetch-Mode", "no-cors"),
    ],
    ids=lambda header: header[0],
)
def test_a_proxy_or_a_browser_of_an_allowed_network_is_not_let_in(allowed: Role, header: tuple[str, str]) -> None:
    assert allowed.anybody.get("/images", header).status == 403
    assert allowed.anybody.get("/images", header, bearer()).status in (200, 404)


def test_another_network_is_not_let_in(tmp_path: Path) -> None:
    with serving(tmp_path, "meta", 'allow = ["192.0.2.0/24", "2001:db8::/32"]') as role:
        assert role.anybody.get("/images").status == 403
        # No key is set: there is none that would be right.
        for authorization in (bearer(""), bearer("None"), bearer("***")):
            assert role.anybody.get("/images", authorization).status == 403


# --- certificates ------------------------------------------------------------------------------------


class Authority:
    """Certificates of a test, in files."""

    def __init__(self, directory: Path) -> None:
        self.ca = trustme.CA()
        self.file = directory / "ca.pem"
        self.ca.cert_pem.write_to_path(str(self.file))
        self.server = directory / "server.pem"
        self.ca.issue_cert("127.0.0.1", "localhost").private_key_and_cert_chain_pem.write_to_path(str(self.server))

    def client(self, authority: trustme.CA | None = None) -> ssl.SSLContext:
        """How a peer speaks that has a certificate of an authority, or none."""
        context = ssl.create_default_context()
        self.ca.configure_trust(context)
        if authority is not None:
            authority.issue_cert("peer@example.org").configure_cert(context)
        return context


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def secure(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Role]:
    """A role over TLS that lets in who has a certificate, or the key."""
    settings = f'tls_certificate = "{authority.server}"\nclient_ca = "{authority.file}"\nshared_key = "{KEY}"'
    with serving(tmp_path_factory.mktemp("secure"), "meta", settings, role_tls=authority.client()) as role:
        yield role


def test_a_client_certificate_lets_a_peer_in(secure: Role, authority: Authority) -> None:
    certified = Client(secure.url, tls=authority.client(authority.ca))
    body = json.dumps(ASKED["meta"][1]).encode()
    assert certified.request("POST", "/images", (), body).status == 200
    assert certified.get("/images").status == 200
    assert certified.get("/images", bearer("wrong")).status == 403


def test_without_a_certificate_the_key_is_asked_for(secure: Role) -> None:
    assert secure.anybody.get("/images").status == 403
    assert secure.peer.get("/images").status in (200, 404)
    assert secure.anybody.get("/status").status == 200


def test_a_certificate_of_another_authority_ends_the_connection(secure: Role, authority: Authority) -> None:
    stranger = Client(secure.url, tls=authority.client(trustme.CA()))
    # By TLS 1.3 a client hears of it after its own part of the handshake.
    with pytest.raises((ssl.SSLError, Reset, Short, OSError)):
        stranger.get("/images")


def test_a_session_does_not_stand_in_for_a_certificate(secure: Role, authority: Authority) -> None:
    context = authority.client(authority.ca)
    address = secure.url.removeprefix("https://").split(":")
    with (
        socket.create_connection((address[0], int(address[1])), 60) as raw,
        context.wrap_socket(raw, server_hostname=address[0]) as first,
    ):
        first.sendall(b"GET /status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        while first.recv(4096):
            pass
        assert first.session is None or not first.session.has_ticket


# --- what is served ----------------------------------------------------------------------------------


def command(*words: object, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "visor_gateway", *map(str, words)],
        env=clean_environment(environment),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("role", [*ASKED])
def test_a_role_that_would_let_nobody_in_stops_the_start(role: str, tmp_path: Path) -> None:
    done = command("serve", "--data-dir", tmp_path / "data", "--role", role)
    assert done.returncode == 1
    assert f"{role}_server: expected shared_key, client_ca or allow for the role '{role}'" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "data/visor.sqlite3").exists()


def test_an_unknown_role_is_wrong_usage(tmp_path: Path) -> None:
    done = command("serve", "--data-dir", tmp_path / "data", "--role", "image,nothing")
    assert done.returncode == 2
    assert "'image,nothing'" in done.stderr


def test_without_the_role_of_images_they_are_not_served(tmp_path: Path) -> None:
    with reserve_port() as image, reserve_port() as meta:
        ports = [sock.getsockname()[1] for sock in (image, meta)]
        environment = {
            "VISOR_GATEWAY__META_SERVER__BIND": f"127.0.0.1:{ports[1]}",
            "VISOR_GATEWAY__META_SERVER__SHARED_KEY": KEY,
        }
        with open(tmp_path / "log", "wb") as log:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "visor_gateway", "serve", "--data-dir", str(tmp_path / "data")),
                    *("--bind", f"127.0.0.1:{ports[0]}", "--role", "meta"),
                ],
                env=clean_environment(environment),
                stdout=log,
                stderr=log,
            )
        try:
            meta_client = Client(f"http://127.0.0.1:{ports[1]}", "peer", KEY)

            def serves() -> bool:
                assert process.poll() is None, (tmp_path / "log").read_text()
                with contextlib.suppress(OSError, Reset, Short):
                    return meta_client.get("/ready").status == 200
                return False

            eventually(serves, what="the role meta")
            with pytest.raises(ConnectionRefusedError):
                Wire(f"http://127.0.0.1:{ports[0]}")
            assert meta_client.get("/images").status == 404
            # What belongs to images is not there either.
            assert meta_client.get("/users").status == 404
        finally:
            process.terminate()
            assert process.wait(60) == 0
    canary.look("a log", (tmp_path / "log").read_text())


def test_the_log_tells_where_roles_are(role: Role) -> None:
    logged(role.gateway, f"={role.url}")


def test_check_config_shows_no_key(tmp_path: Path) -> None:
    path = tmp_path / "visor-gateway.toml"
    path.write_text(f'[server]\nroles = ["meta"]\n[meta_server]\nshared_key = "{KEY}"\n')
    done = command("check-config", "--config", path, "--data-dir", tmp_path, "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["settings"]["meta_server"]["shared_key"] == "***"
    path.write_text('[meta_server]\nshared_key = "tooshort"\n')
    done = command("check-config", "--config", path, "--data-dir", tmp_path)
    assert done.returncode == 1
    assert "24 or more ASCII characters" in done.stderr
    assert "tooshort" not in done.stderr


def test_a_pipelined_request_is_judged_by_its_own_credentials(role: Role) -> None:
    with known(role).connect() as wire:
        first = head_bytes("GET", role.list, [("Host", "x"), bearer()])
        wire.send(first + head_bytes("GET", role.list, [("Host", "x")]))
        assert wire.read_response().status in (200, 404)
        assert wire.read_response().status == 403

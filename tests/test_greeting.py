"""Where clients of this host are told to find the gateway."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from visor_gateway import config
from visor_gateway.greeting import url_of
from visor_gateway.server.listener import Endpoint

UNIX = Endpoint("/run/visor-gateway.sock", "unix")
HTTP = Endpoint(("127.0.0.1", 4568), "http")
TLS = Endpoint(("0.0.0.0", 443), "tls")
OWN = Endpoint(("::1", 80))


@pytest.mark.parametrize(
    ("endpoints", "has_certificate", "url"),
    [
        ((UNIX, HTTP, TLS), True, "http://127.0.0.1:4568"),
        ((TLS, HTTP), True, "https://127.0.0.1:443"),
        ((TLS, HTTP), False, "http://127.0.0.1:4568"),
        ((OWN,), False, "http://[::1]:80"),
        ((OWN,), True, "https://[::1]:80"),
        ((UNIX,), False, "http://localhost"),
        ((TLS,), False, "http://localhost"),
    ],
)
def test_it_is_the_first_tcp_socket_that_is_served(
    endpoints: tuple[Endpoint, ...], has_certificate: bool, url: str, tmp_path: Path
) -> None:
    server = config.load(None, data_dir=tmp_path, environ={}).server
    if has_certificate:
        server = msgspec.structs.replace(server, tls_certificate=tmp_path / "certificate.pem")
    assert url_of(endpoints, server) == url

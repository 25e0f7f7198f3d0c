"""Image servers of 2012, which can send no credentials, behind an nginx that sends them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import trustme
from roles import KEY, check_auth_exchanges, check_meta_exchanges, serving
from servers import nginx
from wire import Client

CHECKS: dict[str, Callable[[Client], None]] = {"meta": check_meta_exchanges, "auth": check_auth_exchanges}


@pytest.mark.parametrize("role", CHECKS)
def test_a_front_that_sends_the_key_lets_them_in(role: str, tmp_path: Path) -> None:
    with serving(tmp_path / "gateway", role, workers=1) as served:
        header = f'proxy_set_header Authorization "Bearer {KEY}";'
        with nginx.start(tmp_path / "front", more=f"location / {{ proxy_pass {served.url}; {header} }}") as front:
            CHECKS[role](Client(front.url, is_told_secrets=True))
        assert served.anybody.get("/images").status in (403, 404)


def test_a_front_that_has_a_certificate_lets_them_in(tmp_path: Path) -> None:
    authority = trustme.CA()
    names = {"server": "127.0.0.1", "peer": "peer.example.org"}
    for name, subject in names.items():
        authority.issue_cert(subject).private_key_and_cert_chain_pem.write_to_path(str(tmp_path / f"{name}.pem"))
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    settings = f'tls_certificate = "{tmp_path}/server.pem"\nclient_ca = "{tmp_path}/ca.pem"'
    with serving(tmp_path / "gateway", "auth", settings, workers=1) as served:
        own = f"proxy_ssl_certificate {tmp_path}/peer.pem; proxy_ssl_certificate_key {tmp_path}/peer.pem;"
        behind = served.url.replace("http:", "https:")
        with nginx.start(tmp_path / "front", more=f"location / {{ proxy_pass {behind}; {own} }}") as front:
            check_auth_exchanges(Client(front.url, is_told_secrets=True))

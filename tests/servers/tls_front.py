"""nginx with TLS before another server, as people put it before object stores that speak plain HTTP."""

from __future__ import annotations

import socket
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import trustme

from . import nginx

_MORE = """
  listen 127.0.0.1:{port} ssl; ssl_certificate {here}/certificate.pem; ssl_certificate_key {here}/key.pem;
  client_max_body_size 0; proxy_request_buffering off; proxy_buffering off; proxy_http_version 1.1;
  location / {{ proxy_pass {behind}; proxy_set_header Host $http_host; }}
"""


@contextmanager
def start(directory: Path, behind: str, name: str = "localhost") -> Generator[int]:
    """A front before the server at the URL `behind`, for the length of a block: its port.

    Its certificate is for `name`, signed by who is in `directory`/authority.pem. Without nginx the test is skipped.
    """
    authority = trustme.CA()
    certificate = authority.issue_cert(name)
    certificate.private_key_pem.write_to_path(directory / "key.pem")
    for number, part in enumerate(certificate.cert_chain_pems):
        part.write_to_path(directory / "certificate.pem", append=number > 0)
    authority.cert_pem.write_to_path(directory / "authority.pem")
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = int(sock.getsockname()[1])
    with nginx.start(directory, more=_MORE.format(here=directory, port=port, behind=behind)):
        yield port

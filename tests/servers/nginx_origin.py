"""nginx as the origin of references, plain and with TLS, with paths where something is missing."""

from __future__ import annotations

import os
import ssl
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import trustme
from gateway_process import reserve_port

from . import nginx

_MORE = """
  listen 127.0.0.1:{tls_port} ssl; ssl_certificate {here}/certificate.pem; ssl_certificate_key {here}/key.pem;
  location /zipped/ {{ alias {here}/files/; gzip on; gzip_types *; gzip_min_length 1; }}
  location /no-ranges/ {{ alias {here}/files/; max_ranges 0; }}
  location /no-etag/ {{ alias {here}/files/; etag off; }}
  location /no-head/ {{ alias {here}/files/; if ($request_method = HEAD) {{ return 405; }} }}
  location /moved/ {{ rewrite ^/moved/(.*)$ /$1 redirect; }}
"""


class NginxOrigin:
    """A running nginx. It can be stopped and started again on the same ports.

    Attributes:
        url, tls_url: Where it serves its files.
        directory: Has `authority.pem`, who signed its certificate, which is for `localhost`.
    """

    def __init__(self, server: nginx.Nginx, directory: Path, tls_port: int) -> None:
        self.directory = directory
        self.url, self.tls_url = server.url, f"https://localhost:{tls_port}"
        self._server = server

    @property
    def context(self) -> ssl.SSLContext:
        """What trusts its certificate and no other."""
        return ssl.create_default_context(cafile=self.directory / "authority.pem")

    def put(self, name: str, data: bytes | bytearray) -> None:
        """Offer a file, replacing an older one as a careful operator does: by a rename."""
        beside = self.directory / "new"
        beside.write_bytes(data)
        beside.replace(self._server.files / name)

    def flip(self, name: str, position: int) -> None:
        """Flip a bit of a file as a disk does: neither size nor time nor `ETag` tell of it."""
        file = self._server.files / name
        times = file.stat()
        data = bytearray(file.read_bytes())
        data[position] ^= 1
        self.put(name, data)
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))

    def start(self) -> None:
        self._server.start()

    def stop(self) -> None:
        """End it at once; connections break."""
        self._server.kill()


@contextmanager
def start(directory: Path) -> Generator[NginxOrigin]:
    """An origin for the length of a block. Where there is no nginx the test is skipped."""
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    certificate.private_key_pem.write_to_path(directory / "key.pem")
    for number, part in enumerate(certificate.cert_chain_pems):
        part.write_to_path(directory / "certificate.pem", append=number > 0)
    authority.cert_pem.write_to_path(directory / "authority.pem")
    with reserve_port() as reserved:
        tls_port = int(reserved.getsockname()[1])
        with nginx.start(directory, more=_MORE.format(here=directory, tls_port=tls_port)) as server:
            yield NginxOrigin(server, directory, tls_port)


@contextmanager
def serving(directory: Path, name: str, data: bytes) -> Generator[NginxOrigin]:
    """The same with one file in a new directory."""
    directory.mkdir()
    with start(directory) as origin:
        origin.put(name, data)
        yield origin

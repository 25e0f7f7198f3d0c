"""A real nginx on loopback that serves a directory: an HTTP origin which can be killed, and tells what it sent."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
from gateway_process import reserve_port

START_SECONDS = 60.0
STOP_SECONDS = 60.0

_CONFIGURATION = """
daemon off; master_process off; pid {here}/pid; error_log {here}/error.log warn;
events {{ worker_connections 1024; }}
http {{
  log_format sent "$request_method $status $body_bytes_sent $http_range";
  access_log {here}/sent.log sent;
  client_body_temp_path {here}/t; proxy_temp_path {here}/t; fastcgi_temp_path {here}/t; uwsgi_temp_path {here}/t;
  scgi_temp_path {here}/t;
  server {{ listen 127.0.0.1:{port}; root {here}/files; sendfile on; limit_rate {rate}; {more} }}
}}
"""


class Nginx:
    """A running nginx.

    Attributes:
        files: The directory that it serves.
        url: Its address.
    """

    def __init__(self, here: Path, rate: str, more: str) -> None:
        self.files = here / "files"
        self.files.mkdir(parents=True)
        self._here = here
        self._reserved = reserve_port()
        self.port = self._reserved.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._rate, self._more = rate, more
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, rate: str | None = None) -> None:
        """Start it, and wait until it takes connections. `rate` is another pace from now on."""
        self._rate = rate or self._rate
        configuration = _CONFIGURATION.format(here=self._here, port=self.port, rate=self._rate, more=self._more)
        (self._here / "nginx.conf").write_text(configuration)
        command = ["nginx", "-p", str(self._here), "-c", str(self._here / "nginx.conf")]
        self._process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
                return
            assert self._process.poll() is None, (self._here / "error.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def kill(self) -> None:
        """SIGKILL: its connections are cut. Nobody else gets its port."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(STOP_SECONDS)

    def close(self) -> None:
        """End it for good."""
        self.kill()
        self._reserved.close()

    def sent(self) -> int:
        """Bytes of bodies that it has sent in answers to GET, of those requests that have ended."""
        lines = [line.split(" ") for line in (self._here / "sent.log").read_text().splitlines()]
        return sum(int(words[2]) for words in lines if words[0] == "GET" and words[1] in {"200", "206"})


@contextmanager
def start(here: Path, *, rate: str = "0", more: str = "") -> Generator[Nginx]:
    """An nginx for the length of a block; without the program the test is skipped.

    Args:
        here: A throw-away directory.
        rate: Bytes per second of each answer, as nginx writes it (`8m`); 0 for any.
        more: Further directives of the server.
    """
    if shutil.which("nginx") is None:
        pytest.skip("nginx is not installed")
    nginx = Nginx(here, rate, more)
    nginx.start()
    try:
        yield nginx
    finally:
        nginx.close()

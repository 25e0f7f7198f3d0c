"""HAProxy (Debian `haproxy`) before gateways, with the configuration of docs/loadbalancer/haproxy.cfg."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from gateway_process import reserve_port

from .example import replaced
from .s3_service import program

START_SECONDS = 60.0
STOP_SECONDS = 60.0

_EXAMPLE = Path(__file__).parents[2] / "docs" / "loadbalancer" / "haproxy.cfg"
_SERVERS = [("one", "192.0.2.11:4568"), ("two", "192.0.2.12:4568"), ("three", "192.0.2.13:4568")]


def configuration(port: int, gateways: Sequence[str]) -> str:
    """The example for a loopback port and up to three gateways at HOST:PORT. Nothing but addresses is changed, and how
    many connections there may be, which may be more than this process has descriptors for."""
    changes = {"  bind :80\n": f"  bind 127.0.0.1:{port}\n", "  maxconn 12000\n": "  maxconn 1000\n"}
    for number, (name, address) in enumerate(_SERVERS):
        line = f"  server {name} {gateways[number]}\n" if number < len(gateways) else ""
        changes[f"  server {name} {address}\n"] = line
    return replaced(_EXAMPLE, changes)


@contextlib.contextmanager
def start(directory: Path, gateways: Sequence[str]) -> Generator[str]:
    """HAProxy before gateways at HOST:PORT, for the length of a block: its URL. Its log is `directory`/haproxy.log.

    Without the program the test is skipped.
    """
    haproxy = program("haproxy", places=[Path("/usr/sbin")])
    directory.mkdir(parents=True, exist_ok=True)
    with reserve_port() as reserved, (directory / "haproxy.log").open("ab") as log:
        port = int(reserved.getsockname()[1])
        path = directory / "haproxy.cfg"
        path.write_text(configuration(port, gateways))
        process = subprocess.Popen([haproxy, "-db", "-f", path], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + START_SECONDS
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                    break
                assert process.poll() is None, (directory / "haproxy.log").read_text()
                assert time.monotonic() < deadline, "haproxy does not listen"
                time.sleep(0.01)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()
            process.wait(STOP_SECONDS)


@contextlib.contextmanager
def before(directory: Path, url: str) -> Generator[str]:
    """HAProxy before one gateway, for the length of a block: its URL."""
    with start(directory / "haproxy", [urlsplit(url).netloc]) as front:
        yield front

"""nginx (Debian `nginx-light`) before gateways, with the configuration of docs/loadbalancer/nginx.conf."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Generator, Sequence
from pathlib import Path

from gateway_process import reserve_port

from .example import replaced
from .s3_service import program

START_SECONDS = 60.0
STOP_SECONDS = 60.0

_EXAMPLE = Path(__file__).parents[2] / "docs" / "loadbalancer" / "nginx.conf"
_SERVERS = ["192.0.2.11:4568", "192.0.2.12:4568", "192.0.2.13:4568"]
_TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


def configuration(directory: Path, port: int, gateways: Sequence[str]) -> str:
    """The example for a loopback port and up to three gateways at HOST:PORT. Nothing else is changed, but where files
    are put."""
    places = "".join(f"  {name}_temp_path {directory / name};\n" for name in _TEMPORARY)
    changes = {
        "\nhttp {\n": f"\nhttp {{\n{places}  access_log {directory / 'access.log'};\n",
        "    listen 80;\n": f"    listen 127.0.0.1:{port};\n",
    }
    for number, address in enumerate(_SERVERS):
        line = f"    server {address} max_fails=1 fail_timeout=2s;\n"
        changes[line] = line.replace(address, gateways[number]) if number < len(gateways) else ""
    return replaced(_EXAMPLE, changes)


@contextlib.contextmanager
def start(directory: Path, gateways: Sequence[str]) -> Generator[str]:
    """nginx before gateways at HOST:PORT, for the length of a block: its URL. Without it the test is skipped."""
    nginx = program("nginx", places=[Path("/usr/sbin")])
    directory.mkdir(parents=True, exist_ok=True)
    log = directory / "error.log"
    with reserve_port() as reserved:
        port = int(reserved.getsockname()[1])
        path = directory / "nginx.conf"
        path.write_text(configuration(directory, port, gateways))
        own = f"daemon off; master_process off; pid {directory / 'pid'}; error_log {log} warn;"
        command = [nginx, "-p", directory, "-c", path, "-g", own]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + START_SECONDS
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                    break
                assert process.poll() is None, log.read_text() if log.exists() else "nginx ended"
                assert time.monotonic() < deadline, "nginx does not listen"
                time.sleep(0.01)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()
            process.wait(STOP_SECONDS)

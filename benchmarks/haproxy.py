"""haproxy as a proxy that splices: what proxying costs where nobody looks at the bytes."""

from __future__ import annotations

import shutil
from pathlib import Path

from .machine import version
from .nginx import Origin
from .peer import Absent, Peer, Target
from .process import ServerProcess

_CONFIG = """\
global
  nbthread 1
  maxconn 4096
defaults
  mode http
  timeout connect 5s
  timeout client 300s
  timeout server 300s
  option splice-response
frontend images
  bind 127.0.0.1:{port}
  http-request return status 200 content-type text/plain string OK if {{ path /status }}
  default_backend origin
backend origin
  server origin 127.0.0.1:{origin}
"""


class Haproxy(Peer):
    """haproxy with one thread, which splices what an origin answers."""

    name = "haproxy, splice"

    def __init__(self, directory: Path, origin: Origin) -> None:
        self._origin = origin
        super().__init__(directory)

    def start(self) -> ServerProcess:
        program = shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
        if program is None:
            raise Absent("haproxy is not installed (Debian: apt install haproxy)")
        config = self.directory / "haproxy.cfg"
        config.write_text(_CONFIG.format(port=self.port, origin=self._origin.port))
        return ServerProcess([program, "-db", "-f", str(config)], self.directory / "log")

    def version(self) -> str:
        said = version("/usr/sbin/haproxy", "-v").split()
        return f"haproxy {said[2]}" if len(said) > 2 else "haproxy"

    def image(self, file: Path) -> Target:
        return self._origin.image(file)

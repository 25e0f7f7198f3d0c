"""Fan-out: many clients at once of an image that is in no cache yet, beside caches that read their origin once too.

Every round asks for an image of a new name, so that no server has it. The origin is an nginx that counts what it sends.
"""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final, Protocol

from .clients import Figures
from .gateway import Gateway
from .machine import touch_memory, version
from .nginx import Nginx
from .peer import Absent, Peer, Target
from .process import ServerProcess
from .rounds import Contender, Table, alternate
from .stand import Stand, present

#: Streams, and MiB of the image.
CROWDS: Final = ((8, 256), (64, 256), (500, 64))
TOUCHED: Final = 2  # images of memory
SETTLE_SECONDS: Final = 10.0

_SLICES = """\
user root root; daemon off; worker_processes 1; pid {here}/pid; error_log {here}/error.log;
events {{ worker_connections 4096; }}
http {{
  access_log off; sendfile on; tcp_nopush on;
  client_body_temp_path {here}/b; proxy_temp_path {here}/t; fastcgi_temp_path {here}/f; uwsgi_temp_path {here}/u;
  scgi_temp_path {here}/s;
  proxy_cache_path {here}/cache keys_zone=all:10m max_size=64g use_temp_path=off;
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      slice 1m; proxy_cache all; proxy_cache_key $uri$slice_range; proxy_set_header Range $slice_range;
      proxy_http_version 1.1; proxy_cache_valid 200 206 1h; proxy_cache_lock on; proxy_cache_lock_age 1h;
      proxy_cache_lock_timeout 1h; proxy_pass http://127.0.0.1:{origin};
    }}
  }}
}}
"""
_VCL = """\
vcl 4.1;
backend default {{ .host = "127.0.0.1"; .port = "{origin}"; }}
sub vcl_backend_response {{ set beresp.ttl = 1h; set beresp.do_stream = true; }}
"""
_CACHE = """\
[cache]
max_bytes = "64 GiB"
[locations]
deny_private = false
"""


class Origin(Nginx):
    """The nginx that all of them read."""

    name = "origin"

    def start(self) -> ServerProcess:
        self.access_log = f'log_format sent "$body_bytes_sent"; access_log {self.directory}/sent.log sent;'
        return super().start()

    def sent(self) -> int:
        """Bytes of all bodies so far."""
        return sum(int(line) for line in (self.directory / "sent.log").read_text().split())

    def offer(self, file: Path, name: str) -> None:
        """Serve the bytes of a file under another name."""
        copy = self.directory / "files" / name
        if not copy.exists():
            copy.hardlink_to(self.stored(file))


class _Served(Protocol):
    """An origin, as those see it who read it."""

    @property
    def port(self) -> int: ...


class _Cache(Peer):
    """A cache before the origin."""

    def __init__(self, directory: Path, origin: _Served) -> None:
        self.origin = origin
        super().__init__(directory)

    def target(self, name: str) -> Target:
        """Where a name of the origin's is pulled."""
        return Target(f"/{name}")


class Slices(_Cache):
    """nginx with `slice` and `proxy_cache_lock`."""

    name = "nginx, slice and lock"

    def start(self) -> ServerProcess:
        program = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin")
        if program is None:
            raise Absent("nginx is not installed (Debian: apt install nginx-light)")
        config = self.directory / "nginx.conf"
        config.write_text(_SLICES.format(here=self.directory, port=self.port, origin=self.origin.port))
        return ServerProcess(
            [program, "-e", str(self.directory / "error.log"), "-c", str(config)], self.directory / "log"
        )

    def version(self) -> str:
        return version("/usr/sbin/nginx", "-v").rpartition(": ")[2]


class Varnish(_Cache):
    """Varnish, which streams while it fetches; its store is memory."""

    name = "Varnish"

    def start(self) -> ServerProcess:
        program = shutil.which("varnishd", path="/usr/sbin:/usr/local/sbin:/usr/bin")
        if program is None:
            raise Absent("Varnish is not installed (Debian: apt install varnish)")
        vcl = self.directory / "origin.vcl"
        vcl.write_text(_VCL.format(origin=self.origin.port))
        words = ["-F", "-j", "none", "-n", str(self.directory / "work"), "-a", f"127.0.0.1:{self.port}"]
        return ServerProcess([program, *words, "-f", str(vcl), "-s", "malloc,8G"], self.directory / "log")

    def version(self) -> str:
        return version("/usr/sbin/varnishd", "-V").partition(")")[0].lstrip("varnishd (")


class CachingGateway(Gateway):
    """The gateway with a cache, over references to the origin."""

    name = "gateway, cache"
    settings = _CACHE

    def __init__(self, directory: Path, origin: _Served) -> None:
        self.origin = origin
        super().__init__(directory)

    def target(self, name: str) -> Target:
        """A reference to a name of the origin's."""
        headers = {
            **self.authorization,
            "x-image-meta-name": name,
            "x-image-meta-architecture": "x86_64",
            "x-image-meta-store": "http",
            "x-image-meta-location": f"http://127.0.0.1:{self.origin.port}/{name}",
        }
        made = self.request("POST", "/images", headers=headers).json()
        return Target(f"/images/{made['image']['_id']}")


_names = itertools.count()


def fan(stand: Stand, peer: _Cache | CachingGateway, origin: Origin, file: Path, streams: int) -> Figures:
    """Have so many clients pull one new image at once. `upstream` is what the origin sent, in images."""
    name = f"new-{next(_names)}"
    origin.offer(file, name)
    target = peer.target(name)
    size, before = file.stat().st_size, origin.sent()
    touch_memory(peer.directory, TOUCHED * size)
    figures = stand.programs.run("pull", peer.port, target.path, streams, 1, target.headers)
    deadline = time.monotonic() + SETTLE_SECONDS
    while origin.sent() - before < size and time.monotonic() < deadline:
        time.sleep(0.05)  # the origin's log is a little late
    return {**figures, "upstream": (origin.sent() - before) / size}


def workloads(stand: Stand) -> Iterator[Table]:
    """8, 64 and 500 streams of an image that nobody has read before."""
    origin = stand.find(Origin)
    if origin is None:
        return
    peers: list[_Cache | CachingGateway] = present(
        stand.find(Varnish, lambda place: Varnish(place, origin)),
        stand.find(Slices, lambda place: Slices(place, origin)),
        stand.find(CachingGateway, lambda place: CachingGateway(place, origin)),
    )
    for streams, mib in CROWDS:
        if not stand.options.has_crowd(streams):
            continue
        file = stand.file(mib)
        contenders = [Contender(peer, partial(fan, stand, peer, origin, file, streams)) for peer in peers]
        title = f"Fan-out: {streams} streams of a new image, {file.stat().st_size >> 20} MiB"
        yield alternate(f"fanout-{streams}", title, contenders, stand.options)

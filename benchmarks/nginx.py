"""nginx as a ceiling: static files by sendfile, uploads by its DAV module, neither of which hashes anything."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path

from . import certificate
from .machine import BOTH_CORES, CLIENT_CORE, SERVER_CORE, version
from .peer import Absent, Peer, Target
from .process import ServerProcess

_CONFIG = """\
user root root;
daemon off;
worker_processes {workers};
pid {directory}/pid;
error_log {directory}/error.log;
events {{ worker_connections 2048; }}
http {{
  {access_log}
  sendfile on;
  tcp_nopush on;
  client_max_body_size 0;
  client_body_temp_path {directory}/bodies;
  {body_buffer}
  proxy_temp_path {directory}/proxied;
  fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi;
  scgi_temp_path {directory}/scgi;
  server {{
    listen 127.0.0.1:{port} backlog=4096{ssl};
    {certificate}
    root {directory}/files;
    location = /status {{ return 200 "OK"; }}
    {proxied}
    location /uploads/ {{ dav_methods PUT DELETE; }}
  }}
}}
"""


class Nginx(Peer):
    """nginx with one worker; the reference."""

    name = "nginx"
    workers = 1
    body_buffer = ""
    access_log = "access_log off;"
    proxied = ""
    cores: Collection[int] = (SERVER_CORE,)

    def start(self) -> ServerProcess:
        program = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
        if program is None:
            raise Absent("nginx is not installed (Debian: apt install nginx-light)")
        self._files = self.directory / "files"
        self._uploads = self._files / "uploads"
        self._uploads.mkdir(parents=True)
        if self.tls:
            certificate.make(self.directory)
        config = self.directory / "nginx.conf"
        lines = f"ssl_certificate {self.directory}/certificate.pem; ssl_certificate_key {self.directory}/key.pem;"
        config.write_text(
            _CONFIG.format(
                directory=self.directory,
                port=self.port,
                workers=self.workers,
                body_buffer=self.body_buffer,
                access_log=self.access_log,
                proxied=self.proxied,
                ssl=" ssl" if self.tls else "",
                certificate=f"{lines} ssl_protocols TLSv1.2 TLSv1.3;" if self.tls else "",
            )
        )
        command = [program, "-e", str(self.directory / "error.log"), "-c", str(config)]
        return ServerProcess(command, self.directory / "log", cores=self.cores)

    def version(self) -> str:
        return version("/usr/sbin/nginx", "-v").rpartition(": ")[2]

    def image(self, file: Path) -> Target:
        copy = self._files / file.name
        if not copy.exists():
            shutil.copyfile(file, copy)
        return Target(f"/{file.name}")

    def stored(self, file: Path) -> Path:
        """The file that holds the image of `file`."""
        self.image(file)
        return self._files / file.name

    def uploads(self, file: Path, count: int) -> list[Target]:
        return [Target(f"/uploads/{number}", method="PUT") for number in range(count)]

    def clean_uploads(self) -> None:
        for path in self._uploads.iterdir():
            path.unlink()


class TwoWorkers(Nginx):
    """nginx with two workers, which share the servers' core."""

    name = "nginx, 2 workers"
    workers = 2


class LargeBuffer(Nginx):
    """nginx that reads bodies through a large buffer."""

    name = "nginx, 1 MiB body buffer"
    body_buffer = "client_body_buffer_size 1m;"


class FreeNginx(Nginx):
    """nginx as it is configured by default, free to use two cores."""

    name = "nginx, two cores"
    cores = BOTH_CORES


class FreeLargeBuffer(LargeBuffer):
    """nginx with the large buffer, free to use two cores."""

    name = "nginx, 1 MiB body buffer, two cores"
    cores = BOTH_CORES


class TlsNginx(Nginx):
    """nginx over TLS."""

    name = "nginx, TLS"
    tls = True


class Origin(Nginx):
    """nginx where other servers get images from. It stands with the clients, so that who is measured has its core."""

    name = "nginx, origin"
    cores = (CLIENT_CORE,)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


class ProxyPass(Nginx):
    """nginx that proxies an origin through buffers of default size, none of them on disk, which would cost more."""

    name = "nginx proxy_pass"

    buffers = ""

    def __init__(self, directory: Path, origin: Origin) -> None:
        self._origin = origin
        self.proxied = f"location / {{ proxy_pass {origin.url}; proxy_max_temp_file_size 0; {self.buffers} }}"
        super().__init__(directory)

    def image(self, file: Path) -> Target:
        return self._origin.image(file)


class LargeProxyPass(ProxyPass):
    """nginx that proxies an origin through buffers as large as people make them."""

    name = "nginx proxy_pass, 16 x 256 KiB"
    buffers = "proxy_buffers 16 256k; proxy_buffer_size 256k; proxy_busy_buffers_size 512k;"

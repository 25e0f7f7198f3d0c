"""docker-registry: blobs by their SHA-256, which it verifies as they arrive."""

from __future__ import annotations

import hashlib
import itertools
import shutil
from collections.abc import Collection
from pathlib import Path
from urllib.parse import urlsplit

from . import control
from .machine import BOTH_CORES, SERVER_CORE, version
from .peer import Absent, Peer, Target
from .process import ServerProcess

_CONFIG = """\
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: {directory}/data}}, delete: {{enabled: true}}}}
http: {{addr: "127.0.0.1:{port}"}}
"""


class Registry(Peer):
    """The registry of Docker distribution 2.8, with its file storage."""

    name = "docker-registry"
    cores: Collection[int] = (SERVER_CORE,)

    def __init__(self, directory: Path) -> None:
        self._digests: dict[Path, str] = {}
        self._numbers = itertools.count()
        super().__init__(directory)

    def start(self) -> ServerProcess:
        if shutil.which("docker-registry") is None:
            raise Absent("docker-registry is not installed (Debian: apt install docker-registry)")
        config = self.directory / "config.yml"
        config.write_text(_CONFIG.format(directory=self.directory, port=self.port))
        environ = {"OTEL_TRACES_EXPORTER": "none"}
        return ServerProcess(
            ["docker-registry", "serve", str(config)], self.directory / "log", environ, cores=self.cores
        )

    def version(self) -> str:
        words = version("docker-registry", "--version").split()
        return f"docker-registry {words[-1]}" if words else self.name

    def image(self, file: Path) -> Target:
        digest = self._digest(file)
        path = f"/v2/images/blobs/{digest}"
        try:
            control.request(self.port, "HEAD", path)
        except control.Refused:
            control.send_file(self.port, "PUT", self._upload("images", digest), file, {})
        return Target(path)

    def _digest(self, file: Path) -> str:
        if file not in self._digests:
            with file.open("rb") as opened:
                self._digests[file] = f"sha256:{hashlib.file_digest(opened, 'sha256').hexdigest()}"
        return self._digests[file]

    def _upload(self, repository: str, digest: str) -> str:
        begun = control.request(self.port, "POST", f"/v2/{repository}/blobs/uploads/", headers={"Content-Length": "0"})
        place = urlsplit(begun.headers["location"])
        return f"{place.path}?{place.query}&digest={digest}"

    def uploads(self, file: Path, count: int) -> list[Target]:
        digest = self._digest(file)
        return [Target(self._upload(f"upload{next(self._numbers)}", digest), method="PUT") for _ in range(count)]

    def clean_uploads(self) -> None:
        # The same digest is one blob, whatever its repositories: each upload replaces the one before.
        return


class FreeRegistry(Registry):
    """The same, free to use two cores."""

    name = "docker-registry, two cores"
    cores = BOTH_CORES

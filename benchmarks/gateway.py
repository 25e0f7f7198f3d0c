"""The gateway, started by its own command."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import sys
import time
import tomllib
from collections.abc import Collection
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path
from typing import Any

from visor_gateway import __version__, signature

from . import certificate, control
from .machine import BOTH_CORES, SERVER_CORE, version
from .peer import Peer, Target
from .process import START_SECONDS, ServerFailed, ServerProcess

_RECORD = {"x-image-meta-architecture": "x86_64", "x-image-meta-access": "public"}


class Gateway(Peer):
    """The gateway as it is installed: file store, SQLite, default settings, public images readable by all."""

    name = "gateway"
    module = "visor_gateway"
    settings = ""
    workers = 1
    cores: Collection[int] = (SERVER_CORE,)

    def __init__(self, directory: Path) -> None:
        self._images: dict[Path, Target] = {}
        self.token = ""
        super().__init__(directory)

    def prepare(self) -> None:
        self.token = self._issue_token()

    def start(self) -> ServerProcess:
        config = self.directory / "gateway.toml"
        config.write_text(
            f"[server]\nworkers = {self.workers}\n{self._tls()}\n[auth]\nanonymous_pull = true\n{self.settings}\n"
        )
        words = [
            "--config",
            str(config),
            "--data-dir",
            str(self.directory / "data"),
            "--bind",
            f"127.0.0.1:{self.port}",
        ]
        command = [sys.executable, "-m", self.module, "serve", *words]
        return ServerProcess(command, self.directory / "log", cores=self.cores)

    def _tls(self) -> str:
        return ""

    def version(self) -> str:
        commit = version("git", "describe", "--always", "--dirty")
        return f"visor-gateway {__version__}" + (f", commit {commit}" if commit else "")

    @property
    def authorization(self) -> dict[str, str]:
        """For requests that need a user."""
        return {"Authorization": f"Bearer {self.token}"}

    def _issue_token(self) -> str:
        admin = self._first_user()
        key, secret = admin["access_key"], admin["secret_key"]
        target = f"/users/{key}/tokens"
        body = json.dumps({"expires_in": 24 * 3600}).encode()
        digest = _content_digest(body)
        headers = {
            "Content-Type": "application/json",
            "Content-Digest": digest,
            "X-Visor-Date": format_datetime(datetime.now(UTC), usegmt=True),
            "X-Visor-Nonce": "benchmarks-first-token",
        }
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        headers["Authorization"] = signature.authorization(signature.SHA256, "POST", target.encode(), raw, key, secret)
        return str(self.request("POST", target, headers=headers, body=body).json()["token"]["token"])

    def _first_user(self) -> dict[str, str]:
        """The keys that the first start makes, once it has made them."""
        file = self.directory / "data" / "admin.toml"
        deadline = time.monotonic() + START_SECONDS
        while not file.exists():
            if time.monotonic() > deadline:
                raise ServerFailed("it made no first user")
            time.sleep(0.05)
        return tomllib.loads(file.read_text())

    def request(self, method: str, path: str, **more: Any) -> control.Reply:
        """A request that prepares a measurement."""
        return control.request(self.port, method, path, certificate=self.certificate, **more)

    def send_json(self, method: str, path: str, value: Any) -> Any:
        """A request with a JSON body, or with none; what its answer says."""
        headers, body = dict(self.authorization), None
        if value is not None:
            body = json.dumps(value).encode()
            headers |= {"Content-Type": "application/json", "Content-Digest": _content_digest(body)}
        return self.request(method, path, headers=headers, body=body).json()

    def add(self, name: str, file: Path) -> str:
        """Upload an image; its id."""
        headers = {**self.authorization, **_RECORD, "x-image-meta-name": name}
        made = control.send_file(self.port, "POST", "/images", file, headers, certificate=self.certificate)
        return str(made.json()["image"]["_id"])

    def image(self, file: Path) -> Target:
        if file not in self._images:
            self._images[file] = Target(f"/images/{self.add(file.name, file)}")
        return self._images[file]

    def stored(self, file: Path) -> Path:
        """The file under the store's directory that holds the image of `file`."""
        image_id = self.image(file).path.rpartition("/")[2]
        (found,) = (path for path in (self.directory / "data" / "images").rglob(f"*{image_id}*/*") if path.is_file())
        return found

    def uploads(self, file: Path, count: int) -> list[Target]:
        lines = {**self.authorization, **_RECORD, "x-image-meta-name": "uploaded"}
        headers = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        return [Target("/images", headers, "POST")] * count

    def clean_uploads(self) -> None:
        with contextlib.suppress(control.Refused):
            for image in self.request("GET", "/images?name=uploaded").json()["images"]:
                self.request("DELETE", f"/images/{image['_id']}", headers=self.authorization)


def _content_digest(body: bytes) -> str:
    """The Content-Digest of a body (RFC 9530)."""
    return f"sha-256=:{base64.b64encode(hashlib.sha256(body).digest()).decode()}:"


class CopyingGateway(Gateway):
    """The gateway with zero-copy off: every body goes through user space, block by block."""

    name = "gateway, zero-copy off"
    module = "benchmarks.copying"


class VerifyingGateway(Gateway):
    """The gateway that hashes every pull, through one buffer in user space."""

    name = "gateway, verify = always"
    settings = '[stores.file]\ntype = "file"\nverify = "always"'


class Md5Gateway(Gateway):
    """The gateway that also computes the MD5 which VISOR clients expect."""

    name = "gateway, SHA-256 and MD5"
    settings = "[digests]\nvisor_md5 = true"


class QuietGateway(Gateway):
    """The gateway without a line in the log for every request, as its peers are measured."""

    name = "gateway, no access log"
    settings = '[log]\nlevel = "warning"'


class FreeGateway(QuietGateway):
    """The same, free to use two cores."""

    name = "gateway, two cores"
    cores = BOTH_CORES


class FreeMd5Gateway(Md5Gateway):
    """The gateway with both digests, free to use two cores."""

    name = "gateway, SHA-256 and MD5, two cores"
    cores = BOTH_CORES


class TwoWorkersGateway(FreeGateway):
    """The same with two workers."""

    name = "gateway, two cores, 2 workers"
    workers = 2


class TlsGateway(Gateway):
    """The gateway over TLS."""

    name = "gateway, TLS"
    tls = True

    def _tls(self) -> str:
        certificate.make(self.directory)
        return f'tls_certificate = "{self.certificate}"\ntls_key = "{self.directory}/key.pem"'

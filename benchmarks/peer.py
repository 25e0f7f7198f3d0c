"""A server that is measured: what every one of them can be asked for."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import msgspec

from .process import ServerProcess, free_port


class Absent(Exception):
    """A server can't be had on this machine; the text says why."""


class Target(msgspec.Struct, frozen=True):
    """What a client asks for. `headers` are whole lines with CR LF."""

    path: str
    headers: str = ""
    method: str = "GET"


class Peer:
    """One server. Its directory is its own, and removed with the whole run.

    Attributes:
        name: How results name it.
        status: A path that is answered from memory, for the probe.
    """

    name: str
    status: str = "/status"
    tls: ClassVar[bool] = False

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_port()
        directory.mkdir()
        self.process = self.start()
        try:
            self.process.wait_listening(self.port)
            self.prepare()
        except BaseException:
            self.process.stop()
            raise

    @property
    def certificate(self) -> Path | None:
        """What its clients trust, where it speaks TLS."""
        return self.directory / "certificate.pem" if self.tls else None

    def start(self) -> ServerProcess:
        """Start it, listening on `port`. Raises `Absent`."""
        raise NotImplementedError

    def prepare(self) -> None:
        """Do what has to be done once it listens; the server is ended where this fails."""

    def version(self) -> str:
        """What it calls itself."""
        raise NotImplementedError

    def image(self, file: Path) -> Target:
        """Where the image with the bytes of `file` is pulled, put there if it is not yet."""
        raise NotImplementedError

    def uploads(self, file: Path, count: int) -> list[Target]:
        """Where copies of `file` are uploaded, prepared as far as the server wants it."""
        raise NotImplementedError

    def clean_uploads(self) -> None:
        """Remove what was uploaded since the last call."""

    def close(self) -> None:
        """End it."""
        self.process.stop()

"""What all measurements of one run share: a directory, files to move, clients, and servers that are started once."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final, TypeVar, cast

import msgspec

from .clients import Probe, Programs
from .gateway import CopyingGateway, FreeGateway, Gateway, Md5Gateway, TlsGateway
from .glance import FreeGlance, Glance
from .machine import CLIENT_CORE, MIB, pinned
from .nginx import FreeLargeBuffer, FreeNginx, LargeBuffer, Nginx, TlsNginx, TwoWorkers
from .peer import Absent, Peer
from .process import ServerFailed
from .registry import FreeRegistry, Registry
from .starlette import QuietStarlette, Starlette

PeerT = TypeVar("PeerT", bound=Peer)
_MEMORY: Final = Path("/dev/shm")  # ruff: ignore[hardcoded-temp-file]
_RANDOM: Final = 64 * MIB  # bytes that are made at random; a larger file repeats them


class Options(msgspec.Struct, frozen=True):
    """What the command line decides.

    Attributes:
        scale: What sizes of images and seconds of measurements are multiplied by.
        retries: How often a measurement is repeated while other programs disturb it.
        quiet: The part of the cores' time, 0 to 1, that others may take of an undisturbed one.
        patience: Seconds to wait before each measurement for others to leave the cores alone.
        streams: How many streams `pulls` and `large` are measured with; none of them for all.
        watcher: Whether somebody follows the gateway's transfers while images are pulled.
        peers: Where the virtual environments `glance` and `starlette` are.
        crowds: The numbers of clients that `fanout` and `waiters` are measured with; all where there is none.
    """

    rounds: int = 5
    scale: float = 1.0
    retries: int = 1
    quiet: float = 0.1
    patience: float = 3.0
    streams: tuple[int, ...] = ()
    watcher: bool = True
    peers: Path = Path("/opt/bench-peers")
    crowds: tuple[int, ...] = ()

    def has_crowd(self, clients: int) -> bool:
        """Whether so many clients at once are asked for."""
        return not self.crowds or clients in self.crowds


class Stand:
    """Servers, files and clients of a run.

    Resource handling: `close` ends every server; the directory belongs to the caller.

    Attributes:
        absent: Why servers that were asked for are not there, by name.
        versions: What the servers call themselves, by name.
    """

    def __init__(self, directory: Path, options: Options) -> None:
        self.directory = directory
        self.options = options
        (directory / "programs").mkdir()
        self.programs = Programs(directory / "programs")
        self.absent: dict[str, str] = {}
        self.versions: dict[str, str] = {}
        self._stack = ExitStack()
        self._memory: Path | None = None
        self._peers: dict[str, Peer | None] = {}

    def close(self) -> None:
        """End the servers."""
        self._stack.close()

    def file(self, mib: int) -> Path:
        """A file of that many MiB, times the scale."""
        size = max(1, int(mib * self.options.scale)) * MIB
        path = self.directory / f"image-{size // MIB}"
        if not path.exists():
            block = os.urandom(min(size, _RANDOM))
            with path.open("wb") as file:
                while file.tell() < size:
                    file.write(block[: size - file.tell()])
        return path

    def chosen(self, streams: int) -> bool:
        """Whether that many streams are to be measured."""
        return not self.options.streams or streams in self.options.streams

    def seconds(self, seconds: float) -> float:
        """A duration, times the scale."""
        return seconds * self.options.scale

    def find(self, cls: type[PeerT], make: Callable[[Path], PeerT] | None = None, *, label: str = "") -> PeerT | None:
        """A server, started at the first call; None where it can't be had. `label` tells apart two of a kind."""
        key = f"{cls.name} {label}".strip()
        if key not in self._peers:
            self._peers[key] = self._start(cls, make or cls, key)
        return cast("PeerT | None", self._peers[key])

    def _start(self, cls: type[PeerT], make: Callable[[Path], PeerT], key: str) -> PeerT | None:
        place = self.directory / "".join(c if c.isalnum() else "-" for c in key)
        try:
            peer = make(place)
        except (Absent, ServerFailed) as why:
            self.absent[cls.name] = " ".join(str(why).split())
            print(f"{cls.name}: left out: {self.absent[cls.name]}", file=sys.stderr)
            return None
        self._stack.callback(peer.close)
        self.versions[cls.name] = peer.version()
        return peer

    def find_in_memory(self, cls: type[PeerT], make: Callable[[Path], PeerT] | None = None) -> PeerT | None:
        """As `find`, a server whose files are in memory, where nobody waits for a disk."""
        if not _MEMORY.is_dir():
            self.absent[cls.name] = f"{_MEMORY} is missing"
            return None
        if self._memory is None:
            self._memory = Path(
                self._stack.enter_context(tempfile.TemporaryDirectory("-visor-benchmarks", dir=_MEMORY))
            )
        memory = self._memory
        return self.find(cls, lambda place: (make or cls)(memory / place.name), label="in memory")

    @property
    def nginx(self) -> Nginx | None:
        """The reference of pulls."""
        return self.find(Nginx)

    @property
    def gateway(self) -> Gateway:
        """The gateway with default settings. Raises `ServerFailed` where it does not start."""
        gateway = self.find(Gateway)
        if gateway is None:
            raise ServerFailed(f"the gateway does not start: {self.absent[Gateway.name]}")
        return gateway

    @property
    def glance(self) -> Glance | None:
        """Glance, from its environment."""
        return self.find(Glance, lambda place: Glance(place, self._glance))

    @property
    def _glance(self) -> Path:
        return self.options.peers / "glance"

    @property
    def starlette(self) -> Starlette | None:
        """Starlette, from its environment."""
        return self.find(Starlette, lambda place: Starlette(place, self.options.peers / "starlette"))

    @property
    def quiet_starlette(self) -> QuietStarlette | None:
        """The same without its access log."""
        return self.find(QuietStarlette, lambda place: QuietStarlette(place, self.options.peers / "starlette"))

    def pullers(self) -> list[Peer]:
        """Servers of the pulls that are measured at every number of streams, the reference first."""
        return present(self.nginx, self.gateway, self.find(TwoWorkers), self.find(CopyingGateway))

    def uploaders(self) -> list[Peer]:
        """Servers of the uploads, the reference first."""
        hashing = (self.find(Md5Gateway), self.glance, self.find(Registry))
        return present(self.find(LargeBuffer), self.nginx, self.gateway, *hashing)

    def uploaders_in_memory(self) -> list[Peer]:
        """Servers of uploads to memory on one core, the reference first."""
        plain = map(self.find_in_memory, (LargeBuffer, Nginx, Gateway, Registry))
        return present(*plain, self.find_in_memory(Glance, lambda place: Glance(place, self._glance)))

    def free_uploaders(self) -> list[Peer]:
        """The same on two cores."""
        plain = map(self.find_in_memory, (FreeLargeBuffer, FreeNginx, FreeGateway, FreeRegistry))
        return present(*plain, self.find_in_memory(FreeGlance, lambda place: FreeGlance(place, self._glance)))

    def tls(self) -> list[Peer]:
        """Servers that speak TLS, the reference first."""
        return present(self.find(TlsNginx), self.find(TlsGateway))

    @contextmanager
    def watched(self) -> Generator[None]:
        """Follow the gateway's transfers meanwhile, where the options say so. Raises `ClientFailed`."""
        if not self.options.watcher:
            yield
            return
        gateway = self.gateway
        with pinned(CLIENT_CORE):
            watcher = Probe([sys.executable, "-m", "benchmarks.watcher", str(gateway.port), gateway.token])
        try:
            yield
        finally:
            watcher.finish()


def present(*peers: PeerT | None) -> list[PeerT]:
    """Those that could be had."""
    return [peer for peer in peers if peer is not None]

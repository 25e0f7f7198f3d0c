"""One process takes another one's place: the two ends of the link between them.

The older one starts the younger one with its listening sockets, the lock of the data directory and one end of the
link. The younger one does whatever can fail, and says `ready`; the older one says `go`; the younger one begins to
accept and says `took`. Up to then the older one is the gateway, and goes on if anything else happens. Each message is a
JSON object in a packet of its own; who reads one ignores what it does not know, since the two may be of different
versions.
"""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Final

import trio

from . import __version__
from .errors import ConfigError, GatewayError
from .launch import launch, own_command

LINK: Final = "VISOR_GATEWAY_PREDECESSOR"  # the variable with the descriptor of the link
LOCK: Final = "VISOR_GATEWAY_LOCK"  # that of the data directory's lock
READY_SECONDS: Final = 300.0  # a migration may take a while
TAKE_SECONDS: Final = 20.0
MESSAGE_BYTES: Final = 16 * 1024


class UpgradeFailed(GatewayError):
    """The younger process did not take over."""


class Predecessor:
    """The older process, as the younger one has it.

    Attributes:
        lock: The descriptor of the data directory's lock.
        owns_names: Whether names of listening Unix sockets are the gateway's own to remove.
    """

    def __init__(self, link: int, lock: int) -> None:
        self.lock = lock
        self.owns_names = False
        os.set_inheritable(lock, False)
        self._link = socket.socket(fileno=link)
        self._link.set_inheritable(False)

    async def propose(self) -> None:
        """Say that everything is ready, and wait for the word to take over.

        Raises:
            ConfigError: The older process is gone, or has decided otherwise.
        """
        self._link.setblocking(False)
        link = trio.socket.from_stdlib_socket(self._link)
        try:
            await link.send(json.dumps({"ready": True, "version": __version__}).encode())
            word = _message(await link.recv(MESSAGE_BYTES))
        except OSError as exc:
            raise ConfigError("the process that this one was to succeed is gone") from exc
        if not word.get("go"):
            raise ConfigError("the process that this one was to succeed goes on itself")
        self.owns_names = bool(word.get("owns_names"))

    def confirm(self) -> None:
        """Say that this process is the gateway from now on. Never waits."""
        with suppress(OSError):
            self._link.send(json.dumps({"took": True}).encode())
        self._link.close()

    def tell_failure(self, message: str) -> None:
        """Say why this process can't take over. After `confirm` it says nothing."""
        if self._link.fileno() >= 0:
            with suppress(OSError):
                self._link.setblocking(False)
                self._link.send(json.dumps({"failed": message[:4000]}).encode())


@contextmanager
def predecessor() -> Generator[Predecessor | None]:
    """The process that started this one to be succeeded by it, if there is one; told if the block fails.

    The variables are removed, so that no child takes the descriptors for its own.
    """
    link, lock = os.environ.pop(LINK, ""), os.environ.pop(LOCK, "")
    if not (link.isdecimal() and lock.isdecimal()):
        yield None
        return
    older = Predecessor(int(link), int(lock))
    try:
        yield older
    except GatewayError as error:
        older.tell_failure(error.message)
        raise
    except BaseException as error:
        older.tell_failure(f"ended by {type(error).__name__}, see the log")
        raise


class Successor:
    """The younger process, as the older one has it.

    Attributes:
        pid: Its number.
        version: Its version, once it is ready.
    """

    def __init__(self, link: trio.socket.SocketType) -> None:
        self.pid = 0
        self.version = ""
        self._link = link
        self._pidfd = -1

    async def begun(self) -> None:
        """Wait until it is a process. Raises `UpgradeFailed`."""
        self.pid = int((await self._hear("pid", TAKE_SECONDS))["pid"])
        with suppress(ProcessLookupError):
            self._pidfd = os.pidfd_open(self.pid)

    async def ready(self) -> None:
        """Wait until it has done what can fail. Raises `UpgradeFailed`, with the reason."""
        self.version = str((await self._hear("ready", READY_SECONDS)).get("version", ""))

    async def take_over(self, *, owns_names: bool) -> None:
        """Have it begin to accept. Raises `UpgradeFailed`."""
        with suppress(OSError):
            await self._link.send(json.dumps({"go": True, "owns_names": owns_names}).encode())
        await self._hear("took", TAKE_SECONDS)
        self._link.close()

    async def _hear(self, word: str, seconds: float) -> Mapping[str, Any]:
        data = b""
        try:
            with trio.fail_after(seconds):
                data = await self._link.recv(MESSAGE_BYTES)
        except trio.TooSlowError as exc:
            raise UpgradeFailed(f"the new process was not ready after {seconds:g} s") from exc
        except OSError as exc:
            raise UpgradeFailed("the new process ended before it was ready, see the log") from exc
        message = _message(data)
        if word in message:
            return message
        raise UpgradeFailed(str(message.get("failed") or "the new process ended before it was ready, see the log"))

    async def wait_ended(self) -> None:
        """Wait until the process has ended."""
        if self._pidfd >= 0:
            await trio.lowlevel.wait_readable(self._pidfd)

    def give_up(self) -> None:
        """End it at once, and let go of it."""
        if self._pidfd >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        self._link.close()
        self.close()

    def close(self) -> None:
        """Let go of one that took over."""
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1


async def start_successor(listening: Mapping[int, str], lock: int) -> Successor:
    """Start the program that started this process, with these sockets. The caller closes what is returned.

    Args:
        listening: Descriptors of listening sockets, and their names.
        lock: The descriptor of the data directory's lock.

    Raises:
        GatewayError: It can't be started.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    successor = Successor(trio.socket.from_stdlib_socket(ours))
    try:
        with theirs:
            passed = {LINK: theirs.fileno(), LOCK: lock}
            await launch(own_command(), listening, passed, link=theirs.fileno())
        await successor.begun()
    except BaseException:
        successor.give_up()
        raise
    return successor


def _message(data: bytes) -> Mapping[str, Any]:
    with suppress(ValueError):
        read = json.loads(data)
        return read if isinstance(read, dict) else {}
    return {}

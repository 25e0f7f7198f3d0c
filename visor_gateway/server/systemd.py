"""The protocol between systemd and a service: inherited sockets, notifications, the watchdog.

Without systemd every function here does nothing and says so. See
 sd_listen_fds(3), sd_notify(3), sd_watchdog_enabled(3).
"""

from __future__ import annotations

import os
import select
import socket
import time
from contextlib import suppress
from typing import Final

from .listener import Inherited

FIRST_FD: Final = 3  # SD_LISTEN_FDS_START
STREAM: Final = socket.SOCK_STREAM
#: The start, or a reload, is complete.
READY: Final = "READY=1"
#: The drain has begun.
STOPPING: Final = "STOPPING=1"
BARRIER_SECONDS: Final = 5.0


def listen_fds() -> list[Inherited]:
    """Take over the sockets that systemd passes, non-blocking and not inherited further; [] if there are none.

    The variables are removed, so that no child takes the sockets for its own. The caller closes the sockets.

    Raises:
        OSError: A passed descriptor is not a listening stream socket.
    """
    pid, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
    names = dict(enumerate(os.environ.pop("LISTEN_FDNAMES", "").split(":"), FIRST_FD))
    if pid != str(os.getpid()) or not count.isdecimal():
        return []
    inherited = []
    for fd in range(FIRST_FD, FIRST_FD + int(count)):
        sock = socket.socket(fileno=fd)
        inherited.append(Inherited(sock, names.get(fd, "")))
        if sock.type != STREAM or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise OSError(f"Inherited descriptor {fd} is not a listening stream socket")
        sock.set_inheritable(False)
        sock.setblocking(False)
    return inherited


def notify(*assignments: str) -> bool:
    """Send assignments such as `READY=1` to the service manager. Whether there is one that took them. Never raises."""
    if not is_listening():
        return False
    address = os.environ["NOTIFY_SOCKET"]
    if address.startswith("@"):
        address = "\0" + address[1:]
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.setblocking(False)  # a full queue of the manager must not stop the gateway
        sock.sendto("\n".join(assignments).encode(), address)
        return True
    return False


def is_listening() -> bool:
    """Whether there is a service manager that takes notifications."""
    return os.environ.get("NOTIFY_SOCKET", "").startswith(("/", "@"))


def reloading() -> tuple[str, str]:
    """What says that a reload begins now; `READY` ends it (sd_notify(3); Type=notify-reload needs the moment)."""
    return "RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}"


def extend_timeout(seconds: float) -> bool:
    """Ask for `seconds` more, from now, before the start or stop counts as failed."""
    return notify(f"EXTEND_TIMEOUT_USEC={round(seconds * 1_000_000)}")


def barrier() -> None:
    """Wait until the manager has read all that was sent before (sd_notify_barrier(3)). Blocks, for 5 s at most."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    ours, theirs = os.pipe2(os.O_CLOEXEC)
    try:
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.connect("\0" + address[1:] if address.startswith("@") else address)
            socket.send_fds(sock, [b"BARRIER=1"], [theirs])
            os.close(theirs)
            theirs = -1
            poll = select.poll()
            poll.register(ours, select.POLLHUP)
            poll.poll(BARRIER_SECONDS * 1000)
    finally:
        os.close(ours)
        if theirs >= 0:
            os.close(theirs)


def alive() -> bool:
    """Feed the watchdog."""
    return notify("WATCHDOG=1")


def watchdog_interval() -> float | None:
    """Seconds within which `alive` must be called, None if no watchdog waits for this process.

    Feed it at half the interval. The variables stay: children get their own from systemd, not through us.
    """
    usec, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", str(os.getpid()))
    if not usec.isdecimal() or int(usec) == 0 or pid != str(os.getpid()):
        return None
    return int(usec) / 1_000_000

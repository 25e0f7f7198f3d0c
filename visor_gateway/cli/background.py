"""The daemon in the background, for hosts without systemd: start it, find it by its lock, end it, tidy up after it."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

from ..datadir import DataDirectory, lock_data_dir, lock_holder

UNIT: Final = "visor-gateway"
SERVICE_DATA: Final = Path("/var/lib/visor-gateway")  # where the unit keeps its data
CUT_AFTER: Final = 0.5  # seconds between the SIGTERM that drains and the one that cuts
#: What a service manager set for the process that runs this command, and not for the daemon that it starts.
_NOT_INHERITED: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")


class BackgroundError(Exception):
    """The daemon could not be started, found or ended. The message is one line."""


def unit_is_active() -> bool:
    """Whether systemd runs the gateway on this host."""
    try:
        asked = subprocess.run(
            ["systemctl", "is-active", "--quiet", UNIT], check=False, capture_output=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return asked.returncode == 0


def unit_properties(*names: str) -> dict[str, str]:
    """What systemd knows of the unit (`systemctl show`); {} without systemd."""
    try:
        asked = subprocess.run(
            ["systemctl", "show", UNIT, f"--property={','.join(names)}"],
            check=False,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return {}
    lines = asked.stdout.splitlines() if asked.returncode == 0 else []
    return dict(line.split("=", 1) for line in lines if "=" in line)


def start(directory: DataDirectory, options: Sequence[str], *, timeout: float) -> tuple[int, str]:
    """Start `visor-gateway serve` detached, writing to the log of the data directory, and wait until it is ready.

    Args:
        directory: The data directory, made where it is missing.
        options: Further options of `serve`.
        timeout: Seconds to wait. A daemon that is not ready by then goes on starting.

    Returns:
        The number of its process, and what it said of itself when it was ready.

    Raises:
        BackgroundError: It ended before it was ready, or was not ready in time.
        ConfigError: A daemon runs on the directory, or it can't be used.
    """
    with lock_data_dir(directory.path):
        # Held for an instant: the daemon takes it itself, but a refusal is better told here than out of its log.
        pass
    with tempfile.TemporaryDirectory(prefix="visor-gateway-") as place, closing(_notifications(place)) as notified:
        begin = directory.log.stat().st_size if directory.log.exists() else 0
        process = _spawn(directory, options, notify=notified.getsockname())
        status = _wait_until_ready(process.pid, notified, time.monotonic() + timeout)
    if status is not None:
        _leave(process)
        return process.pid, status
    if process.poll() is None:
        _leave(process)
        raise BackgroundError(
            f"process {process.pid} is not ready after {timeout:g} s and goes on, see {directory.log}"
        )
    raise BackgroundError(f"did not start: {_last_line(directory.log, begin) or f'see {directory.log}'}")


def _notifications(place: str) -> socket.socket:
    """The socket on which the daemon says that it is ready (sd_notify(3))."""
    notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    notified.bind(f"{place}/notify")
    return notified


def _spawn(directory: DataDirectory, options: Sequence[str], *, notify: str) -> subprocess.Popen[bytes]:
    environment = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
    command = [sys.executable, "-P", "-m", "visor_gateway", "serve", "--data-dir", str(directory.path), *options]
    log = os.open(directory.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            # A daemon pins no mounted file system but that of its data.
            cwd="/",
            start_new_session=True,
            env=environment | {"NOTIFY_SOCKET": notify},
        )
    finally:
        os.close(log)


def _leave(process: subprocess.Popen[bytes]) -> None:
    """Let a daemon outlive this process. `Popen` warns of every child that nobody waited for."""
    process.returncode = 0


def _wait_until_ready(pid: int, notified: socket.socket, deadline: float) -> str | None:
    """The last `STATUS` before `READY`; None if the process ended or the time is over first."""
    status = ""
    poll = select.poll()
    poll.register(notified, select.POLLIN)
    with _pidfd(pid) as pidfd:
        poll.register(pidfd, select.POLLIN)
        while (left := deadline - time.monotonic()) > 0:
            ready = [fd for fd, _ in poll.poll(left * 1000)]
            if notified.fileno() in ready:
                said = _assignments(notified.recv(65536))
                status = said.get("STATUS", status)
                if said.get("READY") == "1":
                    return status
            elif pidfd in ready:
                return None
    return None


@contextmanager
def _pidfd(pid: int) -> Generator[int]:
    """A descriptor that stays that of this process, also when its number passes to another one."""
    pidfd = os.pidfd_open(pid)
    try:
        yield pidfd
    finally:
        os.close(pidfd)


def _assignments(message: bytes) -> dict[str, str]:
    pairs = (line.partition("=") for line in message.decode("utf-8", "replace").splitlines())
    return {name: value for name, _, value in pairs}


def _last_line(log: Path, begin: int) -> str:
    with log.open("rb") as file:
        file.seek(max(begin, log.stat().st_size - 65536))
        lines = [line.strip() for line in file.read().decode("utf-8", "replace").splitlines() if line.strip()]
    return lines[-1].removeprefix("visor-gateway: ") if lines else ""


def stop(directory: DataDirectory, *, timeout: float, cut: bool = False) -> int | None:
    """End the daemon that holds the data directory: SIGTERM, which drains, then wait until it is gone.

    Args:
        directory: The data directory.
        timeout: Seconds to wait; a daemon that drains longer goes on.
        cut: Whether to send a second SIGTERM soon, which cuts the transfers that are under way.

    Returns:
        The number of its process, None if none ran.

    Raises:
        BackgroundError: It may not be signalled, or is not gone in time.
    """
    pid = lock_holder(directory.path)
    if pid is None:
        return None
    try:
        with _pidfd(pid) as pidfd:
            # The number may have passed to another process until the descriptor was open; the descriptor never does.
            if lock_holder(directory.path) == pid:
                _end(pidfd, pid, timeout, cut=cut)
    except ProcessLookupError:
        return pid
    except PermissionError as exc:
        raise BackgroundError(f"process {pid} belongs to another user") from exc
    return pid


def _end(pidfd: int, pid: int, timeout: float, *, cut: bool) -> None:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    signal.pidfd_send_signal(pidfd, signal.SIGTERM)
    # Two signals at once would arrive as one.
    if cut and not poll.poll(CUT_AFTER * 1000):
        signal.pidfd_send_signal(pidfd, signal.SIGTERM)
    if not poll.poll(timeout * 1000):
        raise BackgroundError(f"process {pid} still drains after {timeout:g} s")


def upgrade(directory: DataDirectory, *, timeout: float) -> tuple[int, str]:
    """Ask the running daemon to be succeeded by a new process of the installed version, and wait for the outcome.

    Returns:
        The number of the new process, and its version.

    Raises:
        BackgroundError: No daemon runs, or it goes on itself; the message says why.
    """
    # Imported here: it is needed here alone.
    from ..control import ask

    control = directory.control
    if not control.exists() and (beside := DataDirectory(SERVICE_DATA)).control.exists():
        control = beside.control
    try:
        answer = ask(control, timeout, ask="upgrade")
    except TimeoutError as exc:
        raise BackgroundError(f"no answer within {timeout:g} s") from exc
    except OSError as exc:
        raise BackgroundError(f"no daemon answers on {control}: {exc.strerror}") from exc
    if answer is None:
        raise BackgroundError("the daemon ended, or does not listen to this user")
    if not answer.get("done"):
        raise BackgroundError(f"the running process goes on: {answer.get('reason')}")
    return int(answer["pid"]), str(answer["version"])


def clean(directory: DataDirectory) -> list[Path]:
    """Remove the logs of daemons that were started in the background. Images and records stay.

    Raises:
        ConfigError: A daemon runs on the directory.
    """
    if not directory.path.exists():
        return []
    with lock_data_dir(directory.path):
        logs = sorted(directory.path.glob(f"{directory.log.name}*"))
        for log in logs:
            log.unlink()
    return logs


def state(directory: DataDirectory) -> Mapping[str, object]:
    """Whether a daemon runs, as `visor-gateway status --json` tells it."""
    unit = unit_is_active()
    pid = None if unit else lock_holder(directory.path)
    return {"running": unit or pid is not None, "systemd": unit, "pid": pid, "data_dir": str(directory.path)}

"""What the kernel offers of that which makes pulls cheap. Each is tried, on sockets and files of this process."""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from .finding import Finding, note, ok, warning

_BYTES: Final = b"visor" * 100
_TCP_ULP: Final = 31  # linux/tcp.h
_PIPE_BYTES: Final = 1 << 20  # what the gateway asks for


def examine_kernel() -> Iterator[Finding]:
    """Every feature; one that is missing costs processor time, never correctness."""
    for name, trial, lost in _FEATURES:
        try:
            trial()
        except (OSError, AttributeError) as exc:
            reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else "not offered"
            if lost is None:
                yield note("kernel", f"{name} does not work: {reason}; this version does without")
                continue
            yield warning(
                "kernel",
                f"{name} does not work: {reason}",
                f"{lost}; let it through if a sandbox or seccomp filter keeps it away",
            )
        else:
            yield ok("kernel", f"{name} works")
    yield _ktls()
    yield _pipes()


@contextmanager
def _connected() -> Generator[tuple[socket.socket, socket.socket]]:
    """Two ends of a TCP connection."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        ours = stack.enter_context(socket.create_connection(listener.getsockname(), timeout=5))
        theirs = stack.enter_context(listener.accept()[0])
        yield ours, theirs


@contextmanager
def _pipe() -> Generator[tuple[int, int]]:
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        yield reader, writer
    finally:
        os.close(reader)
        os.close(writer)


def _sendfile() -> None:
    with _connected() as (ours, _), tempfile.TemporaryFile() as file:
        file.write(_BYTES)
        file.flush()
        if os.sendfile(ours.fileno(), file.fileno(), 0, len(_BYTES)) != len(_BYTES):
            raise OSError(0, "fewer bytes than there are")


def _splice() -> None:
    with _connected() as (ours, theirs), _pipe() as (reader, writer):
        theirs.sendall(_BYTES)
        ours.recv(1, socket.MSG_PEEK)
        count = os.splice(ours.fileno(), writer, len(_BYTES))
        os.splice(reader, theirs.fileno(), count)


def _tee() -> None:
    with _pipe() as (reader, writer), _pipe() as (_, other):
        os.write(writer, _BYTES)
        if ctypes.CDLL(None, use_errno=True).tee(reader, other, len(_BYTES), 0) < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _notsent_lowat() -> None:
    with _connected() as (ours, _):
        ours.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, 1 << 20)


def _tcp_info() -> None:
    with _connected() as (ours, _):
        if len(ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)) < _WITH_BYTES_ACKED:
            raise OSError(0, "older than Linux 4.1")


_WITH_BYTES_ACKED: Final = 128  # bytes of struct tcp_info up to tcpi_bytes_acked


def _nowait_reads() -> None:
    with tempfile.TemporaryFile() as file:
        file.write(_BYTES)
        file.flush()
        try:
            os.preadv(file.fileno(), [bytearray(1)], 0, os.RWF_NOWAIT)
        except BlockingIOError:
            return


_FEATURES: Final[tuple[tuple[str, Callable[[], None], str | None], ...]] = (
    ("sendfile", _sendfile, "pulls from files are copied through the process"),
    ("splice", _splice, "pulls from other servers are copied through the process"),
    ("tee", _tee, None),
    ("TCP_NOTSENT_LOWAT", _notsent_lowat, "slow clients take more kernel memory"),
    ("TCP_INFO", _tcp_info, "stalled clients are found later"),
    ("RWF_NOWAIT", _nowait_reads, "reads of cached files take a thread"),
)


def _ktls() -> Finding:
    """Never more than a note: TLS is done in the process anyway."""
    try:
        with _connected() as (ours, _):
            ours.setsockopt(socket.IPPROTO_TCP, _TCP_ULP, b"tls")
    except OSError:
        return note("kernel", "kTLS is not there (modprobe tls would load it); this version does TLS in the process")
    return note("kernel", "kTLS is there; this version does TLS in the process")


def _pipes(limit: Path = Path("/proc/sys/fs/pipe-max-size")) -> Finding:
    try:
        with _pipe() as (_, writer):
            fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    except OSError:
        return warning(
            "kernel",
            "a pipe can't have 1 MiB: smaller ones are used",
            f"raise {limit} and fs.pipe-user-pages-soft (sysctl) for faster pulls from other servers",
        )
    return ok("kernel", "pipes of 1 MiB can be had")

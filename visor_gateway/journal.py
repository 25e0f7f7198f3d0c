"""Log lines with fields, for systemd's journal by its native protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL).

One datagram an entry: `journalctl VISOR_STORE=s3` finds what a search through text would, and a traceback is one entry.
"""

from __future__ import annotations

import logging
import re
import socket
import struct
from collections.abc import Callable, Mapping
from typing import Final

SOCKET: Final = "/run/systemd/journal/socket"
#: syslog severities (sd-daemon(3)) by the names of logging.
PRIORITIES: Final[Mapping[str, int]] = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}

_UNFIT: Final = re.compile(r"[^A-Z0-9_]")
_NAME_LENGTH: Final = 64  # what the journal takes


def field_name(key: str) -> str:
    """The name under which a value of ours stands in the journal."""
    return f"VISOR_{_UNFIT.sub('_', key.upper())}"[:_NAME_LENGTH]


def encode(fields: Mapping[str, str]) -> bytes:
    """One entry. A value with line breaks goes with its length before it, so that none passes for a field."""
    parts = []
    for name, value in fields.items():
        content = value.encode("utf-8", "backslashreplace")
        if b"\n" in content:
            parts.append(b"%s\n%s%s\n" % (name.encode(), struct.pack("<Q", len(content)), content))
        else:
            parts.append(b"%s=%s\n" % (name.encode(), content))
    return b"".join(parts)


class JournalHandler(logging.Handler):
    """Hands records to the journal; never waits for it."""

    def __init__(
        self,
        fields: Callable[[logging.LogRecord], Mapping[str, str] | None],
        fallback: logging.Handler,
        path: str = SOCKET,
    ) -> None:
        """Handle records.

        Args:
            fields: The fields of a record's entry; None for one that goes to `fallback`.
            fallback: Takes what the journal's socket does not: too long an entry, a full queue, no socket.
            path: The journal's socket.
        """
        super().__init__()
        self._fields = fields
        self._fallback = fallback
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.setblocking(False)

    def emit(self, record: logging.LogRecord) -> None:
        """Hand one record over. Raises nothing (see `logging.Handler.handleError`)."""
        try:
            fields = self._fields(record)
            if fields is not None:
                # Not connected, for a journal that is restarted makes its socket anew.
                self._socket.sendto(encode(fields), self._path)
                return
        except OSError:
            pass
        except Exception:
            self.handleError(record)
            return
        self._fallback.handle(record)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
        super().close()

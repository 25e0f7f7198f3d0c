"""Logs: to standard error, as text or JSON, from this package (structlog) and from libraries (logging) alike.

`request_id` and `transfer_id` come from structlog's context variables, which Trio copies into every task and thread.
Every line passes `redacted` last but for its rendering, so that no event, value or traceback carries a secret. Only a
`Prepared` line, which is written for every request, goes past that: its maker has seen to its secrets.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final, TextIO
from urllib.parse import unquote_plus

import structlog
from structlog.typing import EventDict

from . import journal
from .journal import PRIORITIES, JournalHandler

HIDDEN: Final = "***"
#: Keys, headers and query parameters whose values are secret; `-` and case do not matter.
SECRET_NAMES: Final = frozenset({
    "authorization", "proxy_authorization", "cookie", "set_cookie", "secret", "secret_key", "client_secret", "token",
    "access_token", "sig", "signature", "ticket", "password", "passwd", "master_key", "private_key", "shared_key",
    "x_amz_signature", "x_amz_security_token", "awsaccesskeyid",
})  # fmt: skip

_CREDENTIALS: Final = re.compile(r"\b(Bearer)\s+[\w.~+/=-]{6,}|\b(VISOR(?:-HMAC-SHA256)?)\s+[^\s:]+:[\w+/=-]+", re.I)
_HEADER: Final = re.compile(r"((?:proxy-)?authorization\b[\"']?\s*[:=,]\s*b?[\"']?)[^\"'\r\n]+", re.I)
# From the beginning of a word and without a way back: a client may send a long one.
_NAME: Final = re.compile(r"(?<![\w%.-])([\w%.-]++)=")
_VALUE: Final = re.compile(r"[^&\s\"'<>]+")
_ENTRY: Final = re.compile(r"([\"'])([\w-]+)\1(\s*:\s*)(b?)([\"'])(?:(?!\5).)*\5")
_USERINFO: Final = re.compile(r"(\w://)[^/\s\"'@]*@")

#: Libraries that say too much at the level of ours.
_QUIET: Final = ("sqlalchemy", "alembic", "httpx2", "httpcore2", "hypercorn", "quart", "asyncio")


def configure(
    level: str,
    format: str,
    *,
    stream: TextIO | None = None,
    environ: Mapping[str, str] = os.environ,
    journal_socket: str = journal.SOCKET,
) -> None:
    """Set up logging of the whole process. May be called again, with another level or format.

    Args:
        level: `debug`, `info`, `warning` or `error`.
        format: `text` or `json`.
        stream: Where lines go; standard error if None.
        environ: The environment; `JOURNAL_STREAM` tells whether systemd's journal reads the stream.
        journal_socket: Where the journal takes entries with fields. Lines of requests go to the stream all the same:
            there are too many of them for an entry with fields each.
    """
    stream = stream or sys.stderr
    for_journal = _is_journal(stream, environ)
    handler: logging.Handler = logging.StreamHandler(stream)
    handler.setFormatter(_Formatter(_Json(for_journal) if format == "json" else _Text(for_journal)))
    if for_journal and format == "text":
        handler = JournalHandler(_entry_of, handler, journal_socket)
        handler.setFormatter(_fields)
    root = logging.getLogger()
    for old in root.handlers[:]:
        if isinstance(old.formatter, structlog.stdlib.ProcessorFormatter):
            root.removeHandler(old)
            old.close()
    root.addHandler(handler)
    root.setLevel(level.upper())
    _tame_libraries(level)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )


class Prepared(ABC):
    """A line that is rendered without the general processors, as the message of a `logging.LogRecord`.

    Whoever makes one answers for it: no secret, and in `text` no character that is not printable.
    """

    @abstractmethod
    def text(self) -> str:
        """The event and its values, as `_Text` shows them."""

    @abstractmethod
    def values(self) -> dict[str, Any]:
        """The values, for JSON."""


class _Formatter(structlog.stdlib.ProcessorFormatter):
    def __init__(self, renderer: _Text | _Json | _Entry) -> None:
        super().__init__(
            foreign_pre_chain=[structlog.contextvars.merge_contextvars, structlog.stdlib.ExtraAdder()],
            processors=[
                structlog.stdlib.add_logger_name,
                structlog.stdlib.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                structlog.processors.format_exc_info,
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                redacted,
                renderer,
            ],
        )
        self._prepared = renderer.prepared

    def format(self, record: logging.LogRecord) -> str:
        if isinstance(record.msg, Prepared):
            return self._prepared(record, record.msg)
        return super().format(record)


def _tame_libraries(level: str) -> None:
    """Send what libraries log through our handler alone, and their chatter nowhere unless debugging is asked for."""
    logging.captureWarnings(True)
    quiet = logging.DEBUG if level == "debug" else logging.WARNING
    for name in _QUIET:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(quiet)


def _is_journal(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Whether the journal reads the stream: systemd names its device and inode (systemd.exec(5), JOURNAL_STREAM)."""
    device, _, inode = environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return (device, inode) == (str(status.st_dev), str(status.st_ino))


# --- redaction -----------------------------------------------------------------------------------


def redact(text: str) -> str:
    """The text with credentials, signatures, tickets and the userinfo of URLs replaced by `***`.

    For whatever shows a URL or a header to somebody: the access log, a message, a transfer's error.
    """
    text = _HEADER.sub(rf"\1{HIDDEN}", text)
    text = _CREDENTIALS.sub(lambda found: f"{found[1] or found[2]} {HIDDEN}", text)
    text = _ENTRY.sub(_entry, text)
    return _USERINFO.sub(rf"\1{HIDDEN}@", _without_parameters(text))


def _without_parameters(text: str) -> str:
    """The text with the values of parameters that are secret hidden. What looks like the value of another one may hold
    such a parameter: `a=b,sig=c`."""
    shown, at = "", 0
    for found in _NAME.finditer(text):
        # `s%69g=` names the same parameter as `sig=`.
        if found.start() >= at and _is_secret(unquote_plus(found[1])) and (value := _VALUE.match(text, found.end())):
            shown += text[at : found.end()] + HIDDEN
            at = value.end()
    return shown + text[at:]


def _entry(found: re.Match[str]) -> str:
    """An entry of a dictionary as `repr` or JSON shows it."""
    quote, name, colon, prefix, other = found.groups()
    return f"{quote}{name}{quote}{colon}{prefix}{other}{HIDDEN}{other}" if _is_secret(name) else found[0]


def _is_secret(name: str) -> bool:
    return name.lower().replace("-", "_") in SECRET_NAMES


def redacted(logger: Any, method: str, event_dict: EventDict) -> EventDict:
    """The structlog processor that hides secrets in every value, however deep."""
    return {key: HIDDEN if _is_secret(key) else _clean(value) for key, value in event_dict.items()}


def _clean(value: Any) -> Any:
    match value:
        case None | bool() | int() | float():
            return value
        case str():
            return redact(value)
        case bytes() | bytearray() | memoryview():
            return redact(_name(bytes(value)))
        case Mapping():
            named = {_name(key): item for key, item in value.items()}
            return {name: HIDDEN if _is_secret(name) else _clean(item) for name, item in named.items()}
        case (str() | bytes() as name, _) if _is_secret(_name(name)):
            # One header of a list of pairs.
            return [_name(name), HIDDEN]
        case list() | tuple() | set() | frozenset():
            return [_clean(item) for item in value]
        case _:
            return redact(str(value))


def _name(name: object) -> str:
    return name.decode("utf-8", "backslashreplace") if isinstance(name, bytes) else str(name)


# --- rendering -----------------------------------------------------------------------------------


class _Json:
    """One object a line.

    Args:
        journal: Whether the journal reads: it takes the severity from a prefix.
    """

    def __init__(self, journal: bool) -> None:
        self._journal = journal

    def __call__(self, logger: Any, method: str, event_dict: EventDict) -> str:
        return self._prefix(event_dict["level"]) + json.dumps(event_dict, ensure_ascii=False, default=str)

    def prepared(self, record: logging.LogRecord, line: Prepared) -> str:
        """The same for a line that was prepared."""
        level = record.levelname.lower()
        values = {**line.values(), "logger": record.name, "level": level, "timestamp": _moment()}
        return self._prefix(level) + json.dumps(values, ensure_ascii=False)

    def _prefix(self, level: str) -> str:
        return f"<{PRIORITIES.get(level, 6)}>" if self._journal else ""


def _moment() -> str:
    """The time as structlog's `TimeStamper` writes it."""
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


class _Text:
    """`time level event key=value ...`, then the traceback if there is one.

    Args:
        journal: Whether the journal reads: it knows the time itself, and takes the severity from a prefix of each line.
    """

    def __init__(self, journal: bool) -> None:
        self._journal = journal

    def __call__(self, logger: Any, method: str, event_dict: EventDict) -> str:
        moment, level = event_dict.pop("timestamp"), event_dict.pop("level")
        lines = _lines(event_dict)
        if self._journal:
            return "\n".join(f"<{PRIORITIES.get(level, 6)}>{part}" for part in lines)
        return "\n".join([f"{moment} {level:<7} {lines[0]}", *lines[1:]])

    def prepared(self, record: logging.LogRecord, line: Prepared) -> str:
        """The same for a line that was prepared."""
        level = record.levelname.lower()
        if self._journal:
            return f"<{PRIORITIES.get(level, 6)}>{line.text()} logger={record.name}"
        return f"{_moment()} {level:<7} {line.text()} logger={record.name}"


def _lines(event_dict: EventDict) -> list[str]:
    """The event and its values on one line, then the traceback if there is one."""
    event, name = str(event_dict.pop("event")), event_dict.pop("logger", None)
    traceback = event_dict.pop("exception", "")
    pairs = [f"{key}={quoted(value)}" for key, value in event_dict.items() if value is not None]
    line = " ".join([_printable(event), *pairs, *([f"logger={name}"] if name else [])])
    # Indented, so that no text in an exception passes for a line of ours.
    return [line, *(f"  {_printable(part)}" for part in traceback.splitlines())]


class _Entry:
    """The fields of an entry in the journal, as JSON: a formatter makes text."""

    def __call__(self, logger: Any, method: str, event_dict: EventDict) -> str:
        del event_dict["timestamp"]  # the journal's own is better
        level = event_dict.pop("level")
        values = {key: value for key, value in event_dict.items() if key != "exception" and value is not None}
        fields = {journal.field_name(key): _plain(value) for key, value in values.items()}
        given = {"PRIORITY": str(PRIORITIES.get(level, 6)), "SYSLOG_IDENTIFIER": "visor-gateway"}
        return json.dumps({"MESSAGE": "\n".join(_lines(event_dict)), **given, **fields})

    def prepared(self, record: logging.LogRecord, line: Prepared) -> str:
        """Nothing: such a line goes to the stream."""
        return ""


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


_fields: Final = _Formatter(_Entry())


def _entry_of(record: logging.LogRecord) -> dict[str, str] | None:
    entry = _fields.format(record)
    return json.loads(entry) if entry else None


def _printable(text: str) -> str:
    """The text with line breaks and control characters escaped, so that no client writes lines of its own."""
    return text if text.isprintable() else json.dumps(text)[1:-1]


def quoted(value: Any) -> str:
    """A value as it stands in a line of text: quoted where it would not be taken for one word."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    plain = text and text.isprintable() and not any(character in text for character in ' "=')
    return text if plain else json.dumps(text)

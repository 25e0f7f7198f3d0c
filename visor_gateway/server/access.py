"""The access log and the request metrics: one line for each request that was answered, or was not. No secrets."""

from __future__ import annotations

import logging
import re
import time
from typing import Any, Final

from ..log import Prepared, quoted, redact
from ..metrics import Metrics

# Anything else is counted as "other": a client must not be able to make up label values.
METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

MAX_TARGET: Final = 1024  # characters of a target that are logged

_SECRETS: Final = re.compile(r"(^|[?&;])(sig|ticket)=[^&;]*", re.IGNORECASE)
# Nothing that `redact` or `quoted` change is made of these alone: no parameter, header, quote or blank.
_PLAIN: Final = re.compile(r"[A-Za-z0-9/._~-]+")

_log = logging.getLogger("visor_gateway.access")


def shown_target(target: bytes) -> str:
    """A request target as it may be logged: the values of `sig` and `ticket`, and of all that looks like a secret, are
    replaced."""
    text = target.decode("ascii", "backslashreplace")
    return (text if _PLAIN.fullmatch(text) else redact(_SECRETS.sub(r"\1\2=***", text)))[:MAX_TARGET]


class RequestLine(Prepared):
    """One line of the access log: its values by name, in the order in which they are shown."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self._fields = fields

    def __str__(self) -> str:
        return self.text()

    def text(self) -> str:
        shown = [
            f"{key}={value if _stands_bare(value) else quoted(value)}"
            for key, value in self._fields.items()
            if value is not None
        ]
        return f"request {' '.join(shown)}"

    def values(self) -> dict[str, Any]:
        return {**self._fields, "event": "request"}


def _stands_bare(value: Any) -> bool:
    """Whether the value stands in a line as it is. `quoted` would find out as well, at several times the cost."""
    kind = type(value)
    return kind is int or kind is float or (kind is str and _PLAIN.fullmatch(value) is not None)


#: All but the message and the time is the same of every line. `Logger.info` would look through the stack for it.
_TEMPLATE: Final = vars(logging.LogRecord(_log.name, logging.INFO, __file__, 0, "", None, None))


def _record(line: RequestLine) -> logging.LogRecord:
    record = object.__new__(logging.LogRecord)
    now = time.time()
    record.__dict__ = {**_TEMPLATE, "msg": line, "created": now, "msecs": int(now % 1 * 1000)}
    return record


class AccessLog:
    """Writes the line and counts the request."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        # Metrics by label values, since looking them up costs more than counting. Bounded: both are ours.
        self._counters: dict[tuple[str, int | None], Any] = {}
        self._histograms: dict[str, Any] = {}

    def record(
        self,
        *,
        method: str,
        target: bytes,
        status: int | None,
        complete: bool,
        body_bytes: int,
        seconds: float,
        client: str | None,
        request_id: str | None,
        transfer_id: str | None = None,
        timed: bool = True,
    ) -> None:
        """Record one request. `status` is None if nothing was answered, `complete` False if the answer was cut, `timed`
        False where its length tells nothing of the gateway: a transfer's, or that of what lives for hours."""
        counted = method if method in METHODS else "other"
        self._counter(counted, status).inc()
        if timed:
            self._histogram(counted).observe(seconds)
        if not _log.isEnabledFor(logging.INFO):
            return
        fields = {
            "method": method if counted is method else redact(method),
            "path": shown_target(target),
            "status": status,
            "complete": complete,
            "bytes": body_bytes,
            "duration": round(seconds, 6),
            "client": client,
            "request_id": request_id,
        }
        if transfer_id is not None:
            fields["transfer_id"] = transfer_id if _PLAIN.fullmatch(transfer_id) else redact(transfer_id)
        _log.handle(_record(RequestLine(fields)))

    def _counter(self, method: str, status: int | None) -> Any:
        counter = self._counters.get((method, status))
        if counter is None:
            counter = self._metrics.requests.labels(method, str(status or "none"))
            self._counters[method, status] = counter
        return counter

    def _histogram(self, method: str) -> Any:
        histogram = self._histograms.get(method)
        if histogram is None:
            histogram = self._histograms[method] = self._metrics.request_seconds.labels(method)
        return histogram

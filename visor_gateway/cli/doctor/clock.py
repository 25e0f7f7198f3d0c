"""The clock: whether something keeps it right, and how far it is off the clocks of the stores."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import Final

from .finding import Finding, failed, note, ok, warning

CHECK: Final = "clock"
#: S3 refuses requests that are 15 minutes off, and this gateway those of 5 (`clock_skew`).
FAR_SECONDS: Final = 300.0
OFF_SECONDS: Final = 30.0
_BUILT: Final = 1_735_689_600  # 2025-01-01: a clock before that was never set
_UNSYNCHRONISED: Final = 0x0040  # STA_UNSYNC, adjtimex(2)
_ADVICE: Final = "run an NTP client, such as chrony or systemd-timesyncd: dates of signatures and tokens depend on it"


class _Timex(ctypes.Structure):
    """The beginning of `struct timex` (adjtimex(2)), and room for the rest."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_byte * 256),
    )


def synchronised() -> bool:
    """Whether something keeps the kernel's clock right. Raises OSError where the kernel does not tell."""
    asked = _Timex()  # modes = 0: nothing is changed
    if ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(asked)) < 0:
        raise OSError(ctypes.get_errno(), "adjtimex")
    return not asked.status & _UNSYNCHRONISED


def examine_clock(now: Callable[[], float] = time.time, is_synchronised: Callable[[], bool] = synchronised) -> Finding:
    """The host's clock by itself."""
    if now() < _BUILT:
        return failed(CHECK, f"the clock shows {time.strftime('%Y-%m-%d', time.gmtime(now()))}", _ADVICE)
    try:
        kept = is_synchronised()
    except OSError:
        return note(CHECK, "the kernel does not tell whether it is synchronised")
    if not kept:
        return warning(CHECK, "the clock is not synchronised", _ADVICE)
    return ok(CHECK, "the clock is synchronised")


def compared(store: str, date: str | None, began: float, ended: float) -> Finding:
    """The host's clock beside that of a store.

    Args:
        store: The store's name.
        date: The `Date` of its answer (RFC 9110, 6.6.1).
        began: When it was asked, by our clock.
        ended: When the answer was there.
    """
    try:
        theirs = parsedate_to_datetime(date or "").timestamp()
    except (ValueError, OverflowError):
        return note(CHECK, f"the store '{store}' does not tell its time")
    # The date has no fractions of a second, and was set at some time between question and answer.
    off = max(0.0, began - (theirs + 1), theirs - ended)
    message = f"{off:.0f} s off the clock of the store '{store}'"
    if off > FAR_SECONDS:
        return failed(CHECK, message, f"{_ADVICE}; the store refuses signatures of another time")
    if off > OFF_SECONDS:
        return warning(CHECK, message, _ADVICE)
    return ok(CHECK, message)

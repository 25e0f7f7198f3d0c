"""What an examination tells, for people and for machines. Sans-IO."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

from ...log import HIDDEN, redact


class Level(enum.Enum):
    """How much it matters: `OK` and `NOTE` need nothing, `WARNING` will, `FAILED` keeps something from working."""

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    FAILED = "failed"


class Finding(msgspec.Struct, frozen=True):
    """One thing that was looked at.

    Attributes:
        check: What was looked at, such as `database` or `store s3`.
        level: How much it matters.
        message: What was found, in one line.
        advice: What to do about it; None where nothing has to be done.
    """

    check: str
    level: Level
    message: str
    advice: str | None = None


def ok(check: str, message: str) -> Finding:
    """All is well."""
    return Finding(check, Level.OK, message)


def note(check: str, message: str) -> Finding:
    """Good to know."""
    return Finding(check, Level.NOTE, message)


def warning(check: str, message: str, advice: str) -> Finding:
    """It works, and should not stay so."""
    return Finding(check, Level.WARNING, message, advice)


def failed(check: str, message: str, advice: str) -> Finding:
    """It does not work."""
    return Finding(check, Level.FAILED, message, advice)


def cleaned(findings: Iterable[Finding], secrets: Sequence[str]) -> list[Finding]:
    """The findings in one line each and without these texts, whatever brought them there."""
    hidden = sorted({secret for secret in secrets if len(secret) >= _SHORTEST}, key=len, reverse=True)

    def clean(text: str) -> str:
        for secret in hidden:
            text = text.replace(secret, HIDDEN)
        return redact(" ".join(text.split()))

    return [
        msgspec.structs.replace(
            each, message=clean(each.message), advice=None if each.advice is None else clean(each.advice)
        )
        for each in findings
    ]


_SHORTEST: Final = 6  # characters: a shorter text would be hidden in every second word


def as_lines(findings: Sequence[Finding]) -> list[str]:
    """Findings for people: one line each, and below it what to do."""
    width = max((len(each.check) for each in findings), default=0)
    lines = []
    for each in findings:
        lines.append(f"{each.level.value:<7}  {each.check:<{width}}  {each.message}")
        if each.advice is not None:
            lines.append(f"{'':7}  {'':{width}}  -> {each.advice}")
    return lines


def as_json(findings: Sequence[Finding]) -> dict[str, Any]:
    """Findings for machines."""
    levels = [each.level for each in findings]
    return {
        "ok": Level.FAILED not in levels,
        "warnings": levels.count(Level.WARNING),
        "failed": levels.count(Level.FAILED),
        "findings": [
            {"check": each.check, "level": each.level.value, "message": each.message, "advice": each.advice}
            for each in findings
        ],
    }

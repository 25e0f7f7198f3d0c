"""Servers of stores whose certificate is refused: said in words that tell the operator what to look at."""

from __future__ import annotations

from ..errors import StoreUnreachable
from ..outbound import Untrusted


def untrusted(store: str, cause: Untrusted) -> StoreUnreachable:
    """The error of a store whose server shows the wrong certificate. It names no host: clients see it."""
    error = StoreUnreachable(f"The store '{store}' shows a certificate that is not trusted: {cause.reason}")
    error.__cause__ = cause
    return error

"""What proves a caller's identity to a gateway, and the file that keeps it."""

from __future__ import annotations

import secrets
import time
import tomllib
from email.utils import formatdate
from pathlib import Path
from typing import Any, Final

import msgspec

from .. import signature
from .errors import CredentialsInvalid

SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
Header = tuple[bytes, bytes]


class KeyPair(msgspec.Struct, frozen=True):
    """An access key and its secret, with which requests are signed. The secret never leaves this host.

    Attributes:
        scheme: `signature.SHA256`, or `signature.SHA1` for gateways that know VISOR's own scheme only.
    """

    access_key: str
    secret_key: str
    scheme: str = signature.SHA256

    def __repr__(self) -> str:
        return f"KeyPair(access_key={self.access_key!r}, scheme={self.scheme!r})"


class Token(msgspec.Struct, frozen=True):
    """A bearer token that an admin issued. It travels with every request: use it over TLS."""

    text: str

    def __repr__(self) -> str:
        return "Token(...)"


Credentials = KeyPair | Token


class Signer:
    """Makes the headers that carry credentials. One per session, because VISOR's scheme needs a memory of dates."""

    def __init__(self, credentials: Credentials | None) -> None:
        self._credentials = credentials
        self._dated = 0

    def headers(self, method: str, target: bytes, headers: list[Header]) -> list[Header]:
        """Headers to send beside `headers`.

        Args:
            target: The request target as it will be on the request line.
        """
        if self._credentials is None:
            return []
        if isinstance(self._credentials, Token):
            return [(b"authorization", f"{signature.BEARER} {self._credentials.text}".encode())]
        added = [(b"date", self._date(method)), (b"x-visor-nonce", secrets.token_hex(16).encode())]
        keys = self._credentials
        value = signature.authorization(keys.scheme, method, target, headers + added, keys.access_key, keys.secret_key)
        return [*added, (b"authorization", value.encode())]

    def _date(self, method: str) -> bytes:
        """Now. Equal changes within one second would have one signature in VISOR's scheme, and the second would be
        refused as a replay: each change there gets a second of its own."""
        now = int(time.time())
        if isinstance(self._credentials, KeyPair) and self._credentials.scheme == signature.SHA1 and method not in SAFE:
            now = self._dated = max(now, self._dated + 1)
        return formatdate(now, usegmt=True).encode()


class CredentialsFile(msgspec.Struct, frozen=True):
    """A file of the form of admin.toml: where a gateway is, and what proves who calls.

    Attributes:
        url: The gateway that the credentials are for; None where the file names none.
    """

    path: Path
    url: str | None
    credentials: Credentials | None


_KEYS: Final = frozenset({"url", "access_key", "secret_key", "token"})


def read(path: Path) -> CredentialsFile:
    """Read a credentials file (TOML with `url`, `access_key`, `secret_key`, or `token`).

    Raises:
        CredentialsInvalid: It can't be read, is no TOML, or holds an incomplete pair. Values are never shown.
        FileNotFoundError, PermissionError: As the system says it, for callers that try several places.
    """
    try:
        table: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise CredentialsInvalid(f"{path}: not a TOML file") from exc
    except (FileNotFoundError, PermissionError):
        raise
    except OSError as exc:
        raise CredentialsInvalid(f"{path}: {exc.strerror}") from exc
    wrong = [name for name in sorted(_KEYS & table.keys()) if not isinstance(table[name], str)]
    if wrong:
        raise CredentialsInvalid(f"{path}: {wrong[0]} must be text")
    credentials = choose(table.get("access_key"), table.get("secret_key"), table.get("token"), source=str(path))
    return CredentialsFile(path=path, url=table.get("url"), credentials=credentials)


def choose(access_key: str | None, secret_key: str | None, token: str | None, *, source: str) -> Credentials | None:
    """Credentials from their parts, None where there are none. A token goes before a pair.

    Raises:
        CredentialsInvalid: One half of a pair is missing.
    """
    if token:
        return Token(token)
    if access_key and secret_key:
        return KeyPair(access_key, secret_key)
    if access_key or secret_key:
        missing = "secret key" if access_key else "access key"
        raise CredentialsInvalid(f"{source}: the {missing} is missing")
    return None

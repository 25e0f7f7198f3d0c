"""What an account's fields may be, and how its secrets are made. Sans-IO."""

from __future__ import annotations

import hashlib
import re
import secrets
import string
from typing import Final

from ..errors import InvalidField
from ..signature import ACCESS_KEY

ROLES: Final = ("user", "admin")
#: Fields that a list of accounts can be filtered by.
SHOWN: Final = ("_id", "access_key", "email", "role", "created_at", "updated_at")

SECRET_LENGTH: Final = 40  # characters of 62: 238 bits
SECRET_ALPHABET: Final = string.ascii_letters + string.digits
TEXT_BYTES: Final = 32  # of a token or ticket, random
_EMAIL: Final = re.compile(r"[^@\s\x00-\x1f\x7f]{1,64}@(?:[A-Za-z0-9-]{1,63}\.)+[A-Za-z0-9-]{1,63}\Z")
_EMAIL_LIMIT: Final = 254  # RFC 5321, 4.5.3.1.3


def check_access_key(access_key: str) -> None:
    """Raises `InvalidField` unless it is 1 to 64 of letters, digits, `.`, `_` and `-`."""
    if not ACCESS_KEY.match(access_key):
        raise InvalidField("Invalid access_key: it must have 1 to 64 letters, digits, '.', '_' or '-'")


def check_email(email: str) -> None:
    """Raises `InvalidField` unless it has the form of an address."""
    if len(email) > _EMAIL_LIMIT or not _EMAIL.match(email):
        raise InvalidField("The email address seems to be invalid.")


def check_role(role: str) -> None:
    """Raises `InvalidField` unless it is a role."""
    if role not in ROLES:
        raise InvalidField(f"Invalid role '{role}', available options: {', '.join(ROLES)}")


def new_secret() -> str:
    """A fresh secret key."""
    return "".join(secrets.choice(SECRET_ALPHABET) for _ in range(SECRET_LENGTH))


def new_text() -> str:
    """A fresh token or ticket: 256 random bits, url-safe."""
    return secrets.token_urlsafe(TEXT_BYTES)


def digest(*texts: str) -> bytes:
    """What is stored in place of a token, ticket or signature. These are random, so a plain hash can't be guessed."""
    return hashlib.sha256("\0".join(texts).encode("utf-8", "surrogatepass")).digest()

"""Accounts, their tokens, and what may be used once."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Protocol

import msgspec

from ..account import digest


class User(msgspec.Struct, frozen=True, kw_only=True):
    """One account.

    Attributes:
        secret_key: The secret in clear: it is needed to check signatures, and shown only by the answer that made it.
        role: "user" or "admin".
    """

    id: str
    access_key: str
    secret_key: str
    email: str
    role: str
    created_at: datetime
    updated_at: datetime | None = None

    @property
    def rights(self) -> str:
        """A mark that is another one once the role or the secret is, which lets nobody guess the secret."""
        return digest("rights", self.id, self.role, self.secret_key)[:16].hex()

    def __repr__(self) -> str:
        return f"User(access_key={self.access_key!r}, role={self.role!r})"  # never the secret: it may be logged


class Token(msgspec.Struct, frozen=True, kw_only=True):
    """A bearer token; its text is shown once, only its hash is stored."""

    id: str
    access_key: str
    read_only: bool
    created_at: datetime
    expires_at: datetime
    name: str | None = None


class AccountRepository(Protocol):
    """Accounts, tokens, and what makes signatures and tickets usable once.

    Every method raises `MetadataUnavailable` when what keeps the accounts can't be used now.
    """

    async def check(self) -> None:
        """Whether accounts can be read, as far as that is not told by the repository of images."""
        ...

    async def get(self, access_key: str) -> User | None:
        """One account, or None (a deleted one too)."""
        ...

    async def find(self, filters: Sequence[tuple[str, str]] = ()) -> list[User]:
        """Accounts in order of access key; filters by equality on the shown fields."""
        ...

    async def rights(self, access_keys: Collection[str]) -> dict[str, str]:
        """`User.rights` of those of these accounts that there are, as of now."""
        ...

    async def create(self, access_key: str, email: str, role: str) -> User:
        """Add an account with a new random secret.

        Raises:
            Conflict: `The access_key '<key>' was already taken.`, also when a deleted account had it.
            InvalidField: The access key, email or role is invalid.
        """
        ...

    async def ensure_admin(self) -> User | None:
        """Add the account `admin`, of role admin, unless its access key is taken. Returns it only when it was added."""
        ...

    async def change(self, access_key: str, *, email: str | None = None, role: str | None = None) -> User:
        """Change an account.

        Raises:
            NotFound: `No user found with access_key '<key>'.`
            Conflict: The last admin would be lost, or it is kept by an Auth server, whose users can't be admin.
            InvalidField: The email or role is invalid.
        """
        ...

    async def rotate(self, access_key: str) -> User:
        """Give an account a new secret; the old one is void at once.

        Raises:
            NotFound: No such account.
            Conflict: It is kept by an Auth server, which can't give another secret.
        """
        ...

    async def delete(self, access_key: str) -> User:
        """Remove an account, its secret and tokens; its access key stays taken for ever. Returns it as it was.

        Raises:
            NotFound: No such account.
            Conflict: It is the last admin.
        """
        ...

    async def issue_token(
        self, access_key: str, *, expires_at: datetime, read_only: bool, name: str | None
    ) -> tuple[Token, str]:
        """Make a token. Returns it with its text, which can't be had again. Raises `NotFound` for the account."""
        ...

    async def tokens(self, access_key: str) -> list[Token]:
        """An account's tokens that are not expired. Raises `NotFound` for the account."""
        ...

    async def revoke_token(self, access_key: str, token_id: str) -> Token:
        """Void a token. Raises `NotFound`."""
        ...

    async def find_token(self, text: str) -> tuple[Token, User] | None:
        """The valid token of this text and its account, or None."""
        ...

    async def use_once(self, kind: str, value: str, expires_at: datetime) -> bool:
        """Remember `value` (a signature or nonce) until `expires_at`, durably. False if it was remembered before."""
        ...

    async def issue_ticket(self, access_key: str, route: str, expires_at: datetime) -> str:
        """Make a one-use ticket for one route. Returns its text."""
        ...

    async def redeem_ticket(self, text: str, route: str) -> User | None:
        """Use up a ticket; None if it is unknown, used, expired or for another route (which uses it up too)."""
        ...

    async def rotate_master(self) -> int:
        """Encrypt every secret anew under a new master key. Returns how many; a crash loses none.

        Raises:
            ConfigError: The master key file can't be written; its message is for the operator, not for clients.
        """
        ...

"""The master key: the file that holds it, and the sealing of users' secrets under it.

The file has one key a line, 32 bytes in base64 (`openssl rand -base64 32` makes one), the current one first; blank
lines and lines that begin with `#` are skipped. A key's id is derived from the key, so a file with other keys is
found out. Several keys are there only while a rotation is under way:

1. the new key is written in front;
2. every secret is sealed anew, in one transaction;
3. keys that seal nothing any more are dropped.

A crash between any two steps leaves a file that opens every secret. Steps 1 and 3 are done while the database's
write lock is held, and whoever seals a secret reads the file under that lock: so no secret is ever sealed under a
key that is about to be dropped.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import hmac
import os
import secrets
import stat
import tempfile
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ..errors import ConfigError, MetadataUnavailable

KEY_BYTES: Final = 32  # AES-256
NONCE_BYTES: Final = 12  # NIST SP 800-38D, 8.2.2: random, so far fewer than 2^32 secrets under one key
FILE_LIMIT: Final = 64 * 1024  # bytes
_ID_DOMAIN: Final = b"visor-gateway master key id\0"
_PEERS_DOMAIN: Final = b"visor-gateway peers\0"
_HEADER: Final = "# Master key of visor-gateway: whoever has it and the database can sign as every user. Keep a copy.\n"


class UnknownKey(Exception):
    """A secret is sealed under a key that the file did not hold when it was read."""

    def __init__(self, key_id: str) -> None:
        super().__init__(key_id)
        self.key_id = key_id


class Sealed(msgspec.Struct, frozen=True):
    """An encrypted secret: nonce and AES-256-GCM ciphertext with its tag."""

    key_id: str
    text: bytes


class _Key:
    def __init__(self, key: bytes) -> None:
        self.id = hashlib.sha256(_ID_DOMAIN + key).hexdigest()[:16]
        self.line = base64.b64encode(key).decode("ascii")
        self.cipher = AESGCM(key)
        self.for_peers = hmac.new(key, _PEERS_DOMAIN, hashlib.sha256).hexdigest()


class MasterKey:
    """The keys of one master key file. Its methods block, and may be called from several threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._keys: tuple[_Key, ...] = ()

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of the keys that the file held when it was read, the current one first."""
        return tuple(key.id for key in self._keys)

    def load(self) -> None:
        """Read the file.

        Raises:
            ConfigError: It is missing, can be read by others, or holds something else than keys. The message
                names the file: it is for the operator, not for clients.
        """
        self._keys = tuple(_Key(key) for key in _parsed(self.path, _read(self.path)))

    def create(self) -> None:
        """Make the file with a new key, whole or not at all. A file that is there stays as it is."""
        with _operator_error(self.path):
            temporary = _write_beside(self.path, [_Key(secrets.token_bytes(KEY_BYTES))])
            try:
                with contextlib.suppress(FileExistsError):
                    os.link(temporary, self.path)
            finally:
                os.unlink(temporary)
            _sync_directory(self.path.parent)

    def peer_secret(self, key_id: str) -> str | None:
        """What gateways that share a key sign with when they ask each other; None where the file held no such key."""
        return next((key.for_peers for key in self._keys if key.id == key_id), None)

    def seal(self, secret: str, account_id: str) -> Sealed:
        """Encrypt a secret under the current key, bound to that key's id and the account's `_id`."""
        key = self._keys[0]
        nonce = secrets.token_bytes(NONCE_BYTES)
        return Sealed(key.id, nonce + key.cipher.encrypt(nonce, secret.encode(), _bound_to(key.id, account_id)))

    def unseal(self, sealed: Sealed, account_id: str) -> str:
        """Decrypt a secret.

        Raises:
            UnknownKey: Its key is not among those that were read: `load` may find it.
            MetadataUnavailable: It was changed, or belongs to another account.
        """
        key = next((key for key in self._keys if key.id == sealed.key_id), None)
        if key is None:
            raise UnknownKey(sealed.key_id)
        nonce, text = sealed.text[:NONCE_BYTES], sealed.text[NONCE_BYTES:]
        try:
            return key.cipher.decrypt(nonce, text, _bound_to(key.id, account_id)).decode()
        except (InvalidTag, ValueError) as exc:
            raise MetadataUnavailable("The secret of an account can't be decrypted") from exc

    def prepend(self) -> None:
        """Write a new current key in front of the others, durably. Call it under the database's write lock.

        Raises:
            ConfigError: The file can't be read or written.
        """
        self.load()
        self._replace([_Key(secrets.token_bytes(KEY_BYTES)), *self._keys])

    def drop_unused(self, used: Iterable[str]) -> None:
        """Drop all keys but the current one and those of `used`. Call it under the database's write lock.

        Raises:
            ConfigError: The file can't be read or written.
        """
        self.load()
        kept = [key for key in self._keys if key is self._keys[0] or key.id in set(used)]
        if len(kept) < len(self._keys):
            self._replace(kept)

    def _replace(self, keys: list[_Key]) -> None:
        target = Path(os.path.realpath(self.path))
        with _operator_error(self.path):
            temporary = _write_beside(target, keys)
            try:
                _keep_owner(temporary, target)
                os.replace(temporary, target)
            except BaseException:
                os.unlink(temporary)
                raise
            _sync_directory(target.parent)
        self._keys = tuple(keys)


def _bound_to(key_id: str, account_id: str) -> bytes:
    return f"{key_id}:{account_id}".encode()


@contextlib.contextmanager
def _operator_error(path: Path) -> Generator[None, None, None]:
    try:
        yield
    except OSError as exc:
        raise ConfigError(f"{path}: the master key file can't be used: {exc.strerror}") from exc


def _read(path: Path) -> bytes:
    with _operator_error(path):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            _check_mode(path, os.fstat(descriptor).st_mode)
            return file.read(FILE_LIMIT + 1)


def _check_mode(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise ConfigError(f"{path}: expected the master key file to be a regular file")
    # systemd lets a service read its credentials by an ACL, which shows as the group's permission.
    credentials = os.environ.get("CREDENTIALS_DIRECTORY")
    credential = credentials is not None and path.parent == Path(credentials)
    if mode & (stat.S_IRWXO if credential else stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(f"{path}: expected mode 0600 of the master key file, found {stat.S_IMODE(mode):04o}")


def _parsed(path: Path, content: bytes) -> list[bytes]:
    keys = []
    for number, line in enumerate(content.splitlines(), start=1):
        if not line.strip() or line.startswith(b"#"):
            continue
        try:
            key = base64.b64decode(line.strip(), validate=True)
        except binascii.Error:
            key = b""
        if len(key) != KEY_BYTES:
            # The line itself may be a key with a typing error: it is not shown.
            raise ConfigError(f"{path}: line {number}: expected a master key, {KEY_BYTES} bytes in base64")
        keys.append(key)
    if not keys or len(content) > FILE_LIMIT:
        raise ConfigError(f"{path}: expected master keys, {KEY_BYTES} bytes in base64, one a line")
    return keys


def _write_beside(path: Path, keys: Iterable[_Key]) -> str:
    """A durable file in the same directory with these keys, readable by us alone."""
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mode 0600
    try:
        with open(descriptor, "w", encoding="ascii") as file:
            file.write(_HEADER + "".join(f"{key.line}\n" for key in keys))
            file.flush()
            os.fsync(descriptor)
    except BaseException:
        os.unlink(temporary)
        raise
    return temporary


def _keep_owner(temporary: str, target: Path) -> None:
    """Let a rotation by root leave a file that the gateway's user can still read."""
    there, ours = os.stat(target), os.stat(temporary)
    if (there.st_uid, there.st_gid) != (ours.st_uid, ours.st_gid):
        os.chown(temporary, there.st_uid, there.st_gid)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

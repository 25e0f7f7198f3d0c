"""The file that `visor-admin backup` writes: a tar archive of records and keys, and what is in it with its sums.

The first member is `manifest.json`; the others are those that it names, in its order. Nothing is compressed: the
database is small beside images, and other programs compress what they keep. Everything here blocks.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import tempfile
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Final

import msgspec

from ..errors import ConfigError

FORMAT: Final = 1
MANIFEST: Final = "manifest.json"
DATABASE: Final = "visor.sqlite3"
MASTER_KEY: Final = "master.key"
ADMIN: Final = "admin.toml"
KNOWN: Final = frozenset({DATABASE, MASTER_KEY, ADMIN})
_MANIFEST_LIMIT: Final = 64 * 1024  # bytes
_BLOCK: Final = 1 << 20


class Member(msgspec.Struct, frozen=True):
    """A file of the archive: its name, bytes and SHA-256 in hex."""

    name: str
    size: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True):
    """What an archive holds.

    Attributes:
        format: Of the archive; this version reads and writes `FORMAT`.
        version: Of the program that wrote it.
        made_at: When, RFC 3339.
        revision: Of the database's schema.
        key_ids: Ids of the master keys that the database's secrets need.
        members: The files.
    """

    format: int
    version: str
    made_at: str
    revision: str
    key_ids: tuple[str, ...]
    members: tuple[Member, ...]


def described(name: str, path: Path) -> Member:
    """A file as the manifest tells of it."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            size += len(block)
    return Member(name, size, digest.hexdigest())


def write(target: Path, manifest: Manifest, files: Mapping[str, Path]) -> None:
    """Write an archive, mode 0600, whole and durable or not at all.

    Args:
        target: The archive. One that is there is never overwritten.
        files: Where each member is read.

    Raises:
        FileExistsError: The target is there.
        OSError: It can't be written, or a file can't be read.
    """
    descriptor, beside = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)  # mode 0600
    try:
        with open(descriptor, "wb") as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
                _add(archive, MANIFEST, io.BytesIO(msgspec.json.format(msgspec.json.encode(manifest))))
                for member in manifest.members:
                    with files[member.name].open("rb") as content:
                        _add(archive, member.name, content)
            file.flush()
            os.fsync(file.fileno())
        os.link(beside, target)
    finally:
        os.unlink(beside)
    sync_directory(target.parent)


def _add(archive: tarfile.TarFile, name: str, content: IO[bytes]) -> None:
    info = tarfile.TarInfo(name)
    info.size = content.seek(0, os.SEEK_END)
    info.mode = 0o600
    content.seek(0)
    archive.addfile(info, content)


def read(archive: Path, into: Mapping[str, Path] | None = None) -> Manifest:
    """Read an archive and compare every sum.

    Args:
        into: Where members are written, mode 0600; those that are not named are only compared. Files that are there
            already are not overwritten. What a failure leaves there is the caller's to remove.

    Raises:
        ConfigError: It is no such archive, is damaged, cut short or of another format; the message names it.
        OSError: A file can't be written.
    """
    with _told(archive), archive.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as opened:
        members = iter(opened)
        manifest = _manifest(opened, next(members, None))
        found = [_copied(opened, info, (into or {}).get(info.name)) for info in members]
    if found != list(manifest.members):
        wrong = _difference(manifest.members, found)
        raise ConfigError(f"{archive}: expected the bytes that its manifest names: {wrong} differs or is missing")
    return manifest


def _difference(told: Sequence[Member], found: Sequence[Member]) -> str:
    names = [member.name for member in told if member not in found] or [each.name for each in found if each not in told]
    return names[0] if names else "the order of its files"


@contextmanager
def _told(archive: Path) -> Generator[None]:
    try:
        yield
    except (tarfile.TarError, EOFError, msgspec.MsgspecError) as exc:
        raise ConfigError(f"{archive}: expected a backup of visor-gateway, whole: {exc}") from exc
    except FileNotFoundError as exc:
        raise ConfigError(f"{exc.filename}: {exc.strerror}") from exc


def _manifest(archive: tarfile.TarFile, first: tarfile.TarInfo | None) -> Manifest:
    if first is None or first.name != MANIFEST or not first.isreg() or first.size > _MANIFEST_LIMIT:
        raise tarfile.ReadError("its first file is no manifest")
    content = archive.extractfile(first)
    document = b"" if content is None else content.read()
    found = msgspec.json.decode(document, type=_Format).format
    if found != FORMAT:
        raise tarfile.ReadError(f"its format is {found}, this version reads {FORMAT}")
    manifest = msgspec.json.decode(document, type=Manifest)
    names = [member.name for member in manifest.members]
    if len(set(names)) != len(names) or not {DATABASE, MASTER_KEY} <= set(names) <= KNOWN:
        raise tarfile.ReadError("its manifest names other files than a backup has")
    return manifest


class _Format(msgspec.Struct):
    format: int


def _copied(archive: tarfile.TarFile, info: tarfile.TarInfo, target: Path | None) -> Member:
    """A member's name, size and sum; its bytes are written to the target, durably."""
    content = archive.extractfile(info) if info.isreg() else None
    if content is None:
        raise tarfile.ReadError("it holds something else than files")
    digest, size = hashlib.sha256(), 0
    descriptor = -1
    if target is not None:
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor if target is not None else os.devnull, "wb") as out:
        while block := content.read(_BLOCK):
            digest.update(block)
            size += out.write(block)
        if target is not None:
            out.flush()
            os.fsync(out.fileno())
    return Member(info.name, size, digest.hexdigest())


def sync_directory(path: Path) -> None:
    """Make names in a directory durable, where the file system can."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)

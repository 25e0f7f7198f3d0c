"""Digests of bytes in passing: computed in worker threads, compared with what a client or an origin named."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Protocol

import trio
from blake3 import blake3

from ..errors import DigestMismatch, InvalidRequest
from ..store.contract import Block

#: Names of RFC 9530 and what hashlib calls them. Others are ignored, as the RFC demands.
ALGORITHMS: Final = {"sha-256": "sha256", "sha-512": "sha512", "md5": "md5"}
INLINE: Final = 32 * 1024  # bytes; hashing fewer costs less than a thread's wake-up

_limiter: Final = trio.CapacityLimiter(8)  # hashing releases the GIL; more threads than cores help nobody


class Hash(Protocol):
    """A running digest of hashlib, or BLAKE3."""

    def update(self, data: Block, /) -> None: ...


class Digests:
    """Running digests of one stream of bytes, by their names in hashlib, and "blake3"."""

    def __init__(self, names: Iterable[str]) -> None:
        self._hashes: dict[str, Any] = {
            name: blake3() if name == "blake3" else hashlib.new(name, usedforsecurity=False) for name in names
        }

    def __contains__(self, name: str) -> bool:
        return name in self._hashes

    def copy(self) -> Digests:
        """Digests of the same bytes, which go on by themselves."""
        copied = Digests(())
        copied._hashes = {name: digest.copy() for name, digest in self._hashes.items()}
        return copied

    async def update(self, block: Block) -> None:
        """Take the next bytes. Cancelled, it has taken them in some digests and not in others: give up the stream."""
        if len(block) <= INLINE:
            for digest in self._hashes.values():
                digest.update(block)
            await trio.lowlevel.checkpoint()
            return
        async with trio.open_nursery() as nursery:
            for digest in self._hashes.values():
                nursery.start_soon(lambda h: trio.to_thread.run_sync(h.update, block, limiter=_limiter), digest)

    def running(self) -> Sequence[Hash]:
        """The digests themselves, for threads that give each the bytes in order. Not while `update` runs."""
        return tuple(self._hashes.values())

    def hex(self, name: str) -> str:
        """Hex form of the digest so far."""
        found: str = self._hashes[name].hexdigest()
        return found

    def check(self, expected: Mapping[str, bytes]) -> None:
        """Raises `DigestMismatch` unless every expected digest (raw bytes by hashlib name) is right."""
        for name, value in expected.items():
            if not hmac.compare_digest(self._hashes[name].digest(), value):
                raise DigestMismatch(f"The {name} digest of the bytes is not the one that was sent")


def expected_digests(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, bytes]:
    """Digests that a request names in Content-MD5, Content-Digest and Repr-Digest, by hashlib name.

    Raises:
        InvalidRequest: A value is malformed, or two of them contradict each other.
    """
    found: dict[str, bytes] = {}
    for raw_name, value in headers:
        name = raw_name.lower()
        if name == b"content-md5":
            _note(found, "md5", _decoded(value, 16, "Content-MD5"))
        elif name in (b"content-digest", b"repr-digest"):
            _note_dictionary(found, value, name.decode("ascii").title())
    return found


def _note_dictionary(found: dict[str, bytes], value: bytes, header: str) -> None:
    for member in value.split(b","):
        key, equals, item = (part.strip() for part in member.partition(b"="))
        algorithm = ALGORITHMS.get(key.decode("ascii", "replace").lower())
        if algorithm is None:
            continue
        if not (equals and len(item) >= 2 and item.startswith(b":") and item.endswith(b":")):
            raise InvalidRequest(f"{header}: expected {key.decode('ascii')}=:base64:")
        _note(found, algorithm, _decoded(item[1:-1], hashlib.new(algorithm, usedforsecurity=False).digest_size, header))


def _note(found: dict[str, bytes], algorithm: str, digest: bytes) -> None:
    if found.setdefault(algorithm, digest) != digest:
        raise InvalidRequest(f"Two different {algorithm} digests are sent")


def _decoded(value: bytes, length: int, header: str) -> bytes:
    try:
        digest = base64.b64decode(value.strip(), validate=True)
    except binascii.Error as exc:
        raise InvalidRequest(f"{header} is not valid base64") from exc
    if len(digest) != length:
        raise InvalidRequest(f"{header} must have {length} bytes, not {len(digest)}")
    return digest


def repr_digest(sha256: str) -> str:
    """The `Repr-Digest` value for a hex SHA-256 (RFC 9530, 3)."""
    return f"sha-256=:{base64.b64encode(bytes.fromhex(sha256)).decode('ascii')}:"

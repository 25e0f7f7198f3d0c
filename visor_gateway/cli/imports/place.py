"""Where the bytes of images are that an import brings, and whether they are the right ones."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Collection
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from pathlib import Path
from typing import BinaryIO, Final, Protocol

import anyio.to_thread

from ...client import Client, Unreachable, VisorError
from .item import Item, Unfit

HASH_BYTES: Final = 8 << 20  # read and hashed for each time that a thread is asked


class Place(Protocol):
    """A source of images' bytes.

    Attributes:
        remote: Whether `file_of` moves bytes, so that a dry run does not ask for them.
    """

    remote: bool

    def file_of(self, item: Item) -> AbstractAsyncContextManager[Path]:
        """A file with the bytes of an image, there for the length of a block.

        Raises:
            Unfit: There are no such bytes.
            VisorError, OSError: They can't be had.
        """
        ...


class Directory:
    """A directory with a file for each image, named by the first of `names` that is there: `{id}`, `{id}.{format}`.

    Links are followed: whoever runs the import chose the directory.
    """

    remote = False

    def __init__(self, path: Path, *names: str) -> None:
        self._path = path
        self._names = names

    def file_of(self, item: Item) -> AbstractAsyncContextManager[Path]:
        """As `Place` says. The file stays."""
        names = [name.format(id=item.source_id, format=item.fields.get("format", "")) for name in self._names]
        for name in names:
            if (self._path / name).is_file():
                return nullcontext(self._path / name)
        raise Unfit(f"there is no file {' or '.join(names)}")


class ImageServer:
    """An image server: each image is pulled into a file of its own, which goes with the block.

    Args:
        client: Of the image server.
        spool: A directory with room for the largest image.
    """

    remote = True

    def __init__(self, client: Client, spool: Path) -> None:
        self._client = client
        self._spool = spool

    @asynccontextmanager
    async def file_of(self, item: Item) -> AsyncGenerator[Path]:
        """As `Place` says. What came is not believed to be whole: VISOR's server ends a short one as any other."""
        file = self._spool / item.source_id
        try:
            try:
                await self._client.download(item.source_id, file)
            except Unreachable:
                raise
            except VisorError as exc:
                raise Unfit(f"the image server's answer: {exc.message}") from exc
            yield file
        finally:
            for left in self._spool.glob(f"{item.source_id}*"):
                left.unlink()


async def checked_sha256(file: Path, item: Item) -> str:
    """Read a file, compare its size and digests with those of `item`, and return its SHA-256 in hex.

    Raises:
        Unfit: They differ.
        OSError: It can't be read.
    """
    size = (await anyio.to_thread.run_sync(file.stat)).st_size
    if item.size not in {None, size}:
        raise Unfit(f"its file has {size} bytes, the image has {item.size}")
    found = await _digests(file, {*item.digests, "sha256"})
    for name, expected in item.digests.items():
        if found[name] != expected:
            raise Unfit(f"its file has the {name} digest {found[name]}, the image has {expected}")
    return found["sha256"]


async def _digests(file: Path, algorithms: Collection[str]) -> dict[str, str]:
    hashes = {name: hashlib.new(name, usedforsecurity=False) for name in algorithms}

    def hash_some(opened: BinaryIO) -> bool:
        block = opened.read(HASH_BYTES)
        for one in hashes.values():
            one.update(block)
        return bool(block)

    opened = await anyio.to_thread.run_sync(lambda: open(file, "rb", buffering=0))  # ruff: ignore[open-file-with-context-handler]
    with opened:
        while await anyio.to_thread.run_sync(hash_some, opened):
            pass
    return {name: one.hexdigest() for name, one in hashes.items()}

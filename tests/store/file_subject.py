"""A file store for the tests, and how to see what it left."""

from __future__ import annotations

from pathlib import Path

import trio
from store_suite import Subject

from visor_gateway.store.file import FileStore
from visor_gateway.store.filecalls import FileCalls


class FileSubject(Subject):
    """A file store in a directory that holds nothing else."""

    store: FileStore

    def __init__(self, directory: Path, calls: FileCalls | None = None) -> None:
        super().__init__(FileStore("file", directory, calls=calls))
        self.directory = directory

    def residue(self) -> list[str]:
        """Partial files, directories of images that hold nothing, and strangers' files."""
        found = []
        for path in self.directory.rglob("*") if self.directory.exists() else ():
            empty = path.is_dir() and not any(path.iterdir())
            if empty or path.suffix == ".partial" or path.parts[-1].startswith("."):
                found.append(str(path.relative_to(self.directory)))
        return [name for name in found if name != "lost+found"]

    async def settle(self) -> None:
        """Wait for threads that a cancellation left behind."""
        limiters = (self.store._readers, self.store._writers, self.store._closing)
        # Nothing tells when an abandoned thread has ended but the token that it gives back.
        for _ in range(10_000):
            if not any(limiter.borrowed_tokens for limiter in limiters):
                return
            await trio.sleep(0.001)
        raise AssertionError("a thread of the store is still at work")

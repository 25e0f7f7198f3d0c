"""`visor-gateway` over a file store whose disk takes 100 MiB a second. Arguments are those of `visor-gateway`."""

from __future__ import annotations

import os
import time
from typing import Any

from visor_gateway.store import file
from visor_gateway.store.filecalls import FileCalls

BYTES_PER_SECOND = 100 * 1024 * 1024


class SlowDisk:
    """Writes that take as long as they would on such a disk."""

    def __init__(self) -> None:
        self._free_at = time.monotonic()

    def write(self, fd: int, data: Any) -> int:
        count = os.write(fd, data)
        self._free_at = max(self._free_at, time.monotonic()) + count / BYTES_PER_SECOND
        time.sleep(max(0.0, self._free_at - time.monotonic()))
        return count


def main() -> None:
    original = file.FileStore.__init__
    calls = FileCalls(write=SlowDisk().write)

    def slowed(self: file.FileStore, *args: Any, **options: Any) -> None:
        original(self, *args, **options | {"calls": calls})

    file.FileStore.__init__ = slowed  # type: ignore[method-assign]
    from visor_gateway.cli.gateway import main as gateway_main

    gateway_main()


if __name__ == "__main__":
    main()

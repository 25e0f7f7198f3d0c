"""What the process does once about its memory, after the start and before the first client."""

from __future__ import annotations

import ctypes
import gc
import mmap
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

#: Objects that gather before the youngest are looked at, and so many of these looks before the next older ones are. A
#: pull makes hundreds that live as long as it does: at Python's 700 and 10 each of 256 pulls that begin together is
#: looked at again and again. Fewer looks at more objects would be cheaper still, and hold the event loop for longer.
YOUNG_OBJECTS: Final = 2000
YOUNG_LOOKS: Final = 5

_SMAPS: Final = Path("/proc/self/smaps")
_libc: Final = ctypes.CDLL(None)


def settle() -> None:
    """Take what the start has made out of the garbage collector's sight, and give what it has freed back to the system.

    Modules, classes and routes are some 160,000 objects that live as long as the process. To look through them took the
    collector a tenth of a second each time, in which nobody was served (docs/performance.md). Blocks for as long once.

    Code and constants of libraries go back as well: what a start needs of them is mostly not what serving does, and
    that is taken from the page cache again, in pieces of 64 KiB, when it is first needed.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, YOUNG_LOOKS)
    if hasattr(_libc, "malloc_trim"):  # glibc's own
        _libc.malloc_trim(ctypes.c_size_t(0))
    with suppress(OSError):
        for begin, end in library_pages(_SMAPS.read_text("utf-8", "replace")):
            _libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), mmap.MADV_DONTNEED)


def library_pages(smaps: str) -> Iterator[tuple[int, int]]:
    """Begin and end of what is mapped from files to be run or read, and that nobody has written to: what was relocated,
    or changed by a debugger, is in no file and would be lost."""
    found: tuple[int, int] | None = None
    for line in smaps.splitlines():
        name, _, rest = line.partition(" ")
        if not name.endswith(":"):
            permissions, *_, path = rest.split(maxsplit=4)
            begin, _, end = name.partition("-")
            is_library = permissions in {"r-xp", "r--p"} and path.startswith("/")
            found = (int(begin, 16), int(end, 16)) if is_library else None
        elif found is not None and name == "Anonymous:" and rest.split()[0] == "0":
            yield found

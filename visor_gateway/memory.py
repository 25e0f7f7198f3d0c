"""What the process does once about its memory, after the start and before the first client."""

from __future__ import annotations

import ctypes
import gc
from typing import Final

#: Objects that gather before the youngest are looked at, and so many of these looks before the next older ones are. A
#: pull makes hundreds that live as long as it does: at Python's 700 and 10 each of 256 pulls that begin together is
#: looked at again and again. Fewer looks at more objects would be cheaper still, and hold the event loop for longer.
YOUNG_OBJECTS: Final = 2000
YOUNG_LOOKS: Final = 5

_libc: Final = ctypes.CDLL(None)


def settle() -> None:
    """Take what the start has made out of the garbage collector's sight, and give what it has freed back to the system.

    Modules, classes and routes are some 160,000 objects that live as long as the process. To look through them took the
    collector a tenth of a second each time, in which nobody was served (docs/performance.md). Blocks for as long once.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, YOUNG_LOOKS)
    if hasattr(_libc, "malloc_trim"):  # glibc's own
        _libc.malloc_trim(ctypes.c_size_t(0))

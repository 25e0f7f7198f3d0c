"""What the process does about its memory after the start."""

from __future__ import annotations

import subprocess
import sys

SETTLED = """
import gc
from visor_gateway import memory
made = [object() for _ in range(3)]
holder = {"made": made}
memory.settle()
assert gc.get_freeze_count() > 1000, gc.get_freeze_count()
assert not any(each is holder for each in gc.get_objects())
after = [[] for _ in range(10 * memory.YOUNG_OBJECTS)]
assert any(each is after for each in gc.get_objects())
"""


def test_what_the_start_made_is_not_looked_through_again() -> None:
    # In a process of its own: what is frozen stays so.
    subprocess.run([sys.executable, "-c", SETTLED], check=True, timeout=60)

"""What the process does about its memory after the start."""

from __future__ import annotations

import subprocess
import sys

import pytest

from visor_gateway.memory import library_pages

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


SMAPS = """\
1000-3000 r-xp 00000000 fe:00 1                          /usr/lib/of ours.so
Rss:                   8 kB
Anonymous:             0 kB
VmFlags: rd ex mr mw me
3000-4000 r--p 00002000 fe:00 1                          /usr/lib/of ours.so
Anonymous:             0 kB
4000-4800 r--p 00003000 fe:00 1                          /usr/lib/of ours.so
Anonymous:             2 kB
4800-5000 rw-p 00004000 fe:00 1                          /usr/lib/of ours.so
Anonymous:             0 kB
5000-6000 r-xp 00000000 fe:00 2                          /usr/lib/written-to.so
Anonymous:             4 kB
6000-7000 rwxp 00000000 fe:00 3                          /usr/lib/writable.so
Anonymous:             0 kB
7000-8000 r-xp 00000000 00:00 0
Anonymous:             0 kB
8000-9000 r-xp 00000000 00:00 0                          [vdso]
Anonymous:             0 kB
ffff0000-ffff8000 r-xp 00000000 fe:00 4                  /usr/lib/gone.so (deleted)
Anonymous:             0 kB
"""


def test_only_what_is_in_a_file_and_was_never_written_to_is_given_back() -> None:
    assert list(library_pages(SMAPS)) == [(0x1000, 0x3000), (0x3000, 0x4000), (0xFFFF0000, 0xFFFF8000)]


GIVEN_BACK = """
from pathlib import Path
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from visor_gateway import memory

def resident():
    counts, counted = [], False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if not words[0].endswith(":"):
            counted = words[1] == "r-xp" and "_rust." in words[-1]
        elif counted and words[0] == "Rss:":
            counts.append(int(words[1]))
    return counts

before = resident()
assert before and all(before), before
memory.settle()
after = resident()
assert after and not any(after), after
AESGCM(bytes(16)).encrypt(bytes(12), b"", None)
again = resident()
assert any(again), again
"""


def test_the_code_that_a_start_has_run_is_given_back_and_runs_again() -> None:
    subprocess.run([sys.executable, "-c", GIVEN_BACK], check=True, timeout=60)


LOADED = """
import sys
from visor_gateway.cli import gateway
from visor_gateway import daemon{more}
unwanted = {{"rich", "pygments", "alembic", "mako", "botocore"}}
loaded = unwanted & {{name.partition(".")[0] for name in sys.modules}}
loaded |= {{"visor_gateway.store.s3", "visor_gateway.store.webhdfs"}} & set(sys.modules)
assert not loaded, loaded
import rich  # whoever wants it has it
"""


@pytest.mark.parametrize("more", ["", ", supervisor, worker"])
def test_a_process_that_serves_loads_nothing_that_only_other_commands_need(more: str) -> None:
    subprocess.run([sys.executable, "-c", LOADED.format(more=more)], check=True, timeout=60)


def test_a_worker_loads_nothing_that_only_other_commands_need() -> None:
    code = "import sys, visor_gateway.worker; sys.exit('rich' in sys.modules or 'alembic' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)

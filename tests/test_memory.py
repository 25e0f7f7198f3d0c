"""What the process does about its memory after the start."""

from __future__ import annotations

import subprocess
import sys

import pytest

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

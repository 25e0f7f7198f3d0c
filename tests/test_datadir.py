"""One process at a time has a data directory, and everybody can learn which."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from visor_gateway.datadir import DataDirectory, default_data_dir, lock_data_dir, lock_holder
from visor_gateway.errors import ConfigError

HOLD = (
    "import sys, pathlib\nfrom visor_gateway.datadir import lock_data_dir\n"
    "with lock_data_dir(pathlib.Path(sys.argv[1])):\n    print('held', flush=True)\n    sys.stdin.read()"
)


@contextmanager
def held_elsewhere(path: Path) -> Generator[subprocess.Popen[bytes]]:
    """Another process holds the directory for the length of the block, unless it is killed before."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        try:
            yield process
        finally:
            process.communicate()


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"STATE_DIRECTORY": "/var/lib/visor-gateway:/x", "XDG_STATE_HOME": "/s"}, "/var/lib/visor-gateway"),
        ({"XDG_STATE_HOME": "/s", "HOME": "/h"}, "/s/visor-gateway"),
        ({"XDG_STATE_HOME": "relative", "HOME": "/h"}, "/h/.local/state/visor-gateway"),
        ({"HOME": "/h"}, "/h/.local/state/visor-gateway"),
    ],
)
def test_the_default_data_directory_follows_the_contract(environ: Mapping[str, str], expected: str) -> None:
    assert default_data_dir(environ) == Path(expected)


def test_taking_a_directory_makes_it_for_its_owner_alone_and_names_the_process(tmp_path: Path) -> None:
    path = tmp_path / "a" / "data"
    with lock_data_dir(path) as directory:
        assert directory == DataDirectory(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
        assert lock_holder(path) == os.getpid()
    assert lock_holder(path) is None


def test_a_directory_that_is_held_is_refused_with_its_holder(tmp_path: Path) -> None:
    with held_elsewhere(tmp_path) as process:
        assert lock_holder(tmp_path) == process.pid
        with pytest.raises(ConfigError, match=f"is used by process {process.pid}"), lock_data_dir(tmp_path):
            pass
        assert lock_holder(tmp_path) == process.pid


def test_what_a_killed_process_wrote_does_not_hold_the_directory(tmp_path: Path) -> None:
    with held_elsewhere(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert (tmp_path / "gateway.lock").read_text() == f"{process.pid}\n"
    assert lock_holder(tmp_path) is None
    with lock_data_dir(tmp_path):
        assert lock_holder(tmp_path) == os.getpid()


def test_a_program_that_the_holder_starts_does_not_hold_on(tmp_path: Path) -> None:
    with lock_data_dir(tmp_path):
        child = subprocess.Popen(["sleep", "60"], close_fds=False)
    try:
        assert lock_holder(tmp_path) is None
    finally:
        child.kill()
        child.wait()


def test_a_lock_without_the_number_of_its_holder_is_told(tmp_path: Path) -> None:
    with held_elsewhere(tmp_path):
        (tmp_path / "gateway.lock").write_text("")
        with pytest.raises(ConfigError, match="expected the number of the process"):
            lock_holder(tmp_path)
        with pytest.raises(ConfigError, match="is used by another process"), lock_data_dir(tmp_path):
            pass


def test_looking_for_a_holder_makes_nothing(tmp_path: Path) -> None:
    assert lock_holder(tmp_path / "none") is None
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_can_not_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    expected = "expected a data directory that can be written"
    with pytest.raises(ConfigError, match=expected), lock_data_dir(tmp_path / "file"):
        pass
    with pytest.raises(ConfigError, match=expected), lock_data_dir(tmp_path / "file" / "data"):
        pass


def test_every_file_stands_under_the_directory() -> None:
    directory = DataDirectory(Path("/d"))
    files = [directory.lock, directory.log, directory.admin, directory.master_key]
    assert [str(file) for file in files] == [
        "/d/gateway.lock", "/d/gateway.log", "/d/admin.toml", "/d/master.key",
    ]  # fmt: skip

"""`make install` and `make uninstall`, into a directory, with a tree of programs that costs nothing to build.

The real tree is in the Debian package (`tests/booted/test_booted_deb.py`).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from visor_gateway import __version__

ROOT = Path(__file__).parents[2]
#: Stands in for `distribution/tree`.
TREE = """#!/bin/sh
set -eu
[ ! -e "$(dirname "$0")/broken" ] || { mkdir -p "$2/bin"; exit 1; }
mkdir -p "$2/bin" "$2/share/man/man1" "$2/libexec"
for name in visor visor-admin visor-gateway; do printf '#!/bin/sh\\n' >"$2/bin/$name"; done
cp "$(dirname "$0")/prune" "$2/libexec/prune"
echo "$4" >"$2/share/version"
echo "$3" >"$2/share/final"
"""

Make = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The part of the source tree that an installation reads."""
    source = tmp_path / "source"
    shutil.copytree(ROOT / "distribution", source / "distribution")
    shutil.copytree(ROOT / "systemd", source / "systemd")
    (source / "visor_gateway").mkdir()
    shutil.copy(ROOT / "visor_gateway/__init__.py", source / "visor_gateway")
    shutil.copy(ROOT / "Makefile", source)
    (source / "distribution/tree").write_text(TREE)
    return source


@pytest.fixture
def host(tmp_path: Path) -> Path:
    return tmp_path / "host"


@pytest.fixture
def make(source: Path, host: Path, tmp_path: Path) -> Make:
    """Run `make` on the source tree, for the host."""
    # The finder of Python is tried apart: that of the tests may live below a home directory.
    (source / "distribution/python").write_text(f"#!/bin/sh\necho {sys.executable}\n")

    def make(target: str, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        environ = {"PATH": os.environ["PATH"]}
        command = ["make", "-s", target, f"DESTDIR={host}", *words]
        done = subprocess.run(command, cwd=source, env=environ, capture_output=True, text=True, check=False, timeout=60)
        assert not check or done.returncode == 0, done.stderr
        return done

    return make


def units() -> list[str]:
    return sorted(path.name for path in (ROOT / "systemd").iterdir() if path.suffix in {".service", ".socket"})


def test_everything_takes_its_place(make: Make, host: Path) -> None:
    make("install")
    prefix = host / "opt/visor-gateway"
    assert os.readlink(prefix / "current") == __version__
    assert (prefix / __version__ / "share/final").read_text() == f"/opt/visor-gateway/{__version__}\n"
    for name in ("visor", "visor-admin", "visor-gateway"):
        assert os.readlink(host / "usr/local/bin" / name) == f"/opt/visor-gateway/current/bin/{name}"
        page = host / "usr/local/share/man/man1" / f"{name}.1"
        assert os.readlink(page) == f"/opt/visor-gateway/current/share/man/man1/{name}.1"
    for place in (
        "bash-completion/completions/visor",
        "zsh/site-functions/_visor",
        "fish/vendor_completions.d/visor.fish",
    ):
        assert (host / "usr/local/share" / place).is_symlink()
    assert sorted(path.name for path in (host / "usr/local/lib/systemd/system").iterdir()) == units()
    written = (host / "etc/visor-gateway/visor-gateway.toml").read_text()
    assert written == (ROOT / "systemd/visor-gateway.toml").read_text()


def test_units_name_the_place_that_was_chosen(make: Make, host: Path) -> None:
    make("install", "PREFIX=/srv/gateway")
    text = (host / "usr/local/lib/systemd/system/visor-gateway.service").read_text()
    assert "ExecStart=/srv/gateway/current/bin/visor-gateway serve" in text
    assert "/opt/visor-gateway/" not in text


def test_a_second_installation_keeps_the_configuration_and_the_version_before(make: Make, host: Path) -> None:
    make("install")
    config = host / "etc/visor-gateway/visor-gateway.toml"
    config.write_text("# mine\n")
    make("install")
    assert config.read_text() == "# mine\n"
    prefix = host / "opt/visor-gateway"
    assert os.readlink(prefix / "current") == f"{__version__}-2"
    assert sorted(path.name for path in prefix.iterdir()) == [__version__, f"{__version__}-2", "current"]


def test_a_build_that_fails_changes_nothing(make: Make, source: Path, host: Path) -> None:
    make("install")
    before = sorted(host.rglob("*"))
    (source / "distribution/broken").touch()
    assert make("install", check=False).returncode != 0
    assert sorted(host.rglob("*")) == before


def test_uninstalling_leaves_configuration_and_what_it_did_not_make(make: Make, host: Path) -> None:
    make("install")
    data = host / "var/lib/visor-gateway"
    data.mkdir(parents=True)
    (data / "visor.sqlite3").write_text("records")
    other = host / "usr/local/bin/visor-admin"
    other.unlink()
    other.symlink_to("/elsewhere")
    make("uninstall")
    left = sorted(str(path.relative_to(host)) for path in host.rglob("*") if not path.is_dir() or path.is_symlink())
    assert left == [
        "etc/visor-gateway/visor-gateway.toml",
        "usr/local/bin/visor-admin",
        "var/lib/visor-gateway/visor.sqlite3",
    ]
    assert not (host / "opt/visor-gateway").exists()
    make("uninstall")  # twice is no failure


# --- versions that nobody uses -----------------------------------------------------------------------


def version(prefix: Path, name: str) -> Path:
    place = prefix / name
    (place / "share").mkdir(parents=True)
    (place / "share/version").write_text(name)
    return place


def prune(prefix: Path, *keep: str) -> str:
    command = ["sh", ROOT / "distribution/prune", prefix, *keep]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def test_versions_without_a_process_go_but_the_current_one_and_those_that_are_named(tmp_path: Path) -> None:
    prefix = tmp_path / "prefix"
    for name in ("1", "2", "3", "4"):
        version(prefix, name)
    (prefix / "not ours").mkdir()
    (prefix / "current").symlink_to("4")
    program = shutil.copy(shutil.which("sleep") or "", prefix / "2" / "program")
    process = subprocess.Popen([program, "60"])
    try:
        said = prune(prefix, "3")
        assert sorted(path.name for path in prefix.iterdir()) == ["2", "3", "4", "current", "not ours"]
        assert f"{prefix}/2 is still used" in said
    finally:
        process.kill()
        process.wait(60)
    prune(prefix)
    assert sorted(path.name for path in prefix.iterdir()) == ["4", "current", "not ours"]


# --- Python ------------------------------------------------------------------------------------------


def test_a_python_below_a_home_directory_is_refused(tmp_path: Path) -> None:
    missing = subprocess.run(
        ["sh", ROOT / "distribution/python", tmp_path / "no-python"],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert missing.returncode == 1
    assert "outside of home directories" in missing.stderr


@pytest.mark.parametrize("script", ["deb", "install", "prune", "python", "tree", "uninstall"])
def test_scripts_are_valid_and_can_be_run(script: str) -> None:
    path = ROOT / "distribution" / script
    assert path.stat().st_mode & 0o111
    subprocess.run(["sh", "-n", path], check=True, timeout=60)


@pytest.mark.parametrize("script", ["postinst", "postrm", "prerm"])
def test_scripts_of_the_package_are_valid(script: str) -> None:
    subprocess.run(["sh", "-n", ROOT / "distribution/debian" / script], check=True, timeout=60)


# --- man pages ---------------------------------------------------------------------------------------


def test_man_pages_tell_every_command_and_are_the_same_each_time(tmp_path: Path) -> None:
    from visor_gateway.cli import gateway

    pages = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        command = [sys.executable, ROOT / "distribution/manpages.py", tmp_path / name]
        environ = {**os.environ, "SOURCE_DATE_EPOCH": "1767225600"}
        subprocess.run(command, env=environ, check=True, timeout=60)
        pages.append({path.name: path.read_text() for path in (tmp_path / name).iterdir()})
    assert pages[0] == pages[1]
    assert sorted(pages[0]) == ["visor-admin.1", "visor-gateway.1", "visor.1"]
    page = pages[0]["visor-gateway.1"]
    assert '"2026-01-01"' in page
    for name in gateway.cli.commands:
        assert f".SS {name.replace('-', chr(92) + '-')} " in page
    for line in page.splitlines():
        assert not line.startswith("'")
        if line.startswith("."):
            assert line.split()[0] in {".TH", ".SH", ".SS", ".TP", ".B"}

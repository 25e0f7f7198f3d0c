"""The Debian package in a system of its own: installed, upgraded under a running service, removed, purged.

`make deb` builds the package first.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Generator
from pathlib import Path
from typing import Final

import pytest
from programs import run
from servers.systemd import SERVICE, Machine, boot

pytestmark = [pytest.mark.real, pytest.mark.timeout(600)]

DIST: Final = Path(__file__).parents[2] / "dist"
PREFIX: Final = Path("opt/visor-gateway")
HTTP: Final = "visor-gateway-http.socket"
NEXT: Final = "0.1.0-1+next"


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The package that was built, and the same one as a newer version."""
    found = sorted(DIST.glob("visor-gateway_*.deb"), key=lambda path: path.stat().st_mtime)
    if not found:
        pytest.skip("there is no package in dist/: make deb")
    place = tmp_path_factory.mktemp("packages")
    shutil.copyfile(found[-1], place / "first.deb")
    run("dpkg-deb", "--raw-extract", place / "first.deb", place / "tree")
    tree = place / "tree"
    [version] = [path.name for path in (tree / PREFIX / "package").iterdir()]
    (tree / PREFIX / "package" / version).rename(tree / PREFIX / "package" / NEXT)
    texts = [tree / "DEBIAN" / name for name in ("control", "md5sums", "postinst", "prerm", "postrm")]
    texts += [tree / PREFIX / "package" / NEXT / "bin" / name for name in ("visor", "visor-admin", "visor-gateway")]
    texts += [tree / PREFIX / "package" / NEXT / name for name in ("pyvenv.cfg", "share/version")]
    for path in texts:
        path.write_text(path.read_text().replace(version, NEXT))
    run("dpkg-deb", "-Znone", "--root-owner-group", "--build", tree, place / "next.deb")
    shutil.rmtree(tree)
    return place / "first.deb", place / "next.deb"


@pytest.fixture(scope="module")
def machine(packages: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Generator[Machine]:
    with boot(tmp_path_factory.mktemp("machine"), {packages[0].parent: "/packages"}) as machine:
        yield machine


def versions(machine: Machine) -> list[str]:
    """The versions that are in place."""
    found = (machine.root / PREFIX).iterdir()
    return sorted(path.name for path in found if (path / "share/version").exists() and not path.is_symlink())


def dpkg(machine: Machine, *words: object) -> str:
    """Run it, and what it printed. Nobody needs these files after a power cut."""
    return machine.run("dpkg", "--force-unsafe-io", *words, timeout=300).stdout


def visor(machine: Machine, *words: object) -> str:
    return machine.run("visor", "--credentials", "/var/lib/visor-gateway/admin.toml", *words).stdout


def pulled(machine: Machine, image: str) -> bytes:
    machine.run("rm", "-f", "/tmp/pulled")
    visor(machine, "get", image, "-o", "/tmp/pulled")
    return (machine.root / "tmp/pulled").read_bytes()


def test_the_package_is_installed_upgraded_removed_and_purged(machine: Machine, packages: tuple[Path, Path]) -> None:
    """One story, for each step needs the one before."""
    config = machine.root / "etc/visor-gateway/visor-gateway.toml"
    current = machine.root / PREFIX / "current"

    # Installed: commands, man pages and completion are there, and nothing runs or will.
    dpkg(machine, "--install", "/packages/first.deb")
    first = os.readlink(current)
    assert versions(machine) == [first]
    assert machine.run("visor-gateway", "--version").stdout.startswith("visor-gateway, version ")
    for unit in (SERVICE, HTTP):
        assert machine.property("ActiveState", unit) == "inactive"
        assert machine.property("UnitFileState", unit) == "disabled"
    for name in ("visor", "visor-admin", "visor-gateway"):
        assert (machine.root / f"usr/share/man/man1/{name}.1.gz").exists()
        completion = machine.run("cat", f"/usr/share/bash-completion/completions/{name}").stdout
        assert "complete" in completion
    assert machine.run("dpkg", "--verify", "visor-gateway").stdout == ""

    # It serves.
    config.write_text(config.read_text() + "\n# mine\n")
    machine.systemctl("enable", "--now", HTTP, SERVICE)
    machine.wait_for_state("active")
    (machine.root / "tmp/image").write_bytes(content := os.urandom(100_000))
    added = visor(machine, "--json", "add", "name=kept", "architecture=x86_64", "format=raw", "-f", "/tmp/image")
    image = json.loads(added)["image"]["_id"]
    assert pulled(machine, image) == content
    told = machine.run("visor-gateway", "doctor", "--service", "--json", check=False).stdout
    findings = {each["check"]: each for each in json.loads(told)["findings"]}
    assert findings["daemon"]["message"].startswith("runs as process")
    assert findings["store file"]["level"] == findings["database"]["level"] == "ok", told
    machine.run("visor-admin", "backup", "--service", "/tmp/backup.tar")

    # Its records are lost, and come back.
    machine.systemctl("stop", HTTP, SERVICE)
    state = machine.root / "var/lib/private/visor-gateway"
    (state / "visor.sqlite3").unlink()
    (state / "master.key").unlink()
    machine.run("visor-admin", "restore", "--service", "/tmp/backup.tar")
    machine.systemctl("start", HTTP, SERVICE)
    assert pulled(machine, image) == content

    # Upgraded under it: the process goes on, with its modules; the new version serves after a restart, with the data.
    pid = machine.main_pid()
    said = dpkg(machine, "--install", "/packages/next.deb")
    assert "visor-gateway upgrade" in said
    assert machine.main_pid() == pid
    assert os.readlink(current) == NEXT
    assert versions(machine) == sorted([first, NEXT])
    assert pulled(machine, image) == content
    assert "# mine" in config.read_text()
    dpkg(machine, "--install", "/packages/next.deb")
    assert versions(machine) == sorted([first, NEXT])  # the process still uses the first
    machine.systemctl("restart", SERVICE)
    assert machine.main_pid() != pid
    assert NEXT.encode() in Path(f"/proc/{machine.main_pid()}/cmdline").read_bytes()
    assert pulled(machine, image) == content

    # The version that nobody uses goes with the next change.
    dpkg(machine, "--install", "/packages/next.deb")
    assert versions(machine) == [NEXT]
    assert pulled(machine, image) == content

    # Removed: the service has ended, programs and units are gone, configuration and data are not.
    dpkg(machine, "--remove", "visor-gateway")
    assert machine.property("LoadState") == "not-found"
    assert not (machine.root / PREFIX).exists()
    assert not (machine.root / "usr/bin/visor").is_symlink()
    assert "# mine" in config.read_text()
    assert (state / "visor.sqlite3").exists()
    wants = machine.root / "etc/systemd/system"
    assert [path for path in wants.glob("*.wants/visor-gateway*") if path.is_symlink()] == []

    # Purged: nothing is left but the data, which is named.
    said = dpkg(machine, "--purge", "visor-gateway")
    assert "/var/lib/private/visor-gateway" in said
    assert not config.parent.exists()
    assert not (machine.root / "var/cache/private/visor-gateway").exists()
    assert (state / "visor.sqlite3").exists()
    assert "visor-gateway" not in machine.run("dpkg-query", "--list", "visor-gateway", check=False).stdout
    assert machine.systemctl("--failed", "--no-legend", "--plain").split() == []


def test_the_same_sources_make_a_package_that_names_no_place_of_the_build(packages: tuple[Path, Path]) -> None:
    listed = subprocess.run(
        ["dpkg-deb", "--contents", packages[0]], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    names = [line.split(maxsplit=5)[5] for line in listed.splitlines()]
    assert not [name for name in names if "/activate" in name or name.endswith((".orig", "~"))]
    assert {line.split()[1] for line in listed.splitlines()} == {"root/root"}
    assert len({tuple(line.split()[3:5]) for line in listed.splitlines()}) <= 3  # the times of the last change

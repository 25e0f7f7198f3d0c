"""A real systemd as PID 1 of namespaces of its own, over an overlay of this host's root, with the gateway installed.

Nothing that is done in it reaches the host: files go to a tmpfs on top of the host's, the network is a loopback of its
own, processes live in a cgroup and a PID namespace that end with it. Tests act on it from outside: `Machine.run`
enters the namespaces, `Machine.root` is its file system, and inside `Machine.network` this thread's sockets are its.
"""

from __future__ import annotations

import compileall
import contextlib
import ctypes
import json
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from gateway_process import Gateway

from visor_gateway import __version__

BOOT_SECONDS = 90.0
COMMAND_SECONDS = 90.0
STOP_SECONDS = 60.0
ROOT = Path(__file__).parents[2]
SYSTEMD = Path("/lib/systemd/systemd")
SERVICE = "visor-gateway.service"
SOCKETS = tuple(path.name for path in sorted((ROOT / "systemd").glob("*.socket")))
URL = "http://127.0.0.1:4568"
#: Units of the distribution that would wait for devices or change what belongs to the host's kernel.
MASKED = (
    "systemd-udevd.service", "systemd-udev-trigger.service", "systemd-udevd-kernel.socket",
    "systemd-udevd-control.socket", "systemd-sysctl.service", "systemd-modules-load.service",
    "systemd-random-seed.service", "systemd-hwdb-update.service", "systemd-journal-catalog-update.service",
    "systemd-update-utmp.service", "systemd-binfmt.service", "kmod-static-nodes.service", "ldconfig.service",
    "proc-sys-fs-binfmt_misc.automount", "sys-kernel-config.mount", "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount", "sys-fs-fuse-connections.mount", "dev-hugepages.mount", "dev-mqueue.mount",
    "systemd-remount-fs.service", "systemd-firstboot.service", "apparmor.service", "modprobe@.service", "dbus.socket",
)  # fmt: skip

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_CLONE_NEWNET = 0x40000000
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)

# Run by bash inside the new namespaces. $1: an empty directory; then SOURCE TARGET pairs, mounted read-only. The number
# that the host knows it by goes to descriptor 3 just before systemd takes over.
_ENTER = r"""
set -eu
base=$1; shift
top=$base/top
mount -t tmpfs -o mode=0755 machine "$base"
mkdir "$base/upper" "$base/work" "$top"
mount -t overlay -o "lowerdir=/,upperdir=$base/upper,workdir=$base/work" machine "$top"
while [ $# -gt 0 ]; do
  mkdir -p "$top$2"
  mount --bind "$1" "$top$2"
  mount -o remount,bind,ro "$top$2"
  shift 2
done
read -r pid _ </proc/self/stat
mount -t proc proc "$top/proc"
# What is not the namespace's own stays the host's: read-only but for the network's.
for part in /proc/sys /proc/sys/net; do mount --bind "$top$part" "$top$part"; done
mount -o remount,bind,ro "$top/proc/sys"
mount --bind "$top/proc/sys/net" "$top/proc/sys/net"
mount -t sysfs -o ro,nosuid,nodev,noexec sysfs "$top/sys"
mount -t cgroup2 cgroup2 "$top/sys/fs/cgroup"
for place in run tmp dev; do mount -t tmpfs -o mode=0755 "$place" "$top/$place"; done
chmod 1777 "$top/tmp"
mkdir "$top/dev/pts" "$top/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$top/dev/pts"
mount -t tmpfs -o mode=1777 shm "$top/dev/shm"
for node in null zero full random urandom tty; do
  : >"$top/dev/$node"
  mount --bind "/dev/$node" "$top/dev/$node"
done
ln -s pts/ptmx "$top/dev/ptmx"
ln -s /proc/self/fd "$top/dev/fd"
for n in 0:stdin 1:stdout 2:stderr; do ln -s "/proc/self/fd/${n%:*}" "$top/dev/${n#*:}"; done
etc=$top/etc
rm -rf "$etc/systemd/system" "$etc/systemd/journald.conf.d"
mkdir -p "$etc/systemd/system" "$etc/systemd/journald.conf.d"
for unit in $MASKED; do ln -s /dev/null "$etc/systemd/system/$unit"; done
printf '[Journal]\nStorage=volatile\nRateLimitIntervalSec=0\n' >"$etc/systemd/journald.conf.d/machine.conf"
printf '%s\n' "$MACHINE_ID" >"$etc/machine-id"
printf 'machine\n' >"$etc/hostname"
: >"$etc/fstab"
cd "$top"
mkdir host
pivot_root . host
umount -l /host
# As a host's are: credentials reach a service by mounts that propagate.
mount --make-rshared /
printf '%s' "$pid" >&3
exec 3>&- env -i "PATH=$PATH" container=machine \
  /lib/systemd/systemd --system --unit=basic.target --show-status=no --log-target=journal
"""


class Machine:
    """A booted system.

    Attributes:
        pid: The number that this host knows its PID 1 by.
        root: Its file system, seen from here.
        begin: What the journal holds from before this moment (Unix time) belongs to tests that are over.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.root = Path(f"/proc/{pid}/root")
        self.begin = 0.0

    # --- commands ----------------------------------------------------------------------------------

    def command(self, *words: object, environment: Mapping[str, str] | None = None) -> list[str]:
        """The command that runs `words` in it, as root, for those who start it themselves."""
        enter = ["nsenter", f"--target={self.pid}", "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup"]
        variables = {"PATH": _PATH, "HOME": "/root", "LANG": "C.UTF-8", "SYSTEMD_PAGER": "cat"}
        if sys.base_prefix != "/usr":
            variables["LD_LIBRARY_PATH"] = f"{_PYTHON}/lib"
        variables |= environment or {}
        return [*enter, "env", "-i", *(f"{name}={value}" for name, value in variables.items()), *map(str, words)]

    def run(
        self, *words: object, check: bool = True, timeout: float = COMMAND_SECONDS, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in it to its end. Its failure fails the test unless `check` is off.

        Args:
            options: `environment` for the command's own, the rest for `subprocess.run`.
        """
        command = self.command(*words, environment=options.pop("environment", None))
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, **options)
        assert not check or done.returncode == 0, (
            f"{words} ended with {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}\n{self.tail()}"
        )
        return done

    def systemctl(self, *words: object, check: bool = True, timeout: float = COMMAND_SECONDS) -> str:
        """`systemctl`, and what it printed."""
        return self.run("systemctl", *words, check=check, timeout=timeout).stdout

    # --- network -----------------------------------------------------------------------------------

    @contextmanager
    def network(self) -> Generator[None]:
        """Sockets that this thread, and threads it starts, open in the block are of the machine's network."""
        with open("/proc/thread-self/ns/net", "rb") as ours, open(f"/proc/{self.pid}/ns/net", "rb") as theirs:
            _enter_network(theirs.fileno())
            try:
                yield
            finally:
                _enter_network(ours.fileno())

    # --- units ---------------------------------------------------------------------------------------

    def show(self, *names: str, unit: str = SERVICE) -> dict[str, str]:
        """Properties of a unit."""
        shown = self.systemctl("show", unit, *(f"--property={name}" for name in names))
        return dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)

    def property(self, name: str, unit: str = SERVICE) -> str:
        """One property of a unit."""
        return self.show(name, unit=unit).get(name, "")

    def main_pid(self, unit: str = SERVICE) -> int:
        """The main process of a unit, as this host numbers it; 0 if there is none, or if it has just ended."""
        return self.outside(int(self.property("MainPID", unit)))

    def outside(self, inside: int) -> int:
        """The number that this host knows a process by which the machine numbers `inside`; 0 if it is gone."""
        return self._numbering().get(inside, 0)

    def _numbering(self) -> dict[int, int]:
        """The host's numbers of its processes by their own."""
        namespace = os.stat(f"/proc/{self.pid}/ns/pid").st_ino
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                with contextlib.suppress(OSError):
                    if os.stat(entry / "ns" / "pid").st_ino == namespace:
                        found[_numbers(entry)[-1]] = int(entry.name)
        return found

    def processes(self, unit: str = SERVICE) -> list[int]:
        """All processes of a unit, as this host numbers them."""
        group = self.property("ControlGroup", unit)
        if not group:
            return []
        # `cat` inside: the file shows each reader the numbers of his own namespace.
        listed = self.run("cat", f"/sys/fs/cgroup{group}/cgroup.procs", check=False).stdout
        numbering = self._numbering()
        return [numbering[int(line)] for line in listed.split() if int(line) in numbering]

    def wait_for_state(self, *states: str, unit: str = SERVICE, seconds: float = COMMAND_SECONDS) -> None:
        """Return once the unit is in one of the states, such as `active`."""
        self.wait_until(lambda: self.property("ActiveState", unit) in states, f"{unit} to be {states}", seconds)

    def wait_until(self, condition: Callable[[], Any], what: str, seconds: float = COMMAND_SECONDS) -> Any:
        """The first true value of `condition()`; fails with the end of the journal when none comes in time."""
        deadline = time.monotonic() + seconds
        while not (value := condition()):
            assert time.monotonic() < deadline, f"{what}: not within {seconds} s\n{self.tail()}"
            time.sleep(0.1)
        return value

    def drop_in(self, name: str, text: str, unit: str = SERVICE) -> None:
        """Add to a unit's settings, or replace what was added under that name."""
        directory = self.root / "etc/systemd/system" / f"{unit}.d"
        directory.mkdir(exist_ok=True)
        (directory / f"{name}.conf").write_text(text)
        self.systemctl("daemon-reload")

    def journal(self, unit: str | None = SERVICE, *words: str) -> list[dict[str, Any]]:
        """What the journal holds of a unit since `begin`, oldest first; of everything for None."""
        self.run("journalctl", "--sync")  # what was sent before is to be found
        chosen = [f"--since=@{self.begin:.6f}", *([] if unit is None else [f"--unit={unit}"])]
        printed = self.run("journalctl", "--output=json", "--all", "--no-pager", "--quiet", *chosen, *words).stdout
        return [json.loads(line) for line in printed.splitlines()]

    def messages(self, unit: str | None = SERVICE, *words: str) -> str:
        """The journal's messages as text, a line each."""
        return "\n".join(str(entry.get("MESSAGE", "")) for entry in self.journal(unit, *words))

    def tail(self) -> str:
        """The end of the whole journal, for who has to find out why something failed."""
        command = self.command("journalctl", "--no-pager", "--lines=60", "--output=short-precise")
        with contextlib.suppress(subprocess.TimeoutExpired):
            return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False).stdout
        return ""

    # --- the gateway -----------------------------------------------------------------------------------

    def gateway(self, url: str = URL) -> Gateway:
        """The installed gateway, with its first user. Speak to it inside `network`."""
        path = self.root / "var/lib/visor-gateway/admin.toml"
        self.wait_until(path.exists, "admin.toml")
        admin = tomllib.loads(path.read_text())
        return Gateway(url, admin["access_key"], admin["secret_key"])


def _enter_network(fd: int) -> None:
    if _libc.setns(fd, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


def _numbers(process: Path) -> list[int]:
    """The numbers of a process, from that of the host to that of the innermost namespace."""
    for line in (process / "status").read_text().splitlines():
        if line.startswith("NSpid:"):
            return [int(word) for word in line.split()[1:]]
    raise OSError("no NSpid")


# --- boot ---------------------------------------------------------------------------------------------


@contextmanager
def boot(here: Path, mounts: Mapping[Path, str] | None = None) -> Generator[Machine]:
    """A machine for the length of a block; where it can't be had, the test is skipped.

    Args:
        here: A throw-away directory.
        mounts: Directories of the host, and where in the machine they are to be seen, read-only.
    """
    _need_programs()
    base = here / "machine"
    base.mkdir(parents=True)
    with _cgroup() as cgroup, open(here / "boot.log", "w+b") as log:
        read, write = os.pipe()
        pairs = [word for source, target in (mounts or {}).items() for word in (str(source), target)]
        # It joins its cgroup before the namespaces are made, so that this is the root that systemd sees.
        words = ["unshare", "--mount", "--propagation=private", "--pid", "--uts", "--ipc", "--cgroup", "--net"]
        words += ["--fork", "--kill-child=SIGKILL", "bash", "-c", _ENTER, "machine", str(base), *pairs]
        process = subprocess.Popen(
            ["bash", "-c", f'exec 3>&{write} {write}>&-; echo $$ >"$0/cgroup.procs" && exec "$@"', cgroup, *words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[write],
            cwd="/",
            env={"PATH": _PATH, "MASKED": " ".join(MASKED), "MACHINE_ID": secrets.token_hex(16)},
            preexec_fn=_end_with_parent,
        )
        os.close(write)
        told = b""
        try:
            with open(read, "rb") as pipe:
                # Not to its end: `unshare` keeps the other one.
                told = os.read(pipe.fileno(), 32) if select.select([pipe], [], [], BOOT_SECONDS)[0] else b""
            if not told:
                process.kill()
                process.wait(STOP_SECONDS)
                log.seek(0)
                reason = log.read().decode("utf-8", "replace").strip().splitlines()[-1:]
                pytest.skip(f"no namespaces to boot systemd in: {' '.join(reason)}")
            machine = Machine(int(told))
            _wait_until_up(machine, process)
            yield machine
        finally:
            _end(process, int(told) if told else 0)


def _end_with_parent() -> None:
    """A test run that is killed leaves no machine behind."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _need_programs() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can boot systemd in namespaces")
    for program in ("unshare", "nsenter", "mount", "systemctl", "journalctl"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    if not SYSTEMD.exists():
        pytest.skip("systemd is not installed")


@contextmanager
def _cgroup() -> Generator[str]:
    """A cgroup of version 2 for the machine."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    places = [words[1] for words in mounts if words[2] == "cgroup2"]
    if not places:
        pytest.skip("no cgroup2 is mounted")
    for left in Path(places[0]).glob("visor-gateway-test-*"):
        # By a test run that was killed.
        if not Path("/proc", left.name.split("-")[3]).exists():
            _removed(left)
    top = Path(places[0], f"visor-gateway-test-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        top.mkdir()
    except OSError as exc:
        pytest.skip(f"no cgroup for systemd: {exc.strerror}")
    try:
        yield str(top)
    finally:
        deadline = time.monotonic() + STOP_SECONDS
        while not _removed(top) and time.monotonic() < deadline:
            time.sleep(0.05)


def _removed(top: Path) -> bool:
    """Remove a cgroup and those below it. Fails while the kernel still buries their processes."""
    for directory, _, _ in os.walk(top, topdown=False):
        with contextlib.suppress(OSError):
            os.rmdir(directory)
    return not top.exists()


def _wait_until_up(machine: Machine, process: subprocess.Popen[bytes]) -> None:
    def is_up() -> bool:
        assert process.poll() is None, "systemd ended"
        asked = machine.run("systemctl", "is-active", "basic.target", check=False)
        return asked.stdout.strip() == "active"

    machine.wait_until(is_up, "systemd to boot", BOOT_SECONDS)


def _end(process: subprocess.Popen[bytes], pid: int) -> None:
    """End PID 1, and with it everything in its namespace."""
    with contextlib.suppress(ProcessLookupError):
        # It still is ours: the program that started it has not reaped it.
        if pid and process.poll() is None:
            os.kill(pid, signal.SIGKILL)
    if not pid:
        process.kill()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(STOP_SECONDS)


# --- the installed gateway ---------------------------------------------------------------------------

_PYTHON = "/opt/python"
_DEPENDENCIES = "/opt/dependencies"
#: Blocks the event loop of the process that gets SIGUSR1, as a call that never returns would.
_SITECUSTOMIZE = """
import signal, time
signal.signal(signal.SIGUSR1, lambda number, frame: time.sleep(3600))
"""
_SCRIPT = """#!{python}
import sys
from {module} import {function}
sys.argv[0] = {name!r}
sys.exit({function}())
"""


def mounts() -> dict[Path, str]:
    """What `install` needs of the host: Python, where it is not the distribution's, and what the gateway imports."""
    import trio

    needed = {Path(trio.__file__).parents[1]: _DEPENDENCIES}
    if sys.base_prefix != "/usr":
        needed[Path(sys.base_prefix)] = _PYTHON
    return needed


def install(machine: Machine, version: str = __version__) -> Path:
    """Install the gateway of this tree as `/opt/visor-gateway/VERSION`. Returns that folder, seen from here.

    It is what a virtual environment with the wheel is, but for the dependencies, which are the host's; `mounts` must
    have been given to `boot`. `/opt/visor-gateway/current` is not touched.
    """
    inside = f"/opt/visor-gateway/{version}"
    place = machine.root / inside.lstrip("/")
    home = "/usr" if sys.base_prefix == "/usr" else _PYTHON
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = place / "lib" / name / "site-packages"
    packages.mkdir(parents=True)
    (place / "bin").mkdir()
    (place / "bin" / "python").symlink_to(f"{home}/bin/{name}")
    (place / "pyvenv.cfg").write_text(f"home = {home}/bin\ninclude-system-site-packages = false\n")
    shutil.copytree(ROOT / "visor_gateway", packages / "visor_gateway", symlinks=True)
    # Its user may write nothing there, and would compile it at each start.
    compileall.compile_dir(packages / "visor_gateway", quiet=2)
    (packages / "dependencies.pth").write_text(f"{_DEPENDENCIES}\n")
    (packages / "sitecustomize.py").write_text(_SITECUSTOMIZE)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for program, where in project["scripts"].items():
        module, _, function = where.partition(":")
        script = place / "bin" / program
        script.write_text(_SCRIPT.format(python=f"{inside}/bin/python", module=module, function=function, name=program))
        script.chmod(0o755)
    _find_shared_python(machine)
    return place


def _find_shared_python(machine: Machine) -> None:
    """Have the loader find the library of a Python that was built with one, for it looks where that was built."""
    if sys.base_prefix != "/usr":
        machine.systemctl("set-environment", f"LD_LIBRARY_PATH={_PYTHON}/lib")


def select_version(machine: Machine, version: str = __version__) -> None:
    """Have `/opt/visor-gateway/current` lead to a version."""
    current = machine.root / "opt/visor-gateway/current"
    beside = current.with_name("next")
    beside.symlink_to(version)
    beside.rename(current)


def units() -> list[Path]:
    """The units that the repository ships."""
    return sorted(path for path in (ROOT / "systemd").iterdir() if path.suffix in {".service", ".socket"})


def shipped_drop_in(name: str) -> str:
    """The text of a drop-in of the service that the repository ships."""
    return (ROOT / "systemd" / "drop-ins" / f"{name}.conf").read_text()


def install_units(machine: Machine) -> None:
    """Put the units in place, as they are."""
    for path in units():
        shutil.copyfile(path, machine.root / "etc/systemd/system" / path.name)
    machine.systemctl("daemon-reload")


# --- the running gateway -------------------------------------------------------------------------------


@contextmanager
def serving(
    machine: Machine,
    *,
    config: str | None = None,
    drop_ins: Mapping[str, str] | None = None,
    credentials: Mapping[str, str | bytes] | None = None,
) -> Generator[Gateway]:
    """The installed service, started anew and without a past, for the length of a block; this thread is in its network.

    Args:
        config: Text of its configuration file.
        drop_ins: Further settings of the service, by name.
        credentials: What is in the host's store of credentials, by the gateway's names.
    """
    clear(machine)
    if config is not None:
        configure(machine, config)
    for name, content in (credentials or {}).items():
        place = machine.root / "etc/credstore" / f"visor-gateway.{name}"
        place.parent.mkdir(mode=0o700, exist_ok=True)
        place.touch(mode=0o600)
        place.write_bytes(content if isinstance(content, bytes) else content.encode())
    for name, text in (drop_ins or {}).items():
        machine.drop_in(name, text)
    try:
        machine.systemctl("start", *SOCKETS, SERVICE)
        with machine.network():
            yield machine.gateway()
    finally:
        clear(machine)


def configure(machine: Machine, text: str) -> None:
    """Write the configuration file of the service."""
    directory = machine.root / "etc/visor-gateway"
    directory.mkdir(exist_ok=True)
    (directory / "visor-gateway.toml").write_text(text)


def clear(machine: Machine) -> None:
    """End the service without a drain, and remove its drop-ins, its configuration and all that it has stored."""
    machine.systemctl("stop", "--no-block", SERVICE, *SOCKETS)
    machine.systemctl("kill", "--signal=KILL", SERVICE, check=False)
    machine.wait_for_state("inactive", "failed")
    machine.systemctl("stop", *SOCKETS)
    for name in (SERVICE, *SOCKETS):
        shutil.rmtree(machine.root / "etc/systemd/system" / f"{name}.d", ignore_errors=True)
    for place in ("etc/visor-gateway", "etc/credstore"):
        shutil.rmtree(machine.root / place, ignore_errors=True)
    for parent in ("var/lib", "var/cache"):
        for place in (machine.root / parent / "visor-gateway", machine.root / parent / "private/visor-gateway"):
            if place.is_symlink():
                place.unlink()
            shutil.rmtree(place, ignore_errors=True)
    machine.systemctl("daemon-reload")
    machine.systemctl("reset-failed")
    machine.run("journalctl", "--sync")
    machine.begin = time.time()

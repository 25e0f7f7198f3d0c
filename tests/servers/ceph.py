"""Ceph's RADOS Gateway over one monitor and one object server (Debian: `ceph-mon ceph-osd radosgw`)."""

from __future__ import annotations

import subprocess
import uuid
from pathlib import Path

from canary import canary
from servers.s3_service import S3Service, free_base, listens, program, service

_CONFIGURATION = """\
[global]
fsid = {fsid}
mon host = [v1:127.0.0.1:{monitor}/0]
mon initial members = a
public addr = 127.0.0.1
cluster addr = 127.0.0.1
public network = 127.0.0.0/8
cluster network = 127.0.0.0/8
ms bind msgr2 = false
ms bind ipv6 = false
auth cluster required = none
auth service required = none
auth client required = none
auth allow insecure global id reclaim = false
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pgp num = 8
osd crush chooseleaf type = 0
osd class update on start = false
osd crush update on start = false
mon max pg per osd = 1000
mon allow pool size one = true
mon warn on pool no redundancy = false
mon pg warn min per osd = 0
osd pool default pg autoscale mode = off
run dir = {directory}/run
admin socket = {directory}/run/$name.asok
pid file = {directory}/run/$name.pid
log file = {directory}/log/$name.log
mon data = {directory}/mon
osd data = {directory}/osd
osd objectstore = memstore
memstore device bytes = 4294967296
osd memory target = 1073741824
mon data avail crit = 1
mon osd full ratio = .97
mon osd nearfull ratio = .96
mon osd backfillfull ratio = .965
debug mon = 0
debug osd = 0
debug rgw = 0
debug ms = 0
[client.rgw.a]
rgw frontends = beast endpoint=127.0.0.1:{port}
rgw enable usage log = false
"""


def start() -> S3Service:
    """Start it, with the bucket `visor`. The caller stops it."""
    monitor, objects, gateway = program("ceph-mon"), program("ceph-osd"), program("radosgw")
    port = free_base(0, 1)
    running = service("ceph", port, canary.secret("AKID"), canary.secret("s3/cr+t"))
    directory, fsid = running.directory, str(uuid.uuid4())
    for name in ("mon", "osd", "run", "log"):
        (directory / name).mkdir()
    configuration = directory / "ceph.conf"
    configuration.write_text(_CONFIGURATION.format(fsid=fsid, monitor=port + 1, port=port, directory=directory))
    options = ["-c", configuration]
    _run(
        "monmaptool",
        "--create",
        "--clobber",
        "--addv",
        "a",
        f"[v1:127.0.0.1:{port + 1}/0]",
        "--fsid",
        fsid,
        directory / "map",
    )
    _run(monitor, *options, "--mkfs", "-i", "a", "--monmap", directory / "map")
    running.run(monitor, *options, "-f", "-i", "a")
    running.until(lambda: _works("ceph", *options, "-s"), "monitor")
    number = str(uuid.uuid4())
    _run("ceph", *options, "osd", "new", number, "0")
    _run(objects, *options, "-i", "0", "--mkfs", "--osd-uuid", number)
    _run("ceph", *options, "osd", "crush", "add", "osd.0", "1.0", "root=default", "host=h1")
    running.run(objects, *options, "-f", "-i", "0")
    running.until(lambda: "1 up" in _works("ceph", *options, "osd", "stat"), "object server")
    running.run(gateway, *options, "-f", "-n", "client.rgw.a")
    running.until(lambda: listens(port), "gateway")
    _run(
        "radosgw-admin", *options, "-n", "client.rgw.a", "user", "create", "--uid", "visor", "--display-name", "visor",
        "--access-key", running.access_key, "--secret-key", running.secret_key,
    )  # fmt: skip
    running.make_bucket("visor")
    return running


def _run(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def _works(*command: str | Path) -> str:
    """What a program says; "" where it fails or hangs."""
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=10)
    except subprocess.TimeoutExpired:
        return ""
    return done.stdout if done.returncode == 0 else ""

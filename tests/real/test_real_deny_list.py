"""The daemon under strace: no address of the deny list is ever connected to, whatever a client or an origin names.

Names are resolved by a resolver of this test's own, which records what it was asked and lies about where names lead.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from gateway_process import Gateway, running
from origin_server import Origin
from tracing import completed, traced
from wire import eventually, unique

#: Names and the addresses that look-ups of them give in turn; the last answer stays.
NAMES: dict[str, list[list[str]]] = {
    "origin.test": [["127.0.0.1"]],
    "loopback.test": [["127.0.0.1"]],
    "private.test": [["10.0.0.5"]],
    "shared.test": [["100.64.0.1"]],
    "zero.test": [["0.0.0.0"]],
    "metadata.test": [["169.254.169.254"]],
    "multicast.test": [["224.0.0.1"]],
    "six.test": [["::1"]],
    "mapped.test": [["::ffff:127.0.0.1"]],
    "nat64.test": [["64:ff9b::7f00:1"]],
    "local.test": [["fd00::1", "fe80::1"]],
    "mixed.test": [["93.184.215.14", "127.0.0.1"]],
    "rebinding.test": [["127.0.0.1"], ["10.0.0.5"], ["::ffff:7f00:1"]],
}
#: Hosts of the deny list as a URL may spell them.
HOSTS = [
    *(name for name in NAMES if name != "origin.test"),
    "loopback.test.",
    "LOOPBACK.test",
    "localhost",
    "localhost.",
    "127.0.0.1",
    "127.0.0.1.",
    "127.1",
    "127.0.1",
    "2130706433",
    "0x7f000001",
    "0x7f.1",
    "0177.0.0.1",
    "017700000001",
    "0",
    "0.0.0.0",
    "10.1",
    "0xa9fea9fe",
    "100.64.0.1",
    "224.0.0.1",
    "255.255.255.255",
    "[::1]",
    "[::]",
    "[0:0:0:0:0:0:0:1]",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[::127.0.0.1]",
    "[64:ff9b::7f00:1]",
    "[64:ff9b:1::7f00:1]",
    "[2002:7f00:1::]",
    "[fe80::1]",
    "[fe80::1%25lo]",
    "[fc00::1]",
    "[ff02::1]",
    "user@127.0.0.1",
    "images.example@127.0.0.1",
    "127.0.0.1%2f@images.invalid",
    "%31%32%37.0.0.1",
    "127。0。0。1",
    "①②⑦.0.0.1",
]

_DAEMON = """\
import json, socket, sys
names, record = json.loads(sys.argv.pop(1)), open(sys.argv.pop(1), "a", buffering=1)
system = socket.getaddrinfo
def getaddrinfo(host, port, family=0, type=0, proto=0, flags=0):
    name = host.decode() if isinstance(host, bytes) else host
    answers = names.get((name or "").lower().removesuffix("."))
    if answers is None or flags & socket.AI_NUMERICHOST:
        return system(host, port, family, type, proto, flags)
    record.write(name + "\\n")
    addresses = answers.pop(0) if len(answers) > 1 else answers[0]
    return [found for each in addresses for found in system(each, port, family, type, proto, socket.AI_NUMERICHOST)]
socket.getaddrinfo = getaddrinfo
from visor_gateway.cli.gateway import main
sys.argv[0] = "visor-gateway"
main()
"""


@pytest.fixture
def origin() -> Iterator[Origin]:
    origin = Origin()
    yield origin
    origin.close()


@pytest.fixture
def lookups(tmp_path: Path) -> Path:
    return tmp_path / "lookups"


@pytest.fixture
def gateway(tmp_path: Path, origin: Origin, lookups: Path) -> Iterator[Gateway]:
    """A daemon that may take images from the origin by its name and from nowhere else on this host."""
    program = tmp_path / "daemon.py"
    program.write_text(_DAEMON)
    config = f'[locations]\nallow_hosts = ["origin.test:{origin.port}"]\n'
    command = [sys.executable, str(program), json.dumps(NAMES), str(lookups)]
    with running(tmp_path / "gateway", config=config, program=command) as gateway:
        yield gateway


def connections(trace: Path) -> set[tuple[str, int]]:
    """Addresses and ports of TCP that were connected to. A datagram socket's `connect` sends nothing: the system's
    resolver sorts addresses by it."""
    found = set()
    for call in completed(trace):
        if not call.startswith("connect(") or "AF_UNIX" in call or "<UDP" in call:
            continue
        address = re.search(r'(?:inet_addr\(|AF_INET6, )"([^"]+)"', call)
        port = re.search(r"htons\((\d+)\)", call)
        assert address is not None, call
        assert port is not None, call
        found.add((address[1], int(port[1])))
    return found


def test_no_denied_address_is_ever_connected_to(
    gateway: Gateway, origin: Origin, lookups: Path, tmp_path: Path
) -> None:
    good = origin.put("good", b"bytes of an image")
    through = good.replace("127.0.0.1", "origin.test")
    trace = tmp_path / "trace"
    with traced(gateway, trace, "-yy", "-e", "trace=connect,sendto,sendmsg"):
        for host in HOSTS:
            target = f"http://{host}:{origin.port}/good"
            # Header values are UTF-8; a Location is ASCII.
            redirect = through.replace("/good", f"/to?{quote(target, safe=':/@%[]?&=')}")
            for location in (target, redirect):
                for store in ("http", "file"):
                    answer = gateway.admin.add(name=unique("denied"), store=store, location=location)
                    assert answer.status in (400, 404), (location, answer.status)
        # The probe sees what is allowed, by the way of a reference and of an import.
        reference = gateway.admin.add(store="http", location=through).image
        assert gateway.admin.get(f"/images/{reference['_id']}").body == b"bytes of an image"
        imported = gateway.admin.add(store="file", location=through).image
        eventually(lambda: gateway.admin.record(imported["_id"])["status"] == "available")
    assert connections(trace) == {("127.0.0.1", origin.port)}
    asked = set(lookups.read_text().split())
    assert {"private.test", "mixed.test", "rebinding.test", "origin.test"} <= asked


def test_an_allowed_origin_may_not_send_a_later_pull_inside(gateway: Gateway, origin: Origin, tmp_path: Path) -> None:
    """What was a file when it was referred to is a redirect when it is pulled."""
    through = origin.put("turns", b"bytes of an image").replace("127.0.0.1", "origin.test")
    image = gateway.admin.add(store="http", location=through).image
    trace = tmp_path / "trace"
    with traced(gateway, trace, "-yy", "-e", "trace=connect"):
        origin.moved["/turns"] = f"http://rebinding.test:{origin.port}/good"
        answer = gateway.admin.get(f"/images/{image['_id']}")
        assert answer.status in (502, 503)
    assert connections(trace) <= {("127.0.0.1", origin.port)}
    assert [path for _, path, _ in origin.seen if path == "/good"] == []
